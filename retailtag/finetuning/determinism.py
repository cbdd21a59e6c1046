"""The same training twice on one machine: algorithms whose sums have a fixed order."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.utils.deterministic


@contextmanager
def deterministic_algorithms(device: torch.device) -> Iterator[None]:
    """Have CUDA choose algorithms that give the same bits again; restores the settings after.

    On a CPU torch's kernels repeat for a given number of threads. On CUDA, convolutions and the
    backward pass of fused attention add in the order in which threads finish, unless told
    otherwise; floating-point addition is not associative, so the last bits differ. An operation
    without a deterministic algorithm warns and runs. Matrix products repeat if
    ``CUBLAS_WORKSPACE_CONFIG`` is set before cuBLAS starts, which the command line does.
    """
    if device.type != "cuda":
        yield
        return
    filling: Any = torch.utils.deterministic  # its types lack the attribute
    was_enabled = torch.are_deterministic_algorithms_enabled()
    was_warning = torch.is_deterministic_algorithms_warn_only_enabled()
    was_benchmark = torch.backends.cudnn.benchmark
    was_filling = filling.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    # The benchmark picks the fastest convolution by a race, which another run may decide otherwise.
    torch.backends.cudnn.benchmark = False
    filling.fill_uninitialized_memory = False  # nothing here reads such memory
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(was_enabled, warn_only=was_warning)
        torch.backends.cudnn.benchmark = was_benchmark
        filling.fill_uninitialized_memory = was_filling
