"""The verbs as functions: what every command calls, and what ``import retailtag`` offers.

Every function takes the options of its command as keywords, with underscores (``sweep_C``,
``allow_truncated``), and ``settings``: `BakeoffSettings`, one of its sections, or the path of a
TOML file. Options override settings. A catalogue is a path, a pandas or PyArrow table, a list of
records or a `Catalog`. `progress` hears how far a call is; by default nothing is shown.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from retailtag.errors import UsageError
from retailtag.inputs import (
    Settings,
    drift_reference,
    images_to_time,
    limits_of,
    numbers,
    path_of,
    paths_of,
    pictures_of,
    read_source,
    run_context,
    settings_of,
    tagger_of,
    to_score,
    with_own_weights,
)
from retailtag.lock import only_writer
from retailtag.progress import SILENT, Progress
from retailtag.ranks import ALONE, Ranks, joined
from retailtag.settings import AUTO, BakeoffSettings, ProbeSettings
from retailtag.settings_file import SETTINGS_FILE, write_settings
from retailtag.verbs import USES

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

    from retailtag.backbones.backbone import Backbone
    from retailtag.bakeoffs.plan import PlannedStage
    from retailtag.catalog.catalog import Catalog
    from retailtag.catalog.products import Grouping, ReadEmbeddings
    from retailtag.catalog.split import SplitCatalog
    from retailtag.context import RunContext
    from retailtag.extraction.imports import Imported
    from retailtag.outcomes import (
        AuditOutcome,
        BakeoffOutcome,
        CompareOutcome,
        DriftOutcome,
        ExportOutcome,
        ExtractOutcome,
        FinetuneOutcome,
        LatencyOutcome,
        ProbeOutcome,
        ScoreOutcome,
        SimilarEvaluation,
        SimilarOutcome,
        TuneOutcome,
    )
    from retailtag.predictions import Predictions
    from retailtag.probes.artefact import Probe
    from retailtag.probes.solver.fits import ProbeFits
    from retailtag.runs.predict import Predicting
    from retailtag.runs.similar import Gallery
    from retailtag.runs.vectors import ExportedVectors
    from retailtag.store import FeatureStore
    from retailtag.tagger.tagger import Tagger

RUNS = Path("runs")  # where probes and fine-tunes go by default


def read_catalog(source: Any = None, *, settings: Settings = None, **options: Any) -> Catalog:
    """Read a catalogue of images and tags.

    Parameters
    ----------
    source : path, table, list of records or Catalog
        A manifest (CSV, Parquet, JSON lines) or a folder, or rows with the columns ``path`` and
        ``tags``; see `retailtag.catalog.readers.read_catalog`.
    **options
        Fields of `CatalogSettings` such as ``attributes``, ``tags_column`` and ``images``;
        ``max_bytes``.
    """
    return read_source(source, settings_of("check", settings, options))[0]


def split(
    source: Any,
    *,
    test: float,
    val: float = 0,
    group_by: str | Sequence[str] = (),
    features: str | Path | None = None,
    out: str | Path | None = None,
    force: bool = False,
    settings: Settings = None,
    **options: Any,
) -> SplitCatalog:
    """Stratify a catalogue over tags into train, val and test, with no product separated.

    Parameters
    ----------
    source : path, table, list of records or Catalog
    test, val : int or float
        Images held out: a number (int), or a fraction below 1 (float).
    group_by : str or sequence of str
        What keeps images together instead of the product: columns (``brand,style``), ``id:REGEX``,
        ``path:REGEX``, or ``similar`` besides these: near-duplicates, and photographs of one
        product as far as looks and tags tell (see `retailtag.catalog.similar`).
    features : str or Path, optional
        Store whose embeddings ``similar`` compares; by default it compares thumbnails.
    out : str or Path, optional
        CSV manifest to write. ``similar`` also writes a table and a contact sheet beside it.
    force : bool
        Overwrite `out`.
    **options
        Fields of `CatalogSettings` such as ``attributes`` and ``images``; ``seed``, ``workers``.
    """
    s = settings_of("split", settings, options)
    grouping = grouping_of(group_by, features, s)
    made = splits(source, test=test, val=val, grouping=grouping, out=out, force=force, settings=s)
    return made[0]


def splits(
    source: Any,
    *,
    test: float | None = None,
    val: float = 0,
    folds: int | None = None,
    seeds: Sequence[int] = (),
    grouping: Grouping | None = None,
    out: str | Path | None = None,
    force: bool = False,
    settings: Settings = None,
) -> tuple[SplitCatalog, ...]:
    """Split a catalogue once per seed, or into `folds`; the rest as for `split`.

    `seeds` replace the seed of the settings; `grouping` is what `grouping_of` gives.
    """
    from retailtag.catalog.split import beside
    from retailtag.catalog.split import splits as split_catalog
    from retailtag.files import write_text
    from retailtag.report.contact_sheet import contact_sheet

    s = settings_of("split", settings, {})
    made = split_catalog(
        source,
        test=test,
        val=val,
        folds=folds,
        seeds=seeds or (s.probe.seed,),
        settings=s.catalog,
        grouping=grouping,
        out=out,
        force=force,
    )
    for one in made:
        if one.out is not None and one.similar is not None:
            title = f"Similar images of {one.out.name}"
            page = contact_sheet(one.catalog, one.similar.members, title)
            write_text(beside(one.out, "similar.html"), page)
    return made


def grouping_of(
    ways: str | Sequence[str],
    features: str | Path | None,
    settings: BakeoffSettings,
    progress: Progress | None = None,
) -> Grouping:
    """How `splits` finds products, from ``group_by`` and ``features`` as `split` takes them."""
    from retailtag.catalog.products import GroupBy, Grouping

    by = GroupBy.parse([ways] if isinstance(ways, str) else ways)
    if features is not None and not by.similar:
        raise UsageError("--features is for --group-by similar; leave it out, or add that.")
    embeddings = None if features is None else _embeddings_of(Path(features))
    return Grouping(by, embeddings, settings.compute.workers, progress or SILENT)


def _embeddings_of(path: Path) -> ReadEmbeddings:
    """Reader of the one store at a path."""
    from retailtag.store.inventory import only_store

    store = only_store(path)

    def read(image_ids: Sequence[str]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        view = store.load(image_ids)
        return view.X, view.found

    return read


def extract(
    catalog: Any = None,
    backbones: str | Sequence[str] | None = None,
    *,
    settings: Settings = None,
    strict: bool = False,
    recompute: bool = False,
    shard: str | None = None,
    ray: str | bool = False,
    progress: Progress | None = None,
    **options: Any,
) -> ExtractOutcome:
    """Compute the frozen embeddings of a catalogue's images, once; continues where it stopped.

    Parameters
    ----------
    strict : bool
        Raise at the end if an image could not be read.
    recompute : bool
        Compute every image again.
    shard : str, optional
        ``I/N``: extract shard I of N, into a folder of its own. ``auto`` takes both numbers from
        Slurm, torchrun or Kubernetes.
    ray : str or bool
        Read and embed the images on a Ray cluster: one that is started on this machine (True), or
        one that runs, by ``HOST:PORT`` or ``auto``. An existing connection of Ray is used.
    """
    from retailtag.backbones import load_backbone
    from retailtag.backbones.ids import local_weights
    from retailtag.extraction.cluster import LOCAL, Origin, connected
    from retailtag.extraction.engines import choose_engine
    from retailtag.extraction.extract import extract_together
    from retailtag.extraction.schedulers import shard_of
    from retailtag.extraction.shards import WHOLE
    from retailtag.outcomes import ExtractOutcome

    s = settings_of("extract", settings, {**options, "backbones": backbones})
    rows, numbered_by = (WHOLE, "") if shard is None else shard_of(str(shard), os.environ)
    context = run_context(catalog, s, progress)
    if numbered_by:
        context.progress.say(f"--shard auto: shard {rows.number}/{rows.of}, by {numbered_by}.")
    local = local_weights(s.compute.weights, s.backbones)
    # On a cluster this process only asks the models for their identity.
    device = "cpu" if ray else context.device
    origins = [Origin(i, local.get(i)) for i in s.backbones]
    address = LOCAL if ray is True else str(ray)
    on_ray = connected(address, origins, s.compute, context.progress.say)
    with on_ray if ray else nullcontext() as cluster:
        load = partial(load_backbone, device=device, progress=context.progress)
        models = [load(i, weights=local.get(i)) for i in s.backbones]
        choose = partial(choose_engine, context, shard=rows, measure=cluster is None)
        engines = [choose(model, s.extract) for model in models]
        summaries = extract_together(
            context,
            [chosen.embedder for chosen in engines],
            s.extract,
            strict=strict,
            recompute=recompute,
            shard=rows,
            cluster=cluster,
        )
    return ExtractOutcome(tuple(summaries), tuple(engines))


def import_features(
    vectors: Any,
    ids: Any = None,
    *,
    name: str,
    column: str | None = None,
    catalog: Any = None,
    settings: Settings = None,
    progress: Progress | None = None,
    **options: Any,
) -> Imported:
    """Store embeddings that were computed elsewhere; probes find them as ``own:NAME``.

    Parameters
    ----------
    vectors : path or array of float, shape (n_images, dim)
        An array or its ``.npy``, or Parquet with a column of vectors.
    ids : path or sequence of str, optional
        Image ids in the order of the vectors, or a text file with one per line. Parquet may have
        them in a column ``image_id`` or ``id``.
    name : str
        What to call the embeddings.
    column : str, optional
        Parquet's column of vectors, if it has several.
    catalog : path, table, list of records or Catalog, optional
        Whose ids are compared and whose images are hashed, so that changes of them are noticed.
    **options
        ``features``, ``workers``, and how the catalogue is read.
    """
    from retailtag.extraction.imports import import_embeddings, read_embeddings

    s = settings_of("import", settings, options)
    embeddings = read_embeddings(vectors, ids, column)
    has_catalog = catalog is not None or s.catalog.path is not None
    context = run_context(catalog, s, progress) if has_catalog else None
    return import_embeddings(
        s.compute.features,
        embeddings,
        name,
        context.catalog if context else None,
        workers=context.workers if context else 0,
        progress=progress or SILENT,
    )


def export_features(
    catalog: Any = None,
    backbone: str | None = None,
    *,
    out: str | Path,
    settings: Settings = None,
    progress: Progress | None = None,
    **options: Any,
) -> ExportedVectors:
    """Write stored embeddings with ids, products and tags as Parquet, for vector databases.

    Parameters
    ----------
    out : str or Path
        File to write, ``.parquet``; see `retailtag.runs.vectors.write_vectors`.
    **options
        ``features``, ``device``, ``weights``, ``dtype``, ``engine``, ``precision``, and how the
        catalogue is read.
    """
    from retailtag.runs.similar import Gallery
    from retailtag.runs.vectors import check_ending, write_vectors

    check_ending(Path(out))
    s = settings_of("vectors", settings, {**options, "backbones": backbone})
    backbone = only_backbone("features export", s)
    context = run_context(catalog, s, progress)
    return write_vectors(Gallery.open(context, backbone, s.extract), Path(out))


def probe(
    catalog: Any = None,
    backbone: str | None = None,
    *,
    settings: Settings = None,
    progress: Progress | None = None,
    **options: Any,
) -> ProbeOutcome:
    """Fit a probe for every tag and C, choose C and thresholds out of fold, predict."""
    from retailtag.backbones.ids import local_weights
    from retailtag.outcomes import ProbeOutcome
    from retailtag.runs.checks import check_fittable
    from retailtag.runs.embeddings import find_embeddings, find_texts
    from retailtag.runs.probe import check_probe_settings, check_rows, run_probe

    s = settings_of("probe", settings, {**options, "backbones": backbone})
    backbone = only_backbone("probe", s)
    check_probe_settings(s.probe)
    context = run_context(catalog, s, progress)
    check_fittable(context.catalog)
    local = local_weights(s.compute.weights, [backbone])
    tags, device = context.catalog.table.tags, context.device
    texts = find_texts(s.probe.heads, backbone, tags, weights=local, device=device)
    store = find_embeddings(context, backbone, s.extract)
    check_rows(context.catalog, store, context.catalog.rows("train"), s.probe.folds)
    out = folder_of("probe", s)
    with only_writer(out):
        # Written once nothing is left to refuse, and before the work: a killed run has them too.
        _keep_settings("probe", out, s, catalog)
        run = run_probe(context, store, out, s.probe, texts=texts)
    return ProbeOutcome(run, out, context.catalog, s.compute)


def finetune(
    catalog: Any = None,
    backbone: str | None = None,
    *,
    settings: Settings = None,
    probe: Path | str | ProbeOutcome | None = None,
    search: int = 0,
    seeds: int = 1,
    progress: Progress | None = None,
    **options: Any,
) -> FinetuneOutcome:
    """Retrain the last blocks, choose the epoch on a validation set, predict.

    Parameters
    ----------
    probe : path or ProbeOutcome, optional
        The fitted probe; by default that in ``runs/BACKBONE/probe``.
    search : int
        Settings of loss, sampler, rate and layer decay to try first.
    seeds : int
        Runs that differ in their seed alone.

    Notes
    -----
    Processes that ``torchrun`` started train together; the first one writes.
    """
    from retailtag.backbones import load_backbone
    from retailtag.backbones.ids import local_weights
    from retailtag.bakeoffs.request import pair_folder
    from retailtag.outcomes import FinetuneOutcome
    from retailtag.probes.artefact import Probe
    from retailtag.runs.checks import check_fittable
    from retailtag.runs.finetune import run_finetune, run_seeds
    from retailtag.runs.finetune_search import search_settings

    s = settings_of("finetune", settings, {**options, "backbones": backbone})
    backbone = _backbone_to_train(s, search=search)
    with joined(s.compute.device) as ranks:
        context = run_context(catalog, s, progress, ranks)
        check_fittable(context.catalog)
        fitted = Probe.load(path_of(probe) if probe else pair_folder(RUNS, backbone, "probe"))
        weights = local_weights(s.compute.weights, [backbone]).get(backbone)
        # Training changes the model in place: every setting of a search and every seed loads anew.
        load = partial(load_backbone, backbone, weights=weights, device=context.device)
        model = load()
        store = _store_of_probe(context, s, model, fitted)
        out, config, ranking = folder_of("finetune", s), s.finetune, None
        with only_writer(out) if ranks.is_first else nullcontext():
            if ranks.is_first:
                _keep_settings("finetune", out, s, catalog)
            # After a search the settings that won repeat the run, without searching again.
            if search:
                config, ranking = search_settings(context, store, load, fitted, out, config, search)
                _keep_settings("finetune", out, replace(s, finetune=config), catalog)
            runs = (
                [run_finetune(context, store, model, fitted, out, config)]
                if seeds == 1
                else run_seeds(context, store, load, fitted, out, config, seeds)
            )
    return FinetuneOutcome(tuple(runs), out, s.compute, ranking)


def _backbone_to_train(s: BakeoffSettings, *, search: int) -> str:
    """The one backbone; settings that cannot be followed are refused before anything is read."""
    from retailtag.backbones import resolve_id
    from retailtag.backbones.imported import refuse_imported
    from retailtag.finetuning.checks import check_finetune_settings

    backbone = only_backbone("finetune", s)
    check_finetune_settings(s.finetune)
    refuse_imported(resolve_id(backbone))  # and A+B, before its probe is missed
    if search and Ranks.given().size > 1:
        raise UsageError("--search runs in one process; search without torchrun, then train.")
    return backbone


def score(
    runs: Any,
    *,
    catalog: Any = None,
    settings: Settings = None,
    out: str | Path | None = None,
    **options: Any,
) -> ScoreOutcome:
    """Score predictions on held-out images: macro-F1, the tail, AP, intervals, findings.

    Parameters
    ----------
    runs : path, outcome of `probe`, `finetune` or `bakeoff`, or a sequence of these
        Predictions files, folders of runs or bake-offs, or other tools' files of scores.
    catalog : path, table, list of records or Catalog, optional
        By default the one that the predictions record.
    out : str or Path, optional
        Folder for the scorecards; by default each lies beside its predictions.
    **options
        ``split``, ``replicates``, ``allow_missing``, ``seed``, ``attributes``, ``cutoffs``. For
        other tools' scores also those of `retailtag.runs.foreign.Declared`: ``scores`` (logits
        or probabilities), ``thresholds`` (CSV), ``tune``, ``tune_split``, ``fitted_split``,
        ``map_ids``.
    """
    from retailtag.outcomes import ScoreOutcome
    from retailtag.runs.foreign import Declared, foreign_predictions
    from retailtag.scoring.files import find_predictions, score_files
    from retailtag.scoring.foreign import is_foreign
    from retailtag.scoring.ledger import reused_split

    # What another tool's file does not say about itself is no setting: it is taken out before
    # the settings are resolved, which refuse names that they do not know.
    names = [f.name for f in fields(Declared)]
    declared = {name: options.pop(name) for name in names if name in options}
    paths = find_predictions(paths_of(runs))
    s, read, shared = to_score("score", catalog, settings, options)
    foreign = [path for path in paths if is_foreign(path)]
    # whatever is given: False stands for a flag that is not
    if not foreign and any(declared.get(n) for n in ("scores", "thresholds", "tune", "map_ids")):
        raise UsageError(
            "--scores, --thresholds, --tune and --map-ids are for other tools' files, and all "
            "files named are retailtag's own; leave them out."
        )
    if foreign and shared["catalog"] is None:
        raise UsageError(f"{foreign[0]} does not record its catalogue; name it with --catalogue.")
    loaded: dict[Path, Predictions] = {}
    for path in foreign:
        shop = read(shared["catalog"])
        stated = Declared(**{"scores": None, **declared})
        loaded[path] = foreign_predictions(path, shop, stated, s.score.split)
    where = None if out is None else path_of(out)
    scored = score_files(paths, read, out=where, loaded=loaded, **shared)
    return ScoreOutcome(scored, tuple(reused_split(scored.digests, s.score.split)))


def compare(
    runs: Any,
    *,
    catalog: Any = None,
    settings: Settings = None,
    out: str | Path = "pairs.csv",
    **options: Any,
) -> CompareOutcome:
    """Rank models on the same images and compare every two: difference, interval, p, verdict.

    Runs that differ in their seed alone count as one model, whose seeds add to the uncertainty.

    Parameters
    ----------
    runs, catalog
        As for `score`; two models or more.
    out : str or Path
        CSV of the pairs.
    **options
        ``split``, ``replicates``, ``permutations``, ``allow_missing``, ``seed``, ``attributes``,
        ``cutoffs``.
    """
    from retailtag.outcomes import CompareOutcome
    from retailtag.scoring.files import compare_files
    from retailtag.scoring.ledger import reused_split

    paths = paths_of(runs)
    s, read, shared = to_score("compare", catalog, settings, options)
    where = path_of(out)
    compared = compare_files(paths, read, out=where, n_permutations=s.score.permutations, **shared)
    findings = (*compared.findings, *reused_split(compared.digests, s.score.split))
    return CompareOutcome(compared, findings, where)


def bakeoff(
    catalog: Any = None,
    backbones: str | Sequence[str] | None = None,
    *,
    settings: Settings = None,
    command: str = "",
    progress: Progress | None = None,
    **options: Any,
) -> BakeoffOutcome:
    """Extract, probe, fine-tune, measure, score, decide and report; a second run resumes.

    Parameters
    ----------
    command : str
        Shown in the report as what repeats the run.
    """
    from retailtag.bakeoffs.request import Request
    from retailtag.bakeoffs.run import run_request
    from retailtag.outcomes import BakeoffOutcome

    s = settings_of("bakeoff", settings, {**options, "backbones": backbones})
    context = run_context(catalog, s, progress)
    request = Request(context, s)  # refuses what cannot be followed before anything is written
    with only_writer(request.out):
        _keep_settings("bakeoff", request.out, s, catalog)
        return BakeoffOutcome(run_request(request, command), request.out, s.compute)


def latency(
    runs: Any,
    *,
    catalog: Any = None,
    sample: Any = (),
    merge: Any = (),
    out: str | Path = "latency.csv",
    settings: Settings = None,
    progress: Progress | None = None,
    **options: Any,
) -> LatencyOutcome:
    """Time fitted models in turn: engines, batch sizes, stages, memory, agreement of the tags.

    Parameters
    ----------
    runs : path, outcome of `probe`, `finetune` or `bakeoff`, or a sequence of these
        Of a bake-off every pair.
    catalog : path, table, list of records or Catalog, optional
        Whose test images are tagged; by default the one that the first model records.
    sample : path or sequence of paths
        Image files, folders or ``.txt`` lists of them, instead of a catalogue's.
    merge : path or sequence of paths
        Tables that this function wrote on other machines for copies of the same models.
    out : str or Path
        CSV of all rows.
    **options
        ``engines``, ``batches``, ``price_per_hour``, ``device``, ``weights``, and how the
        catalogue is read.
    """
    from retailtag.compute import resolve_device
    from retailtag.files import write_text
    from retailtag.outcomes import LatencyOutcome, fitted_models, load_tagger
    from retailtag.runs.latency import Asked, measure, model_digest, read_merged, to_csv

    s, where = settings_of("latency", settings, options), path_of(out)
    asked = Asked.parse(s.latency.engines, s.latency.batches, s.decide.price_per_hour)
    models = fitted_models(paths_of(runs))
    digests = {name: model_digest(folder) for name, folder in models.items()}
    merged = [row for path in paths_of(merge) for row in read_merged(path, digests)]
    told, limits = progress or SILENT, limits_of(s)
    loaders = {
        name: partial(load_tagger, folder, s.compute, progress=told, **limits)
        for name, folder in models.items()
    }
    images = images_to_time(s, catalog, paths_of(sample), next(iter(loaders.values()))())
    device = resolve_device(s.compute.device)
    rows = (*measure(loaders, digests, images, asked, device, told), *merged)
    write_text(where, to_csv(rows))
    return LatencyOutcome(rows, where)


def drift(
    model: Any,
    new: Any,
    *,
    reference: Any = None,
    out: str | Path | None = None,
    settings: Settings = None,
    progress: Progress | None = None,
    stdin: IO[bytes] | None = None,
    **options: Any,
) -> DriftOutcome:
    """Compare new images with a reference: one verdict, what moved, and what to do about it.

    Parameters
    ----------
    model : path, outcome or Tagger
        A probe or a fine-tune; of a bake-off the recommended pair.
    new : path, bytes, PIL image, table, Catalog, or a list of these
        As the sources of `predict`, or a catalogue.
    reference : as `new`, or the path of a ``reference.npz``, optional
        Images to compare with, of a catalogue those of ``split``. By default the reference that is
        kept with an exported model, or else the held-out images of the model's catalogue.
    out : str or Path, optional
        HTML page to write.
    stdin : file, optional
        What the source ``-`` reads.
    **options
        ``alpha``, ``sample``, ``split``, ``permutations``, ``seed``, ``device``, ``weights``,
        ``workers``, ``assign``, and how catalogues and images are read.
    """
    from retailtag.compute import n_workers
    from retailtag.files import write_text
    from retailtag.outcomes import DriftOutcome
    from retailtag.report.drift.page import drift_page
    from retailtag.tagger.drift.comparison import compared

    s, told = settings_of("drift", settings, options), progress or SILENT
    tagger = tagger_of(model, s, told)
    pictures = pictures_of(new, s, stdin)
    kept = drift_reference(model, reference, tagger, s)
    workers = n_workers(s.compute)
    result = compared(tagger, kept, pictures, s.drift, workers=workers, progress=told)
    if out is not None:
        write_text(Path(out), drift_page(result, pictures.images, pictures.names))
    return DriftOutcome(result, None if out is None else Path(out))


def tune(
    run: Any,
    *,
    objective: str = "f1",
    max_tags: float | None = None,
    thresholds: str = AUTO,
    out: str | Path | None = None,
    catalog: Any = None,
    settings: Settings = None,
    **options: Any,
) -> TuneOutcome:
    """Tune the thresholds of a fitted model again, on the scores that it kept; fits nothing.

    Parameters
    ----------
    run : path or outcome
        Of a probe or a fine-tune; or of a bake-off, whose recommended pair is taken.
    objective : str
        ``f1``, ``fbeta:B`` or ``precision:P``.
    max_tags : float, optional
        Most tags an image on average.
    thresholds : str
        Rule; see `retailtag.thresholds.tuning.Tuning`.
    out : str or Path, optional
        New folder for the model and its predictions; by default ``RUN-tuned`` beside `run`.
    catalog
        As for `score`; it must be the one that the model was fitted on.
    **options
        ``seed``, and how the catalogue is read.
    """
    from retailtag.outcomes import TuneOutcome, recommended_folder
    from retailtag.runs.tune import run_tune
    from retailtag.scoring.files import recorded_catalog
    from retailtag.thresholds.tuning import Tuning

    s, read, shared = to_score("tune", catalog, settings, options)
    tuning = Tuning(thresholds, objective, s.score.seed, max_tags)
    folder = path_of(run)
    where = folder.with_name(f"{folder.name}-tuned") if out is None else path_of(out)
    model = recommended_folder(folder)[0] if (folder / "bakeoff.json").is_file() else folder

    def catalog_of(predictions: Predictions) -> Catalog:
        return recorded_catalog(model, predictions, read, shared["catalog"])

    made = run_tune(model, tuning, where, catalog_of)
    return TuneOutcome(made, where, s.compute)


def export(
    run: Any,
    *,
    pair: str | None = None,
    out: str | Path | None = None,
    sample: Any = (),
    catalog: Any = None,
    settings: Settings = None,
    progress: Progress | None = None,
    **options: Any,
) -> ExportOutcome:
    """Write a fitted model as one folder that needs no catalogue, no features and no hub.

    Parameters
    ----------
    run : path or outcome
        Of a probe, a fine-tune, or what `tune` wrote; or of a bake-off.
    pair : str, optional
        Pair of the bake-off, such as ``demo:cnn probe``; by default the recommended one.
    out : str or Path, optional
        New folder; by default ``RUN-tagger`` beside `run`, or ``RUN-onnx``, ``RUN-triton``.
    sample : path or sequence of paths
        Image files or folders on which an ONNX model is compared with PyTorch, instead of the test
        images of the catalogue.
    catalog
        As for `score`; it calibrates the probabilities, tunes further operating points, and its
        test images show that the folder gives what the model gives.
    **options
        ``format``, ``with_preprocessing`` and ``int8``, as in `ExportSettings`; ``device``,
        ``weights``, ``assign``, ``seed``, and how the catalogue is read.
    """
    from retailtag.backbones.ids import local_weights
    from retailtag.compute import n_workers
    from retailtag.images.listing import list_images
    from retailtag.outcomes import ExportOutcome, recommended_folder
    from retailtag.runs.export import run_export
    from retailtag.runs.export_onnx import OnnxRequest
    from retailtag.tagger.loading import backbones_of

    s, read, shared = to_score("export", catalog, settings, options)
    folder, assignment = path_of(run), s.score.assign
    kind = "tagger" if s.export.format == "folder" else s.export.format
    where = folder.with_name(f"{folder.name}-{kind}") if out is None else path_of(out)
    if (folder / "bakeoff.json").is_file():
        folder, recorded = recommended_folder(folder, pair)
        assignment = assignment or recorded
    elif pair is not None:
        raise UsageError(f"--pair {pair} is for a bake-off, and {folder} is not one; leave it out.")
    told = progress or SILENT
    tagger = tagger_of(folder, replace(s, score=replace(s.score, assign=assignment)), told)
    graph = None
    if s.export.format != "folder":
        paths = paths_of(sample)
        graph = OnnxRequest(s.export, tuple(list_images(paths)[0]) if paths else ())
    made = run_export(
        folder,
        tagger,
        where,
        read,
        catalog=shared["catalog"],
        graph=graph,
        weights=tuple(local_weights(s.compute.weights, backbones_of(folder))),
        seed=s.score.seed,
        workers=n_workers(s.compute),
        progress=told,
    )
    return ExportOutcome(made)


def audit(
    run: Any,
    *,
    top: int = 1000,
    out: str | Path = "audit.csv",
    catalog: Any = None,
    settings: Settings = None,
    **options: Any,
) -> AuditOutcome:
    """List labels that are likely wrong, by the scores that a fitted model kept.

    Parameters
    ----------
    run : path or outcome
        Of a probe, whose training images are audited, or of a fine-tune (its validation set); or
        of a bake-off, of which the probe of the recommended backbone is taken.
    top : int
        Labels to list.
    out : str or Path
        CSV to write.
    catalog
        As for `tune`.
    **options
        How the catalogue is read.
    """
    from retailtag.outcomes import AuditOutcome, recommended_folder
    from retailtag.runs.audit import audit as find_suspects
    from retailtag.runs.tune import Model
    from retailtag.scoring.files import recorded_catalog

    _, read, shared = to_score("audit", catalog, settings, options)
    folder = path_of(run)
    if (folder / "bakeoff.json").is_file():
        folder = recommended_folder(folder)[0].with_name("probe")
    model = Model.load(folder)
    shop = recorded_catalog(folder, model.predictions, read, shared["catalog"])
    made = find_suspects(model, shop, top)
    made.save(path_of(out))
    return AuditOutcome(made, path_of(out))


def similar(
    catalog: Any = None,
    backbone: str | None = None,
    queries: Any = (),
    *,
    ids: Sequence[str] = (),
    products: Sequence[str] = (),
    texts: Sequence[str] = (),
    settings: Settings = None,
    progress: Progress | None = None,
    stdin: IO[bytes] | None = None,
    **options: Any,
) -> SimilarOutcome:
    """Search the products of a catalogue that look most like images, products or texts.

    Parameters
    ----------
    catalog : path, table, list of records or Catalog
        What is searched: its images that `extract` has embedded.
    backbone : str
        Whose embeddings are compared.
    queries : path, bytes, PIL image, or a list of these
        Images: sources as for `predict`; embedded by the backbone of the stored embeddings.
    ids, products : sequence of str
        Images and products of the catalogue. Their own product is left out.
    texts : sequence of str
        Descriptions, for an image-text backbone.
    stdin : file, optional
        What the source ``-`` reads.
    **options
        ``top``; ``rerank``: ``tags`` or another backbone; ``features``, ``device``, ``weights``,
        ``workers``, ``dtype``, ``engine``, ``precision``, and how the catalogue is read.
    """
    from retailtag.extraction.embed import Loading
    from retailtag.extraction.forward import BATCH_SIZES
    from retailtag.outcomes import SimilarOutcome
    from retailtag.runs import similar as run
    from retailtag.runs.similar_rerank import (
        BY_TAGS,
        CANDIDATES,
        by_backbone,
        by_tags,
        check_rerank,
    )

    s = settings_of("similar", settings, {**options, "backbones": backbone})
    sources = queries if isinstance(queries, list | tuple) else [queries]
    if not (sources or ids or products or texts):
        raise UsageError("Nothing to search for; give --query IMAGE, --id, --product or --text.")
    backbone, again = only_backbone("similar", s), s.similar.rerank
    check_rerank(again, has_others=bool(sources or texts))
    context = run_context(catalog, s, progress)
    pictures = pictures_of(list(sources), s, stdin) if sources else None
    workers = min(context.workers, len(pictures.rows)) if pictures else 0
    loading = Loading(BATCH_SIZES["cpu"], workers, **limits_of(s))
    asked = run.Asked(pictures, loading, ids, products, texts)
    backbones = [backbone] if again in (None, BY_TAGS) else [backbone, again]
    galleries = list(_galleries(context, backbones, s))
    wanted, notes = asked.queries(galleries[0])
    top = s.similar.top
    found = run.search(galleries[0], wanted, max(top, CANDIDATES) if again else top)
    if again == BY_TAGS:
        found = by_tags(context.catalog, found, top)
    elif again:
        found = by_backbone(galleries[1], asked.queries(galleries[1])[0], found, top)
    return SimilarOutcome(galleries[0], tuple(found), tuple(notes))


def evaluate_similar(
    catalog: Any = None,
    backbones: str | Sequence[str] | None = None,
    *,
    settings: Settings = None,
    progress: Progress | None = None,
    **options: Any,
) -> SimilarEvaluation:
    """Measure how well embeddings find photographs of one product, and products tagged alike.

    Parameters
    ----------
    catalog : path, table, list of records or Catalog
        Its held-out images are the queries, all its images are searched.
    backbones : str or sequence of str
        Each is measured.
    **options
        ``split`` of the queries, and as for `similar`.
    """
    from retailtag.outcomes import SimilarEvaluation
    from retailtag.runs.similar_evaluation import evaluate

    s = settings_of("similar", settings, {**options, "backbones": backbones})
    context = run_context(catalog, s, progress)
    galleries = _galleries(context, s.backbones, s)
    return SimilarEvaluation(tuple(evaluate(gallery, s.score.split) for gallery in galleries))


def _galleries(
    context: RunContext, backbones: Sequence[str], settings: BakeoffSettings
) -> Iterator[Gallery]:
    """Open the stored embeddings of each backbone when it is asked for."""
    from retailtag.runs.similar import Gallery

    for name, own in zip(backbones, with_own_weights(context, backbones), strict=True):
        yield Gallery.open(own, name, settings.extract)


def load(
    folder: Any,
    *,
    settings: Settings = None,
    progress: Progress | None = None,
    **options: Any,
) -> Tagger:
    """Load a fitted model, ready to tag images.

    Parameters
    ----------
    folder : path or outcome
        Of a probe, a fine-tune or what `export` wrote; or of a bake-off, whose recommended pair is
        loaded.
    **options
        ``device``, ``weights``; ``assign`` and ``one_of``, as `Tagger.assigning` takes them: by
        default at most one tag of each attribute that the model records.
    """
    return tagger_of(folder, settings_of("load", settings, options), progress or SILENT)


def predict(
    model: Any,
    sources: Any,
    *,
    settings: Settings = None,
    progress: Progress | None = None,
    **options: Any,
) -> pa.Table:
    """Tag many images: one row each, in the order named.

    Parameters
    ----------
    model : path, outcome or Tagger
        As for `load`. A `Tagger` assigns tags as it is set to.
    sources : path, bytes, PIL image, table, or a list of these
        See `retailtag.catalog.named.named_images`: files, folders, patterns, archives, ``.txt``
        lists, a manifest.
    **options
        ``top_k``, ``min_probability``, ``operating_point``; ``assign`` and ``one_of``;
        ``device``, ``weights``, ``workers``, ``batch_size``; limits on images; ``images`` and
        columns of a manifest.

    Returns
    -------
    pyarrow.Table
        ``image_id``, ``path``, ``tags`` and their ``probabilities`` (falling), ``uncertain`` tags,
        and the ``error`` of an image that could not be read, whose other columns are null.

    Notes
    -----
    Loop over `predict_batches` where a table of all images would not fit into memory.
    """
    import pyarrow as pa

    from retailtag.runs.predict import schema

    batches = predict_batches(model, sources, settings=settings, progress=progress, **options)
    return pa.Table.from_batches(batches, schema())


def predict_batches(
    model: Any,
    sources: Any,
    *,
    settings: Settings = None,
    progress: Progress | None = None,
    **options: Any,
) -> Iterator[pa.RecordBatch]:
    """Yield what `predict` gives, a record batch per batch of images, as they are tagged."""
    from retailtag.runs.predict import record_batch

    found = predicting(model, sources, settings=settings, progress=progress, **options)
    return map(record_batch, found)


def predicting(
    model: Any,
    sources: Any,
    *,
    settings: Settings = None,
    progress: Progress | None = None,
    stdin: IO[bytes] | None = None,
    **options: Any,
) -> Predicting:
    """What `predict` iterates over: the model, the images and how they are tagged.

    The other parameters are those of `predict`; `stdin` is what the source ``-`` reads.
    """
    from retailtag.catalog.named import named_images
    from retailtag.compute import n_workers
    from retailtag.extraction.embed import Loading
    from retailtag.runs.predict import Predicting, batch_size_of
    from retailtag.tagger.predicting import Choice

    s = settings_of("predict", settings, options)
    told = progress or SILENT
    choice = Choice(s.predict.top_k, s.predict.min_probability)
    several = sources if isinstance(sources, list | tuple) else [sources]
    images = named_images(several, s.catalog, max_bytes=s.reading.max_bytes, stdin=stdin)
    for note in images.notes:
        told.say(note)
    tagger = tagger_of(model, s, told)
    if s.predict.operating_point:
        tagger = tagger.at(s.predict.operating_point)
    workers = n_workers(s.compute)
    if images.total is not None:
        workers = min(workers, images.total)  # each starts a process
    loading = Loading(batch_size_of(tagger, s.extract.batch_size), workers, **limits_of(s))
    return Predicting(tagger, images, choice, loading, told)


def fit_probes(
    X: Any,
    Y: Any,
    *,
    C: str | float | Sequence[float] = ProbeSettings.sweep_C,
    sample_weight: Any = None,
    solver: str = ProbeSettings.solver,
    device: str = "auto",
    distributed: bool = False,
) -> ProbeFits:
    """Fit one L2 logistic regression per tag and C on arrays, without catalogue or store.

    Parameters
    ----------
    X : array of float, shape (n_images, dim)
        Features, best standardised; finite.
    Y : array of int, shape (n_images, n_tags)
        1 present, 0 absent, -1 not annotated (left out for that tag).
    C : str, float or sequence of float
        Inverse L2 strengths: ``START:STOP:N`` (logarithmically spaced), or numbers.
    sample_weight : array of shape (n_images,), optional
        Not negative.
    solver : {"torch", "cuml", "sklearn"}
    device : {"auto", "cpu", "cuda"}
    distributed : bool
        Processes that ``torchrun`` started give some of the rows each, at least one, and get the
        fits of all rows. The solver is torch.

    Returns
    -------
    ProbeFits
        Weights, objective, its bound and status of every (C, tag); ``.table`` has a row for each.

    Examples
    --------
    >>> import numpy as np
    >>> X = np.random.default_rng(0).standard_normal((200, 3))
    >>> fits = fit_probes(X, X[:, :2] > 0.5, C=[0.1, 1.0], device="cpu")
    >>> fits.weight.shape, fits.table.num_rows
    ((2, 2, 3), 4)
    """
    import numpy as np

    from retailtag.compute import resolve_device
    from retailtag.probes.grid import parse_grid
    from retailtag.probes.solver.fit import fit_probes as fit

    with joined(device) if distributed else nullcontext(ALONE) as ranks:
        return fit(
            numbers("X", X),
            numbers("Y", Y),
            (parse_grid(C) if isinstance(C, str) else np.atleast_1d(numbers("C", C))).tolist(),
            sample_weight=sample_weight,
            solver=solver,
            device=resolve_device(device),
            ranks=ranks,
        )


def plan(catalog: Any, *, settings: BakeoffSettings) -> list[PlannedStage]:
    """Stages that `bakeoff` would run, with estimates; runs nothing."""
    from retailtag.bakeoffs.plan import plan_bakeoff

    return plan_bakeoff(run_context(catalog, settings, SILENT).catalog, settings)


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
            "join them with + to take their embeddings side by side."
        )
    return settings.backbones[0]


def _store_of_probe(
    context: RunContext, settings: BakeoffSettings, model: Backbone, probe: Probe
) -> FeatureStore:
    """The store that a fine-tune from `probe` reads; refused if they or the images differ."""
    from retailtag.extraction.embedder import identity
    from retailtag.extraction.stores import EngineRequest, find_store
    from retailtag.runs.finetune_start import check_start

    lenient = settings.reading.allow_truncated
    store = find_store(
        settings.compute.features,
        identity(model, settings.extract.dtype, allow_truncated=lenient),
        EngineRequest.to_read(settings.extract),
        fitted=probe.facts.get("features"),
        progress=context.progress,
    )
    check_start(context.catalog, store, probe)
    return store


def _keep_settings(verb: str, out: Path, settings: BakeoffSettings, catalog: Any) -> None:
    """Write the settings of a run beside its files, so that ``--config`` repeats it."""
    source = settings.catalog.path if catalog is None else catalog
    path = Path(source) if isinstance(source, str | Path) else None
    whole = replace(settings, out=out, catalog=replace(settings.catalog, path=path))
    write_settings(out / SETTINGS_FILE, whole, {*USES[verb], "catalog.path"})
