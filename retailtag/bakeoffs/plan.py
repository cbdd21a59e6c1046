"""What a bake-off would run, how long it would take and what it would write; nothing is run."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from typing import Any

from retailtag.bakeoffs.estimates import Estimator
from retailtag.bakeoffs.request import Request
from retailtag.bakeoffs.speed import Clock, timed
from retailtag.bakeoffs.stages import bakeoff_stages
from retailtag.catalog.catalog import Catalog
from retailtag.context import RunContext
from retailtag.runs.stage import NOT_DONE, Estimate, RecordedStage, Stage, read_record
from retailtag.settings import BakeoffSettings

WORTH_TIMING = 120.0  # counted seconds of a bake-off from which its backbones are timed


@dataclass(frozen=True)
class PlannedStage:
    """One stage of a plan, with estimates that are right within a factor of 1.5 or so."""

    name: str
    why: str  # empty if it is reused
    certain: bool  # whether it will run, rather than may, depending on what an earlier stage finds
    seconds: float
    disk_bytes: float

    def to_json(self) -> dict[str, Any]:
        """Plain dictionary."""
        return asdict(self)


def plan_bakeoff(
    catalog: Catalog, settings: BakeoffSettings, *, clock: Clock = time.perf_counter
) -> list[PlannedStage]:
    """List the stages of `retailtag.bakeoffs.run.run_bakeoff` in order; refuses what it refuses.

    Inputs are compared as in the run, except that weights are not read, and of the images only
    those whose file has another size or time than when it was extracted. A plan therefore assumes
    that a store of the same backbone and dtype was filled with the weights that the run will load.

    Of a bake-off of over two minutes the backbones that will run are timed for some seconds each;
    see `retailtag.bakeoffs.speed`. `clock` gives the seconds.
    """
    context = RunContext(catalog, settings.reading, settings.compute)
    request = Request(context, settings)
    estimator = Estimator(request, clock=clock)
    stages = bakeoff_stages(request, estimator=estimator)
    planned = plan_stages(stages)
    if sum(p.seconds for p in planned) < WORTH_TIMING:
        return planned
    estimator.measure = cache(partial(timed, context, settings.finetune, clock=clock))
    return [
        replace(p, **asdict(stage.estimate())) if p.why else p
        for p, stage in zip(planned, stages, strict=True)
    ]


def plan_stages(stages: Sequence[Stage]) -> list[PlannedStage]:
    """Which of the stages are reused, and why the others will or may run."""
    will_run: dict[str, bool] = {}  # stages that will run (True) or may run (False)
    planned = []
    for stage in stages:
        why, certain = _why(stage, will_run)
        estimate = stage.estimate() if why else Estimate(0.0, 0.0)
        if why:
            will_run[stage.name] = certain
        planned.append(
            PlannedStage(stage.name, why, certain, estimate.seconds, estimate.disk_bytes)
        )
    return planned


def _why(stage: Stage, will_run: dict[str, bool]) -> tuple[str, bool]:
    """Why a stage runs (empty: it is reused), and whether that is certain."""
    if isinstance(stage, RecordedStage) and read_record(stage.folder) is None:
        return NOT_DONE, True
    # The inputs of a stage are outputs of those it needs: they cannot be compared before these
    # have run.
    for name in stage.needs:
        if will_run.get(name):
            return f"needs {name}, which will run", True
    for name in (*stage.needs, *stage.may_need):
        if name in will_run:
            return f"may run: needs {name}, which {'will' if will_run[name] else 'may'} run", False
    return stage.why_stale() or "", True
