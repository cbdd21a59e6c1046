"""`retailtag export`: a fitted model as one folder that needs nothing else."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from retailtag.cli.app import app
from retailtag.cli.verb import Call, RunArgument, command

if TYPE_CHECKING:
    from rich.table import Table

    from retailtag.runs.export import ExportRun

PairOption = Annotated[
    str | None,
    typer.Option(
        "--pair",
        metavar="NAME",
        help="Pair of a bake-off, such as 'demo:cnn probe'; default: the recommended one.",
    ),
]
OutOption = Annotated[
    Path | None,
    typer.Option(
        "--out", help="New folder; default: RUN-tagger, RUN-onnx or RUN-triton beside it."
    ),
]
SampleOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--sample",
        metavar="PATH",
        help="Image files or folders to compare an ONNX model on; default: the catalogue's test "
        "images; repeatable.",
    ),
]


@command(app, "export", catalogue=False)
def export(
    call: Call,
    run: RunArgument,
    pair: PairOption = None,
    out: OutOption = None,
    sample: SampleOption = None,
) -> None:
    """Write a fitted model as one folder that needs no catalogue, no features and no hub.

    The folder holds weights, head, thresholds for several aims, calibration, preprocessing and a
    model card. It is compared with the model on test images, and left out if it differs.
    """
    from retailtag import api

    output = call.output
    made = api.export(
        run,
        pair=pair,
        out=out,
        sample=sample or [],
        settings=call.settings,
        progress=output.progress,
    )
    if made.run.points:
        output.print(_points(made.run))
    if made.run.calibration:
        output.print(_calibration(made.run))
    output.print(*made.run.notes)
    if made.run.onnx is not None:
        output.print(*made.run.onnx.sentences)
    elif made.run.checked:
        output.print(made.run.checked)
    size = sum(made.run.files.values()) / 2**20
    output.print(f"{made.folder}: {len(made.run.files)} files, {size:.1f} MiB")
    output.print(_next_step(made.run, call.settings.export.format))
    output.result(_summary(made.run))


def _next_step(run: ExportRun, form: str) -> str:
    """What tags images with the folder."""
    folder = shlex.quote(str(run.folder))
    if form == "triton":
        return f"Next: tritonserver --model-repository={folder}"
    command = {"onnx": f"python {folder}/run_onnx.py"}.get(form, f"retailtag predict {folder}")
    return f"Next: {command} IMAGE..."


def _points(run: ExportRun) -> Table:
    from rich.table import Table

    from retailtag.report.tables import points

    table = Table(title="Operating points on held-out images", title_justify="left")
    table.add_column("name")
    for column in ("tags an image", "precision", "recall", "macro-F1", "tail"):
        table.add_column(column, justify="right")
    for one in run.points:
        values = (one.precision, one.recall, one.macro_f1, one.tail_macro_f1)
        table.add_row(one.name, f"{one.tags_per_image:.1f}", *map(points, values))
    return table


def _calibration(run: ExportRun) -> Table:
    from rich.table import Table

    table = Table(
        title=f"Calibration on {run.calibration['scores']} scores, errors times 100",
        title_justify="left",
    )
    table.add_column("measured on, tags")
    for column in ("calibration error", "calibrated", "Brier score", "calibrated"):
        table.add_column(column, justify="right")
    for key, title in (("cross_fit", "cross-fit"), ("test", "held-out images")):
        for scope, one in run.calibration.get(key, {}).items():
            values = [
                one[when][error]
                for error in ("calibration_error", "brier")
                for when in ("before", "after")
            ]
            table.add_row(f"{title}, {scope}", *(f"{100 * value:.2f}" for value in values))
    return table


def _summary(run: ExportRun) -> dict[str, Any]:
    from dataclasses import asdict

    from retailtag.scoring.strict_json import plain

    return {
        "out": str(run.folder),
        "files": run.files,
        "operating_points": list(run.tagger.operating_points),
        "scores": [plain(asdict(point)) for point in run.points],
        "calibration": run.calibration or None,
        "check": plain(asdict(run.check)) if run.check else None,
        "onnx": plain(run.onnx.to_json()) if run.onnx else None,
        "notes": list(run.notes),
    }
