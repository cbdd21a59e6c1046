"""The bake-off: every backbone, every strategy, one scorer, one recommendation."""

from __future__ import annotations

import gc
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from retailtag.backbones import canonical, components_of, load_backbone, resolve_id
from retailtag.bakeoffs.checks import check_readable, check_request
from retailtag.bakeoffs.pairs import (
    Pair,
    absent_finding,
    finished_pair,
    latency_inputs,
    machine_findings,
    measure_pair,
    report_inputs,
)
from retailtag.catalog.catalog import Catalog
from retailtag.errors import DataError, UsageError, check_seed
from retailtag.extraction.embed import Loading
from retailtag.extraction.engines import EngineRequest, choose_engine
from retailtag.extraction.extract import ExtractSummary, check_extraction, extract_together
from retailtag.files import slug
from retailtag.finetuning.config import FinetuneConfig
from retailtag.images.decode import MAX_PIXELS
from retailtag.probes.artefact import Probe
from retailtag.progress import SILENT, Progress
from retailtag.report.decision import Decision, decide
from retailtag.report.results import BakeoffResult, PairResult, describe_catalog
from retailtag.report.write import PICTURES, write_report
from retailtag.runs.embeddings import find_texts
from retailtag.runs.finetune import Means, finetune_inputs, run_finetune
from retailtag.runs.machine import describe_machine
from retailtag.runs.probe import ProbeSettings, probe_inputs, run_probe
from retailtag.runs.stage import StageRecord, read_record, why_stale, write_record
from retailtag.scoring.bootstrap import N_REPLICATES
from retailtag.scoring.compare import compare_predictions
from retailtag.scoring.finding import Finding
from retailtag.scoring.ledger import reused_split
from retailtag.scoring.score import predictions_digest, score_predictions
from retailtag.store import EmbeddingSource, FeatureStore, join
from retailtag.thresholds.tuning import Tuning

STRATEGIES = ("probe", "finetune")
ONLY_PROBED = "Several backbones side by side can be probed but not fine-tuned together."
REPORT_FILES = ("bakeoff.json", "report.html", *PICTURES)


def pair_folder(run: Path, backbone: str, strategy: str) -> Path:
    """Folder of one (backbone, strategy) pair within the folder of a run."""
    return run / slug(canonical(backbone)) / strategy


