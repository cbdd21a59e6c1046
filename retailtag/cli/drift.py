"""`retailtag drift`: whether new images differ from those that a model was tested on."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from retailtag.cli.app import app
from retailtag.cli.verb import Call, ModelArgument, command
from retailtag.errors import GateUnmet


@command(app, "drift", catalogue=False)
def drift(
    call: Call,
    model: ModelArgument,
    new: Annotated[
        list[str],
        typer.Option(
            "--new", metavar="SOURCE", help="Images to look at, as for predict; repeatable."
        ),
    ],
    reference: Annotated[
        list[str] | None,
        typer.Option(
            "--reference",
            metavar="SOURCE",
            help="Images to compare with, or a reference.npz; default: that of the model, or the "
            "held-out images of its catalogue.",
        ),
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="Page to write.")] = Path("drift.html"),
    gate: Annotated[
        list[str] | None,
        typer.Option(
            "--gate", metavar="CONDITION", help='Exit with 5 unless met, e.g. "p>0.05"; repeatable.'
        ),
    ] = None,
) -> None:
    """Compare new images with held-out ones: embeddings, novelty, confidences, tags, properties.

    One verdict with a calibrated rate of false alarms, what moved, and what to do about it.
    """
    from retailtag import api
    from retailtag.report.drift.tables import drift_tables
    from retailtag.scoring.gates import parse_gate
    from retailtag.statistics.drift import FIGURES

    output = call.output
    gates = [parse_gate(text, FIGURES, "p>0.05") for text in gate or []]
    made = api.drift(
        model,
        new,
        reference=reference,
        out=out,
        settings=call.settings,
        progress=output.progress,
        stdin=sys.stdin.buffer,
    )
    output.print(*drift_tables(made.result), f"Report: {out}")
    output.result({**made.result.to_json(), "out": str(out)})
    # Raised last: the page is written and the result printed whether gates are met or not.
    figures = made.result.figures
    unmet = [g for g in gates if not g.allows(figures[g.name])]
    if unmet:
        raise GateUnmet([f"{g} is not met: {g.name} is {figures[g.name]:.4g}." for g in unmet])
