"""Keep freed memory in the process: networks on a CPU free and ask again at every layer."""

from __future__ import annotations

import ctypes
import os
import sys

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # of <malloc.h>
TOP_PAD = 64 * 2**20
LARGEST_INT = 2**31 - 1


def keep_freed_memory() -> bool:
    """Tell glibc's allocator not to hand freed blocks back to the system.

    By default glibc maps every block above a threshold afresh and unmaps it when freed. Each
    activation of a network is such a block, so that the system zeroes the same pages again and
    again; ``benchmarks/allocator.py`` measures what that costs. PyTorch caches device memory for
    the same reason, but not main memory.

    Returns
    -------
    bool
        Whether it was done: not on systems without glibc, nor where the environment already
        tunes the allocator (a ``MALLOC_`` variable).

    Notes
    -----
    A policy for the whole process, hence for the program to choose: `retailtag.cli.main` calls
    it, library functions never do. The process keeps its peak memory until it ends.
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
    """Give the memory that was freed so far back to the system, whatever the policy.

    Returns
    -------
    bool
        Whether any was given back; always False without glibc.
    """
    if not sys.platform.startswith("linux"):
        return False
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    return malloc_trim is not None and malloc_trim(ctypes.c_size_t(0)) == 1
