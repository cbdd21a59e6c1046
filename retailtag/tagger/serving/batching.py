"""Images of many requests, decoded apart and tagged in common batches by one thread.

Requests take turns, an image each, so that one of a hundred images does not hold up one of a single
image. The thread of the model takes what is decoded when it becomes free: under load batches fill
while the previous one is computed. Waiting for more gives nothing (results/LOG.md, 2026-11-29).
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, NamedTuple

from retailtag.errors import UnreadableImage

Tags = dict[str, float]  # probability of each tag given, likeliest first
# Of the moving average of the seconds per image behind Retry-After
_NEWS = 0.2
_LONGEST_RETRY = 60


@dataclass(frozen=True)
class Outcome:
    """Tags of an image, or why it could not be read."""

    tags: Tags | None = None
    reason: str = ""


class Overloaded(Exception):
    """Too many images are waiting; `seconds` is when to try again."""

    def __init__(self, seconds: int) -> None:
        super().__init__(f"too many images are waiting; try again in {seconds} s")
        self.seconds = seconds


class Job:
    """The images of one request; `future` gives an `Outcome` for each, in order."""

    def __init__(self, images: Sequence[bytes]) -> None:
        self.images: list[bytes | None] = list(images)  # None once decoding has begun
        self.outcomes: list[Outcome | None] = [None] * len(images)
        self.future: Future[list[Outcome]] = Future()
        self.begun = 0  # images handed to a decoder, the first ones
        self.open = len(images)  # without an outcome

    @property
    def left(self) -> int:
        """Images that no decoder has begun."""
        return len(self.images) - self.begun


class _Decoded(NamedTuple):
    job: Job
    number: int
    pixels: Any


class Observer:
    """Is told what the batcher does; does nothing itself."""

    def queued(self, images: int) -> None:
        """Take the number of images in the server, waiting or computed."""

    def decoded(self, seconds: float) -> None:
        """Take the time that one image took to decode and preprocess."""

    def computed(self, images: int, seconds: float) -> None:
        """Take the size of a batch and the time of its forward pass."""

    def failed(self, error: Exception) -> None:
        """Take an error that is no fault of an image, which ended the requests it concerns."""


@dataclass(frozen=True)
class Sizes:
    """How much a batcher takes."""

    max_batch: int  # images per forward pass
    queue: int  # most images admitted and unanswered
    workers: int  # threads that decode


class Batcher:
    """Runs `decode` in threads and `compute` in one thread, over the images of all jobs.

    Parameters
    ----------
    decode : callable
        Gives the pixels of an encoded image, or raises `UnreadableImage`.
    compute : callable
        Gives the tags of each image of a list of pixels.
    sizes : Sizes
    observer : Observer
    """

    def __init__(
        self,
        decode: Callable[[bytes], Any],
        compute: Callable[[list[Any]], list[Tags]],
        sizes: Sizes,
        observer: Observer,
    ) -> None:
        self._decode = decode
        self._compute = compute
        self._sizes = sizes
        self._observer = observer
        lock = threading.Lock()
        self._to_decode = threading.Condition(lock)
        self._to_compute = threading.Condition(lock)
        self._jobs: deque[Job] = deque()  # with images that no decoder has begun; turn by turn
        self._decoded: deque[_Decoded] = deque()
        self._images = 0  # admitted and unanswered
        self._seconds_per_image = 0.0
        self._since = 0.0  # when the last batch was done, or the first image came after a rest
        self._closed = False
        self._threads = [
            threading.Thread(target=self._decode_images, name=f"decode-{i}", daemon=True)
            for i in range(sizes.workers)
        ]
        self._threads.append(threading.Thread(target=self._run_batches, name="model", daemon=True))
        for thread in self._threads:
            thread.start()

    def submit(self, images: Sequence[bytes]) -> Job:
        """Admit images; raises `Overloaded` if they exceed the queue."""
        job = Job(images)
        with self._to_decode:
            if self._closed or self._images + len(images) > self._sizes.queue:
                raise Overloaded(self._retry_after())
            if not self._images:
                self._since = time.perf_counter()
            self._images += len(images)
            self._observer.queued(self._images)
            self._jobs.append(job)
            self._to_decode.notify(len(images))
        return job

    def check(self) -> None:
        """Raise `Overloaded` if not even one image would be admitted."""
        with self._to_decode:
            if self._closed or self._images >= self._sizes.queue:
                raise Overloaded(self._retry_after())

    def drop(self, job: Job) -> None:
        """Forget what no decoder has begun, because nobody waits for it any more."""
        with self._to_decode:
            self._drop(job)

    def close(self) -> None:
        """End the threads after the images that were admitted."""
        with self._to_decode:
            self._closed = True
            self._to_decode.notify_all()
            self._to_compute.notify_all()
        for thread in self._threads:
            thread.join()

    def _retry_after(self) -> int:
        return max(1, min(_LONGEST_RETRY, math.ceil(self._images * self._seconds_per_image)))

    def _drop(self, job: Job) -> None:
        if job in self._jobs:
            self._jobs.remove(job)
            self._answered(job.left)
        job.future.cancel()

    def _answered(self, images: int) -> None:
        self._images -= images
        self._observer.queued(self._images)
        if not self._images:
            self._to_compute.notify_all()  # `close` may wait for this

    def _decode_images(self) -> None:
        while (part := self._next_image()) is not None:
            job, number, data = part
            start = time.perf_counter()
            pixels, outcome, error = None, None, None
            try:
                pixels = self._decode(data)
            except UnreadableImage as unreadable:
                outcome = Outcome(reason=str(unreadable))
            except Exception as other:  # noqa: BLE001 - the thread must live for other requests
                error = other
            self._observer.decoded(time.perf_counter() - start)
            with self._to_compute:
                if error is not None:
                    self._answered(1)
                elif outcome is not None:
                    self._settle(job, number, outcome)
                else:
                    self._decoded.append(_Decoded(job, number, pixels))
                    self._to_compute.notify()
            if error is not None:
                self._fail([job], error)

    def _next_image(self) -> tuple[Job, int, bytes] | None:
        """The next image of the job whose turn it is; None: the batcher is closed and empty."""
        with self._to_decode:
            while not self._jobs:
                if self._closed:
                    return None
                self._to_decode.wait()
            job = self._jobs.popleft()
            number = job.begun
            data = job.images[number]
            assert data is not None  # no decoder has begun it
            job.images[number] = None
            job.begun += 1
            if job.left:
                self._jobs.append(job)
            return job, number, data

    def _run_batches(self) -> None:
        while batch := self._next_batch():
            start = time.perf_counter()
            try:
                found = self._compute([image.pixels for image in batch])
            except Exception as error:  # noqa: BLE001 - the thread must live for other requests
                with self._to_compute:
                    self._answered(len(batch))
                self._fail([image.job for image in batch], error)
                continue
            end = time.perf_counter()
            self._observer.computed(len(batch), end - start)
            with self._to_compute:
                rate = (end - self._since) / len(batch)
                known = self._seconds_per_image or rate
                self._seconds_per_image = (1 - _NEWS) * known + _NEWS * rate
                self._since = end
                for image, tags in zip(batch, found, strict=True):
                    self._settle(image.job, image.number, Outcome(tags))

    def _next_batch(self) -> list[_Decoded]:
        """What is decoded, at most a batch; empty: the batcher is closed and has no images left."""
        with self._to_compute:
            while True:
                batch: list[_Decoded] = []
                while self._decoded and len(batch) < self._sizes.max_batch:
                    image = self._decoded.popleft()
                    if image.job.future.done():  # nobody waits for it
                        self._answered(1)
                    else:
                        batch.append(image)
                if batch or (self._closed and not self._images):
                    return batch
                self._to_compute.wait()

    def _settle(self, job: Job, number: int, outcome: Outcome) -> None:
        self._answered(1)
        job.outcomes[number] = outcome
        job.open -= 1
        if not job.open and job.future.set_running_or_notify_cancel():
            job.future.set_result([o for o in job.outcomes if o is not None])

    def _fail(self, jobs: Sequence[Job], error: Exception) -> None:
        """End these jobs with an error; what of them is being decoded is ignored later."""
        self._observer.failed(error)
        with self._to_compute:
            for job in set(jobs):
                if job in self._jobs:
                    self._jobs.remove(job)
                    self._answered(job.left)
                if not job.future.done():
                    job.future.set_exception(error)
            self._to_compute.notify_all()