@dataclass(frozen=True)
class BakeoffSettings:
    """What to compare and how; everything that a stage depends on is recorded with it.

    Parameters
    ----------
    backbones : tuple of str
        Ids or presets; ``A+B`` is a backbone of its own whose embeddings are those of A and B
        side by side. It can be probed, not fine-tuned.
    strategies : tuple of str
        Some of ``probe`` and ``finetune``. A fine-tune needs the probe and fits it in any case.
    out : Path
        Folder of the run; the same folder continues it.
    features : Path
        Folder of the feature stores, shared by runs.
    weights : mapping of str to Path
        Local weights by backbone id as given in `backbones`, the parts of ``A+B`` one by one.
    probe : ProbeSettings
    finetune : FinetuneConfig
    device : str
        ``cpu`` or ``cuda``.
    dtype : str
        Of the stored embeddings.
    engine : EngineRequest
        What computes them.
    batch_size : int or None
        Of the extraction; None: what suits the device.
    workers : int
        Decoding threads.
    max_pixels : int
        Larger images count as unreadable.
    allow_truncated : bool
        Accept files that end early.
    cache_gb : float or None
        Disk for kept activations of fine-tunes; see `retailtag.runs.finetune.Means`.
    n_bootstrap : int
        Replicates behind the intervals.
    seed : int
        Of the bootstrap; probe and fine-tune carry their own.
    """

    backbones: tuple[str, ...]
    out: Path
    features: Path
    strategies: tuple[str, ...] = STRATEGIES
    weights: Mapping[str, Path] = field(default_factory=dict)
    probe: ProbeSettings = field(default_factory=ProbeSettings)
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)
    device: str = "cpu"
    dtype: str = "float32"
    engine: EngineRequest = field(default_factory=EngineRequest)
    batch_size: int | None = None
    workers: int = 2
    max_pixels: int = MAX_PIXELS
    allow_truncated: bool = False
    cache_gb: float | None = None
    n_bootstrap: int = N_REPLICATES
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.backbones:
            raise UsageError("--backbones is empty; name at least one, such as demo:cnn.")
        ids = [canonical(b) for b in self.backbones]
        if len(set(ids)) < len(ids):
            raise UsageError("--backbones names a backbone twice; name each once.")
        unknown = [s for s in self.strategies if s not in STRATEGIES]
        if unknown or not self.strategies:
            raise UsageError(f"--strategies must be some of {', '.join(STRATEGIES)}.")
        if len(set(self.strategies)) < len(self.strategies):
            raise UsageError("--strategies names a strategy twice; name each once.")
        joint = [b for b in self.backbones if not self.strategies_of(b)]
        if joint:
            raise UsageError(f"{joint[0]}: {ONLY_PROBED} Add probe to --strategies.")
        check_extraction(self.batch_size, self.workers, self.dtype)
        check_seed(self.seed)
        Tuning(self.finetune.thresholds, self.finetune.objective)  # refuses what is unknown

    def folder(self, backbone: str, strategy: str) -> Path:
        """Folder of one pair in the run."""
        return pair_folder(self.out, backbone, strategy)

    def strategies_of(self, backbone: str) -> tuple[str, ...]:
        """Strategies that one backbone goes through: a joint one is only probed."""
        joint = len(components_of(backbone)) > 1
        return tuple(s for s in self.strategies if s == "probe" or not joint)

    @property
    def tuned(self) -> tuple[str, ...]:
        """Backbones that are fine-tuned."""
        return tuple(b for b in self.backbones if "finetune" in self.strategies_of(b))

    @property
    def limits(self) -> dict[str, Any]:
        """How images are decoded, the same in every stage that reads them."""
        return {"max_pixels": self.max_pixels, "allow_truncated": self.allow_truncated}

    @property
    def report_files(self) -> tuple[str, ...]:
        """What the last stage writes, by its path in the run."""
        cards = [
            (self.folder(b, s) / "scorecard.json").relative_to(self.out).as_posix()
            for b in self.backbones
            for s in self.strategies_of(b)
        ]
        return (*REPORT_FILES, *cards)


@dataclass(frozen=True, eq=False)
class BakeoffRun:
    """What a bake-off made.

    Parameters
    ----------
    result : BakeoffResult
    decision : Decision
    report : Path
        The HTML report.
    ran, reused : list of str
        Stages that ran now, and stages that stood from before.
    """

    result: BakeoffResult
    decision: Decision
    report: Path
    ran: list[str]
    reused: list[str]


def run_bakeoff(
    catalog: Catalog,
    settings: BakeoffSettings,
    *,
    provenance: dict[str, Any] | None = None,
    command: str = "",
    progress: Progress = SILENT,
) -> BakeoffRun:
    """Run what is missing or stale of every pair, score all of them, decide and report.

    Parameters
    ----------
    catalog : Catalog
        With training and test images, and a tag with a positive in both.
    settings : BakeoffSettings
    provenance : dict, optional
        Recorded in predictions: where the catalogue was read from.
    command : str
        Command line that repeats the run, for the report.
    progress : Progress

    Returns
    -------
    BakeoffRun

    Raises
    ------
    DataError, UsageError
        Before anything runs, if the catalogue or the settings cannot be followed; see
        `retailtag.bakeoffs.checks.check_request`.
    RetailtagError
        Whatever a stage raises; stages finished before stand, and the same call continues.
    """
    check_request(catalog, settings)
    runner = _Runner(catalog, settings, provenance or {}, progress)
    runner.extract()
    pairs = [pair for backbone in settings.backbones for pair in runner.backbone(backbone)]
    inputs = report_inputs(catalog, pairs, settings.n_bootstrap, settings.seed)
    if runner.is_current("report", settings.out, inputs):
        result = BakeoffResult.load(settings.out / "bakeoff.json")
    else:
        findings = [*runner.findings, *machine_findings(pairs)]
        result = _score(catalog, settings, pairs, findings, command)
    decision = decide(result)
    report = settings.out / "report.html"
    if "report" in runner.ran:
        report = write_report(result, decision, settings.out)
        write_record(settings.out, settings.report_files, inputs)
    return BakeoffRun(result, decision, report, runner.ran, runner.reused)


