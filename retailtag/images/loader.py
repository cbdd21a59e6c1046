"""From rows of a catalogue to batches of pixels: read, hash, decode and preprocess.

Threads read and hash, so that a source is held once however large its catalogue is. Each has a
process that decodes (see `retailtag.images.decode_pool`), so that a file that crashes its codec
costs one image, and resizes what lies in the memory it shares with that process.
"""

from __future__ import annotations

import hashlib
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice, tee
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from retailtag.errors import UnreadableImage
from retailtag.images.decode import MAX_PIXELS, Pixels
from retailtag.images.decode_pool import decode_in_process, decode_in_subprocess
from retailtag.images.sources import ImageSource

if TYPE_CHECKING:
    from PIL import Image

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
    """Images of consecutive rows, as far as they could be read."""

    rows: NDArray[np.intp]  # (n,), of the catalogue, in the order asked for
    pixels: Pixels  # (n, 3, h, w), preprocessed, not normalised; (0, 3, 0, 0) if none was read
    sha256: list[str]  # of each image's bytes, hexadecimal
    failures: list[Failure]  # the other rows
    read_seconds: float  # on reading and hashing, summed over threads
    decode_seconds: float  # on decoding and preprocessing, summed over threads

    def __len__(self) -> int:
        return len(self.rows)


class Request(NamedTuple):
    """Rows to load together, and the preprocessings that each of their images goes through."""

    rows: Sequence[int] | NDArray[np.intp]
    steps: tuple[PreprocessFn, ...]


class _Loaded(NamedTuple):
    row: int
    sha256: str | None
    views: tuple[Pixels, ...] | None  # (3, h, w) for each step; None: unreadable
    reason: str
    read_seconds: float
    decode_seconds: float


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

    `preprocess` makes uint8 (3, h, w) of a PIL image (RGB), of the same shape for every image.
    Rows that fail leave their batch smaller, so a batch depends on its rows alone, never on timing.
    The other parameters are those of `load_views`.
    """
    requests = (
        Request(rows[at : at + batch_size], (preprocess,)) for at in range(0, len(rows), batch_size)
    )
    for (batch,) in load_views(
        images,
        requests,
        ahead=2 * batch_size,
        workers=workers,
        max_pixels=max_pixels,
        allow_truncated=allow_truncated,
    ):
        yield batch


def load_views(
    images: ImageSource,
    requests: Iterable[Request],
    *,
    ahead: int,
    workers: int,
    max_pixels: int = MAX_PIXELS,
    allow_truncated: bool = False,
) -> Generator[tuple[Batch, ...], None, None]:
    """Yield each request's images once for every preprocessing; each is read and decoded once.

    `requests` are asked for in order, as far ahead as needed. Each gives one batch for each of its
    steps, alike but for their pixels. At most `ahead` images are loaded before they are asked for:
    across the bounds of requests, and however many rows there are. Each of the `workers` threads
    has a process that decodes; 0 does it all in the calling thread when the next batch is asked
    for, where a crash of a codec ends the run. Images of over `max_pixels` fail, from their header
    alone; `allow_truncated` accepts files that end early, the missing part grey.

    An image that cannot be read, decoded or preprocessed is a `Failure`.
    """
    decode = partial(
        decode_in_subprocess if workers else decode_in_process,
        max_pixels=max_pixels,
        allow_truncated=allow_truncated,
    )

    def load(item: tuple[int, tuple[PreprocessFn, ...]]) -> _Loaded:
        row, steps = item
        return _load_one(images, int(row), lambda data: decode(data, partial(preprocessed, steps)))

    coming, requests = tee(requests)
    items = ((row, request.steps) for request in coming for row in request.rows)
    loaded = map_in_order(load, items, workers, ahead)
    for request in requests:
        yield _collate(list(islice(loaded, len(request.rows))), len(request.steps))


def preprocessed(steps: tuple[PreprocessFn, ...], pixels: Pixels) -> tuple[Pixels, ...]:
    """Apply each step to decoded pixels (h, w, 3), which are valid no longer than this call."""
    from PIL import Image

    return tuple(
        # Our own steps take the array and spare the way through Pillow.
        step.of_pixels(pixels) if hasattr(step, "of_pixels") else step(Image.fromarray(pixels))
        for step in steps
    )


def hash_images(
    images: ImageSource, rows: Sequence[int] | NDArray[np.intp], *, workers: int
) -> Iterator[str | None]:
    """Yield the SHA-256 of each row's bytes in order, hexadecimal; None where unreadable."""

    def digest(row: int) -> str | None:
        try:
            return hashlib.sha256(images.read(row)).hexdigest()
        except UnreadableImage:
            return None

    return map_in_order(digest, rows, workers, ahead=_HASHES_AHEAD)


def _load_one(
    images: ImageSource, row: int, views_of: Callable[[bytes], tuple[Pixels, ...]]
) -> _Loaded:
    start = read = time.perf_counter()
    sha256, views, reason = None, None, ""
    try:
        data = images.read(row)
        sha256 = hashlib.sha256(data).hexdigest()
        read = time.perf_counter()
        views = views_of(data)
    except UnreadableImage as error:
        reason = str(error)
        read = read if sha256 else time.perf_counter()
    return _Loaded(row, sha256, views, reason, read - start, time.perf_counter() - read)


def _collate(part: list[_Loaded], n_steps: int) -> tuple[Batch, ...]:
    # `good` repeats the test on sha256 for the type checker: pixels imply a hash.
    good = [
        (x.row, x.sha256, x.views) for x in part if x.views is not None and x.sha256 is not None
    ]
    alike = partial(
        Batch,
        np.array([row for row, _, _ in good], np.intp),
        sha256=[sha256 for _, sha256, _ in good],
        failures=[Failure(x.row, x.sha256, x.reason) for x in part if x.views is None],
        read_seconds=sum(x.read_seconds for x in part),
        decode_seconds=sum(x.decode_seconds for x in part),
    )
    nothing = np.empty((0, 3, 0, 0), np.uint8)
    return tuple(
        alike(pixels=np.stack([views[step] for _, _, views in good]) if good else nothing)
        for step in range(n_steps)
    )


def map_in_order(
    function: Callable[[Item], Result], items: Iterable[Item], workers: int, ahead: int
) -> Iterator[Result]:
    """Map in threads (0: in the calling one), in order, at most `ahead` results waiting."""
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
