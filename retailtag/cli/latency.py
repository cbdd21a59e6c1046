"""`retailtag latency`: fitted models timed in turn, by engine and batch size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from retailtag.cli.app import app
from retailtag.cli.verb import Call, command

if TYPE_CHECKING:
    from rich.table import Table

    from retailtag.runs.latency import LatencyRow


@command(app, "latency", catalogue=False)
def latency(
    call: Call,
    models: Annotated[
        list[Path],
        typer.Argument(metavar="RUN...", help="Folders of probes, fine-tunes or bake-offs."),
    ],
    sample: Annotated[
        list[Path] | None,
        typer.Option(
            "--sample",
            metavar="PATH",
            help="Image files or folders to tag; default: the catalogue's test images; repeatable.",
        ),
    ] = None,
    merge: Annotated[
        list[Path] | None,
        typer.Option(
            "--merge",
            metavar="CSV",
            help="Add what this command wrote on another machine for the same models; repeatable.",
        ),
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="CSV of all figures.")] = Path("latency.csv"),
) -> None:
    """Time fitted models in turn, from the bytes of images to tags: engines, batches, stages.

    Of a bake-off every pair is timed. Engines that give other tags say how many agree.
    """
    from retailtag import api
    from retailtag.scoring.strict_json import plain

    output = call.output
    made = api.latency(
        models,
        sample=sample or [],
        merge=merge or [],
        out=out,
        settings=call.settings,
        progress=output.progress,
    )
    output.print(_table(made.rows))
    output.print(f"all figures: {out}")
    output.result({"rows": plain([asdict(row) for row in made.rows]), "out": str(out)})


def _table(rows: Sequence[LatencyRow]) -> Table:
    """One row per model, engine and batch size; models and machines apart."""
    from rich.table import Table

    from retailtag.report.tables import milliseconds, points

    table = Table(
        title="Latency (ms for a batch, with the 95 % interval)",
        caption="= fastest of its batch size, or not told apart from it\n"
        "tags: from the bytes of the files; model: backbone and head alone\n"
        "agree: tags given as by the model itself, of those given by either",
        title_justify="left",
        caption_justify="left",
    )
    priced = any(not math.isnan(row.price_per_million) for row in rows)
    table.add_column("model, engine", overflow="fold", min_width=12)
    figures = ("batch", "tags", "model", "images/s", "MiB", "agree")
    for name in (*figures, *(["price of 1 M"] if priced else [])):
        table.add_column(name, justify="right")
    for i, row in enumerate(rows):
        if i and (row.pair, row.machine) != (rows[i - 1].pair, rows[i - 1].machine):
            table.add_section()
        low, high = milliseconds(row.tags_ms_p50_low), milliseconds(row.tags_ms_p50_high)
        table.add_row(
            f"{'=' if row.is_fastest else ' '} {row.pair}, {row.engine}",
            str(row.batch_size),
            f"{milliseconds(row.tags_ms_p50)} ({low}–{high})",
            milliseconds(row.model_ms_p50),
            milliseconds(row.images_per_second),
            milliseconds(row.memory_mib),
            points(row.agreement),
            *([milliseconds(row.price_per_million)] if priced else []),
        )
    return table
