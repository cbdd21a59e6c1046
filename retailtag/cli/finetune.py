"""`retailtag finetune`: retrain the last blocks and a head that starts from the probe."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from retailtag.cli.app import app
from retailtag.cli.verb import ADVANCED, Call, command

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table

    from retailtag.runs.finetune import FinetuneRun

COLUMNS = {
    "macro_ap": "macro-AP",
    "tail_macro_ap": "tail AP",
    "macro_f1": "macro-F1",
    "tail_macro_f1": "tail F1",
}


@command(app, "finetune")
def finetune(
    call: Call,
    probe: Annotated[
        Path | None,
        typer.Option("--probe", help="Folder of the fitted probe; default: runs/BACKBONE/probe."),
    ] = None,
    search: Annotated[
        int,
        typer.Option(
            "--search",
            min=0,
            max=1000,
            help="Try N settings of loss, sampler, rate and layer decay first.",
            rich_help_panel=ADVANCED,
            hidden=True,
        ),
    ] = 0,
    seeds: Annotated[
        int,
        typer.Option(
            "--seeds",
            min=1,
            max=1000,
            help="Runs that differ in their seed alone.",
            rich_help_panel=ADVANCED,
            hidden=True,
        ),
    ] = 1,
) -> None:
    """Retrain the last blocks, choose the epoch on a validation set, predict."""
    from retailtag import api

    catalogue = call.catalogue
    call.require("backbones")
    made = api.finetune(
        catalogue,
        settings=call.settings,
        probe=probe,
        search=search,
        seeds=seeds,
        progress=call.output.progress,
    )
    output, runs = call.output, made.runs
    for run in runs:
        output.print(_table(run))
    if len(runs) > 1:
        output.print(_spread_line(runs, made.folder))
    tried = {"search": [asdict(row) for row in made.search]} if made.search else {}
    output.result(_summary(runs, made.folder) | tried)


def _table(run: FinetuneRun) -> Table:
    """One row an epoch."""
    from rich.table import Table

    facts = run.checkpoint.facts
    factor = facts["interpolation"]["factor"]
    title = f"Fine-tune of {run.checkpoint.backbone}, {run.record.seconds:,.1f} s"
    title += f", seed {facts['settings']['seed']}"
    title += "" if factor == 1 else f"; kept: {factor:g} of the way from the start"
    table = Table(title=title)
    for column in ("epoch", "loss", *COLUMNS.values(), "per s", "seconds"):
        table.add_column(column, justify="right")
    for row in run.history:
        mark = " *" if row["epoch"] == run.best_epoch else "" if row["kept_tail"] else " -"
        loss = "-" if row["loss"] is None else f"{row['loss']:.4f}"
        shown = ["-" if row[k] is None else f"{100 * row[k]:.2f}" for k in COLUMNS]
        speed = f"{row['images_per_second']:,.0f}" if row["images_per_second"] else "-"
        table.add_row(f"{row['epoch']}{mark}", loss, *shown, speed, f"{row['seconds']:.1f}")
    table.caption = "validation set, %; *: kept, -: loses the tail; images per s"
    return table


def _spread(runs: Sequence[FinetuneRun]) -> dict[str, Any]:
    """Mean and standard deviation over seeds of the kept epochs' figures."""
    import statistics

    spread = {}
    for name in COLUMNS:
        values = [run.history[run.best_epoch][name] for run in runs]
        known = [value for value in values if value is not None]
        if len(known) == len(runs):
            spread[name] = {"mean": statistics.mean(known), "sd": statistics.stdev(known)}
    return spread


def _spread_line(runs: Sequence[FinetuneRun], out: Path) -> str:
    said = [
        f"{COLUMNS[name]} {100 * v['mean']:.2f} ± {100 * v['sd']:.2f}"
        for name, v in _spread(runs).items()
    ]
    return (
        f"{len(runs)} seeds, validation set, mean ± standard deviation: {', '.join(said)}. On the "
        f"test split: retailtag compare {out} and another model."
    )


def _summary(runs: Sequence[FinetuneRun], out: Path) -> dict[str, Any]:
    first = runs[0]
    summary: dict[str, Any] = {
        "out": str(out),
        "backbone": first.checkpoint.backbone,
        "best_epoch": first.best_epoch,
        "factor": first.checkpoint.facts["interpolation"]["factor"],
        "history": first.history,
        "seconds": sum(run.record.seconds for run in runs),
        "peak_memory_mib": max(run.record.peak_memory_mib for run in runs),
    }
    if len(runs) > 1:
        summary["seeds"] = [{"best_epoch": run.best_epoch, "history": run.history} for run in runs]
        summary["spread"] = _spread(runs)
    return summary
