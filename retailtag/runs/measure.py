"""Wall time and peak memory of a stage, measured while it runs.

On a CPU the memory of a stage is its own: the most that the process held at one time above what it
held when the stage began, plus the model that the stage was handed. Libraries, and whatever
earlier stages left behind, are not counted, so that the figure does not depend on what ran before:
freed memory is given back to the system first, and the kernel's high-water mark starts anew.
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

INTERVAL = 0.05  # seconds between two looks where the kernel keeps no mark that can be reset
MIB = 2**20


@dataclass
class Cost:
    """Filled when the measured block ends.

    Parameters
    ----------
    seconds : float
        Wall time.
    peak_memory_mib : float
        The block's own peak, as the module says.
    """

    seconds: float = 0.0
    peak_memory_mib: float = 0.0


@contextmanager
def measured(device: str, held: int = 0) -> Iterator[Cost]:
    """Measure the block; the yielded `Cost` is complete when the block has ended.

    Parameters
    ----------
    device : str
        ``cpu`` or ``cuda``.
    held : int
        Bytes of what the block uses and the caller holds already (a model's weights); counted
        in on a CPU, where only growth is seen.
    """
    cost = Cost()
    gc.collect()
    with _cuda_peak(cost) if device == "cuda" else _resident_peak(cost, held):
        start = time.perf_counter()
        yield cost
    cost.seconds = time.perf_counter() - start


@contextmanager
def _resident_peak(cost: Cost, held: int) -> Iterator[None]:
    release_freed_memory()
    watch = _Kernel() if _Kernel.reset() else _Sampler()
    start = psutil.Process().memory_info().rss
    try:
        yield
    finally:
        cost.peak_memory_mib = (held + max(watch.peak() - start, 0)) / MIB


class _Kernel:
    """Linux's high-water mark of the resident memory of this process (proc(5), clear_refs)."""

    @staticmethod
    def reset() -> bool:
        """Start the mark anew; False where the system has none or forbids it."""
        try:
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        except OSError:
            return False
        return True

    def peak(self) -> int:
        """Bytes of the mark."""
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


class _Sampler:
    """Looks at the resident memory from a thread of its own; misses peaks between two looks."""

    def __init__(self) -> None:
        self._process, self._done = psutil.Process(), threading.Event()
        self._peak = 0
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._done.wait(INTERVAL):
            self._peak = max(self._peak, self._process.memory_info().rss)

    def peak(self) -> int:
        """Bytes of the largest look; ends the watch."""
        self._done.set()
        self._thread.join()
        return max(self._peak, self._process.memory_info().rss)


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
