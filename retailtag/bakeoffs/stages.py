"""The stages of a bake-off, in the order in which they run."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retailtag.backbones import canonical, components_of, resolve_id
from retailtag.backbones.roofline import measure_rates
from retailtag.bakeoffs.estimates import Estimator
from retailtag.bakeoffs.extraction import ExtractionPass, ExtractStage, load
from retailtag.bakeoffs.families import entrants, gains_of_names
from retailtag.bakeoffs.illustrations import illustrated
from retailtag.bakeoffs.pairs import (
    Pair,
    absent_finding,
    embedding_seconds,
    finished_pair,
    machine_findings,
    measure_pairs,
    pair_name,
    stages_of,
)
from retailtag.bakeoffs.request import Request
from retailtag.bakeoffs.t4 import Trained, measured_t4, merged_t4, t4_cost
from retailtag.catalog.attributes import recorded_attributes
from retailtag.errors import DataError
from retailtag.lock import only_writer
from retailtag.predictions import Predictions
from retailtag.probes.artefact import Probe
from retailtag.report.decision import RULE, decide
from retailtag.report.results import BakeoffResult, PairResult, Rule, describe_catalog
from retailtag.report.write import PAGE, write_report
from retailtag.runs.embeddings import find_texts
from retailtag.runs.finetune import run_finetune
from retailtag.runs.finetune_training import finetune_inputs
from retailtag.runs.latency import model_digest, read_merged
from retailtag.runs.machine import describe_machine
from retailtag.runs.probe import probe_inputs, run_probe
from retailtag.runs.stage import Estimate, RecordedStage, Stage, write_record
from retailtag.scoring.compare import hold_contest
from retailtag.scoring.families import FamilyComparison, compare_families
from retailtag.scoring.finding import Finding
from retailtag.scoring.findings import several_threads
from retailtag.scoring.ledger import reused_split
from retailtag.scoring.score import predictions_digest, score_predictions
from retailtag.scoring.scorecard import FORMAT as SCORECARD_FORMAT
from retailtag.scoring.strict_json import plain
from retailtag.statistics.exclusive import INDEPENDENT
from retailtag.store import EmbeddingSource, FeatureStore
from retailtag.version import __version__


class BackboneStage(RecordedStage):
    """A stage of one backbone, in the folder of one strategy: ``probe`` or ``finetune``."""

    def __init__(
        self, extraction: ExtractionPass, estimator: Estimator, backbone: str, strategy: str
    ) -> None:
        self.extraction = extraction
        self.estimator = estimator
        self.request = extraction.request
        self.context = self.request.context
        self.settings = self.request.settings
        self.backbone = backbone
        self.strategy = strategy
        self.name = f"{strategy} {canonical(backbone)}"
        self.folder = self.request.folder(backbone, strategy)

    @property
    def source(self) -> EmbeddingSource:
        """Embeddings of the backbone; raises `DataError` if it was not extracted."""
        source = self.extraction.source(self.backbone)
        if source is None:
            raise DataError(f"There are no features of {self.backbone}; run retailtag extract.")
        return source


class ProbeStage(BackboneStage):
    """The probe of one backbone."""

    def __init__(self, extraction: ExtractionPass, estimator: Estimator, backbone: str) -> None:
        super().__init__(extraction, estimator, backbone, "probe")
        self.needs = tuple(f"extract {canonical(c)}" for c in components_of(backbone))

    @cached_property
    def _texts(self) -> NDArray[np.float32] | None:
        """Embedded tag names of the head ``text``; a plan loads no model and has none."""
        if not self.extraction.summaries:
            return None
        return find_texts(
            self.settings.probe.heads,
            self.backbone,
            self.context.catalog.table.tags,
            weights=self.request.weights,
            device=self.context.device,
        )

    def inputs(self) -> dict[str, Any]:
        """See `probe_inputs`."""
        probe = self.settings.probe
        return probe_inputs(self.context.catalog, self.source, probe, self._texts)

    def estimate(self) -> Estimate:
        """Of the sweep."""
        return self.estimator.probe(self.backbone)

    def run(self) -> None:
        """Sweep, choose, refit and predict."""
        with only_writer(self.folder):
            run_probe(
                self.context, self.source, self.folder, self.settings.probe, texts=self._texts
            )

    @property
    def findings(self) -> list[Finding]:
        """What the finished probe's record warns of."""
        return [
            Finding(code, f"{self.name}: {sentence}", remedy)
            for code, sentence, remedy in self.record.facts["findings"]
        ]


