"""Peak memory of a stage: its own, whatever ran before it in the process."""

import subprocess
import sys

import pytest

from retailtag.runs import measure
from retailtag.runs.measure import MIB, measured

BLOCK = 100 * MIB


def _use(n_bytes):
    block = bytearray(n_bytes)
    block[::4096] = b"x" * len(block[::4096])


def _peak(n_bytes, held=0):
    with measured("cpu", held) as cost:
        _use(n_bytes)
    return cost.peak_memory_mib


def test_the_peak_is_the_blocks_own():
    assert _peak(BLOCK) == pytest.approx(100, abs=15)
    assert _peak(0) == pytest.approx(0, abs=15)
    assert _peak(0, held=50 * MIB) == pytest.approx(50, abs=15)


def test_memory_held_by_the_caller_is_not_counted():
    kept = bytearray(BLOCK)
    kept[::4096] = b"x" * len(kept[::4096])
    assert _peak(BLOCK) == pytest.approx(100, abs=15)


def test_the_peak_does_not_depend_on_what_ran_before():
    """In the program's own process, which keeps freed memory: small before and after large."""
    program = (
        "from retailtag.allocator import keep_freed_memory\n"
        "from retailtag.runs.measure import measured\n"
        "import numpy as np\n"
        "keep_freed_memory()\n"
        "def peak(mib):\n"
        "    with measured('cpu') as cost:\n"
        "        parts = [np.ones(2**17) for _ in range(mib)]\n"
        "        del parts\n"
        "    return cost.peak_memory_mib\n"
        "peak(1)\n"
        "print(peak(50), peak(300), peak(50))"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
    before, large, after = map(float, done.stdout.split())
    assert large == pytest.approx(300, abs=30)
    assert before == pytest.approx(50, abs=15)
    assert after == pytest.approx(before, abs=15)


def test_without_the_kernels_peak_a_thread_samples(monkeypatch):
    monkeypatch.setattr(measure._KernelPeak, "reset", staticmethod(lambda: False))
    with measured("cpu") as cost:
        block = bytearray(BLOCK)
        block[::4096] = b"x" * len(block[::4096])
        measure.threading.Event().wait(3 * measure.SAMPLE_SECONDS)
        del block
    assert cost.peak_memory_mib == pytest.approx(100, abs=15)
