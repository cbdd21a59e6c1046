"""Mutants of a file format, and what came of reading each: refused, right, or a fault.

A mutant is *refused* if reading it raises what the command line prints as one sentence, with a
documented exit code and the name of the file. It is *right* if it reads as the unmutated file does,
or as an independent reading of the mutant says. Anything else is a fault: a traceback, or *wrong*
(another answer, no sentence, or no end within the time limit).
"""

from __future__ import annotations

import fnmatch
import hashlib
import operator
import random
import resource
import shutil
import signal
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from retailtag.errors import EXIT_BAD_DATA, EXIT_STALE, EXIT_UNAVAILABLE, EXIT_USAGE, RetailtagError

SECONDS = 20  # a mutant that takes longer hangs
MEMORY = 3 << 30  # bytes of address space that reading a mutant of a few kilobytes may add
CODES = (EXIT_USAGE, EXIT_BAD_DATA, EXIT_STALE, EXIT_UNAVAILABLE)
LONGEST = 3000  # characters of a refusal; it may list ten rows

Mutate = Callable[[random.Random, bytes], bytes]


class Refusal(Exception):
    """Raised by an independent reading: the file must be refused, or its fault be harmless."""


class HangError(BaseException):
    """Reading takes longer than the limit; no `except Exception` of what is read stops it."""


@dataclass(frozen=True)
class Format:
    """A file format: how it is written, mutated and read.

    `make` writes sound files into an empty folder; `targets` are the mutators of those that match
    a pattern; `bind` makes the checksums in other files fit a mutant, which is done to most.
    `read` gives the program's answer, None for files that it passes over (a state that is computed
    again); `reading` gives that of an independent reading, or raises. Without a `reading`, no other
    answer than that of the sound files is right; `agree` says when two answers do. `codes` are the
    exit codes of a refusal, which names a file of the folder unless `unnamed`.
    """

    name: str
    make: Callable[[Path], None]
    targets: Mapping[str, Mutate]
    read: Callable[[Path], Any]
    reading: Callable[[Path], Any] | None = None
    codes: tuple[int, ...] = CODES
    unnamed: bool = False
    bind: Callable[[Path], None] | None = None
    agree: Callable[[Any, Any], bool] = operator.eq


@dataclass
class Tally:
    """Counts over the mutants of one format, and a line for each fault."""

    inputs: int = 0
    refused: int = 0
    right: int = 0
    tracebacks: int = 0
    wrong: int = 0
    slowest: float = 0.0  # seconds
    faults: list[str] = field(default_factory=list)


