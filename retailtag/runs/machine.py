"""The machine that a measurement was made on, which is recorded with it."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

VERSIONS = ("torch", "timm", "open_clip_torch", "numpy", "h5py", "scikit-learn")


def describe_machine(device: str) -> dict[str, Any]:
    """Processor, cores, threads, memory, device (``cpu`` or ``cuda``) and versions, JSON-able."""
    import torch

    return {
        "processor": _processor(),
        "cores": os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "device": _device_name(device),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **{name: version(name) for name in VERSIONS},
    }


def _processor() -> str:
    """Model name of the processor, which `platform` does not find on Linux."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _device_name(device: str) -> str:
    if device != "cuda":
        return "cpu"
    import torch

    return f"cuda: {torch.cuda.get_device_name()}"
