"""Mixed precision as the hardware allows, and what running out of memory looks like."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

from retailtag.errors import UsageError
from retailtag.settings import AUTO

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
_TENSOR_CORES_BF16 = 8  # compute capability from which bfloat16 products have units of their own


@dataclass(frozen=True)
class Precision:
    """How forward passes compute.

    Parameters
    ----------
    name : str
        ``float32``, ``bf16`` or ``fp16``.
    device : str
        Type of the device.
    """

    name: str
    device: str

    @classmethod
    def choose(cls, asked: str, device: torch.device) -> Precision:
        """Follow `asked`; ``auto`` is bf16 or fp16 on CUDA as its generation allows, else float32.

        Raises
        ------
        UsageError
            If fp16 is asked for on a CPU, where gradients would need a scaler that is not there.

        Notes
        -----
        A T4 (compute capability 7.5) multiplies float16 on tensor cores and bfloat16 nowhere; from
        8.0 on both run equally fast, and bfloat16 needs no loss scaling. On a CPU float32 is
        exact and its speed is known on all of them.
        """
        if asked == AUTO:
            asked = "float32" if device.type != "cuda" else _fastest_on(device)
        if asked == "fp16" and device.type != "cuda":
            raise UsageError("--amp fp16 needs a CUDA device; use bf16 or float32.")
        return cls(asked, device.type)

    @property
    def engine(self) -> str:
        """Name of the computation, as identities record it."""
        return "eager-float32" if self.name == "float32" else f"autocast-{self.name}"

    def autocast(self) -> AbstractContextManager[object]:
        """Context in which forward passes run."""
        if self.name == "float32":
            return nullcontext()
        return torch.autocast(self.device, dtype=_DTYPES[self.name])

    def scaler(self) -> torch.amp.GradScaler:
        """Loss scaling, which float16 alone needs; switched off it passes everything through."""
        return torch.amp.GradScaler(self.device, enabled=self.name == "fp16")


def _fastest_on(device: torch.device) -> str:
    major, _ = torch.cuda.get_device_capability(device)
    return "bf16" if major >= _TENSOR_CORES_BF16 else "fp16"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that memory ran out, on a GPU or in torch's allocator of the CPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    words = ("not enough memory", "can't allocate memory")
    return isinstance(error, RuntimeError) and any(w in str(error) for w in words)
