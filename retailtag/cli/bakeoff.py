"""`retailtag bakeoff`: every backbone and strategy, one scorer, one recommendation."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from retailtag.cli.app import app
from retailtag.cli.output import Output
from retailtag.cli.verb import Call, command

if TYPE_CHECKING:
    from rich.table import Table

    from retailtag.bakeoffs.plan import PlannedStage
    from retailtag.bakeoffs.run import BakeoffRun
    from retailtag.settings import BakeoffSettings


@command(app, "bakeoff")
def bakeoff(
    call: Call,
    plan: Annotated[
        bool, typer.Option("--plan", help="Print what would run, with estimates; run nothing.")
    ] = False,
) -> None:
    """Extract, probe, fine-tune, measure, score, decide and report; a second run resumes."""
    from retailtag import api

    output = call.output
    if plan:
        _show_plan(output, api.plan(call.catalogue, settings=call.settings), call.settings)
        return
    made = api.bakeoff(
        call.catalogue,
        settings=call.settings,
        command=shlex.join(["retailtag", *sys.argv[1:]]),
        progress=output.progress,
    )
    _show(output, made.run)
    output.result(_summary(made.run))


def _show_plan(output: Output, stages: list[PlannedStage], settings: BakeoffSettings) -> None:
    from retailtag.backbones.names import compared_names

    output.print(_plan_table(stages, compared_names(settings.backbones, settings.names)))
    output.result(
        {
            "stages": [s.to_json() for s in stages],
            "seconds": sum(s.seconds for s in stages),
            "disk_bytes": sum(s.disk_bytes for s in stages),
        }
    )


def _show(output: Output, run: BakeoffRun) -> None:
    from retailtag.report.tables import decision_text, ranking_table

    result, folder = run.result, run.report.parent
    output.print(ranking_table(result, run.decision))
    output.print(decision_text(run.decision, result))
    found = (*result.findings, *(f for pair in result.ranking for f in pair.scorecard.findings))
    codes = dict.fromkeys(finding.code for finding in found)
    if codes:
        output.print("", f"Findings, each with its remedy in the report: {', '.join(codes)}.")
    output.print("", f"{len(run.ran)} stages ran, {len(run.reused)} were reused.")
    output.print(f"Report: {run.report}")
    output.print(f"Next: {shlex.join(['retailtag', 'predict', str(folder)])} IMAGE...")


def _summary(run: BakeoffRun) -> dict[str, Any]:
    from dataclasses import asdict

    from retailtag.scoring.strict_json import plain

    pairs = [
        {
            "pair": p.name,
            "backbone": p.backbone,
            "strategy": p.strategy,
            "summaries": {k: asdict(s) for k, s in p.scorecard.summaries.items()},
            "micro_f1": p.scorecard.micro_f1,
            "cost": asdict(p.cost),
        }
        for p in run.result.ranking
    ]
    summary: dict[str, Any] = plain(
        {
            "decision": asdict(run.decision),
            "pairs": pairs,
            "report": str(run.report),
            "ran": run.ran,
            "reused": run.reused,
        }
    )
    return summary


def _plan_table(stages: list[PlannedStage], names: Mapping[str, str]) -> Table:
    """One row a stage, backbones by their names, and the sum."""
    from rich.table import Table

    from retailtag.backbones.names import shortened

    table = Table(
        title="Plan (estimates for this machine, most within a factor of 1.5)", show_footer=True
    )
    table.add_column("stage", footer="all")
    table.add_column("why")
    table.add_column("time", justify="right", footer=_minutes(sum(s.seconds for s in stages)))
    disk = sum(s.disk_bytes for s in stages)
    table.add_column("disk", justify="right", footer=f"{disk / 1e6:,.0f} MB")
    for s in stages:
        table.add_row(
            shortened(s.name, names),
            shortened(s.why, names) or "reused",
            _minutes(s.seconds),
            f"{s.disk_bytes / 1e6:,.1f} MB",
        )
    return table


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:,.1f} min" if seconds >= 60 else f"{seconds:,.0f} s"
