"""The bake-off: every backbone, every strategy, one scorer, one recommendation."""

from __future__ import annotations

import gc
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import retailtag
from retailtag.backbones import load_backbone, resolve_id
from retailtag.catalog.catalog import Catalog
from retailtag.catalog.decode import MAX_PIXELS
from retailtag.errors import DataError, UsageError
from retailtag.files import slug
from retailtag.finetune.trainer import FinetuneConfig
from retailtag.pipeline.extract import ExtractSummary, extract
from retailtag.pipeline.finetune import finetune_inputs, run_finetune
from retailtag.pipeline.machine import describe_machine
from retailtag.pipeline.probe import ProbeSettings, probe_inputs, run_probe
from retailtag.pipeline.stage import StageRecord, read_record, why_stale, write_record
from retailtag.predictions import Predictions
from retailtag.probes.artefact import Probe
from retailtag.progress import SILENT, Progress
from retailtag.report.decision import Decision, decide
from retailtag.report.results import BakeoffResult, PairCost, PairResult, describe_catalog
from retailtag.report.write import write_report
from retailtag.scoring.bootstrap import N_REPLICATES
from retailtag.scoring.compare import compare_predictions
from retailtag.scoring.findings import Finding, often_scored
from retailtag.scoring.ledger import record_scored
from retailtag.scoring.score import predictions_digest, score_predictions
from retailtag.scoring.scorecard import FORMAT as SCORECARD_FORMAT
from retailtag.store import FeatureStore

STRATEGIES = ("probe", "finetune")
LATENCY_IMAGES = 110  # test images whose bytes the latency is measured on
REPORT_FILES = ("bakeoff.json", "report.html")


def pair_folder(run: Path, backbone: str, strategy: str) -> Path:
    """Folder of one (backbone, strategy) pair within the folder of a run."""
    return run / slug(str(resolve_id(backbone))) / strategy


@dataclass(frozen=True)
class BakeoffSettings:
    """What to compare and how; everything that a stage depends on is recorded with it.

    Parameters
    ----------
    backbones : tuple of str
        Ids or presets.
    strategies : tuple of str
        Some of ``probe`` and ``finetune``. A fine-tune needs the probe and fits it in any case.
    out : Path
        Folder of the run; the same folder continues it.
    features : Path
        Folder of the feature stores, shared by runs.
    weights : mapping of str to Path
        Local weights by backbone id as given in `backbones`.
    probe : ProbeSettings
    finetune : FinetuneConfig
    device : str
        ``cpu`` or ``cuda``.
    dtype : str
        Of the stored embeddings.
    batch_size : int
        Of the extraction.
    workers : int
        Decoding threads.
    max_pixels : int
        Larger images count as unreadable.
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
    batch_size: int = 64
    workers: int = 2
    max_pixels: int = MAX_PIXELS
    n_bootstrap: int = N_REPLICATES
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.backbones:
            raise UsageError("--backbones is empty; name at least one, such as demo:cnn.")
        ids = [str(resolve_id(b)) for b in self.backbones]
        if len(set(ids)) < len(ids):
            raise UsageError("--backbones names a backbone twice; name each once.")
        unknown = [s for s in self.strategies if s not in STRATEGIES]
        if unknown or not self.strategies:
            raise UsageError(f"--strategies must be some of {', '.join(STRATEGIES)}.")

    def folder(self, backbone: str, strategy: str) -> Path:
        """Folder of one pair in the run."""
        return pair_folder(self.out, backbone, strategy)


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


@dataclass(frozen=True, eq=False)
class _Pair:
    """One finished pair: where it lies and what it cost."""

    backbone: str
    strategy: str
    folder: Path
    cost: PairCost


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
        With training and test images.
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
    DataError
        If the catalogue has no test or no training images.
    RetailtagError
        Whatever a stage raises; stages finished before stand, and the same call continues.
    """
    check_splits(catalog)
    runner = _Runner(catalog, settings, provenance or {}, progress)
    pairs = [pair for backbone in settings.backbones for pair in runner.backbone(backbone)]
    inputs = _report_inputs(catalog, settings, pairs)
    if runner.is_current("report", settings.out, inputs):
        result = BakeoffResult.load(settings.out / "bakeoff.json")
    else:
        result = _score(catalog, settings, pairs, runner.findings, command)
    decision = decide(result)
    report = settings.out / "report.html"
    if "report" in runner.ran:
        report = write_report(result, decision, settings.out)
        write_record(settings.out, REPORT_FILES, inputs)
    return BakeoffRun(result, decision, report, runner.ran, runner.reused)


