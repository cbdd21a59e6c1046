"""How long a tagger takes from the bytes of an image to its tags."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from retailtag.tagger.tagger import Tagger

WARM_UP_IMAGES = 10
SINGLE_IMAGES = 100  # timed one by one
BATCH_SIZE = 32


@dataclass(frozen=True)
class Latency:
    """Latency and throughput on the tagger's device with PyTorch's default number of threads."""

    # for one image: decode, preprocess, embed, head, thresholds
    p50_ms: float  # median
    p95_ms: float  # 95th percentile
    images_per_second: float  # in batches of 32, decoded in the calling thread


def measure_latency(tagger: Tagger, images: Sequence[bytes]) -> Latency:
    """Time `tagger` on encoded images (at least one, used in turn), after a warm-up."""
    turn = [images[i % len(images)] for i in range(WARM_UP_IMAGES + SINGLE_IMAGES)]
    seconds = []
    for data in turn:
        start = time.perf_counter()
        tagger.tag([data])
        seconds.append(time.perf_counter() - start)
    batches = [turn[i : i + BATCH_SIZE] for i in range(0, len(turn) - BATCH_SIZE + 1, BATCH_SIZE)]
    tagger.tag(batches[0])
    start = time.perf_counter()
    for batch in batches:
        tagger.tag(batch)
    rate = len(batches) * BATCH_SIZE / (time.perf_counter() - start)
    p50, p95 = 1000 * np.quantile(seconds[WARM_UP_IMAGES:], [0.5, 0.95])
    return Latency(float(p50), float(p95), rate)
