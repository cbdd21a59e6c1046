"""Where a command's words go: results, news, progress."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import BarColumn, ProgressColumn, SpinnerColumn, Task, TaskID, TextColumn
from rich.progress import Progress as Bars
from rich.table import Column, Table
from rich.text import Text

from retailtag.display import printable
from retailtag.progress import SILENT, Advance, Progress

FILE_WIDTH = 160  # columns of a table in a file or pipe, which has no width of its own
PLAIN_LINE_EVERY = 10.0  # seconds between progress lines off a terminal
ITEM = "\n  "  # begins each item of a list in a message


def warn(sentence: str) -> None:
    """Write an error or a warning to stderr: one line, and one for each item of a list."""
    items = sentence.split(ITEM)
    sys.stderr.write(ITEM.join(printable(item, keep="") for item in items) + "\n")


class Screen(Console):
    """A console that shows ids, tags and paths as they are, their control characters as escapes.

    That holds for text given as `str`, in tables too; `rich.text.Text` drops some of these
    characters when it is made, so its text has to be `printable` before.
    """

    def __init__(self, *, stderr: bool = False) -> None:
        # Nothing is markup: neither [red] nor :car: in a tag.
        super().__init__(stderr=stderr, markup=False, emoji=False, highlight=False)
        if not self.is_terminal and "COLUMNS" not in os.environ:
            self.width = FILE_WIDTH

    def render_str(self, text: str, **options: Any) -> Text:
        """Text of a string; see `rich.console.Console.render_str`."""
        return super().render_str(printable(text), **options)


@dataclass
class Output:
    """Where a command's words go: results to stdout, news and progress to stderr.

    Parameters
    ----------
    json : bool
        stdout carries exactly one JSON object, printed by `result`.
    quiet : bool
        No progress, no news, no tables.
    log_file : Path, optional
        News and progress are appended to it, each line with its time, whatever the terminal shows.
    """

    json: bool = False
    quiet: bool = False
    log_file: Path | None = None
    _stdout: Console = field(default_factory=Screen)
    _stderr: Console = field(default_factory=lambda: Screen(stderr=True))

    @cached_property
    def progress(self) -> Progress:
        """Bars on a terminal, plain lines elsewhere, nothing when quiet."""
        shown: list[Progress] = []
        if self._bars is not None:
            shown.append(self._bars)
        elif not self.quiet:
            shown.append(_Lines(self._say))
        if self.log_file is not None:
            shown.append(_Lines(_appending(self.log_file)))
        if not shown:
            return SILENT
        return _Printable(shown[0] if len(shown) == 1 else _Both(*shown))

    @cached_property
    def _bars(self) -> _Bars | None:
        """Bars, where stderr is a terminal and not quiet."""
        return _Bars(self._stderr) if self._stderr.is_terminal and not self.quiet else None

    def busy(self, name: str) -> AbstractContextManager[None]:
        """Show on a terminal that a command works, until it prints its result or ends."""
        return nullcontext() if self._bars is None else self._bars.busy(printable(name, keep=""))

    def _say(self, line: str) -> None:
        self._stderr.print(line, soft_wrap=True)

    def print(self, *parts: RenderableType) -> None:
        """Show a result to a person; silent under ``--json`` and ``--quiet``.

        Each `str` is one line, and never broken, so that a pipe gets what was said. Sentences of a
        `Text` are wrapped between words on a terminal, and nowhere else.
        """
        # rich breaks long lines at the width of the terminal; a path or id cut in two cannot be
        # copied, nor read by the next program of a pipe.
        whole = (str,) if self._stdout.is_terminal else (str, Text)
        self._rest()
        for part in () if self.json or self.quiet else parts:
            self._stdout.print(_one_line(part), soft_wrap=isinstance(part, whole))

    def result(self, value: dict[str, Any]) -> None:
        """Print the one object of ``--json``; silent without it."""
        self._rest()
        # allow_nan=False: NaN is not JSON, and a strict parser would fail on the whole object.
        if self.json:
            sys.stdout.write(json.dumps(value, allow_nan=False) + "\n")
            sys.stdout.flush()

    def _rest(self) -> None:
        """Take the bars off the terminal: stdout may be the same one."""
        if self._bars is not None:
            self._bars.rest()


def _one_line(part: RenderableType) -> RenderableType:
    """Line feeds as escapes in a line, and in a table's cells: a name cannot make up a line."""
    if isinstance(part, str):
        return printable(part, keep="")
    for column in part.columns if isinstance(part, Table) else ():
        column._cells = list(map(_one_line, column.cells))
    return part


class _Count(ProgressColumn):
    """Done and total of a task."""

    def render(self, task: Task) -> Text:
        if task.total is None:
            return Text(f"{task.completed:,.0f}" if task.completed else "")
        return Text(f"{task.completed:,.0f}/{task.total:,.0f}")


class _Time(ProgressColumn):
    """Time left of a task; the time spent where the total is unknown."""

    def render(self, task: Task) -> Text:
        seconds = task.elapsed if task.total is None else task.time_remaining
        if seconds is None:
            return Text("-:--")
        minutes, rest = divmod(int(seconds), 60)
        hours, minutes = divmod(minutes, 60)
        return Text(f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}")


