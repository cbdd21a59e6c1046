"""What the processor says it can do."""

from __future__ import annotations

from functools import cache
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")


@cache
def flags() -> frozenset[str]:
    """Flags, vendor and whatever else Linux says of the CPU, word by word; elsewhere none."""
    try:
        text = _CPUINFO.read_text(encoding="utf-8")
    except OSError:
        return frozenset()
    return frozenset(w for line in text.splitlines() for w in line.partition(":")[2].split())


def has_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 matrices: AVX512-BF16, AMX, or ARM's.

    Without it bfloat16 is emulated and slower than float32.
    """
    return bool(flags() & {"avx512_bf16", "amx_bf16", "bf16", "svebf16"})


def has_slow_matmul() -> bool:
    """Whether PyTorch's float32 matrix product leaves half of this CPU unused.

    On x86 that product is MKL's and convolutions are oneDNN's. On AMD's Zen 5 the layers of a ViT
    run at 173 to 221 GFLOP/s by the first and 306 to 482 by the second (two cores); other AMD
    processors with AVX-512 are taken to be alike.
    """
    return {"AuthenticAMD", "avx512f"} <= flags()
