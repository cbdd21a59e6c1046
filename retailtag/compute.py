"""Where a run computes: the device and the number of processes that the settings ask for."""

from __future__ import annotations

import os

from retailtag.errors import Unavailable
from retailtag.settings import AUTO, ComputeSettings

MAX_WORKERS = 16  # decoding processes by default at most: more only wait for the model


def resolve_device(name: str) -> str:
    """Turn ``auto`` into ``cuda`` or ``cpu``.

    Raises
    ------
    Unavailable
        If CUDA is asked for and this machine has none.
    """
    if name == "cpu":
        return "cpu"
    import torch

    if torch.cuda.is_available():
        # cuBLAS reads it when it starts; without it the same products may differ between runs
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        # torchrun starts several processes on a machine; all of them see all of its GPUs
        if (rank := os.environ.get("LOCAL_RANK", "")).isdecimal():
            torch.cuda.set_device(int(rank) % torch.cuda.device_count())
        return "cuda"
    if name == AUTO:
        return "cpu"
    raise Unavailable("--device cuda: PyTorch sees no CUDA device here; use --device cpu.")


def n_workers(compute: ComputeSettings, sharing: int = 1) -> int:
    """Decoding processes: those asked for, or one per core up to `MAX_WORKERS`.

    `sharing` processes share the machine, and each of them asks.
    """
    if compute.workers is not None:
        return compute.workers
    return max(1, min((os.cpu_count() or 1) // sharing, MAX_WORKERS))