class _Runner:
    """Runs stages, or reuses them, and keeps the list of both."""

    def __init__(
        self,
        catalog: Catalog,
        settings: BakeoffSettings,
        provenance: dict[str, Any],
        progress: Progress,
    ) -> None:
        self.catalog, self.settings = catalog, settings
        self.provenance, self.progress = provenance, progress
        self.ran: list[str] = []
        self.reused: list[str] = []
        self.findings: list[Finding] = []
        self.extracted: dict[str, ExtractSummary] = {}

    def backbone(self, backbone_id: str) -> list[Pair]:
        """Run all stages of one backbone after its extraction."""
        summaries = [self.extracted[canonical(part)] for part in components_of(backbone_id)]
        check_readable(self.catalog, {i: why for s in summaries for i, why in s.absent.items()})
        store = join([summary.store for summary in summaries])
        strategies = self.settings.strategies_of(backbone_id)
        records = {"probe": self.probe(backbone_id, store)}
        if "finetune" in strategies:
            records["finetune"] = self.finetune(backbone_id, summaries[0].store)
        elif "finetune" in self.settings.strategies:
            self.progress.say(f"finetune {store.spec.backbone}: skipped. {ONLY_PROBED}")
        pairs = []
        for strategy in strategies:
            folder = self.settings.folder(backbone_id, strategy)
            name = f"latency {store.spec.backbone} {strategy}"
            latency = self.latency(name, backbone_id, folder, records[strategy])
            pairs.append(finished_pair(self.catalog, store, strategy, folder, records, latency))
        return pairs

    def extract(self) -> None:
        """Bring the feature stores of all backbones up to date in one pass over the images."""
        s = self.settings
        parts = {canonical(part): part for b in s.backbones for part in components_of(b)}
        backbones = {key: self._load(part) for key, part in parts.items()}
        for key in map(canonical, s.tuned):
            backbones[key].trainable_names(s.finetune.trained)  # refuses --blocks that it has not
        loading = Loading(s.batch_size or Loading.batch_size, s.workers, **s.limits)
        engines = [
            choose_engine(
                self.catalog,
                backbone,
                s.features,
                s.engine,
                dtype=s.dtype,
                loading=loading,
                progress=self.progress,
            )
            for backbone in backbones.values()
        ]
        summaries = extract_together(
            self.catalog,
            [chosen.embedder for chosen in engines],
            s.features,
            batch_size=s.batch_size,
            workers=s.workers,
            dtype=s.dtype,
            **s.limits,
            progress=self.progress,
        )
        for (key, backbone), summary in zip(backbones.items(), summaries, strict=True):
            name, n_new = f"extract {backbone.id}", summary.n_computed
            self._note(name, f"{n_new:,} new images" if n_new else None)
            if summary.absent:
                self.findings.append(absent_finding(summary, len(self.catalog)))
            self.extracted[key] = summary

    def probe(self, backbone_id: str, store: EmbeddingSource) -> StageRecord:
        """Fit the probe, unless it stands."""
        s, folder = self.settings, self.settings.folder(backbone_id, "probe")
        given, tags = s.probe.heads, self.catalog.table.tags
        texts = find_texts(given, backbone_id, tags, weights=s.weights, device=s.device)
        inputs = probe_inputs(self.catalog, store, s.probe, texts)
        name = f"probe {store.spec.backbone}"
        if self.is_current(name, folder, inputs):
            record = _sealed(folder)
        else:
            record = run_probe(
                self.catalog,
                store,
                folder,
                s.probe,
                texts=texts,
                provenance=self.provenance,
                device=s.device,
                progress=self.progress,
            ).record
        self.findings += [
            Finding(code, f"{name}: {sentence}", remedy)
            for code, sentence, remedy in record.facts["findings"]
        ]
        return record

    def finetune(self, backbone_id: str, store: FeatureStore) -> StageRecord:
        """Fine-tune from the fitted probe, unless that stands."""
        s, folder = self.settings, self.settings.folder(backbone_id, "finetune")
        probe = Probe.load(s.folder(backbone_id, "probe"))
        inputs = finetune_inputs(self.catalog, store, probe, s.finetune)
        if self.is_current(f"finetune {store.spec.backbone}", folder, inputs):
            return _sealed(folder)
        return run_finetune(
            self.catalog,
            store,
            self._load(backbone_id),
            probe,
            folder,
            s.finetune,
            provenance=self.provenance,
            means=Means(workers=s.workers, **s.limits, cache_gb=s.cache_gb),
            progress=self.progress,
        ).record

    def latency(self, name: str, backbone_id: str, folder: Path, model: StageRecord) -> StageRecord:
        """Latency of a finished pair on this machine, unless it stands."""
        s, place = self.settings, folder / "latency"
        inputs = latency_inputs(model, s.device)
        if self.is_current(name, place, inputs):
            return _sealed(place)
        given = {part: s.weights.get(part) for part in components_of(backbone_id)}
        local = {str(resolve_id(part)): path for part, path in given.items() if path}
        facts = measure_pair(self.catalog, folder, local, s.device, **s.limits)
        return write_record(place, (), inputs, facts=facts, machine=inputs["device"])

    def is_current(self, name: str, folder: Path, inputs: dict[str, Any]) -> bool:
        """Whether a stage stands; notes and says which way it goes."""
        why = why_stale(folder, inputs)
        self._note(name, why)
        return why is None

    def _note(self, name: str, why: str | None) -> None:
        (self.reused if why is None else self.ran).append(name)
        self.progress.say(f"{name}: " + ("stands from before" if why is None else why))

    def _load(self, backbone_id: str) -> Any:
        gc.collect()
        weights = self.settings.weights.get(backbone_id)
        return load_backbone(backbone_id, weights=weights, device=self.settings.device)


def _sealed(folder: Path) -> StageRecord:
    record = read_record(folder)
    if record is None:
        raise DataError(f"{folder} changed while the bake-off read it; run the command again.")
    return record


def _score(
    catalog: Catalog,
    settings: BakeoffSettings,
    pairs: list[Pair],
    findings: list[Finding],
    command: str,
) -> BakeoffResult:
    """Scorecards of all pairs and their comparison, on the test split."""
    models = [pair.predictions for pair in pairs]
    results = []
    for pair, model in zip(pairs, models, strict=True):
        card = score_predictions(model, catalog, allow_missing=True)
        card.save(pair.folder)
        results.append(PairResult(pair.backbone, pair.strategy, card, pair.cost))
    named = {r.name: model for r, model in zip(results, models, strict=True)}
    scored = [(catalog.digest, predictions_digest(model)) for model in models]
    return BakeoffResult(
        catalog=describe_catalog(catalog),
        pairs=tuple(results),
        comparisons=compare_predictions(
            named,
            catalog,
            n_bootstrap=settings.n_bootstrap,
            seed=settings.seed,
            allow_missing=True,
        ),
        machine=describe_machine(settings.device),
        command=command,
        seed=settings.seed,
        findings=(*findings, *reused_split(scored, "test")),
    )
