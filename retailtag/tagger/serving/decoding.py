"""Images decoded in processes apart, so that no file can end the server."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any

from PIL import Image

from retailtag.images.decode import Pixels
from retailtag.images.decode_pool import decode_in_process, decode_in_subprocess
from retailtag.images.loader import preprocessed
from retailtag.tagger.tagger import Tagger

_START_SECONDS = 60.0


class Decoding:
    """Gives what the backbones of a tagger take of an encoded image, and what `more` makes of it.

    Parameters
    ----------
    tagger : Tagger
    workers : int
        Processes; 0: this one, where a file that crashes its codec ends the server.
    max_pixels : int
        Larger images are refused from their header.
    time_limit : float
        Seconds that one image may take.
    more : sequence of callables
        What else to make of the decoded pixels, after the backbones.
    """

    def __init__(
        self,
        tagger: Tagger,
        workers: int,
        max_pixels: int,
        time_limit: float,
        more: Sequence[Callable[[Image.Image], Any]] = (),
    ) -> None:
        limits: dict[str, Any] = {
            "max_pixels": max_pixels,
            "allow_truncated": tagger.allow_truncated,
        }
        self.workers = workers
        own = (embedder.preprocess for embedder in tagger.embedders)
        self._steps: tuple[Any, ...] = (*own, *more)
        self._decode = (
            partial(decode_in_subprocess, **limits, time_limit=time_limit)
            if workers
            else partial(decode_in_process, **limits)
        )

    def __call__(self, data: bytes) -> list[Pixels]:
        """Pixels (3, h, w) for each backbone, and more; raises `UnreadableImage`."""
        return list(self._decode(data, partial(preprocessed, self._steps)))

    def warm(self) -> None:
        """Start the processes, or keep them: they end after a minute without an image."""
        if not self.workers:
            return
        buffer = io.BytesIO()
        Image.new("RGB", (8, 8)).save(buffer, "PNG")
        # Each waits for the others, so that no process does the work of two.
        together = threading.Barrier(self.workers)

        def wait(pixels: Pixels) -> None:
            with suppress(threading.BrokenBarrierError):
                together.wait(_START_SECONDS)

        with ThreadPoolExecutor(self.workers) as pool:
            images = [buffer.getvalue()] * self.workers
            list(pool.map(lambda data: self._decode(data, wait), images))
