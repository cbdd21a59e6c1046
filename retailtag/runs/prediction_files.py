"""Predictions as files: text, CSV that is a catalogue, JSON lines, Parquet; written as they come.

Into a file the rows go to ``FILE.partial``, which gets its name once all are there. After Ctrl-C
it stays, complete up to a row; a file of an earlier call is never replaced by a part of another.
"""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import IO, Any, Protocol

from retailtag.catalog.manifest import NO_TAGS, SEPARATOR
from retailtag.catalog.tag_cells import parse_cell
from retailtag.display import printable
from retailtag.errors import Interrupted, UsageError
from retailtag.files import make_folder, sync_folder
from retailtag.images.header import IMAGE_SUFFIXES
from retailtag.runs.predict import Prediction, record_batch, schema
from retailtag.scoring.csvs import quoted

TEXT, CSV, JSON_LINES, PARQUET = FORMATS = ("text", "csv", "jsonl", "parquet")
_BY_SUFFIX = {
    ".txt": TEXT, ".csv": CSV, ".jsonl": JSON_LINES, ".ndjson": JSON_LINES, ".parquet": PARQUET,
    ".pq": PARQUET,
}  # fmt: skip
CSV_COLUMNS = ("image_id", "path", "tags", "probabilities", "uncertain")
_ROWS_OF_GROUP = 8192  # of Parquet: row groups of a batch each would be larger than their content


def format_of(asked: str | None, out: Path | None) -> str:
    """The format asked for, else that of the file's suffix, else text.

    Raises `UsageError` where the suffix tells none, or Parquet has no file to go to.
    """
    if out is None:
        if asked == PARQUET:
            raise UsageError("--format parquet needs a file; name it with --out.")
        return asked or TEXT
    if out.suffix.lower() in IMAGE_SUFFIXES:
        raise UsageError(f"--out {out} is named like an image; name a file for the predictions.")
    found = asked or _BY_SUFFIX.get(out.suffix.lower())
    if found is None:
        raise UsageError(
            f"--out {out} does not tell the format; give --format, or one of the endings "
            f"{', '.join(_BY_SUFFIX)}."
        )
    return found


class Rows(Protocol):
    """What rows are written with."""

    def add(self, predictions: Sequence[Prediction]) -> None:
        """Write a batch."""
        ...

    def end(self) -> None:
        """Write what is held back."""
        ...


def rows_to(form: str, handle: IO[bytes]) -> Rows:
    """Writer of one of `FORMATS` to an open file."""
    return _ParquetRows(handle) if form == PARQUET else _Lines(form, handle)


@contextmanager
def written(form: str, out: Path) -> Iterator[Counted]:
    """Writer to a file that appears once the block has ended.

    Raises `Interrupted`, which tells the number of rows and the file that has them, for a
    `KeyboardInterrupt` inside. After any other error nothing is left.
    """
    partial = out.with_name(f"{out.name}.partial")
    make_folder(out.parent)
    rows: Counted | None = None
    try:
        with partial.open("wb") as handle:
            rows = Counted(rows_to(form, handle))
            try:
                yield rows
            finally:
                with _uninterrupted():
                    rows.end()
                    handle.flush()
                    os.fsync(handle.fileno())
        partial.replace(out)
        sync_folder(out.parent)
    except KeyboardInterrupt:
        n = rows.n if rows else 0
        raise Interrupted(
            f"interrupted; {partial} holds the first {n:,} images, and {out} is as it was."
        ) from None
    except BaseException as error:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno and error.filename in (None, str(partial)):
            error.filename, error.filename2 = str(out), None
        raise


class Counted:
    """Rows that are counted, each batch whole or not at all: Ctrl-C waits for its end."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows
        self.n = 0  # images

    def add(self, predictions: Sequence[Prediction]) -> None:
        """Write a batch."""
        with _uninterrupted():
            self._rows.add(predictions)
            self.n += len(predictions)

    def end(self) -> None:
        """Write what is held back."""
        self._rows.end()


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM wait until the block has ended; only the main thread hears them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    heard: list[tuple[int, FrameType | None]] = []
    before: dict[int, Any] = {
        number: signal.signal(number, lambda *told: heard.append(told))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    # Not inside `finally`: an error of the block comes first.
    for number, frame in heard[:1]:
        if callable(handler := before[number]):
            handler(number, frame)


class _Lines:
    """Rows of text, one or more lines each."""

    def __init__(self, form: str, handle: IO[bytes]) -> None:
        self._handle = handle
        self._lines = {TEXT: text_lines, CSV: csv_lines, JSON_LINES: json_lines}[form]
        if form == CSV:
            handle.write(_csv([CSV_COLUMNS]))

    def add(self, predictions: Sequence[Prediction]) -> None:
        self._handle.write(self._lines(predictions))
        self._handle.flush()

    def end(self) -> None:
        pass


def text_lines(predictions: Sequence[Prediction]) -> bytes:
    """``PATH: TAG 0.97, TAG 0.81``, a line for each image that could be read."""
    lines = [
        f"{p.path or p.image_id}: "
        + (", ".join(map(_with_probability, p.tags, p.probabilities)) or "-")
        for p in predictions
        if not p.error
    ]
    return "".join(f"{printable(line, keep='')}\n" for line in lines).encode()


def _with_probability(tag: str, probability: float) -> str:
    return f"{tag} {probability:.2f}"


def csv_lines(predictions: Sequence[Prediction]) -> bytes:
    """Rows of the images that could be read, as a catalogue has them; see `CSV_COLUMNS`.

    A path that is not UTF-8 keeps its bytes.
    """
    return _csv(
        [
            (
                p.image_id,
                p.path,
                _cell(p.tags) or NO_TAGS,
                SEPARATOR.join(f"{q:.4f}" for q in p.probabilities),
                _cell(p.uncertain),
            )
            for p in predictions
            if not p.error
        ]
    )


def _cell(tags: Sequence[str]) -> str:
    """Tags joined; as a JSON list where the joined text would be read as others."""
    text = SEPARATOR.join(tags)
    if not tags or parse_cell(text, SEPARATOR)[0] == list(tags):
        return text
    return json.dumps(list(tags), ensure_ascii=False)


def _csv(rows: Sequence[Sequence[str]]) -> bytes:
    text = "".join(",".join(map(quoted, row)) + "\n" for row in rows)
    return text.encode(errors="surrogateescape")


def json_lines(predictions: Sequence[Prediction]) -> bytes:
    """An object for each image; of one that could not be read with its ``error``."""
    return "".join(f"{json.dumps(record(p), allow_nan=False)}\n" for p in predictions).encode()


def record(prediction: Prediction) -> dict[str, Any]:
    """One prediction as JSON lines have it."""
    names = {"image_id": prediction.image_id, "path": prediction.path}
    if prediction.error:
        return {**names, "error": prediction.error}
    return {
        **names,
        "tags": list(prediction.tags),
        "probabilities": list(prediction.probabilities),
        "uncertain": list(prediction.uncertain),
    }


class _ParquetRows:
    """Rows of Parquet, a few thousand a row group."""

    def __init__(self, handle: IO[bytes]) -> None:
        import pyarrow.parquet as pq

        self._writer = pq.ParquetWriter(handle, schema())
        self._held: list[Prediction] = []

    def add(self, predictions: Sequence[Prediction]) -> None:
        self._held += predictions
        if len(self._held) >= _ROWS_OF_GROUP:
            self._write()

    def end(self) -> None:
        if self._held:
            self._write()
        self._writer.close()

    def _write(self) -> None:
        self._writer.write_batch(record_batch(self._held))
        self._held = []
