"""What would not fit into memory is refused before it is allocated, with what to do about it."""

from __future__ import annotations

import psutil

from retailtag.errors import DataError

SHARE = 0.9  # of the free memory that one step may take


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
