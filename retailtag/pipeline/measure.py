"""Wall time and peak memory of a stage, measured while it runs."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psutil

INTERVAL = 0.05  # seconds between two looks at the resident memory
MIB = 2**20


@dataclass
class Cost:
    """Filled when the measured block ends.

    Parameters
    ----------
    seconds : float
        Wall time.
    peak_memory_mib : float
        Largest resident memory of the process on a CPU (PyTorch itself included), largest
        allocated device memory on CUDA.
    """

    seconds: float = 0.0
    peak_memory_mib: float = 0.0


@contextmanager
def measured(device: str) -> Iterator[Cost]:
    """Measure the block; the yielded `Cost` is complete when the block has ended."""
    cost = Cost()
    start = time.perf_counter()
    with _cuda_peak(cost) if device == "cuda" else _resident_peak(cost):
        yield cost
    cost.seconds = time.perf_counter() - start


@contextmanager
def _resident_peak(cost: Cost) -> Iterator[None]:
    process, done = psutil.Process(), threading.Event()
    peak = process.memory_info().rss

    def watch() -> None:
        nonlocal peak
        while not done.wait(INTERVAL):
            peak = max(peak, process.memory_info().rss)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        cost.peak_memory_mib = max(peak, process.memory_info().rss) / MIB


@contextmanager
def _cuda_peak(cost: Cost) -> Iterator[None]:
    import torch

    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    try:
        yield
    finally:
        torch.cuda.synchronize()
        cost.peak_memory_mib = torch.cuda.max_memory_allocated() / MIB
