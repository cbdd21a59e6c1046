"""The interface of what computes embeddings, and the identity of the embeddings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from retailtag.backbones.preprocess import with_truncated
from retailtag.images.loader import PreprocessFn
from retailtag.store import FeatureSpec

if TYPE_CHECKING:
    import torch


class Embedder(Protocol):
    """What an extraction needs: a backbone, or an engine that computes one."""

    @property
    def id(self) -> str:
        """Resolved id."""
        ...

    @property
    def dim(self) -> int:
        """Length of one embedding."""
        ...

    @property
    def preprocess(self) -> PreprocessFn:
        """PIL image (RGB) to uint8 (3, h, w)."""
        ...

    def spec(self, *, dtype: str = ...) -> FeatureSpec:
        """Identity of the embeddings under a stored dtype; it names the engine."""
        ...

    def embed(self, pixels: torch.Tensor) -> torch.Tensor:
        """Map uint8 (n, 3, h, w) to float32 (n, dim)."""
        ...


def identity(
    backbone: Embedder, dtype: str = "float32", *, allow_truncated: bool = False
) -> FeatureSpec:
    """Identity of a backbone's embeddings; whether truncated files are accepted is part of it."""
    spec = backbone.spec(dtype=dtype)
    return with_truncated(spec) if allow_truncated else spec


def device_of(backbone: Embedder) -> str:
    """Kind of device that a backbone computes on: ``cpu`` where it does not say."""
    return str(getattr(backbone, "device", "cpu")).partition(":")[0]
