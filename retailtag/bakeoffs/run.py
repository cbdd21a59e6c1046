"""The bake-off: every backbone, every strategy, one scorer, one recommendation."""

from __future__ import annotations

import gc
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retailtag.backbones import canonical, components_of, load_backbone, resolve_id
from retailtag.bakeoffs.checks import check_readable
from retailtag.bakeoffs.pairs import (
    Pair,
    absent_finding,
    finished_pair,
    latency_inputs,
    machine_findings,
    measure_pair,
    report_inputs,
)
from retailtag.bakeoffs.request import ONLY_PROBED, Request
from retailtag.catalog.catalog import Catalog
from retailtag.context import RunContext
from retailtag.errors import DataError
from retailtag.extraction.embed import Loading
from retailtag.extraction.engines import EngineRequest, choose_engine
from retailtag.extraction.extract import ExtractSummary, extract_together
from retailtag.probes.artefact import Probe
from retailtag.progress import SILENT, Progress
from retailtag.report.decision import Decision, decide
from retailtag.report.results import BakeoffResult, PairResult, describe_catalog
from retailtag.report.write import write_report
from retailtag.runs.embeddings import find_texts
from retailtag.runs.finetune import finetune_inputs, run_finetune
from retailtag.runs.machine import describe_machine
from retailtag.runs.probe import probe_inputs, run_probe
from retailtag.runs.stage import StageRecord, read_record, why_stale, write_record
from retailtag.scoring.compare import compare_predictions
from retailtag.scoring.finding import Finding
from retailtag.scoring.ledger import reused_split
from retailtag.scoring.score import predictions_digest, score_predictions
from retailtag.settings import BakeoffSettings
from retailtag.store import EmbeddingSource, FeatureStore, join


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
    context = RunContext(catalog, settings.reading, settings.compute, provenance or {}, progress)
    request = Request(context, settings)
    runner = _Runner(request)
    runner.extract()
    pairs = [pair for backbone in settings.backbones for pair in runner.backbone(backbone)]
    inputs = report_inputs(catalog, pairs, settings.score.replicates, settings.score.seed)
    out = request.out
    if runner.is_current("report", out, inputs):
        result = BakeoffResult.load(out / "bakeoff.json")
    else:
        findings = [*runner.findings, *machine_findings(pairs)]
        result = _score(request, pairs, findings, command)
    decision = decide(result)
    report = out / "report.html"
    if "report" in runner.ran:
        report = write_report(result, decision, out)
        write_record(out, request.report_files, inputs)
    return BakeoffRun(result, decision, report, runner.ran, runner.reused)


