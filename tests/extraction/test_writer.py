"""Blocks are written behind the caller's back, in order, and nothing is lost without a word."""

from __future__ import annotations

import threading
import time

import pytest

from retailtag.errors import Unavailable
from retailtag.extraction.writer import MAX_QUEUED_BLOCKS, Writer


def put_all(write, items, end: BaseException | None = None) -> None:
    with Writer(write) as writer:
        for item in items:
            writer.put(item)
        if end is not None:
            raise end


def test_items_are_written_in_order_in_one_other_thread():
    threads, written = set(), []

    def write(item):
        threads.add(threading.get_ident())
        written.append(item)

    with Writer(write) as writer:
        for item in range(20):
            writer.put(item)
    assert written == list(range(20))
    assert len(threads) == 1
    assert threading.get_ident() not in threads


def test_the_caller_goes_on_until_the_queue_is_full():
    go, begun = threading.Event(), []

    def write(item):
        begun.append(item)
        assert go.wait(60)

    with Writer(write) as writer:
        for item in range(MAX_QUEUED_BLOCKS):
            writer.put(item)  # returns although nothing is written
        blocked = threading.Thread(target=writer.put, args=(MAX_QUEUED_BLOCKS,))
        blocked.start()
        blocked.join(0.2)
        assert blocked.is_alive()
        assert begun == [0]
        go.set()
        blocked.join(60)
    assert begun == list(range(MAX_QUEUED_BLOCKS + 1))
    assert writer.stall_seconds > 0.1


def test_a_failure_reaches_the_caller_and_nothing_is_written_after_it():
    written = []

    def write(item):
        if item == 2:
            raise Unavailable("the disk is full")
        written.append(item)

    with pytest.raises(Unavailable, match="the disk is full"):
        put_all(write, range(100))
    assert written == [0, 1]


def test_a_failure_of_the_last_item_is_raised_at_the_end():
    def write(item):
        raise Unavailable("the disk is full")

    with pytest.raises(Unavailable, match="the disk is full"):
        put_all(write, [0])


def test_what_was_given_is_written_when_the_block_is_interrupted():
    written = []

    def write(item):
        time.sleep(0.05)  # the interrupt comes first
        written.append(item)

    with pytest.raises(KeyboardInterrupt):
        put_all(write, [0, 1], KeyboardInterrupt())
    assert written == [0, 1]


def test_an_interrupt_is_not_hidden_by_a_failure():
    def write(item):
        raise Unavailable("the disk is full")

    with pytest.raises(KeyboardInterrupt):
        put_all(write, [0], KeyboardInterrupt())
