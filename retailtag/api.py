"""The verbs as functions: what every command calls, and what ``import retailtag`` offers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retailtag.errors import UsageError
from retailtag.progress import SILENT, Progress
from retailtag.settings import BakeoffSettings
from retailtag.settings_file import SETTINGS_FILE, write_settings
from retailtag.verbs import USES, resolve

if TYPE_CHECKING:
    from retailtag.backbones.backbone import Backbone
    from retailtag.bakeoffs.plan import PlannedStage
    from retailtag.bakeoffs.run import BakeoffRun
    from retailtag.context import RunContext
    from retailtag.extraction.engines import ChosenEngine
    from retailtag.extraction.extract import ExtractSummary
    from retailtag.fields import Section
    from retailtag.finetuning.search import Ranking
    from retailtag.runs.finetune import FinetuneRun
    from retailtag.runs.probe import ProbeRun

RUNS = Path("runs")  # where probes and fine-tunes go by default


def extract(
    catalog: Any,
    backbones: str | Sequence[str] | None = None,
    *,
    settings: BakeoffSettings | Section | None = None,
    strict: bool = False,
    recompute: bool = False,
    shard: str | None = None,
    progress: Progress = SILENT,
    **options: Any,
) -> list[tuple[ExtractSummary, ChosenEngine]]:
    """Compute the frozen embeddings of a catalogue's images, once; continues where it stopped."""
    from retailtag.backbones import load_backbone
    from retailtag.backbones.ids import local_weights
    from retailtag.extraction.engines import choose_engine
    from retailtag.extraction.extract import extract_together
    from retailtag.extraction.shards import WHOLE, Shard

    s = _settings("extract", settings, options, backbones)
    context = _context(catalog, s, progress)
    rows = WHOLE if shard is None else Shard.parse(shard)
    ids = list(dict.fromkeys(s.backbones))
    local = local_weights(s.compute.weights, ids)
    models = [load_backbone(i, weights=local.get(i), device=context.device) for i in ids]
    engines = [choose_engine(context, model, s.extract, shard=rows) for model in models]
    embedders = [chosen.embedder for chosen in engines]
    summaries = extract_together(
        context, embedders, s.extract, strict=strict, recompute=recompute, shard=rows
    )
    return list(zip(summaries, engines, strict=True))


def probe(
    catalog: Any,
    backbone: str | None = None,
    *,
    settings: BakeoffSettings | Section | None = None,
    progress: Progress = SILENT,
    **options: Any,
) -> ProbeRun:
    """Fit a probe for every tag and C, choose C and thresholds out of fold, predict."""
    from retailtag.backbones.ids import local_weights
    from retailtag.extraction.stores import EngineRequest
    from retailtag.runs.embeddings import find_embeddings, find_texts
    from retailtag.runs.probe import check_probe_settings, run_probe

    s = _settings("probe", settings, options, backbone)
    backbone = only_backbone("probe", s)
    check_probe_settings(s.probe)
    context = _context(catalog, s, progress)
    local = local_weights(s.compute.weights, [backbone])
    tags, device = context.catalog.table.tags, context.device
    texts = find_texts(s.probe.heads, backbone, tags, weights=local, device=device)
    store = find_embeddings(
        s.compute.features,
        backbone,
        weights=local,
        device=device,
        dtype=s.extract.dtype,
        allow_truncated=s.reading.allow_truncated,
        request=EngineRequest.to_read(s.extract),
        progress=progress,
    )
    out = folder_of("probe", s)
    run = run_probe(context, store, out, s.probe, texts=texts)
    _keep_settings("probe", out, s, catalog)
    return run


def finetune(
    catalog: Any,
    backbone: str | None = None,
    *,
    settings: BakeoffSettings | Section | None = None,
    probe: Path | str | None = None,
    search: int = 0,
    seeds: int = 1,
    progress: Progress = SILENT,
    **options: Any,
) -> tuple[list[FinetuneRun], Ranking | None]:
    """Retrain the last blocks, choose epoch and thresholds on a validation set, predict."""
    from retailtag.backbones import load_backbone, resolve_id
    from retailtag.backbones.ids import local_weights
    from retailtag.bakeoffs.request import pair_folder
    from retailtag.extraction.embedder import identity
    from retailtag.extraction.stores import EngineRequest, find_store
    from retailtag.finetuning.checks import check_finetune_settings
    from retailtag.probes.artefact import Probe
    from retailtag.runs.finetune import run_finetune, run_seeds
    from retailtag.runs.finetune_search import search_settings

    s = _settings("finetune", settings, options, backbone)
    backbone = only_backbone("finetune", s)
    check_finetune_settings(s.finetune)
    resolve_id(backbone)  # refuses A+B before its probe is missed
    fitted = Probe.load(Path(probe) if probe else pair_folder(RUNS, backbone, "probe"))
    context = _context(catalog, s, progress)
    weights = local_weights(s.compute.weights, [backbone]).get(backbone)

    def load() -> Backbone:
        return load_backbone(backbone, weights=weights, device=context.device)

    model = load()
    store = find_store(
        s.compute.features,
        identity(model, s.extract.dtype, allow_truncated=s.reading.allow_truncated),
        EngineRequest.to_read(s.extract),
        fitted=fitted.facts.get("features"),
        progress=progress,
    )
    out, config, ranking = folder_of("finetune", s), s.finetune, None
    if search:
        config, ranking = search_settings(context, store, load, fitted, out, config, search)
    if seeds > 1:
        runs = run_seeds(context, store, load, fitted, out, config, seeds)
    else:
        runs = [run_finetune(context, store, model, fitted, out, config)]
    _keep_settings("finetune", out, replace(s, finetune=config), catalog)
    return runs, ranking


