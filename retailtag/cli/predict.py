"""`retailtag predict`: tags of many images, by a fitted model."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from retailtag.cli.app import app
from retailtag.cli.output import warn
from retailtag.cli.verb import Call, ModelArgument, command
from retailtag.errors import EXIT_BAD_DATA, Interrupted, UsageError
from retailtag.progress import SILENT

if TYPE_CHECKING:
    from retailtag.report.prediction_sheet import Sheet
    from retailtag.runs.predict import Predicting, Prediction
    from retailtag.runs.prediction_files import Counted

SourcesArgument = Annotated[
    list[str],
    typer.Argument(
        metavar="SOURCE...",
        help="Image files, folders, quoted patterns, archives, .txt lists, - for paths on "
        "stdin; or one manifest.",
    ),
]
SheetOption = Annotated[
    Path | None,
    typer.Option(
        "--contact-sheet",
        metavar="FILE",
        help="Also draw the images with their tags, uncertain ones first: .html or .png.",
    ),
]


@command(app, "predict", catalogue=False)
def predict(
    call: Call,
    model: ModelArgument,
    sources: SourcesArgument,
    out: Annotated[Path | None, typer.Option("--out", help="File to write; default: stdout.")] = (
        None
    ),
    contact_sheet: SheetOption = None,
) -> None:
    """Tag images with a fitted model: the tags above their thresholds, likeliest first.

    Images that cannot be read are listed and left out; the exit code is then 3.
    """
    from retailtag import api
    from retailtag.runs.prediction_files import format_of

    output, settings = call.output, call.settings
    form = format_of(settings.predict.format, out)
    _check_out(call, form, out, sources)
    sheet = _sheet(contact_sheet)
    # On one terminal the rows themselves show how far it is.
    on_terminal = out is None and not output.json and sys.stdout.isatty()
    made = api.predicting(
        model,
        list(sources),
        settings=settings,
        progress=SILENT if on_terminal else output.progress,
        stdin=sys.stdin.buffer,
    )
    output.print()  # takes the bar of a terminal away
    told = _Told(output.json and out is None)
    with _rows(call, form, out) as rows, closing(made.__iter__()) as batches:
        for batch in batches:
            rows.add(batch)
            told.add(batch)
            if sheet is not None:
                _show(sheet, batch)
    if sheet is not None:
        n = sheet.write(f"Tags by {model}")
        output.progress.say(f"{contact_sheet} shows {n:,} of {sheet.n:,} images.")
    if made.images.n_repeated:
        output.progress.say(f"{made.images.n_repeated:,} images are named more than once.")
    output.result(_result(call, model, made, told, out))
    told.warn()


def _check_out(call: Call, form: str, out: Path | None, sources: list[str]) -> None:
    """Refuse two outputs on stdout, and one that would replace what is read."""
    if call.output.json and out is None and call.settings.predict.format not in (None, "text"):
        raise UsageError(f"--json and --format {form} both go to stdout; name a file with --out.")
    if out is not None and str(out) in sources:
        raise UsageError(f"--out {out} is one of the sources; name another file.")


def _sheet(path: Path | None) -> Sheet | None:
    """The contact sheet to fill, if one is asked for; its library is imported only then."""
    if path is None:
        return None
    from retailtag.report.prediction_sheet import Sheet

    return Sheet(path)


def _show(sheet: Sheet, batch: list[Prediction]) -> None:
    """Add the images that could be read to the contact sheet."""
    from retailtag.report.prediction_sheet import Shown

    for one in batch:
        if one.read is not None and not one.error:
            tags = tuple(zip(one.tags, one.probabilities, strict=True))
            uncertain = tuple(zip(one.uncertain, one.doubts, strict=True))
            sheet.add(Shown(one.path or one.image_id, one.read, tags, uncertain))


class _Told:
    """What ``--json`` and the exit code need of the predictions."""

    def __init__(self, keeps_tags: bool) -> None:
        self._keeps_tags = keeps_tags
        self.tags: dict[str, list[str]] = {}
        self.probabilities: dict[str, list[float]] = {}
        self.unreadable: dict[str, str] = {}
        self.n = 0

    def add(self, batch: list[Prediction]) -> None:
        """Note a batch."""
        for one in batch:
            if one.error:
                self.unreadable[one.image_id] = one.error
                continue
            self.n += 1
            if self._keeps_tags:
                self.tags[one.image_id] = list(one.tags)
                self.probabilities[one.image_id] = list(one.probabilities)

    def warn(self) -> None:
        """List the images that could not be read, and end with their exit code if there are any."""
        for name, reason in self.unreadable.items():
            warn(f"retailtag: {name} could not be read: {reason}")
        if self.unreadable:
            raise typer.Exit(EXIT_BAD_DATA)


class _Nowhere:
    """Rows that nobody sees, as under ``--json`` and ``--quiet``."""

    def add(self, predictions: Any) -> None:
        pass

    def end(self) -> None:
        pass


@contextmanager
def _rows(call: Call, form: str, out: Path | None) -> Iterator[Counted]:
    """Where the rows go: the file, stdout, or nowhere."""
    from retailtag.runs.prediction_files import Counted, rows_to, written

    if out is not None:
        with written(form, out) as rows:
            yield rows
        return
    silent = call.output.json or (call.output.quiet and form == "text")
    rows = Counted(_Nowhere() if silent else rows_to(form, sys.stdout.buffer))
    sys.stdout.flush()
    try:
        yield rows
    except KeyboardInterrupt:
        raise Interrupted(f"interrupted after {rows.n:,} images.") from None


def _result(
    call: Call, model: Path, made: Predicting, told: _Told, out: Path | None
) -> dict[str, Any]:
    """The object of ``--json``; tags are in `out`, if that is given."""
    tagger, choice = made.tagger, made.choice
    rows: dict[str, Any] = {"tags": told.tags, "probabilities": told.probabilities}
    return {
        "model": str(model),
        **(rows if out is None else {"out": str(out)}),
        "n_tagged": told.n,
        "unreadable": told.unreadable,
        "operating_point": call.settings.predict.operating_point,
        "top_k": choice.top_k,
        "min_probability": choice.min_probability,
        "calibrated": tagger.calibration is not None,
        "assignment": tagger.assignment,
        "one_of": list(tagger.exclusive),
    }