def check_splits(catalog: Catalog) -> None:
    """Raise `DataError` unless there are training and test images."""
    for split in ("train", "test"):
        if not len(catalog.rows(split)):
            raise DataError(
                f"{catalog.path} has no {split} images; give it a split column, or make one with "
                "retailtag catalog split."
            )


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

    def backbone(self, backbone_id: str) -> list[_Pair]:
        """Run all stages of one backbone."""
        summary = self.extract(backbone_id)
        images = len(self.catalog.rows("train"))
        extract_seconds = images * summary.seconds_total / max(summary.store.n_rows, 1)
        probe_record = self.probe(backbone_id, summary.store)
        seconds = {"probe": extract_seconds + probe_record.seconds}
        records = {"probe": probe_record}
        if "finetune" in self.settings.strategies:
            records["finetune"] = self.finetune(backbone_id, summary.store)
            seconds["finetune"] = seconds["probe"] + records["finetune"].seconds
        return [
            self.pair(backbone_id, summary.store, s, records[s], extract_seconds, seconds[s])
            for s in self.settings.strategies
        ]

    def extract(self, backbone_id: str) -> ExtractSummary:
        """Bring the backbone's feature store up to date."""
        s = self.settings
        backbone = self._load(backbone_id)
        summary = extract(
            self.catalog,
            backbone,
            s.features,
            batch_size=s.batch_size,
            workers=s.workers,
            dtype=s.dtype,
            max_pixels=s.max_pixels,
            progress=self.progress,
        )
        name = f"extract {backbone.id}"
        self._note(name, f"{summary.n_computed:,} new images" if summary.n_computed else None)
        if summary.absent:
            self.findings.append(_absent(summary, len(self.catalog)))
        return summary

    def probe(self, backbone_id: str, store: FeatureStore) -> StageRecord:
        """Fit the probe, unless it stands."""
        s, folder = self.settings, self.settings.folder(backbone_id, "probe")
        inputs = probe_inputs(self.catalog, store, s.probe)
        name = f"probe {store.spec.backbone}"
        if self.is_current(name, folder, inputs):
            record = _sealed(folder)
        else:
            record = run_probe(
                self.catalog,
                store,
                folder,
                s.probe,
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
            workers=s.workers,
            max_pixels=s.max_pixels,
            progress=self.progress,
        ).record

    def pair(
        self,
        backbone_id: str,
        store: FeatureStore,
        strategy: str,
        record: StageRecord,
        extract_seconds: float,
        train_seconds: float,
    ) -> _Pair:
        """Latency of a finished pair, and with it its whole cost."""
        folder = self.settings.folder(backbone_id, strategy)
        name = store.spec.backbone
        facts = self._latency(f"latency {name} {strategy}", backbone_id, folder, record)
        cost = PairCost(
            extract_seconds=extract_seconds,
            train_seconds=train_seconds,
            peak_memory_mib=record.peak_memory_mib,
            **facts,
        )
        return _Pair(name, strategy, folder, cost)

    def _latency(
        self, name: str, backbone_id: str, folder: Path, record: StageRecord
    ) -> dict[str, Any]:
        inputs = {"model": record.outputs, "device": describe_machine(self.settings.device)}
        if self.is_current(name, folder / "latency", inputs):
            return _sealed(folder / "latency").facts
        facts = measure_pair(
            self.catalog, folder, self.settings.weights.get(backbone_id), self.settings.device
        )
        write_record(folder / "latency", (), inputs, facts=facts)
        return facts

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


