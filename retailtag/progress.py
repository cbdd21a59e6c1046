"""How a long computation reports its progress, without knowing who listens.

Library calls take a ``Progress`` and default to `SILENT`; the command line passes one that draws
bars on a terminal and writes plain lines elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Advance(Protocol):
    """Reports the progress of a task."""

    def __call__(self, n: int, note: str = "", /) -> None:
        """Count `n` more; a note replaces the last one."""
        ...


def nobody(n: int, note: str = "", /) -> None:
    """Advance that nobody listens to."""


class Progress(Protocol):
    """What a long computation reports to."""

    def task(
        self, name: str, total: int | None, unit: str = "images"
    ) -> AbstractContextManager[Advance]:
        """Open a task of `total` units (None: unknown); the context yields ``advance(n)``."""
        ...

    def say(self, line: str) -> None:
        """Report one line that is neither an error nor the result."""
        ...


class _Silent:
    @contextmanager
    def task(self, name: str, total: int | None, unit: str = "images") -> Iterator[Advance]:
        yield nobody

    def say(self, line: str) -> None:
        return


SILENT: Progress = _Silent()  # without state, so one object serves every thread
