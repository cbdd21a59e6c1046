"""The same training twice on one machine: algorithms whose sums have a fixed order."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.utils.deterministic


@contextmanager
def deterministic_algorithms(device: torch.device) -> Iterator[None]:
    """Have CUDA choose algorithms that give the same bits again; the setting before returns.

    Notes
    -----
    On a CPU torch's kernels for one number of threads repeat as they are. On CUDA, convolutions
    and the backward pass of fused attention add in the order in which threads finish, unless told
    otherwise; an operation without such an algorithm warns and runs. Matrix products repeat if
    ``CUBLAS_WORKSPACE_CONFIG`` is set before cuBLAS starts, which the command line does.
    """
    if device.type != "cuda":
        yield
        return
    filling: Any = torch.utils.deterministic  # its types lack the attribute
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.backends.cudnn.benchmark,
        filling.fill_uninitialized_memory,
    )
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False
    filling.fill_uninitialized_memory = False  # nothing here reads such memory
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.backends.cudnn.benchmark = before[2]
        filling.fill_uninitialized_memory = before[3]
