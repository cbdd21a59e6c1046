"""How long a tagger takes, from an image's bytes to its tags."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from retailtag.tagger.tagger import Tagger

WARM_UP = 10
SINGLE = 100  # images timed one by one
BATCH = 32


@dataclass(frozen=True)
class Latency:
    """Measured on the tagger's device with PyTorch's default number of threads.

    Parameters
    ----------
    p50_ms, p95_ms : float
        Median and 95th percentile for one image: decode, preprocess, embed, head, thresholds.
    images_per_second : float
        In batches of 32, decoded in the calling thread; larger is better.
    """

    p50_ms: float
    p95_ms: float
    images_per_second: float


def measure_latency(tagger: Tagger, images: Sequence[bytes]) -> Latency:
    """Time `tagger` on encoded images, after a warm-up that is not counted.

    Parameters
    ----------
    tagger : Tagger
    images : sequence of bytes
        At least one; used in turn.
    """
    turn = [images[i % len(images)] for i in range(WARM_UP + SINGLE)]
    seconds = []
    for data in turn:
        start = time.perf_counter()
        tagger.tag([data])
        seconds.append(time.perf_counter() - start)
    batches = [turn[i : i + BATCH] for i in range(0, len(turn) - BATCH + 1, BATCH)]
    tagger.tag(batches[0])
    start = time.perf_counter()
    for batch in batches:
        tagger.tag(batch)
    rate = len(batches) * BATCH / (time.perf_counter() - start)
    p50, p95 = 1000 * np.quantile(seconds[WARM_UP:], [0.5, 0.95])
    return Latency(float(p50), float(p95), rate)