def bakeoff(
    catalog: Any,
    backbones: str | Sequence[str] | None = None,
    *,
    settings: BakeoffSettings | Section | None = None,
    command: str = "",
    progress: Progress = SILENT,
    **options: Any,
) -> BakeoffRun:
    """Extract, probe, fine-tune, measure, score, decide and report; a second run resumes."""
    from retailtag.bakeoffs.run import run_bakeoff

    s = _settings("bakeoff", settings, options, backbones)
    context = _context(catalog, s, progress)
    run = run_bakeoff(
        context.catalog,
        s,
        provenance=dict(context.provenance),
        command=command,
        progress=progress,
    )
    _keep_settings("bakeoff", folder_of("bakeoff", s), s, catalog)
    return run


def plan(catalog: Any, *, settings: BakeoffSettings) -> list[PlannedStage]:
    """Stages that `bakeoff` would run, with estimates; runs nothing."""
    from retailtag.bakeoffs.plan import plan_bakeoff

    return plan_bakeoff(_context(catalog, settings, SILENT).catalog, settings)


def folder_of(verb: str, settings: BakeoffSettings) -> Path:
    """Folder of a run: the one asked for, or the default of the verb."""
    from retailtag.bakeoffs.request import DEFAULT_OUT, pair_folder

    if settings.out is not None:
        return settings.out
    return DEFAULT_OUT if verb == "bakeoff" else pair_folder(RUNS, settings.backbones[0], verb)


def only_backbone(verb: str, settings: BakeoffSettings) -> str:
    """The one backbone of a verb that takes one.

    Raises
    ------
    UsageError
        If there are several.
    """
    if len(settings.backbones) > 1:
        raise UsageError(
            f"{verb} takes one backbone, not {', '.join(settings.backbones)}; run it for each, or "
            "join them with + to probe their embeddings side by side."
        )
    return settings.backbones[0]


def _settings(
    verb: str,
    settings: BakeoffSettings | Section | None,
    options: Mapping[str, Any],
    backbones: str | Sequence[str] | None,
) -> BakeoffSettings:
    found, _ = resolve(verb, settings, {**options, "backbones": backbones})
    return found


def _context(catalog: Any, settings: BakeoffSettings, progress: Progress) -> RunContext:
    """Read the catalogue, unless it is one, with what the runs over it share."""
    from retailtag.catalog.catalog import Catalog
    from retailtag.catalog.readers import read_catalog
    from retailtag.catalog.table import GroupCutoffs
    from retailtag.context import RunContext

    s = settings.catalog
    provenance = {}
    if not isinstance(catalog, Catalog):
        if isinstance(catalog, str | Path):
            provenance = {
                "catalog": str(catalog),
                "catalog_args": {
                    "attributes": list(s.attributes),
                    "images": None if s.images is None else str(s.images),
                    "cutoffs": s.cutoffs,
                },
            }
            catalog = Path(catalog)
        catalog = read_catalog(
            catalog,
            attributes=s.attributes,
            images=s.images,
            cutoffs=GroupCutoffs.parse(s.cutoffs),
            max_bytes=settings.reading.max_bytes,
        )
    return RunContext(catalog, settings.reading, settings.compute, provenance, progress)


def _keep_settings(verb: str, out: Path, settings: BakeoffSettings, catalog: Any) -> None:
    """Write the settings of a run beside its files, so that ``--config`` repeats it."""
    path = Path(catalog) if isinstance(catalog, str | Path) else None
    whole = replace(settings, out=out, catalog=replace(settings.catalog, path=path))
    write_settings(out / SETTINGS_FILE, whole, {*USES[verb], "catalog.path"})
