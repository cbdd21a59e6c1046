"""Keep freed memory in the process: networks on a CPU free and ask again at every layer."""

from __future__ import annotations

import ctypes
import os
import sys

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # of <malloc.h>
TOP_PAD = 64 * 2**20
LARGEST_INT = 2**31 - 1


def keep_freed_memory() -> bool:
    """Tell glibc's allocator not to hand freed blocks back to the system; whether it was done.

    By default glibc maps every block above a threshold afresh and unmaps it when freed. Each
    activation of a network is such a block, so that the system zeroes the same pages again and
    again; ``benchmarks/allocator.py`` measures what that costs. A policy for the whole process,
    which then keeps its peak memory until it ends: `retailtag.cli.main` calls this, library
    functions never do. It is not done without glibc, nor where a ``MALLOC_`` variable of the
    environment already tunes the allocator.
    """
    tuned = any(name.startswith("MALLOC_") for name in os.environ)
    if tuned or not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = {M_MMAP_MAX: 0, M_TRIM_THRESHOLD: LARGEST_INT, M_TOP_PAD: TOP_PAD}
    return all(mallopt(name, value) == 1 for name, value in settings.items())


def release_freed_memory() -> bool:
    """Give freed memory back to the system, whatever the policy; whether there was any."""
    if not sys.platform.startswith("linux"):
        return False
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    return malloc_trim is not None and malloc_trim(ctypes.c_size_t(0)) == 1
