"""What would not fit into memory is refused before it is allocated, or goes to a scratch file."""

from __future__ import annotations

import math
import os
import tempfile
from typing import Any

import numpy as np
import psutil
from numpy.typing import DTypeLike, NDArray

from retailtag.errors import DataError

SHARE = 0.9  # of the free memory that one step may take
MATRIX_SHARE = 0.5  # of the free memory that one matrix may take; larger ones go to the disk


def free_bytes(device: str = "cpu") -> int:
    """Bytes of memory that are free, on ``cuda`` those of the device."""
    if device == "cuda":
        import torch

        return int(torch.cuda.mem_get_info()[0])
    return int(psutil.virtual_memory().available)


def check_fits(n_bytes: float, what: str, remedy: str) -> None:
    """Raise `DataError` if `what`, a plural that begins a sentence, needs more than is free."""
    free = free_bytes()
    if n_bytes > SHARE * free:
        raise DataError(
            f"{what} need about {n_bytes / 2**30:.1f} GiB of memory, and {free / 2**30:.1f} GiB "
            f"are free; {remedy}."
        )


def empty_rows(shape: tuple[int, ...]) -> NDArray[np.float32]:
    """A float32 matrix to fill, in memory if there is room, else in a scratch file."""
    if 4 * math.prod(shape) <= MATRIX_SHARE * free_bytes():
        return np.empty(shape, np.float32)
    return scratch_rows(shape, np.float32)


def scratch_rows(shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
    """A matrix in a file without a name in ``TMPDIR``, freed with the last view of it."""
    with tempfile.TemporaryFile(prefix="retailtag-") as handle:
        try:
            if hasattr(os, "posix_fallocate"):
                # On a full disk this is an error; a write to a mapped hole would be a signal.
                os.posix_fallocate(handle.fileno(), 0, math.prod(shape) * np.dtype(dtype).itemsize)
        except OSError as error:
            error.filename = tempfile.gettempdir()
            raise
        return np.asarray(np.memmap(handle, dtype=dtype, mode="w+", shape=shape))