class _Bars:
    """rich progress bars; one live display for nested tasks.

    The bar and the figures keep their width: on a narrow terminal names and notes are cut.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        names = Column(no_wrap=True, overflow="ellipsis", max_width=28)
        notes = Column(no_wrap=True, overflow="ellipsis", ratio=1)
        self._bars = Bars(
            SpinnerColumn("line", table_column=Column(width=1)),
            TextColumn("{task.description}", markup=False, table_column=names),
            BarColumn(bar_width=12, table_column=Column(width=12)),
            _Count(table_column=Column(no_wrap=True)),
            TextColumn("{task.fields[rate]}", table_column=Column(no_wrap=True)),
            _Time(table_column=Column(no_wrap=True)),
            TextColumn("{task.fields[note]}", markup=False, table_column=notes),
            console=console,
            expand=True,
            redirect_stdout=False,  # what a program reads from a pipe is not for the terminal
        )
        self._open = 0

    @contextmanager
    def busy(self, name: str) -> Iterator[None]:
        """Draw a bar without an end."""
        with self.task(name, None):
            yield

    def rest(self) -> None:
        """Take the bars away; those of tasks that are still open appear with the next task."""
        self._bars.stop()

    @contextmanager
    def task(self, name: str, total: int | None, unit: str = "images") -> Iterator[Advance]:
        """Draw a bar; see `retailtag.progress.Progress.task`."""
        self._open += 1
        task = self._bars.add_task(name, total=total, rate="", note="")
        self._bars.start()
        try:
            yield self._advance(task)
        finally:
            self._open -= 1
            self._bars.remove_task(task)
            if self._open == 0:
                self._bars.stop()

    def _advance(self, task: TaskID) -> Advance:
        start, done = time.perf_counter(), 0

        def advance(n: int, note: str = "", /) -> None:
            nonlocal done
            done += n
            rate = done / max(time.perf_counter() - start, 1e-9)
            self._bars.update(task, advance=n, rate=f"{rate:,.0f}/s", note=note)

        return advance

    def say(self, line: str) -> None:
        self._console.print(line, soft_wrap=True)


class _Lines:
    """A line now and then, for logs: rate and time left every few seconds, one at the end."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say = say

    @contextmanager
    def task(self, name: str, total: int | None, unit: str = "images") -> Iterator[Advance]:
        """Write lines; see `retailtag.progress.Progress.task`."""
        start = last = time.perf_counter()
        done = 0

        def advance(n: int, note: str = "", /) -> None:
            """Count n more; a line if the last is long enough ago."""
            nonlocal done, last
            done += n
            now = time.perf_counter()
            if now - last >= PLAIN_LINE_EVERY:
                last = now
                line = _progress_line(name, done, total, unit, now - start)
                self.say(f"{line}; {note}" if note else line)

        yield advance
        self.say(f"{name}: {done:,} {unit} in {time.perf_counter() - start:,.1f} s")


class _Both:
    """Tell two of everything: the terminal and the log file."""

    def __init__(self, first: Progress, second: Progress) -> None:
        self._first, self._second = first, second

    @contextmanager
    def task(self, name: str, total: int | None, unit: str = "images") -> Iterator[Advance]:
        """Open a task of each; see `retailtag.progress.Progress.task`."""
        with (
            self._first.task(name, total, unit) as first,
            self._second.task(name, total, unit) as second,
        ):

            def advance(n: int, note: str = "", /) -> None:
                first(n, note)
                second(n, note)

            yield advance

    def say(self, line: str) -> None:
        self._first.say(line)
        self._second.say(line)


class _Printable:
    """Names, notes and news on one line each, their control characters as escapes."""

    def __init__(self, inner: Progress) -> None:
        self._inner = inner

    @contextmanager
    def task(self, name: str, total: int | None, unit: str = "images") -> Iterator[Advance]:
        """Open a task; see `retailtag.progress.Progress.task`."""
        with self._inner.task(printable(name, keep=""), total, unit) as inner:
            yield lambda n, note="", /: inner(n, printable(note, keep=""))

    def say(self, line: str) -> None:
        self._inner.say(printable(line, keep=""))


def _appending(path: Path) -> Callable[[str], None]:
    """Function that appends lines to a file, each with its time (ISO 8601, UTC)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.open("a", encoding="utf-8").close()  # refuses now what cannot be written later

    def say(line: str) -> None:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        try:
            with path.open("a", encoding="utf-8") as handle:
                handle.write(f"{now} {line}\n")
        except OSError as error:
            error.filename = str(path)  # a full disk names no file
            raise

    return say


def _progress_line(name: str, done: int, total: int | None, unit: str, seconds: float) -> str:
    rate = done / max(seconds, 1e-9)
    line = f"{name}: {done:,}" + (f"/{total:,}" if total else "") + f" {unit}, {rate:,.1f} {unit}/s"
    if total and rate > 0:
        line += f", {(total - done) / rate:,.0f} s left"
    return line