@contextmanager
def limits(seconds: float = SECONDS, memory: int = MEMORY) -> Iterator[None]:
    """Inside, time and memory are limited and warnings are errors."""

    def stop(signum: int, frame: object) -> None:
        raise HangError

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    before = signal.signal(signal.SIGALRM, stop)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + memory, hard))
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def settled(value: Any) -> Any:
    """An answer in a form that ``==`` compares: arrays by dtype, shape and bytes, NaN as itself."""
    if isinstance(value, np.ndarray):
        digest = value.tolist() if value.dtype.kind in "OUS" else _digest(value)
        return ("array", value.dtype.str, value.shape, digest)
    if isinstance(value, Mapping):
        return {str(key): settled(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [settled(item) for item in value]
    return value if isinstance(value, str | int | bool | None) else repr(value)


def _digest(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def different(one: Any, other: Any, place: str = "") -> str:
    """The first place where two settled answers differ, and what each has there."""
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        return next(different(one[k], other[k], f"{place}.{k}") for k in one if one[k] != other[k])
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        found = (k for k, pair in enumerate(zip(one, other, strict=True)) if pair[0] != pair[1])
        return next((different(one[k], other[k], f"{place}.{k}") for k in found), "nothing")
    return f"{place or 'all'}: {one!r:.90} -> {other!r:.90}"


class Attack:
    """Mutants of one format in a folder of their own, each known by its number."""

    def __init__(self, form: Format, folder: Path) -> None:
        self.form = form
        self.folder = folder
        folder.mkdir(parents=True)
        form.make(folder)
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        self.files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
        self.targets = [
            (name, mutate)
            for pattern, mutate in form.targets.items()
            for name in fnmatch.filter(self.files, pattern)
        ]
        self.answer = settled(form.read(folder))
        self._restore()
        if form.reading is not None:
            expected = settled(form.reading(folder))
            assert expected == self.answer, f"{form.name}: {expected} is read as {self.answer}"

    def run(self, numbers: range) -> Tally:
        """Try the mutants of these numbers."""
        tally = Tally()
        for number in numbers:
            self.put(number)
            start = time.perf_counter()
            outcome, what = self.judge()
            tally.slowest = max(tally.slowest, time.perf_counter() - start)
            tally.inputs += 1
            setattr(tally, outcome, getattr(tally, outcome) + 1)
            if outcome in ("tracebacks", "wrong"):
                tally.faults.append(f"{self.form.name} {number}: {what}")
        self._restore()
        return tally

    def put(self, number: int) -> None:
        """Write the mutant of a number into the folder."""
        rng = random.Random(f"{self.form.name} {number}")
        name, mutate = rng.choice(self.targets)
        self._restore()
        (self.folder / name).write_bytes(mutate(rng, self.files[name]))
        if self.form.bind is not None and rng.random() < 0.8:
            with suppress(ValueError, LookupError, TypeError, AttributeError, RecursionError):
                self.form.bind(self.folder)

    def _restore(self) -> None:
        shutil.rmtree(self.folder)
        for name, data in self.files.items():
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)

    def judge(self) -> tuple[str, str]:
        """Outcome of reading what is in the folder, and what is wrong with it."""
        try:
            with limits():
                answer = self.form.read(self.folder)
        except RetailtagError as error:
            fault = self.unclear(error)
            return ("wrong", fault) if fault else ("refused", "")
        except HangError:
            return "wrong", f"no answer within {SECONDS} s"
        except BaseException as error:  # noqa: BLE001 - whatever it is, it would be a traceback
            if isinstance(error, OSError) and error.filename and error.strerror:
                return "refused", ""  # the command line prints both
            where = traceback.extract_tb(error.__traceback__)
            ours = [
                f"{Path(f.filename).name}:{f.lineno}" for f in where if "retailtag" in f.filename
            ]
            said = str(error).splitlines() or [""]
            return "tracebacks", f"{type(error).__name__}: {said[0][:200]} at {' '.join(ours[-3:])}"
        return self._compare(settled(answer))

    def _compare(self, answer: Any) -> tuple[str, str]:
        if answer is None:
            return "refused", ""
        if self.form.agree(answer, self.answer):
            return "right", ""
        other = different(self.answer, answer)
        if self.form.reading is None:
            return "wrong", f"served otherwise ({other})"
        try:
            expected = settled(self.form.reading(self.folder))
        except Exception as error:  # noqa: BLE001 - no sound file
            return "wrong", f"served ({other}) despite {type(error).__name__} {error!s:.200}"
        if self.form.agree(answer, expected):
            return "right", ""
        return "wrong", f"served ({other}), second reading ({different(self.answer, expected)})"

    def unclear(self, error: RetailtagError) -> str:
        """What is wrong with a refusal; empty if it is one sentence that names the file."""
        text = str(error)
        names = [str(self.folder), *(name.rpartition("/")[2] for name in self.files)]
        if error.exit_code not in self.form.codes:
            return f"exit code {error.exit_code}: {text:.300}"
        if not (self.form.unnamed or any(name in text for name in names)):
            return f"names no file: {text:.300}"
        if len(text) > LONGEST or not text.strip():
            return f"{len(text)} characters: {text:.300}"
        return ""
