"""Batches prepared in a thread while the model works on the one before."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
_END = object()


def prefetch(items: Iterator[T], depth: int = 2) -> Iterator[T]:
    """The same items in the same order, up to `depth` of them prepared in advance.

    `items` runs in a thread of its own. Its exception is raised here, after the items before it;
    when the caller stops early, the thread ends after the item that it is preparing.

    Examples
    --------
    >>> list(prefetch(iter("abc")))
    ['a', 'b', 'c']
    """
    waiting: deque[Future[object]] = deque()
    # A single thread makes the items in order.
    with ThreadPoolExecutor(1, thread_name_prefix="batches-prefetch") as pool:
        try:
            waiting.extend(pool.submit(next, items, _END) for _ in range(depth))
            while (item := waiting.popleft().result()) is not _END:
                waiting.append(pool.submit(next, items, _END))
                yield item  # type: ignore[misc]
        finally:
            for future in waiting:
                future.cancel()
            if isinstance(items, Generator):
                # In the thread in which it ran: what it holds may be bound to that thread.
                pool.submit(items.close).result()