class FinetuneStage(BackboneStage):
    """The fine-tune of one backbone, which starts from its probe."""

    def __init__(self, extraction: ExtractionPass, estimator: Estimator, probe: ProbeStage) -> None:
        super().__init__(extraction, estimator, probe.backbone, "finetune")
        self.needs = probe.needs
        self.may_need = (probe.name,)  # of the probe it reads C, scaling and thresholds
        self._probe = probe

    @property
    def _store(self) -> FeatureStore:
        assert isinstance(self.source, FeatureStore)  # A+B is never fine-tuned
        return self.source

    def inputs(self) -> dict[str, Any]:
        """See `finetune_inputs`."""
        probe = Probe.load(self._probe.folder)
        return finetune_inputs(self.context.catalog, self._store, probe, self.settings.finetune)

    def estimate(self) -> Estimate:
        """Of the training, with cached activations where they fit."""
        return self.estimator.finetune(self.backbone)

    def run(self) -> None:
        """Train, choose and predict."""
        model = load(self.request, self.backbone)
        probe = Probe.load(self._probe.folder)
        settings = self.settings.finetune
        with only_writer(self.folder):
            run_finetune(self.context, self._store, model, probe, self.folder, settings)


Training = dict[str, BackboneStage]  # stages that train one backbone, by strategy


class LatencyStage(RecordedStage):
    """Latency, throughput and size of all finished pairs on this machine, timed in turn."""

    def __init__(self, extraction: ExtractionPass, pairs: list[tuple[Training, str]]) -> None:
        self.name = "latency"
        self.request = extraction.request
        self.folder = self.request.out / "latency"
        models = [training[strategy] for training, strategy in pairs]
        self.may_need = tuple(m.name for m in models)  # one fitted again may have the same bytes
        names = [pair_name(canonical(m.backbone), m.strategy) for m in models]
        self._models = dict(zip(names, models, strict=True))
        self._trainings = {name: t for name, (t, _) in zip(names, pairs, strict=True)}

    def inputs(self) -> dict[str, Any]:
        """The models and the machine."""
        machine = describe_machine(self.request.context.device)
        models = {name: model.record.outputs for name, model in self._models.items()}
        return {"models": models, "device": machine}

    def estimate(self) -> Estimate:
        """Of embedding the images twice with every model."""
        parts = [m.estimator.latency(m.backbone) for m in self._models.values()]
        return Estimate(sum(p.seconds for p in parts), sum(p.disk_bytes for p in parts))

    def run(self) -> None:
        """Measure on the first readable test images, and estimate what a T4 would take."""
        inputs = self.inputs()
        context = self.request.context
        models = {name: (m.folder, self._weights(m)) for name, m in self._models.items()}
        facts = measure_pairs(context, models)
        here = measure_rates(context.device)
        for name, of_pair in facts.items():
            trained, measured = self._trained(name), of_pair.pop("network_seconds")
            if "T4" in inputs["device"]["device"]:
                of_pair["t4"] = measured_t4(of_pair, trained)
                continue
            # A model whose kernels cannot be counted has no estimate; hours of training stay.
            try:
                of_pair["t4"] = t4_cost(trained, measured, here)
            except (RuntimeError, TypeError, ValueError) as error:
                reason = str(error).partition("\n")[0]
                context.progress.say(f"{name}: no estimate for a T4 ({reason})")
                of_pair["t4"] = {}
        write_record(self.folder, (), inputs, facts=facts, machine=inputs["device"])

    def _trained(self, name: str) -> Trained:
        """What the training of a pair is estimated from."""
        model, training = self._models[name], self._trainings[name]
        catalog, paid = self.request.context.catalog, stages_of(model.strategy)
        return Trained(
            model.backbone,
            training["probe"].folder,
            {stage: training[stage].record for stage in paid},
            n_train=len(catalog.rows("train")),
            n_held_out=len(catalog.rows("val", "test")),
            n_tags=len(catalog.table.tags),
            dim=model.source.spec.dim,
            extract_seconds=embedding_seconds(catalog, model.source),
        )

    def _weights(self, model: BackboneStage) -> dict[str, Path]:
        """Local weights of a model's backbones, by id."""
        given = {c: self.request.weights.get(c) for c in components_of(model.backbone)}
        return {str(resolve_id(c)): path for c, path in given.items() if path}


