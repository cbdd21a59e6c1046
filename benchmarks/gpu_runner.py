"""Run checks one after another: each in its time, its failure recorded, and the rest goes on."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from types import FrameType
from typing import Any

import torch

from retailtag.runs.measure import measured

PASSED, FAILED, SKIPPED, MEASURED = "passed", "failed", "skipped", "measured"
EVERYTHING = "all"  # name of the figure of a check that was skipped as a whole
LEAST_SECONDS = 2.0  # left of the total, under which no check is started
LONGEST_REASON = 300  # characters


class Skip(Exception):
    """A check, or the rest of it, cannot run here; the message is the reason, one sentence."""


class OutOfTime(BaseException):
    """The alarm has rung; no `except Exception` of a library may take it for its own error."""


@dataclass(frozen=True)
class Figure:
    """One measured value, and the limit that it has to keep, if there is one."""

    name: str
    value: float | None  # None: skipped, or the check ended with an error
    unit: str = ""
    limit: float | None = None
    at_least: bool = False  # the limit is the smallest value allowed, not the largest
    headline: bool = False  # printed even if there is nothing to object to
    reason: str = ""  # why it was skipped or failed, one sentence
    outcome: str = ""  # `SKIPPED` or `FAILED` without a value; otherwise the limit decides

    @property
    def status(self) -> str:
        """``passed``, ``failed`` or ``skipped``; ``measured`` where there is no limit."""
        if self.outcome or self.value is None or self.limit is None:
            return self.outcome or MEASURED
        keeps = self.value >= self.limit if self.at_least else self.value <= self.limit
        return PASSED if keeps else FAILED  # NaN keeps no limit

    @property
    def target(self) -> str:
        """The limit as text."""
        if self.limit is None:
            return ""
        return f"{'>=' if self.at_least else '<='} {self.limit:g} {self.unit}".rstrip()


def skipped(name: str, reason: str) -> Figure:
    """A figure that cannot be measured here."""
    return Figure(name, None, reason=reason, outcome=SKIPPED)


@dataclass(frozen=True)
class Check:
    """Figures that are measured together, and the most seconds that they may take."""

    name: str
    measure: Callable[[Any], Iterator[Figure]]  # of a `World`; yields each figure once it is known
    seconds: float


@dataclass(frozen=True)
class Result:
    """What a check gave."""

    check: str
    figures: tuple[Figure, ...]
    seconds: float

    @property
    def status(self) -> str:
        """``failed`` if any figure is, or else the first of passed, measured and skipped."""
        statuses = {figure.status for figure in self.figures}
        return next(s for s in (FAILED, PASSED, MEASURED, SKIPPED) if s in statuses)

    def to_json(self) -> dict[str, Any]:
        """Plain dictionary; None for values that are not finite, which JSON does not know."""
        figures = []
        for figure in self.figures:
            known = figure.value is not None and math.isfinite(figure.value)
            value = figure.value if known else None
            figures.append({**asdict(figure), "value": value, "status": figure.status})
        seconds = round(self.seconds, 3)
        return {"check": self.check, "status": self.status, "seconds": seconds, "figures": figures}


def run_checks(
    checks: Sequence[Check], world: Any, device: str, minutes: float
) -> Iterator[Result]:
    """Yield the result of each check; those that `minutes` leave no time for are skipped."""
    deadline = time.monotonic() + 60 * minutes
    for check in checks:
        left = deadline - time.monotonic()
        if left >= LEAST_SECONDS:
            yield run_check(check, world, device, left)
        else:
            reason = "the time of all checks is over"
            yield Result(check.name, (skipped(EVERYTHING, reason),), 0.0)
        if device == "cuda":
            torch.cuda.empty_cache()


def run_check(check: Check, world: Any, device: str, left: float) -> Result:
    """The figures of one check that has `left` seconds at most, and its peak of memory."""
    figures: list[Figure] = []
    begun = time.perf_counter()
    error: Figure | None = None
    peak: Figure | None = None
    try:
        with measured(device) as cost, _alarm(min(check.seconds, left)):
            for figure in check.measure(world):
                figures.append(figure)
        if any(figure.value is not None for figure in figures):
            where = "device memory" if device == "cuda" else "memory of the process"
            peak = Figure(f"peak {where}", cost.peak_memory_mib, "MiB")
    except Skip as why:
        error = skipped("the rest" if figures else EVERYTHING, str(why))
    except OutOfTime:
        if left < check.seconds:
            error = skipped("the rest", "the time of all checks is over")
        else:
            reason = f"it took more than the {check.seconds:g} s that it has"
            error = Figure("in time", None, reason=reason, outcome=FAILED)
    except Exception as failure:  # noqa: BLE001 - the other checks shall run, whatever this one does
        error = Figure("without an error", None, reason=_sentence(failure), outcome=FAILED)
    figures += [figure for figure in (error, peak) if figure]
    return Result(check.name, tuple(figures), time.perf_counter() - begun)


def _sentence(failure: Exception) -> str:
    """Kind and first line of an error."""
    first = (str(failure).strip().splitlines() or [""])[0]
    return f"{type(failure).__name__}: {first}"[:LONGEST_REASON].removesuffix(": ")


@contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    """Raise `OutOfTime` in the main thread after `seconds`."""

    def ring(number: int, frame: FrameType | None) -> None:
        raise OutOfTime

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
