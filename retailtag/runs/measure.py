"""Wall time and peak memory of a stage, measured while it runs.

On a CPU the peak is that of the stage alone: the most memory that the process held at one time,
less what it held when the stage began, plus the model that the stage was given. Libraries and what
earlier stages left behind are not counted, so the figure does not depend on what ran before.
On CUDA it is the largest memory allocated on the device, weights included.
"""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from retailtag.allocator import release_freed_memory

SAMPLE_SECONDS = 0.05  # between two samples where the kernel's peak cannot be reset
MIB = 2**20


@dataclass
class StageCost:
    """Wall time and peak memory of a measured block; complete when the block has ended."""

    seconds: float = 0.0
    peak_memory_mib: float = 0.0


@contextmanager
def measured(device: str, held: int = 0) -> Iterator[StageCost]:
    """Measure the block on ``cpu`` or ``cuda``.

    `held` are bytes that the block uses but the caller has already allocated, such as a model's
    weights. They are added on a CPU, where only growth is measured.
    """
    cost = StageCost()
    # Cycles of earlier stages would otherwise be freed inside the block and hide its growth.
    gc.collect()
    with _cuda_peak(cost) if device == "cuda" else _resident_peak(cost, held):
        start = time.perf_counter()
        yield cost
    cost.seconds = time.perf_counter() - start


@contextmanager
def _resident_peak(cost: StageCost, held: int) -> Iterator[None]:
    # Freed memory that the allocator still holds would hide growth: a stage could reuse it.
    release_freed_memory()
    watch = _KernelPeak() if _KernelPeak.reset() else _Sampler()
    start = psutil.Process().memory_info().rss
    try:
        yield
    finally:
        cost.peak_memory_mib = (held + max(watch.peak() - start, 0)) / MIB


class _KernelPeak:
    """Linux's peak of the resident memory of this process (VmHWM and clear_refs in proc(5))."""

    @staticmethod
    def reset() -> bool:
        """Reset the peak; False where the system has none or forbids it."""
        try:
            # "5" resets the peak to the present size, for this process alone.
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        except OSError:
            return False
        return True

    def peak(self) -> int:
        """Bytes of the peak."""
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


class _Sampler:
    """Samples the resident memory in a thread; misses peaks between two samples."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._done = threading.Event()
        self._peak = 0
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._done.wait(SAMPLE_SECONDS):
            self._peak = max(self._peak, self._process.memory_info().rss)

    def peak(self) -> int:
        """Bytes of the largest sample; ends the sampling."""
        self._done.set()
        self._thread.join()
        return max(self._peak, self._process.memory_info().rss)


@contextmanager
def _cuda_peak(cost: StageCost) -> Iterator[None]:
    import torch

    # Kernels run on after their call returns: earlier ones must not count, those of the block must.
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    try:
        yield
    finally:
        torch.cuda.synchronize()
        cost.peak_memory_mib = torch.cuda.max_memory_allocated() / MIB