@dataclass(frozen=True, eq=False)
class PairStages:
    """The stages behind one pair: those that its training cost counts, and the latency of all."""

    training: Training  # probe, and finetune after it
    strategy: str
    latency: LatencyStage

    def pair(self) -> Pair:
        """The finished pair."""
        records = {strategy: stage.record for strategy, stage in self.training.items()}
        last = self.training[self.strategy]
        catalog, timed = last.context.catalog, self.latency.record
        return finished_pair(catalog, last.source, self.strategy, last.folder, records, timed)


class ReportStage(RecordedStage):
    """Scorecards of all pairs, their comparison, the decision and the report."""

    def __init__(
        self,
        extraction: ExtractionPass,
        estimator: Estimator,
        pairs: list[PairStages],
        command: str,
    ) -> None:
        self.name = "report"
        self.extraction = extraction
        self.estimator = estimator
        self.command = command
        self.request = extraction.request
        self.folder = self.request.out
        self._pairs = pairs
        stages = [stage for pair in pairs for stage in (*pair.training.values(), pair.latency)]
        self.needs = tuple(dict.fromkeys(stage.name for stage in stages))

    def inputs(self) -> dict[str, Any]:
        """Predictions and costs of every pair, and what they are compared with."""
        score = self.request.settings.score
        catalog = self.request.context.catalog
        pairs = self._finished()
        return {
            "catalogue": catalog.digest,
            "cutoffs": asdict(catalog.table.cutoffs),
            "predictions": {p.name: predictions_digest(p.predictions) for p in pairs},
            "costs": {p.name: plain(asdict(p.cost)) for p in pairs},
            "machines": {p.name: p.machines for p in pairs},
            "bootstrap": [score.replicates, score.seed],
            "assignment": score.assign,
            "exclusive": recorded_attributes(catalog.table),
            "decide": self.request.settings.decide.recorded(),
            "rule": RULE,
            "names": self.request.names,
            "page": PAGE,
            "retailtag": __version__,
            "scorecard": SCORECARD_FORMAT,
            "pictures": not self.request.settings.no_images,
        }

    def estimate(self) -> Estimate:
        """Of scoring and drawing."""
        return self.estimator.report()

    def run(self) -> None:
        """Score on the test split, compare, decide and write the report."""
        inputs = self.inputs()
        pairs = self._finished()
        result = self._score(pairs)
        decision = decide(result)
        result = replace(result, recommended=decision.winner)
        pictures = not self.request.settings.no_images
        report = illustrated(
            result, decision, pairs, self.request.context.catalog, pictures=pictures
        )
        write_report(report, self.folder)
        write_record(self.folder, self.request.report_files, inputs)

    def _finished(self) -> list[Pair]:
        """All pairs, with the latencies that were measured on a T4 elsewhere."""
        pairs = [stages.pair() for stages in self._pairs]
        digests = {pair.name: model_digest(pair.folder) for pair in pairs}
        merge = self.request.settings.merge
        rows = [row for path in merge for row in read_merged(path, digests)]
        t4 = {
            pair.name: merged_t4(pair.cost.t4, [row for row in rows if row.pair == pair.name])
            for pair in pairs
        }
        return [replace(pair, cost=replace(pair.cost, t4=t4[pair.name])) for pair in pairs]

    def result(self) -> BakeoffResult:
        """What the finished stage wrote."""
        return BakeoffResult.load(self.folder / "bakeoff.json")

    def _score(self, pairs: list[Pair]) -> BakeoffResult:
        catalog, score = self.request.context.catalog, self.request.settings.score
        assignment = score.assign or INDEPENDENT
        predictions = [pair.predictions for pair in pairs]
        results = []
        for pair, of_pair in zip(pairs, predictions, strict=True):
            card = score_predictions(of_pair, catalog, allow_missing=True, assignment=assignment)
            with only_writer(pair.folder):
                card.save(pair.folder)
            results.append(PairResult(pair.backbone, pair.strategy, card, pair.cost))
        models = {r.name: [model] for r, model in zip(results, predictions, strict=True)}
        scored = [(catalog.digest, predictions_digest(model)) for model in predictions]
        threads = {name: model.provenance.get("threads") for name, (model,) in models.items()}
        return BakeoffResult(
            catalog=describe_catalog(catalog),
            pairs=tuple(results),
            comparisons=hold_contest(
                models,
                catalog,
                n_bootstrap=score.replicates,
                seed=score.seed,
                allow_missing=True,
                assignment=assignment,
            ).comparisons,
            machine=describe_machine(self.request.context.device),
            command=self.command,
            seed=score.seed,
            families=self._families(pairs, predictions, assignment),
            findings=(
                *self._findings(),
                *machine_findings(pairs),
                *several_threads(threads),
                *reused_split(scored, "test"),
            ),
            rule=Rule.of(self.request.settings.decide),
            names=tuple(self.request.names.items()),
        )

    def _families(
        self, pairs: list[Pair], predictions: list[Predictions], assignment: str
    ) -> FamilyComparison:
        catalog, seed = self.request.context.catalog, self.request.settings.score.seed
        found = compare_families(
            entrants(pairs, predictions), catalog, seed=seed, assignment=assignment
        )
        return replace(found, text=gains_of_names(pairs, catalog))

    def _findings(self) -> list[Finding]:
        n_images = len(self.request.context.catalog)
        summaries = self.extraction.summaries.values()
        findings = [absent_finding(s, n_images) for s in summaries if s.absent]
        probes = {stages.training["probe"].name: stages.training["probe"] for stages in self._pairs}
        for probe in probes.values():
            assert isinstance(probe, ProbeStage)
            findings += probe.findings
        return findings


def bakeoff_stages(
    request: Request, command: str = "", estimator: Estimator | None = None
) -> list[Stage]:
    """Every stage of a bake-off in order, the report last; nothing is read or run.

    Without an `estimator` the speed of the machine is counted instead of timed.
    """
    extraction, estimator = ExtractionPass(request), estimator or Estimator(request)
    given = [c for b in request.settings.backbones for c in components_of(b)]
    components = {canonical(c): c for c in given}  # a component of several backbones is one stage
    extracts = [ExtractStage(extraction, estimator, c) for c in components.values()]
    later: list[Stage] = []
    chosen: list[tuple[Training, str]] = []  # of each pair
    for backbone in request.settings.backbones:
        probe = ProbeStage(extraction, estimator, backbone)
        training: Training = {"probe": probe}
        if "finetune" in request.strategies_of(backbone):
            training["finetune"] = FinetuneStage(extraction, estimator, probe)
        later += training.values()
        chosen += [(training, strategy) for strategy in request.strategies_of(backbone)]
    latency = LatencyStage(extraction, chosen)
    pairs = [PairStages(stages, strategy, latency) for stages, strategy in chosen]
    return [*extracts, *later, latency, ReportStage(extraction, estimator, pairs, command)]
