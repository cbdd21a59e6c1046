"""What a bake-off would run, how long and how much disk it would take; nothing is run."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any

from retailtag.backbones import resolve_id
from retailtag.backbones.cost import Cost, cost_of
from retailtag.catalog.catalog import Catalog
from retailtag.pipeline.bakeoff import BakeoffSettings, check_splits
from retailtag.pipeline.stage import why_stale
from retailtag.probes.sweep import parse_grid
from retailtag.store import list_stores

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
    """List the stages of `retailtag.pipeline.bakeoff.run_bakeoff` in order.

    Parameters
    ----------
    catalog : Catalog
    settings : BakeoffSettings

    Returns
    -------
    list of PlannedStage

    Raises
    ------
    DataError
        If the catalogue has no test or no training images.
    UsageError
        If a backbone is unknown.

    Notes
    -----
    Times follow from counted operations (`retailtag.backbones.cost`) and the rate of a matrix
    product measured here for a fifth of a second. Whether a stage stands is judged without
    loading weights: a store of the same backbone counts, whatever weights filled it.
    """
    check_splits(catalog)
    rate = matrix_rate(settings.device)
    stages: list[PlannedStage] = []
    for backbone in settings.backbones:
        stages += _Planner(catalog, settings, backbone, rate).stages()
    anything = any(stage.why for stage in stages)
    why = "" if not anything and (settings.out / "bakeoff.json").exists() else "not done"
    return [*stages, _stage("score and report", why, REPORT_SECONDS, 3e6)]


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

    catalog: Catalog
    settings: BakeoffSettings
    backbone: str
    rate: float

    def stages(self) -> list[PlannedStage]:
        """List the stages of this backbone in order."""
        cost, name = cost_of(self.backbone), str(resolve_id(self.backbone))
        stages = [self._extract(name, cost), self._probe(name, cost)]
        if "finetune" in self.settings.strategies:
            stages.append(self._finetune(name, cost))
        forced = stages[0].why
        return [s if s.why or not forced else self._again(s, cost) for s in stages]

    def _again(self, stage: PlannedStage, cost: Cost) -> PlannedStage:
        """A stage that stood on embeddings which will change."""
        seconds = self._probe_seconds(cost)
        if stage.name.startswith("finetune"):
            seconds = self._finetune_seconds(cost)
        return PlannedStage(stage.name, "embeddings will change", seconds, 0.0)

    def _embed_seconds(self, n: int, cost: Cost) -> float:
        decode = DECODE_SECONDS / max(self.settings.workers, 1)
        return n * (cost.flops / (NETWORK_SHARE * self.rate) + decode)

    def _extract(self, name: str, cost: Cost) -> PlannedStage:
        known: set[str] = set()
        for store in list_stores(self.settings.features):
            if (store.spec.backbone, store.spec.dtype) == (name, self.settings.dtype):
                known |= store.known().keys()
        new = len(set(self.catalog.image_ids.tolist()) - known)
        width = 2 if self.settings.dtype == "float16" else 4
        return _stage(
            f"extract {name}",
            f"{new:,} new images" if new else None,
            self._embed_seconds(new, cost),
            float(new) * (cost.dim * width + 64),
        )

    def _probe_seconds(self, cost: Cost) -> float:
        n, n_tags = len(self.catalog.rows("train")), len(self.catalog.table.tags)
        fits = n_tags * len(parse_grid(self.settings.probe.grid)) * self.settings.probe.folds
        return fits * ITERATIONS * n * (CELL_SECONDS + 4 * cost.dim / self.rate)

    def _probe(self, name: str, cost: Cost) -> PlannedStage:
        folder = self.settings.folder(self.backbone, "probe")
        known = {
            "catalogue": self.catalog.digest,
            "settings": asdict(self.settings.probe),
        }
        disk = 4.0 * len(self.catalog.table.tags) * (cost.dim + self._n_held_out())
        return _stage(f"probe {name}", why_stale(folder, known), self._probe_seconds(cost), disk)

    def _finetune_seconds(self, cost: Cost) -> float:
        n, epochs = len(self.catalog.rows("train")), self.settings.finetune.epochs
        forwards = epochs * n * (1 + 2 * TRAINED_SHARE) + self._n_held_out()
        return self._embed_seconds(round(forwards), cost)

    def _finetune(self, name: str, cost: Cost) -> PlannedStage:
        folder = self.settings.folder(self.backbone, "finetune")
        known = {
            "catalogue": self.catalog.digest,
            "settings": self.settings.finetune.to_json(),
        }
        disk = cost.weight_bytes + 4.0 * len(self.catalog.table.tags) * self._n_held_out()
        return _stage(
            f"finetune {name}", why_stale(folder, known), self._finetune_seconds(cost), disk
        )

    def _n_held_out(self) -> int:
        return len(self.catalog.rows("val", "test"))
