"""The bake-off: every backbone, every strategy, one scorer, one recommendation."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retailtag.backbones import canonical
from retailtag.backbones.names import compared_names, shortened
from retailtag.bakeoffs.plan import plan_stages
from retailtag.bakeoffs.request import ONLY_PROBED, Request
from retailtag.bakeoffs.stages import ReportStage, bakeoff_stages
from retailtag.catalog.catalog import Catalog
from retailtag.context import RunContext
from retailtag.progress import SILENT, Progress
from retailtag.report.decision import Decision, decide
from retailtag.report.results import BakeoffResult
from retailtag.runs.stage import NOT_DONE, Stage
from retailtag.settings import BakeoffSettings


@dataclass(frozen=True, eq=False)
class BakeoffRun:
    """Result of a bake-off, with the stages that ran now and those whose outputs were current."""

    result: BakeoffResult
    decision: Decision
    report: Path  # the HTML page
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

    `provenance`, recorded in predictions, says where the catalogue was read from; `command` is the
    command line that repeats the run, for the report.

    Raises
    ------
    DataError, UsageError
        Before anything runs, if the catalogue or the settings cannot be followed; see
        `retailtag.bakeoffs.checks.check_request`.
    RetailtagError
        Whatever a stage raises. Finished stages are not lost: the same call continues.
    """
    context = RunContext(catalog, settings.reading, settings.compute, provenance or {}, progress)
    return run_request(Request(context, settings), command)


def run_request(request: Request, command: str = "") -> BakeoffRun:
    """Run a bake-off whose request was checked; parameters and exceptions as in `run_bakeoff`."""
    settings, progress = request.settings, request.context.progress
    names = compared_names(settings.backbones, settings.names)
    if "finetune" in settings.strategies:
        for backbone in settings.backbones:
            if backbone not in request.fine_tuned:
                name = names[canonical(backbone)]
                progress.say(f"finetune {name}: skipped. {ONLY_PROBED}")
    stages = bakeoff_stages(request, command)
    ran, reused = run_stages(stages, progress, names)
    report = stages[-1]
    assert isinstance(report, ReportStage)
    result = report.result()
    return BakeoffRun(result, decide(result), request.out / "report.html", ran, reused)


def run_stages(
    stages: Sequence[Stage], progress: Progress, names: Mapping[str, str]
) -> tuple[list[str], list[str]]:
    """Run the stages that are stale, in order; names of those that ran, and of the others.

    Messages call backbones by their `names`.
    """
    planned = plan_stages(stages)
    ran: list[str] = []
    reused: list[str] = []
    elapsed = 0.0
    for i, stage in enumerate(stages):
        # Estimates are rough, but wrong by a similar factor: what the finished stages took
        # corrects those ahead.
        estimated = sum(p.seconds for p in planned[:i] if p.name in ran)
        pace = elapsed / estimated if estimated else 1.0
        left = _duration(pace * sum(p.seconds for p in planned[i:]))
        head = f"{i + 1}/{len(stages)} {shortened(stage.name, names)}"
        start = time.perf_counter()

        def announce(why: str, head: str = head, left: str = left) -> None:
            reason = "" if why == NOT_DONE else f" ({shortened(why, names)})"
            progress.say(f"{head}: running{reason}; {left} left")

        if stage.update(announce):
            ran.append(stage.name)
            elapsed += time.perf_counter() - start
        else:
            reused.append(stage.name)
            progress.say(f"{head}: reused")
    return ran, reused


def _duration(seconds: float) -> str:
    return f"about {seconds / 60:,.0f} min" if seconds >= 90 else f"about {seconds:,.0f} s"
