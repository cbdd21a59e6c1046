"""What every command shares: options, output, progress."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from retailtag.errors import UsageError
from retailtag.progress import SILENT, Advance, Progress

PLAIN_LINE_EVERY = 10.0  # seconds between progress lines off a terminal

JsonOption = Annotated[
    bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else.")
]
QuietOption = Annotated[
    bool, typer.Option("--quiet", "-q", help="Print nothing but errors (and --json).")
]
SeedOption = Annotated[int, typer.Option("--seed", help="Seed of everything random.")]
CatalogArgument = Annotated[
    Path,
    typer.Argument(metavar="CATALOGUE", help="Manifest (CSV, Parquet, JSON lines) or folder."),
]
AttributesOption = Annotated[
    str,
    typer.Option(
        "--attributes", help="Columns that become tags, comma-separated: gender,articleType."
    ),
]
ImagesOption = Annotated[
    Path | None,
    typer.Option("--images", help="Folder or tar/zip of the images, if not beside the manifest."),
]
FeaturesOption = Annotated[
    Path, typer.Option("--features", help="Folder of the feature stores, shared by all runs.")
]
WeightsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--weights",
        metavar="[ID=]PATH",
        help="Local weights (file or folder) of a backbone; repeat as ID=PATH for several.",
    ),
]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")]


@dataclass
class Output:
    """Where a command's words go: results to stdout, news and progress to stderr.

    Parameters
    ----------
    json : bool
        stdout carries exactly one JSON object, printed by `result`.
    quiet : bool
        No progress, no news, no tables.
    """

    json: bool = False
    quiet: bool = False
    _stdout: Console = field(default_factory=Console)
    _stderr: Console = field(default_factory=lambda: Console(stderr=True))

    @cached_property
    def progress(self) -> Progress:
        """Bars on a terminal, plain lines elsewhere, nothing when quiet."""
        if self.quiet:
            return SILENT
        return _Bars(self._stderr) if self._stderr.is_terminal else _Lines(self._stderr)

    def print(self, renderable: RenderableType) -> None:
        """Show a result to a person; silent under ``--json`` and ``--quiet``."""
        if not (self.json or self.quiet):
            self._stdout.print(renderable)

    def result(self, value: dict[str, Any]) -> None:
        """Print the one object of ``--json``; silent without it."""
        if self.json:
            sys.stdout.write(json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n")


class _Bars:
    """rich progress bars; one live display for nested tasks."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            console=console,
        )
        self._open = 0

    @contextmanager
    def task(self, name: str, total: int | None, unit: str = "images") -> Iterator[Advance]:
        if self._open == 0:
            self._bars.start()
        self._open += 1
        task = self._bars.add_task(name, total=total, rate="")
        try:
            yield self._advance(task, unit)
        finally:
            self._open -= 1
            self._bars.remove_task(task)
            if self._open == 0:
                self._bars.stop()

    def _advance(self, task: TaskID, unit: str) -> Advance:
        start, done = time.perf_counter(), 0

        def advance(n: int) -> None:
            nonlocal done
            done += n
            rate = done / max(time.perf_counter() - start, 1e-9)
            self._bars.update(task, advance=n, rate=f"{rate:,.0f} {unit}/s")

        return advance

    def say(self, line: str) -> None:
        self._console.print(line, highlight=False, markup=False)


class _Lines:
    """A line now and then, for logs: rate and time left every few seconds, one at the end."""

    def __init__(self, console: Console) -> None:
        self._console = console

    @contextmanager
    def task(self, name: str, total: int | None, unit: str = "images") -> Iterator[Advance]:
        start = last = time.perf_counter()
        done = 0

        def advance(n: int) -> None:
            nonlocal done, last
            done += n
            now = time.perf_counter()
            if now - last >= PLAIN_LINE_EVERY:
                last = now
                self.say(_progress_line(name, done, total, unit, now - start))

        yield advance
        self.say(f"{name}: {done:,} {unit} in {time.perf_counter() - start:,.1f} s")

    def say(self, line: str) -> None:
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)


def _progress_line(name: str, done: int, total: int | None, unit: str, seconds: float) -> str:
    rate = done / max(seconds, 1e-9)
    line = f"{name}: {done:,}" + (f"/{total:,}" if total else "") + f" {unit}, {rate:,.1f} {unit}/s"
    if total and rate > 0:
        line += f", {(total - done) / rate:,.0f} s left"
    return line


def split_list(text: str) -> list[str]:
    """Split a comma-separated option into its non-empty parts."""
    return [part.strip() for part in text.split(",") if part.strip()]


def weights_by_backbone(values: list[str] | None, backbones: list[str]) -> dict[str, Path]:
    """Resolve ``--weights`` values to one path per backbone id.

    Raises
    ------
    UsageError
        If a value names a backbone that is not asked for, or is bare with several backbones.
    """
    found: dict[str, Path] = {}
    for value in values or []:
        name = next((b for b in backbones if value.startswith(f"{b}=")), None)
        if name is not None:
            found[name] = Path(value[len(name) + 1 :])
        elif len(backbones) == 1 and not value.startswith(("timm:", "open_clip:", "demo:")):
            found[backbones[0]] = Path(value)
        else:
            raise UsageError(
                f"--weights {value} names none of the backbones {', '.join(backbones)}; "
                "write --weights ID=PATH with one of these ids."
            )
    return found


def resolve_device(name: str) -> str:
    """Turn ``auto`` into ``cuda`` or ``cpu``.

    Raises
    ------
    UsageError
        If the name is unknown.
    Unavailable
        If CUDA is asked for and this machine has none.
    """
    from retailtag.errors import Unavailable

    if name not in ("auto", "cpu", "cuda"):
        raise UsageError(f"--device {name} is unknown; use auto, cpu or cuda.")
    if name == "cpu":
        return "cpu"
    import torch

    if torch.cuda.is_available():
        return "cuda"
    if name == "cuda":
        raise Unavailable("--device cuda: PyTorch sees no CUDA device here; use --device cpu.")
    return "cpu"


def provenance_of(catalogue: Path, attributes: list[str], images: Path | None) -> dict[str, Any]:
    """How the catalogue was read, as predictions record it so that `score` can read it again."""
    return {
        "catalog": str(catalogue),
        "catalog_args": {
            "attributes": attributes,
            "images": None if images is None else str(images),
        },
    }


def default_workers(workers: int | None) -> int:
    """``--workers``, or one a core up to 16.

    Raises
    ------
    UsageError
        If the number is negative.
    """
    if workers is not None and workers < 0:
        raise UsageError(f"--workers {workers} is out of range; use 0 or more.")
    return min(os.cpu_count() or 1, 16) if workers is None else workers


def parse_blocks(text: str) -> int | Literal["all"]:
    """``--blocks``: a positive number or ``all``.

    Raises
    ------
    UsageError
        If it is neither.
    """
    if text == "all":
        return "all"
    if text.isdigit() and int(text) > 0:
        return int(text)
    raise UsageError(f"--blocks {text} is neither a positive number nor all.")
