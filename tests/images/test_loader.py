from __future__ import annotations

import hashlib
import io
import re
import threading

import numpy as np
import pytest
from PIL import Image

from retailtag.errors import Unavailable, UnreadableImage
from retailtag.images.loader import Failure, Request, hash_images, load_batches, load_views


def png(value: int, size: tuple[int, int] = (6, 4)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, (value, 0, 255 - value)).save(buffer, "PNG")
    return buffer.getvalue()


class Images:
    """Bytes by row; None is a file that is not there. Counts how many were asked for."""

    def __init__(self, data: list[bytes | None]):
        self.data = data
        self.reads = 0
        self._lock = threading.Lock()

    def read(self, index: int) -> bytes:
        with self._lock:
            self.reads += 1
        data = self.data[index]
        if data is None:
            raise UnreadableImage("no such file")
        return data

    def name(self, index: int) -> str:
        return f"row {index}"


def preprocess(image: Image.Image) -> np.ndarray:
    return np.asarray(image.resize((3, 2))).transpose(2, 0, 1)


def load(images, rows, *, batch_size=4, workers=2, **kwargs):
    return load_batches(images, rows, preprocess, batch_size=batch_size, workers=workers, **kwargs)


@pytest.mark.parametrize("workers", [0, 1, 5])
@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_batches_keep_the_order_and_name_every_failure(workers, batch_size):
    data: list[bytes | None] = [png(v) for v in range(23)]
    data[3], data[7], data[8] = None, b"", b"nonsense"
    rows = [*range(22, 2, -1), 0]
    batches = list(load(Images(data), rows, batch_size=batch_size, workers=workers))
    good = [row for row in rows if row not in (3, 7, 8)]
    assert np.concatenate([b.rows for b in batches]).tolist() == good
    for batch in batches:
        assert batch.pixels.dtype == np.uint8
        assert len(batch) + len(batch.failures) <= batch_size
        for row, pixels, sha256 in zip(batch.rows, batch.pixels, batch.sha256, strict=True):
            assert pixels.shape == (3, 2, 3)
            assert (pixels[0] == row).all()
            assert sha256 == hashlib.sha256(data[row]).hexdigest()
    failures = {f.row: f for b in batches for f in b.failures}
    assert failures[3] == Failure(3, None, "no such file")
    assert failures[7].reason == "is empty (0 bytes); fetch it again"
    assert failures[8].sha256 == hashlib.sha256(data[8]).hexdigest()
    assert len(failures) == 3


def test_a_batch_without_a_readable_image_has_no_pixels():
    (batch,) = load(Images([None, None]), [0, 1])
    assert batch.pixels.shape == (0, 3, 0, 0)
    assert [f.row for f in batch.failures] == [0, 1]


def test_no_rows_give_no_batches():
    assert list(load(Images([]), [])) == []


def test_limits_reach_the_decoder():
    images = Images([png(1, (50, 40))])
    (batch,) = load(images, [0], max_pixels=1999)
    assert "2,000" in batch.failures[0].reason or "1,999" in batch.failures[0].reason
    (batch,) = load(images, [0], max_pixels=2000)
    assert len(batch) == 1


def test_reading_ahead_is_bounded_and_stops_with_the_caller():
    images = Images([png(1)] * 200)
    batches = load(images, range(200), batch_size=5, workers=3)
    next(batches)
    batches.close()
    assert images.reads <= 5 + 2 * 5 + 1


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (MemoryError(), "does not fit into memory; scale it down"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "does not fit into memory"),
        (OverflowError("too large"), r"cannot be used \(OverflowError: too large\); convert it"),
        (AssertionError(), r"cannot be used \(AssertionError: AssertionError\)"),
    ],
)
def test_whatever_a_step_raises_over_one_image_leaves_that_image_out(workers, error, reason):
    def step(image):
        if image.getpixel((0, 0))[0] == 3:
            raise error
        return preprocess(image)

    images = Images([png(v) for v in range(5)])
    (batch,) = load_batches(images, range(5), step, batch_size=9, workers=workers)
    assert batch.rows.tolist() == [0, 1, 2, 4]
    (failure,) = batch.failures
    assert failure.row == 3
    assert re.match(reason, failure.reason)


def test_what_retailtag_raises_on_purpose_ends_the_loading():
    def step(image):
        raise Unavailable("torch is missing")

    with pytest.raises(Unavailable, match="torch is missing"):
        list(load_batches(Images([png(1)]), [0], step, batch_size=2, workers=2))


@pytest.mark.parametrize("workers", [0, 3])
def test_hashes_come_in_order(workers):
    data = [png(1), None, png(2)]
    expected = [None if d is None else hashlib.sha256(d).hexdigest() for d in data]
    assert list(hash_images(Images(data), [2, 1, 0], workers=workers)) == expected[::-1]


def first_row(image: Image.Image) -> np.ndarray:
    return np.asarray(image)[:1].transpose(2, 0, 1).copy()


@pytest.mark.parametrize("workers", [0, 2])
def test_every_image_is_read_once_for_all_that_is_made_of_it(workers):
    images = Images([png(v) if v != 4 else b"junk" for v in range(9)])
    requests = [
        Request([0, 1, 4], (preprocess, first_row)),
        Request([], (preprocess,)),
        Request([8, 2], (first_row,)),
    ]
    views = list(load_views(images, requests, ahead=2, workers=workers))
    assert [[b.rows.tolist() for b in batches] for batches in views] == [
        [[0, 1], [0, 1]],
        [[]],
        [[8, 2]],
    ]
    (small, wide), _, (alone,) = views
    assert small.pixels.shape == (2, 3, 2, 3)
    assert wide.pixels.shape == alone.pixels.shape == (2, 3, 1, 6)
    assert wide.pixels[:, 0, 0, 0].tolist() == [0, 1]
    assert alone.pixels[:, 0, 0, 0].tolist() == [8, 2]
    assert [f.row for f in small.failures] == [f.row for f in wide.failures] == [4]
    assert images.reads == 5
    assert min(small.read_seconds, small.decode_seconds) > 0


def test_what_comes_next_is_loaded_across_the_bounds_of_requests():
    images = Images([png(1)] * 20)
    requests = (Request([i], (preprocess,)) for i in range(20))
    views = load_views(images, requests, ahead=6, workers=2)
    next(views)
    views.close()
    assert images.reads > 1
