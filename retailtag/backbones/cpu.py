"""What this machine's processor can compute, as Linux reports it."""

from __future__ import annotations

from functools import cache
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")


@cache
def flags() -> frozenset[str]:
    """Every word of ``/proc/cpuinfo`` (flags, vendor); empty on other systems."""
    try:
        text = _CPUINFO.read_text(encoding="utf-8")
    except OSError:
        return frozenset()
    return frozenset(w for line in text.splitlines() for w in line.partition(":")[2].split())


def has_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 matrices: AVX512-BF16, AMX or ARM's instructions.

    Other CPUs emulate bfloat16, which is slower than float32.
    """
    return bool(flags() & {"avx512_bf16", "amx_bf16", "bf16", "svebf16"})


def has_slow_matmul() -> bool:
    """Whether PyTorch's float32 matrix product uses about half of what this CPU can compute.

    On x86 the product is MKL's and convolutions are oneDNN's. On two cores of AMD's Zen 5 the
    layers of a ViT run at 173 to 221 GFLOP/s with MKL and at 306 to 482 with oneDNN
    (``results/LOG.md``, 2026-11-28). Other AMD processors with AVX-512 are assumed to be alike.
    """
    return {"AuthenticAMD", "avx512f"} <= flags()
