"""`retailtag tune`: other thresholds for a fitted model, in seconds."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from retailtag.cli.app import app
from retailtag.cli.verb import Call, RunArgument, command

if TYPE_CHECKING:
    from rich.table import Table

    from retailtag.outcomes import TuneOutcome

ObjectiveOption = Annotated[
    str,
    typer.Option(
        "--objective",
        metavar="WHAT",
        help="What thresholds maximise: f1, fbeta:B, or recall at precision:P or more per tag.",
    ),
]
MaxTagsOption = Annotated[
    float | None,
    typer.Option(
        "--max-tags", metavar="N", min=1e-6, max=1e6, help="At most N tags an image on average."
    ),
]
RuleOption = Annotated[
    str,
    typer.Option("--thresholds", metavar="RULE", help="Threshold rule; auto: as for a probe."),
]
OutOption = Annotated[
    Path | None,
    typer.Option("--out", help="New folder for the model; default: RUN-tuned beside it."),
]


@command(app, "tune", catalogue=False)
def tune(
    call: Call,
    run: RunArgument,
    objective: ObjectiveOption = "f1",
    max_tags: MaxTagsOption = None,
    thresholds: RuleOption = "auto",
    out: OutOption = None,
) -> None:
    """Tune the thresholds of a fitted model again, on the scores that it kept; fits nothing.

    The model with the new thresholds goes to a folder of its own, for predict and score. Of a
    bake-off the recommended pair is taken.
    """
    from retailtag import api

    made = api.tune(
        run,
        objective=objective,
        max_tags=max_tags,
        thresholds=thresholds,
        out=out,
        settings=call.settings,
    )
    call.output.print(_table(made))
    call.output.print(*made.notes)
    call.output.print(f"Next: retailtag score {shlex.quote(str(made.folder))}")
    call.output.result(_summary(made))


def _table(made: TuneOutcome) -> Table:
    from rich.table import Table

    from retailtag.report.tables import points

    run = made.run
    images = "validation" if run.is_validation else "out-of-fold"
    table = Table(title=f"Thresholds on {run.n_images:,} {images} images, rule {run.tuned.rule}")
    table.add_column("thresholds")
    for column in ("tags an image", "precision", "recall", "macro-F1", "tail"):
        table.add_column(column, justify="right")
    for name, given in run.given.items():
        values = (given.precision, given.recall, given.macro_f1, given.tail_macro_f1)
        table.add_row(name, f"{given.tags_per_image:.1f}", *map(points, values))
    return table


def _summary(made: TuneOutcome) -> dict[str, Any]:
    from retailtag.scoring.strict_json import plain

    run = made.run
    return {
        "out": str(made.folder),
        "thresholds": plain(run.tuned.facts),
        "given": {name: plain(asdict(given)) for name, given in run.given.items()},
        "n_images": run.n_images,
        "n_never": run.n_never,
        "scores": "validation" if run.is_validation else "out-of-fold",
    }
