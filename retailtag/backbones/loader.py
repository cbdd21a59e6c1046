"""From rows of a catalogue to batches of pixels: read, hash, decode and preprocess.

Threads read and hash, so that a source is held once however large its catalogue is. Each has a
process that decodes and preprocesses (see `retailtag.catalog.decode_apart`): a file that crashes
its codec then costs one image.
"""

from __future__ import annotations

import hashlib
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from retailtag.catalog.catalog import ImageSource
from retailtag.catalog.decode import MAX_PIXELS
from retailtag.catalog.decode_apart import decode_apart, decode_here
from retailtag.errors import UnreadableImage

if TYPE_CHECKING:
    from PIL import Image

Pixels = NDArray[np.uint8]
PreprocessFn = Callable[["Image.Image"], Pixels]

_HASHES_AHEAD = 256

Item = TypeVar("Item")
Result = TypeVar("Result")


class Failure(NamedTuple):
    """A row whose image could not be read: hash of its bytes if there were any, and why."""

    row: int
    sha256: str | None
    reason: str


@dataclass(frozen=True, eq=False)
class Batch:
    """Images of consecutive rows, as far as they could be read.

    Parameters
    ----------
    rows : ndarray of intp, shape (n,)
        Rows of the catalogue, in the order asked for.
    pixels : ndarray of uint8, shape (n, 3, h, w)
        Preprocessed, not normalised; ``(0, 3, 0, 0)`` if no image could be read.
    sha256 : list of str, length n
        SHA-256 of each image's bytes, hexadecimal.
    failures : list of Failure
        The other rows of this batch.
    seconds : float
        Time that the threads spent on this batch, summed over threads.
    """

    rows: NDArray[np.intp]
    pixels: Pixels
    sha256: list[str]
    failures: list[Failure]
    seconds: float

    def __len__(self) -> int:
        return len(self.rows)


class _Loaded(NamedTuple):
    row: int
    sha256: str | None
    pixels: Pixels | None  # (3, h, w); None: unreadable
    reason: str
    seconds: float


def load_batches(
    images: ImageSource,
    rows: Sequence[int] | NDArray[np.intp],
    preprocess: PreprocessFn,
    *,
    batch_size: int,
    workers: int,
    max_pixels: int = MAX_PIXELS,
    allow_truncated: bool = False,
) -> Iterator[Batch]:
    """Yield the images of `rows` in order, `batch_size` rows at a time, failures included.

    Parameters
    ----------
    images : ImageSource
        Gives the bytes of a row.
    rows : sequence of int
        Rows to load.
    preprocess : callable
        PIL image (RGB) to uint8 (3, h, w); the same shape for every image.
    batch_size : int
        Rows of a batch; the last may have fewer. Rows that fail leave their batch smaller, so a
        batch depends on its rows alone, never on timing.
    workers : int
        Threads, each with a process that decodes; 0 does it all in the calling thread when the
        next batch is asked for, where a crash of a codec ends the run.
    max_pixels : int
        Larger images fail, from their header alone.
    allow_truncated : bool
        Accept files that end early, the missing part grey.

    Yields
    ------
    Batch
        One for every `batch_size` rows.

    Notes
    -----
    At most two batches are loaded ahead of the one in use, so memory does not grow with the
    number of rows. An image that cannot be read is a `Failure`; any other exception (a defect of
    `preprocess`, say) ends the iteration. A `preprocess` of another package than this runs in the
    thread, on pixels that came from the process.
    """
    decode = decode_apart if workers else decode_here

    def pixels_of(data: bytes) -> Pixels:
        return decode(data, preprocess, max_pixels=max_pixels, allow_truncated=allow_truncated)

    def load(row: int) -> _Loaded:
        return _load_one(images, row, pixels_of)

    loaded = _map_in_order(load, iter(rows), workers, ahead=2 * batch_size)
    while part := list(islice(loaded, batch_size)):
        yield _collate(part)


def hash_images(
    images: ImageSource, rows: Sequence[int] | NDArray[np.intp], *, workers: int
) -> Iterator[str | None]:
    """Yield the SHA-256 of each row's bytes in order, hexadecimal; None where unreadable."""

    def digest(row: int) -> str | None:
        try:
            return hashlib.sha256(images.read(row)).hexdigest()
        except UnreadableImage:
            return None

    return _map_in_order(digest, iter(rows), workers, ahead=_HASHES_AHEAD)


def _load_one(images: ImageSource, row: int, pixels_of: Callable[[bytes], Pixels]) -> _Loaded:
    start = time.perf_counter()
    row, sha256, pixels, reason = int(row), None, None, ""
    try:
        data = images.read(row)
        sha256 = hashlib.sha256(data).hexdigest()
        pixels = pixels_of(data)
    except UnreadableImage as error:
        reason = str(error)
    return _Loaded(row, sha256, pixels, reason, time.perf_counter() - start)


def _collate(part: list[_Loaded]) -> Batch:
    # `good` repeats the test on sha256 for the type checker: pixels imply a hash.
    good = [
        (x.row, x.sha256, x.pixels) for x in part if x.pixels is not None and x.sha256 is not None
    ]
    rows = np.array([row for row, _, _ in good], np.intp)
    pixels = np.stack([p for _, _, p in good]) if good else np.empty((0, 3, 0, 0), np.uint8)
    failures = [Failure(x.row, x.sha256, x.reason) for x in part if x.pixels is None]
    return Batch(rows, pixels, [s for _, s, _ in good], failures, sum(x.seconds for x in part))


def _map_in_order(
    function: Callable[[Item], Result], items: Iterator[Item], workers: int, ahead: int
) -> Iterator[Result]:
    """Map in threads, results in the items' order, at most `ahead` of them waiting."""
    if workers == 0:
        yield from map(function, items)
        return
    pending: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix="loader") as pool:
        try:
            for item in items:
                pending.append(pool.submit(function, item))
                if len(pending) > ahead:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            # Reached early when the caller stops or an image raises: what has not begun is
            # dropped, so that leaving the pool waits for running items alone.
            for future in pending:
                future.cancel()
