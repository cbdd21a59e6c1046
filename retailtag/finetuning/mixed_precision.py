"""Mixed precision as the hardware allows, and how running out of memory is recognised."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

from retailtag.errors import UsageError
from retailtag.settings import AUTO

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
_BF16_CAPABILITY = 8  # CUDA compute capability from which tensor cores multiply bfloat16


@dataclass(frozen=True)
class MixedPrecision:
    """How forward passes compute."""

    name: str  # float32, bf16 or fp16
    device: str  # its type: cpu or cuda

    @classmethod
    def choose(cls, asked: str, device: torch.device) -> MixedPrecision:
        """Follow `asked`; ``auto`` is bf16 or fp16 on CUDA, by its generation, else float32.

        Raises `UsageError` for fp16 on a CPU.
        """
        if asked == AUTO:
            asked = "float32" if device.type != "cuda" else _fastest_on(device)
        if asked == "fp16" and device.type != "cuda":
            raise UsageError("--mixed-precision fp16 needs a CUDA device; use bf16 or float32.")
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
        """Loss scaling for float16; disabled, it passes everything through."""
        # float16 gradients below 6e-8 become 0. The scaler multiplies the loss by a large factor
        # before the backward pass and divides the gradients by it after; where they overflow, it
        # skips the step and halves the factor. bfloat16 has float32's range and needs none.
        return torch.amp.GradScaler(self.device, enabled=self.name == "fp16")


def _fastest_on(device: torch.device) -> str:
    # A T4 (7.5) multiplies float16 on tensor cores and bfloat16 nowhere; from 8.0 on both are
    # equally fast, and bfloat16 needs no loss scaling.
    major, _ = torch.cuda.get_device_capability(device)
    return "bf16" if major >= _BF16_CAPABILITY else "fp16"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that memory ran out, on a GPU or in torch's allocator of the CPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    words = ("not enough memory", "can't allocate memory")
    return isinstance(error, RuntimeError) and any(w in str(error) for w in words)
