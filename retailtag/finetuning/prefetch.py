"""Batches made ready in a thread while the model works on the one before."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterator
from typing import TypeVar

T = TypeVar("T")
_END = object()


def prefetch(items: Iterator[T], depth: int = 2) -> Iterator[T]:
    """The same items in the same order, at most `depth` of them made before they are asked for.

    Parameters
    ----------
    items : iterator
        Runs in a thread of its own; its exception is raised here, after the items before it.
    depth : int
        Bounds the memory.

    Notes
    -----
    When the caller stops early, the thread ends after the item that it is making.

    Examples
    --------
    >>> list(prefetch(iter("abc")))
    ['a', 'b', 'c']
    """
    ready: queue.Queue[object] = queue.Queue(depth)
    stop = threading.Event()

    def offer(item: object) -> bool:
        while not stop.is_set():
            try:
                ready.put(item, timeout=0.05)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        last: object = _END
        try:
            for item in items:
                if not offer(item):
                    return
        except BaseException as error:  # noqa: BLE001 - handed over to the caller's thread
            last = _Failed(error)
        finally:
            if isinstance(items, Generator):
                items.close()  # here, where it ran
        offer(last)

    thread = threading.Thread(target=work, name="batches-ahead", daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not _END:
            if isinstance(item, _Failed):
                raise item.error
            yield item  # type: ignore[misc]
    finally:
        stop.set()
        thread.join()


class _Failed:
    """An exception on its way between threads."""

    def __init__(self, error: BaseException) -> None:
        self.error = error
