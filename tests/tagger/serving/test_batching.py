"""Batches of several requests: turns, sizes, limits and failures, with stand-ins for the model."""

import threading
import time

import pytest

from retailtag.errors import UnreadableImage
from retailtag.tagger.serving.batching import Batcher, Observer, Outcome, Overloaded, Sizes


class World:
    """Stand-ins for decoder and model that wait for the test, and what they were given."""

    def __init__(self):
        self.decoding, self.computing = threading.Event(), threading.Event()
        self.entered = threading.Semaphore(0)  # released for each batch that the model begins
        self.decoded, self.batches, self.errors, self.images = [], [], [], []

    def decode(self, data):
        self.decoding.wait(60)
        self.decoded.append(data)
        if data == b"bad":
            raise UnreadableImage("is damaged; fetch it again")
        if data == b"defect":
            raise ValueError("a defect")
        return data.decode()

    def compute(self, pixels):
        self.batches.append(pixels)
        self.entered.release()
        self.computing.wait(60)
        if "poison" in pixels:
            raise RuntimeError("no memory on the device")
        return [{name: 0.5} for name in pixels]

    def open(self):
        self.decoding.set()
        self.computing.set()


class Seen(Observer):
    def __init__(self, world):
        self.world = world

    def queued(self, images):
        self.world.images.append(images)

    def failed(self, error):
        self.world.errors.append(str(error))


@pytest.fixture
def world():
    return World()


@pytest.fixture
def make(world):
    """Make a batcher; it is closed at the end."""
    made = []

    def make(max_batch=4, queue=100, workers=1):
        made.append(
            Batcher(world.decode, world.compute, Sizes(max_batch, queue, workers), Seen(world))
        )
        return made[-1]

    yield make
    world.open()
    for batcher in made:
        batcher.close()
    assert world.images[-1:] in ([], [0])  # every image was answered for


def _wait(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def _result(job):
    return job.future.result(timeout=60)


def test_every_image_gets_its_own_tags_in_order(world, make):
    world.open()
    jobs = [make().submit([f"{i}{j}".encode() for j in range(3)]) for i in range(2)]
    for i, job in enumerate(jobs):
        assert _result(job) == [Outcome({f"{i}{j}": 0.5}) for j in range(3)]


def test_requests_take_turns(world, make):
    batcher = make()
    batcher.submit([b"first"])
    large = batcher.submit([b"a0", b"a1", b"a2", b"a3"])
    small = batcher.submit([b"b0", b"b1"])
    world.open()
    _result(large), _result(small)
    assert world.decoded == [b"first", b"a0", b"b0", b"a1", b"b1", b"a2", b"a3"]


def test_what_came_during_a_batch_is_the_next_batch(world, make):
    batcher = make(max_batch=4)
    world.decoding.set()
    first = batcher.submit([b"first"])
    assert world.entered.acquire(timeout=60)
    rest = [batcher.submit([name]) for name in (b"a", b"b", b"c", b"d", b"e")]
    _wait(lambda: len(world.decoded) == 6)
    world.computing.set()
    for job in (first, *rest):
        _result(job)
    assert world.batches == [["first"], ["a", "b", "c", "d"], ["e"]]


def test_more_than_the_queue_takes_is_refused_whole(world, make):
    batcher = make(queue=3)
    first = batcher.submit([b"a", b"b"])
    with pytest.raises(Overloaded) as full:
        batcher.submit([b"c", b"d"])
    assert full.value.seconds == 1
    batcher.check()  # one more has room
    second = batcher.submit([b"c"])
    with pytest.raises(Overloaded):
        batcher.check()
    world.open()
    _result(first), _result(second)
    _result(batcher.submit([b"d", b"e", b"f"]))


def test_a_request_nobody_waits_for_is_not_computed(world, make):
    batcher = make()
    job = batcher.submit([b"first", b"never"])
    _wait(lambda: job.begun)
    batcher.drop(job)
    world.open()
    assert _result(batcher.submit([b"other"])) == [Outcome({"other": 0.5})]
    assert b"never" not in world.decoded
    assert world.batches == [["other"]]


@pytest.mark.parametrize("image", [b"defect", b"poison"])
def test_a_failure_ends_its_requests_and_no_other(world, make, image):
    batcher = make(max_batch=1)
    failing = batcher.submit([image, b"x"])
    world.open()
    with pytest.raises((ValueError, RuntimeError)):
        _result(failing)
    assert len(world.errors) == 1
    assert _result(batcher.submit([b"later"])) == [Outcome({"later": 0.5})]


def test_closing_finishes_what_was_admitted(world, make):
    batcher = make()
    job = batcher.submit([b"a", b"bad", b"b"])
    closing = threading.Thread(target=batcher.close)
    closing.start()
    world.open()
    closing.join(60)
    assert not closing.is_alive()
    assert [o.tags is not None for o in _result(job)] == [True, False, True]
    with pytest.raises(Overloaded):
        batcher.submit([b"late"])