class _Runner:
    """Runs stages, or reuses them, and keeps the list of both."""

    def __init__(self, request: Request) -> None:
        self.request, self.context = request, request.context
        self.settings, self.catalog = request.settings, request.context.catalog
        self.progress = request.context.progress
        self.ran: list[str] = []
        self.reused: list[str] = []
        self.findings: list[Finding] = []
        self.extracted: dict[str, ExtractSummary] = {}

    def backbone(self, backbone_id: str) -> list[Pair]:
        """Run all stages of one backbone after its extraction."""
        summaries = [self.extracted[canonical(part)] for part in components_of(backbone_id)]
        check_readable(self.catalog, {i: why for s in summaries for i, why in s.absent.items()})
        store = join([summary.store for summary in summaries])
        strategies = self.request.strategies_of(backbone_id)
        records = {"probe": self.probe(backbone_id, store)}
        if "finetune" in strategies:
            records["finetune"] = self.finetune(backbone_id, summaries[0].store)
        elif "finetune" in self.settings.strategies:
            self.progress.say(f"finetune {store.spec.backbone}: skipped. {ONLY_PROBED}")
        pairs = []
        for strategy in strategies:
            folder = self.request.folder(backbone_id, strategy)
            name = f"latency {store.spec.backbone} {strategy}"
            latency = self.latency(name, backbone_id, folder, records[strategy])
            pairs.append(finished_pair(self.catalog, store, strategy, folder, records, latency))
        return pairs

    def extract(self) -> None:
        """Bring the feature stores of all backbones up to date in one pass over the images."""
        s = self.settings
        parts = {canonical(part): part for b in s.backbones for part in components_of(b)}
        backbones = {key: self._load(part) for key, part in parts.items()}
        for key in map(canonical, self.request.fine_tuned):
            backbones[key].trainable_names(
                s.finetune.trained_blocks
            )  # refuses --blocks that it has not
        workers, limits = self.context.workers, self.context.limits
        loading = Loading(s.extract.batch_size or Loading.batch_size, workers, **limits)
        engine = EngineRequest.to_extract(s.extract)
        engines = [
            choose_engine(
                self.catalog,
                backbone,
                s.compute.features,
                engine,
                dtype=s.extract.dtype,
                loading=loading,
                progress=self.progress,
            )
            for backbone in backbones.values()
        ]
        summaries = extract_together(
            self.catalog,
            [chosen.embedder for chosen in engines],
            s.compute.features,
            batch_size=s.extract.batch_size,
            workers=workers,
            dtype=s.extract.dtype,
            **limits,
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
        s, folder = self.settings, self.request.folder(backbone_id, "probe")
        given, tags = s.probe.heads, self.catalog.table.tags
        weights, device = self.request.weights, self.context.device
        texts = find_texts(given, backbone_id, tags, weights=weights, device=device)
        inputs = probe_inputs(self.catalog, store, s.probe, texts)
        name = f"probe {store.spec.backbone}"
        if self.is_current(name, folder, inputs):
            record = _sealed(folder)
        else:
            record = run_probe(self.context, store, folder, s.probe, texts=texts).record
        self.findings += [
            Finding(code, f"{name}: {sentence}", remedy)
            for code, sentence, remedy in record.facts["findings"]
        ]
        return record

    def finetune(self, backbone_id: str, store: FeatureStore) -> StageRecord:
        """Fine-tune from the fitted probe, unless that stands."""
        s, folder = self.settings, self.request.folder(backbone_id, "finetune")
        probe = Probe.load(self.request.folder(backbone_id, "probe"))
        inputs = finetune_inputs(self.catalog, store, probe, s.finetune)
        if self.is_current(f"finetune {store.spec.backbone}", folder, inputs):
            return _sealed(folder)
        model = self._load(backbone_id)
        return run_finetune(self.context, store, model, probe, folder, s.finetune).record

    def latency(self, name: str, backbone_id: str, folder: Path, model: StageRecord) -> StageRecord:
        """Latency of a finished pair on this machine, unless it stands."""
        place, device = folder / "latency", self.context.device
        inputs = latency_inputs(model, device)
        if self.is_current(name, place, inputs):
            return _sealed(place)
        given = {part: self.request.weights.get(part) for part in components_of(backbone_id)}
        local = {str(resolve_id(part)): path for part, path in given.items() if path}
        facts = measure_pair(self.catalog, folder, local, device, **self.context.limits)
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
        weights = self.request.weights.get(backbone_id)
        return load_backbone(backbone_id, weights=weights, device=self.context.device)


def _sealed(folder: Path) -> StageRecord:
    record = read_record(folder)
    if record is None:
        raise DataError(f"{folder} changed while the bake-off read it; run the command again.")
    return record


def _score(
    request: Request,
    pairs: list[Pair],
    findings: list[Finding],
    command: str,
) -> BakeoffResult:
    """Scorecards of all pairs and their comparison, on the test split."""
    catalog, score = request.context.catalog, request.settings.score
    options: dict[str, Any] = {
        "n_bootstrap": score.replicates,
        "seed": score.seed,
        "allow_missing": True,
    }
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
        comparisons=compare_predictions(named, catalog, **options),
        machine=describe_machine(request.context.device),
        command=command,
        seed=score.seed,
        findings=(*findings, *reused_split(scored, "test")),
    )
