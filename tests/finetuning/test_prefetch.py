"""Batches prepared in a thread: order, errors, an early end, and a bound on how many wait."""

import threading
import time

import pytest

from retailtag.finetuning.prefetch import prefetch


def test_items_come_in_their_order():
    assert list(prefetch(iter(range(100)))) == list(range(100))
    assert list(prefetch(iter([]))) == []


def test_an_error_comes_after_the_items_before_it():
    def broken():
        yield 1
        yield 2
        raise ValueError("the third")

    seen = []
    with pytest.raises(ValueError, match="the third"):
        seen.extend(prefetch(broken()))
    got = []
    try:
        for item in prefetch(broken()):
            got.append(item)
    except ValueError:
        pass
    assert got == [1, 2]


def test_an_early_end_closes_what_makes_the_items():
    closed = threading.Event()

    def endless():
        try:
            while True:
                yield 0
        finally:
            closed.set()

    items = prefetch(endless())
    next(items)
    items.close()
    assert closed.wait(5)
    assert not any(t.name == "batches-prefetch" for t in threading.enumerate())


def test_no_more_than_depth_items_are_prepared():
    made = []
    items = prefetch((made.append(i) or i for i in range(50)), depth=2)
    next(items)
    deadline = time.monotonic() + 5
    while len(made) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.1)
    assert 3 <= len(made) <= 4  # one taken, two waiting, one in the making
    items.close()