def measure_pair(
    catalog: Catalog, folder: Path, weights: Path | None, device: str
) -> dict[str, Any]:
    """Latency, throughput and size of a fitted pair, on test images; keys as in `PairCost`."""
    from retailtag.tagger.latency import measure_latency
    from retailtag.tagger.tagger import Tagger

    tagger = Tagger.load(folder, weights=weights, device=device)
    known = set(Predictions.load(folder / "predictions.npz").image_ids.tolist())
    readable = [i for i in catalog.rows("test").tolist() if catalog.image_ids[i] in known]
    latency = measure_latency(tagger, [catalog.images.read(i) for i in readable[:LATENCY_IMAGES]])
    size = sum(p.numel() * p.element_size() for p in tagger.backbone.module.parameters())
    return {
        "latency_ms_p50": latency.p50_ms,
        "latency_ms_p95": latency.p95_ms,
        "images_per_second": latency.images_per_second,
        "parameters": tagger.parameters,
        "weights_mib": (size + tagger.weight.nbytes + tagger.bias.nbytes) / 2**20,
    }


def _sealed(folder: Path) -> StageRecord:
    record = read_record(folder)
    if record is None:
        raise DataError(f"{folder} changed while the bake-off read it; run the command again.")
    return record


def _report_inputs(
    catalog: Catalog, settings: BakeoffSettings, pairs: list[_Pair]
) -> dict[str, Any]:
    return {
        "catalogue": catalog.digest,
        "predictions": {
            f"{p.backbone} {p.strategy}": predictions_digest(_predictions(p)) for p in pairs
        },
        "costs": {f"{p.backbone} {p.strategy}": asdict(p.cost) for p in pairs},
        "bootstrap": [settings.n_bootstrap, settings.seed],
        "retailtag": retailtag.__version__,
        "scorecard": SCORECARD_FORMAT,
    }


def _predictions(pair: _Pair) -> Predictions:
    return Predictions.load(pair.folder / "predictions.npz")


def _score(
    catalog: Catalog,
    settings: BakeoffSettings,
    pairs: list[_Pair],
    findings: list[Finding],
    command: str,
) -> BakeoffResult:
    """Scorecards of all pairs and their comparison, on the test split."""
    options: dict[str, Any] = {
        "n_bootstrap": settings.n_bootstrap,
        "seed": settings.seed,
        "allow_missing": True,
    }
    models = [_predictions(pair) for pair in pairs]
    results = []
    for pair, model in zip(pairs, models, strict=True):
        card = score_predictions(model, catalog, **options)
        card.save(pair.folder)
        results.append(PairResult(pair.backbone, pair.strategy, card, pair.cost))
    named = {r.name: model for r, model in zip(results, models, strict=True)}
    return BakeoffResult(
        catalog=describe_catalog(catalog),
        pairs=tuple(results),
        comparisons=compare_predictions(named, catalog, **options),
        machine=describe_machine(settings.device),
        command=command,
        seed=settings.seed,
        findings=(*findings, *_often_scored(catalog, models)),
    )


def _often_scored(catalog: Catalog, models: list[Predictions]) -> list[Finding]:
    """Note that the models were scored; say so if the test split has seen several."""
    digests = {predictions_digest(model) for model in models}
    n = record_scored(catalog.digest, "test", digests)
    finding = often_scored(n, len(digests), "test")
    return [] if finding is None else [finding]


def _absent(summary: ExtractSummary, n_images: int) -> Finding:
    some = ", ".join(list(summary.absent)[:3])
    return Finding(
        "unreadable-images",
        f"{len(summary.absent)} of {n_images:,} images could not be read ({some}) and took no "
        f"part for {summary.store.spec.backbone}.",
        "See retailtag catalog check for the reason of each; mend or drop them.",
    )
