"""Blocks are written by a thread of their own while the next ones are computed."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

Item = TypeVar("Item")

MAX_QUEUED_BLOCKS = 2  # the model waits for the disk beyond these: they are held in memory


class Writer(Generic[Item]):
    """Writes items one after the other, in order, in the background.

    Used as a context: when the block ends, by an exception or an interrupt too, every item given
    to `put` has been written. An error of `write` is raised by the next `put` or at the end of
    the block, and nothing is written after it.
    """

    def __init__(self, write: Callable[[Item], Any]) -> None:
        self.stall_seconds = 0.0  # that the caller waited in `put` and at the end
        self._write = write
        self._failed = False
        self._queue: deque[Future[None]] = deque()
        # One thread: blocks must reach a store in order, or a kill would leave a gap that a
        # continued run fills with another block, and the store would differ from an
        # uninterrupted one. One is enough, since writing takes about 1 % of a run.
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="writer")

    def put(self, item: Item) -> None:
        """Hand over one item; waits while `MAX_QUEUED_BLOCKS` others are not written yet."""
        self._wait(MAX_QUEUED_BLOCKS - 1)
        self._queue.append(self._pool.submit(self._write_one, item))

    def _write_one(self, item: Item) -> None:
        if self._failed:
            return  # the caller is about to see the error
        try:
            self._write(item)
        except BaseException:
            self._failed = True
            raise

    def _wait(self, n_left: int) -> None:
        """Wait until at most `n_left` items are unwritten; raises what writing raised."""
        start = time.perf_counter()
        try:
            while len(self._queue) > n_left or (self._queue and self._queue[0].done()):
                self._queue.popleft().result()
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
            self._wait(0)
        except Exception:
            # An error that already ends the block says more than one of the disk, which the
            # same command meets again.
            if error is None:
                raise
        finally:
            self._pool.shutdown()
