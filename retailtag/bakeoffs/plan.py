"""What a bake-off would run, how long and how much disk it would take; nothing is run."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import product
from typing import Any

from retailtag.backbones import canonical, components_of
from retailtag.backbones.cost import Cost, cost_of_all
from retailtag.backbones.engines import AUTO, EAGER, EngineName
from retailtag.backbones.engines.build import best_name
from retailtag.backbones.preprocess import accepts_truncated
from retailtag.bakeoffs.pairs import (
    LATENCY_IMAGES,
    Pair,
    finished_pair,
    latency_inputs,
    report_inputs,
)
from retailtag.bakeoffs.request import Request
from retailtag.catalog.catalog import Catalog
from retailtag.context import RunContext
from retailtag.extraction.engines import MIN_IMAGES_FOR_TRIAL, EngineRequest
from retailtag.probes.artefact import Probe
from retailtag.probes.grid import parse_grid
from retailtag.probes.scaling import parse_scales
from retailtag.runs.finetune import finetune_inputs
from retailtag.runs.probe import probe_inputs
from retailtag.runs.stage import read_record, why_stale
from retailtag.settings import STRATEGIES, BakeoffSettings
from retailtag.store import EmbeddingSource, FeatureSpec, FeatureStore, join, list_stores

NETWORK_SHARE = 0.3  # of the rate of a large matrix product that a network reaches
DECODE_SECONDS = 0.002  # one image of shop size, one core
CELL_SECONDS = 20e-9  # one (image, tag) of a solver iteration beside its products
ITERATIONS = 6  # of a fit, mean over the grid
TRAINED_SHARE = 0.5  # of the forward cost that lies in the last blocks
REPORT_SECONDS = 20.0


@dataclass(frozen=True)
class PlannedStage:
    """One stage of a bake-off.

    Parameters
    ----------
    name : str
    why : str
        Why it would run; empty if it stands from before.
    seconds : float
        Rough estimate of the wall time, 0 if it stands; expect a factor of three either way.
    disk_bytes : float
        Rough estimate of what it would write.
    """

    name: str
    why: str
    seconds: float
    disk_bytes: float

    def to_json(self) -> dict[str, Any]:
        """Plain dictionary."""
        return asdict(self)


def plan_bakeoff(catalog: Catalog, settings: BakeoffSettings) -> list[PlannedStage]:
    """List the stages of `retailtag.bakeoffs.run.run_bakeoff` in order, named as it does.

    Parameters
    ----------
    catalog : Catalog
    settings : BakeoffSettings

    Returns
    -------
    list of PlannedStage

    Raises
    ------
    DataError, UsageError
        What `run_bakeoff` refuses before its first stage.

    Notes
    -----
    Times follow from counted operations (`retailtag.backbones.cost`) and the rate of a matrix
    product measured here for a fifth of a second. A stage stands by the same comparison of
    inputs as in the run, with two things taken on trust, since neither weights nor images are
    read: that a store of the same backbone and dtype was filled by the weights that the run will
    load, and that no image changed since. A stage that may stand, according to what one before
    it finds, is listed with "may".
    """
    request = Request(RunContext(catalog, settings.reading, settings.compute), settings)
    rate = matrix_rate(request.context.device)
    stages: list[PlannedStage] = []
    pairs: list[Pair] = []
    for backbone in settings.backbones:
        planner = _Planner(request, backbone, rate)
        listed = {stage.name for stage in stages}  # a part is extracted once
        stages += [stage for stage in planner.stages() if stage.name not in listed]
        pairs += [] if any(s.why for s in stages) else planner.finished()
    stages.sort(key=lambda stage: not stage.name.startswith("extract "))  # one pass comes first
    why: str | None = "predictions or costs will change"
    if not any(stage.why for stage in stages):
        inputs = report_inputs(catalog, pairs, settings.score.replicates, settings.score.seed)
        why = why_stale(request.out, inputs)
    return [*stages, _stage("report", why, REPORT_SECONDS, 3e6)]


def matrix_rate(device: str) -> float:
    """Operations a second of a 1,024 x 1,024 float32 product on `device`, measured briefly."""
    import torch

    a = torch.ones(1024, 1024, device=device)
    (a @ a).sum().item()
    start, n = time.perf_counter(), 0
    while time.perf_counter() - start < 0.2:
        (a @ a).sum().item()
        n += 1
    return 2 * 1024**3 * n / (time.perf_counter() - start)


def _stage(name: str, why: str | None, seconds: float, disk_bytes: float) -> PlannedStage:
    if not why:
        return PlannedStage(name, "", 0.0, 0.0)
    return PlannedStage(name, why, seconds, disk_bytes)


@dataclass(frozen=True)
class _Planner:
    """Estimates for one backbone; `rate` in operations a second."""

    request: Request
    backbone: str
    rate: float

    @property
    def catalog(self) -> Catalog:
        """The catalogue."""
        return self.request.context.catalog

    @property
    def settings(self) -> BakeoffSettings:
        """What is asked for."""
        return self.request.settings

    def stages(self) -> list[PlannedStage]:
        """List the stages of this backbone in order."""
        parts = components_of(self.backbone)
        cost, name = cost_of_all(parts), canonical(self.backbone)
        store, strategies = self._store(), self.request.strategies_of(self.backbone)
        extracts = [replace(self, backbone=part)._extract() for part in parts]
        changed: dict[str, str | None]
        if store is None or any(stage.why for stage in extracts):
            changed = dict.fromkeys(STRATEGIES, "embeddings will change")
        else:
            changed = self._models(store)
        rest = [self._probe(name, cost, changed["probe"])]
        if "finetune" in strategies:
            rest.append(self._finetune(name, cost, changed["finetune"]))
        latencies = [
            self._latency(f"latency {name} {strategy}", cost, strategy, changed[strategy])
            for strategy in strategies
        ]
        return [*extracts, *rest, *latencies]

    def finished(self) -> list[Pair]:
        """Pairs of this backbone, all of whose stages stand."""
        store, folder = self._store(), partial(self.request.folder, self.backbone)
        records = {s: read_record(folder(s)) for s in STRATEGIES}
        known = {s: r for s, r in records.items() if r is not None}
        pairs = []
        for strategy in self.request.strategies_of(self.backbone):
            latency = read_record(folder(strategy) / "latency")
            if store is not None and latency is not None:
                args = (strategy, folder(strategy), known, latency)
                pairs.append(finished_pair(self.catalog, store, *args))
        return pairs

    def _store(self) -> EmbeddingSource | None:
        """What the run would open: stores of equal backbone and dtype, the fitted one first."""
        ids = set(self.catalog.image_ids.tolist())
        record = read_record(self.request.folder(self.backbone, "probe"))
        fitted = record.inputs.get("features") if record else None
        stores = list_stores(self.settings.compute.features)
        of_parts = [
            [s for s in stores if s.spec.backbone == name and self._is_asked(s.spec)]
            for name in map(canonical, components_of(self.backbone))
        ]
        sources = [
            (source.spec.digest == fitted, len(source.known().keys() & ids), i, source)
            for i, source in enumerate(map(join, product(*of_parts)))
        ]
        return max(sources)[-1] if sources else None

    def _is_asked(self, spec: FeatureSpec) -> bool:
        """Whether the settings ask for this dtype and these damaged files, and allow the engine."""
        asked = self.settings.extract.dtype, self.settings.reading.allow_truncated
        engine = EngineRequest.to_extract(self.settings.extract)
        allowed = engine.allows(EngineName.parse(spec.engine))
        return allowed and (spec.dtype, accepts_truncated(spec)) == asked

    def _models(self, store: EmbeddingSource) -> dict[str, str | None]:
        """Why probe and fine-tune would run on embeddings that stand; None where they stand."""
        s, folder = self.settings, partial(self.request.folder, self.backbone)
        inputs = probe_inputs(self.catalog, store, s.probe)
        probe = why_stale(folder("probe"), inputs)
        if probe is not None:
            return {"probe": probe, "finetune": "probe will change: C or thresholds may"}
        if not isinstance(store, FeatureStore):
            return {"probe": probe}
        fitted = Probe.load(folder("probe"))
        known = finetune_inputs(self.catalog, store, fitted, s.finetune)
        return {"probe": probe, "finetune": why_stale(folder("finetune"), known)}

    def _latency(self, name: str, cost: Cost, strategy: str, model_why: str | None) -> PlannedStage:
        folder = self.request.folder(self.backbone, strategy)
        why: str | None = "model may change"
        record = read_record(folder)
        if model_why is None and record is not None:
            inputs = latency_inputs(record, self.request.context.device)
            why = why_stale(folder / "latency", inputs)
        return _stage(name, why, self._embed_seconds(2 * LATENCY_IMAGES, cost), 2e3)

    def _embed_seconds(self, n: int, cost: Cost) -> float:
        decode = DECODE_SECONDS / max(self.request.context.workers, 1)
        return n * (cost.flops / (NETWORK_SHARE * self.rate) + decode)

    def _extract(self) -> PlannedStage:
        cost, store = cost_of_all([self.backbone]), self._store()
        ids = set(self.catalog.image_ids.tolist())
        if isinstance(store, FeatureStore):
            ids -= store.known().keys() | store.absent().keys()
        new = len(ids)
        width = 2 if self.settings.extract.dtype == "float16" else 4
        return _stage(
            f"extract {canonical(self.backbone)}",
            f"{new:,} new images, {self._engine(store, new)}" if new else None,
            self._embed_seconds(new, cost),
            float(new) * (cost.dim * width + 64),
        )

    def _engine(self, store: EmbeddingSource | None, new: int) -> str:
        """What will compute the embeddings, as far as it is known before anything is measured."""
        request = EngineRequest.to_extract(self.settings.extract)
        if store is not None and store.n_rows:
            return store.spec.engine
        if request.engine != AUTO:
            name = best_name(
                request.engine, request.precision or "exact", self.request.context.device
            )
            return str(name)
        return str(EAGER) if new < MIN_IMAGES_FOR_TRIAL else "by the fastest engine"

    def _probe_seconds(self, cost: Cost) -> float:
        n, n_tags = len(self.catalog.rows("train")), len(self.catalog.table.tags)
        probe = self.settings.probe
        settings = len(parse_grid(probe.sweep_C)) * len(parse_scales(probe.scale)) * probe.folds
        fits = n_tags * settings
        return fits * ITERATIONS * n * (CELL_SECONDS + 4 * cost.dim / self.rate)

    def _probe(self, name: str, cost: Cost, why: str | None) -> PlannedStage:
        disk = 4.0 * len(self.catalog.table.tags) * (cost.dim + self._n_held_out())
        return _stage(f"probe {name}", why, self._probe_seconds(cost), disk)

    def _finetune_seconds(self, cost: Cost) -> float:
        n, epochs = len(self.catalog.rows("train")), self.settings.finetune.epochs
        forwards = epochs * n * (1 + 2 * TRAINED_SHARE) + self._n_held_out()
        return self._embed_seconds(round(forwards), cost)

    def _finetune(self, name: str, cost: Cost, why: str | None) -> PlannedStage:
        disk = cost.weight_bytes + 4.0 * len(self.catalog.table.tags) * self._n_held_out()
        return _stage(f"finetune {name}", why, self._finetune_seconds(cost), disk)

    def _n_held_out(self) -> int:
        return len(self.catalog.rows("val", "test"))
