"""Blocks go to the disk in a thread of their own, while the next ones are computed."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Generic, Self, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

QUEUED = 2  # blocks that wait for the disk before the model waits for it too


class Writer(Generic[Item, Result]):
    """Writes what it is given one after the other, in order, behind the caller's back.

    Used as a context: when the block ends, by an exception or an interrupt too, what was given
    has been written. What fails is raised by the next `put` or at the end of the block, and
    nothing is written after it.

    Parameters
    ----------
    write : callable
        Writes one item.

    Attributes
    ----------
    results : list
        What `write` returned, in order; whole once the block has ended.
    stall_seconds : float
        Time that the caller waited in `put` and at the end.
    """

    def __init__(self, write: Callable[[Item], Result]) -> None:
        self.results: list[Result] = []
        self.stall_seconds = 0.0
        self._write = write
        self._failed = False
        self._queue: deque[Future[Result | None]] = deque()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="writer")

    def put(self, item: Item) -> None:
        """Hand over one item; waits while `QUEUED` others are not written yet."""
        self._settle(QUEUED - 1)
        self._queue.append(self._pool.submit(self._one, item))

    def _one(self, item: Item) -> Result | None:
        if self._failed:
            return None  # the caller is about to learn of it
        try:
            return self._write(item)
        except BaseException:
            self._failed = True
            raise

    def _settle(self, most: int) -> None:
        """Collect results until at most `most` items are waiting."""
        start = time.perf_counter()
        try:
            while len(self._queue) > most or (self._queue and self._queue[0].done()):
                result = self._queue.popleft().result()
                if result is not None:
                    self.results.append(result)
        finally:
            self.stall_seconds += time.perf_counter() - start

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self._settle(0)
        except Exception:
            if error is None:
                raise
            # Else what ends the block says more, and the same command finds what is missing.
        finally:
            self._pool.shutdown()
