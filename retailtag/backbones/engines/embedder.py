"""A backbone whose embeddings an engine computes, equal within a tolerance."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

import torch
from torch import Tensor, nn

from retailtag.backbones.backbone import Backbone
from retailtag.backbones.engines.names import EngineName
from retailtag.backbones.preprocess import Preprocess
from retailtag.store.spec import FeatureSpec

Run = Callable[[Sequence[Tensor]], list[Tensor]]


class EngineEmbedder:
    """A loaded backbone whose embeddings an engine computes.

    `build` converts the backbone before the first image. With a `batch_size`, every call of the
    engine gets that many images, the last one padded with zeros: engines optimise a graph of one
    shape best, and an embedding does not depend on how many images are embedded at once.
    """

    def __init__(
        self, backbone: Backbone, name: EngineName, build: Callable[[], Run], batch_size: int | None
    ) -> None:
        self.backbone = backbone
        self.name = name
        self.batch_size = batch_size
        self.id = backbone.id
        self.dim = backbone.dim
        self.preprocess = backbone.preprocess
        self.device = backbone.device
        self._build = build

    def spec(self, *, dtype: str = "float32") -> FeatureSpec:
        """Identity of the embeddings that this engine computes and that are stored as `dtype`."""
        return self.backbone.spec(engine=str(self.name), dtype=dtype)

    @cached_property
    def run(self) -> Run:
        """The engine: micro-batches uint8 (batch_size, 3, h, w) to float32 (batch_size, dim)."""
        return self._build()

    def release(self) -> None:
        """Drop the converted model; the next use converts it again."""
        self.__dict__.pop("run", None)

    @torch.inference_mode()
    def embed(self, pixels: Tensor) -> Tensor:
        """Embed uint8 pixels (n, 3, h, w) to float32 (n, dim).

        Raises `Unavailable` if the engine cannot compute this model.
        """
        if not len(pixels):
            return pixels.new_empty((0, self.dim), dtype=torch.float32)
        n = len(pixels)
        size = self.batch_size or n
        if n % size:
            padding = pixels.new_zeros((size - n % size, *pixels.shape[1:]))
            pixels = torch.cat([pixels, padding])
        rows = self.run(pixels.contiguous().split(size))
        return torch.cat(rows)[:n]


class WithNormalisation(nn.Module):
    """A backbone's module behind its normalisation, one graph from uint8 pixels to embeddings.

    `dtype` is that of the module's weights; the normalisation computes in float32 in any case.
    `memory_format` is that of the images that the module is given.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        module: nn.Module,
        preprocess: Preprocess,
        dtype: torch.dtype = torch.float32,
        memory_format: torch.memory_format = torch.contiguous_format,
    ) -> None:
        super().__init__()
        self.module = module
        self.dtype = dtype
        self.memory_format = memory_format
        for name, values in (("mean", preprocess.mean), ("std", preprocess.std)):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1), persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """Embed uint8 (n, 3, h, w) as float32 (n, dim)."""
        # the operations of Backbone.forward in the same order: the same rounding
        unit = pixels.to(torch.float32, memory_format=self.memory_format) / 255
        normalised = (unit - self.mean) / self.std
        embedding: Tensor = self.module(normalised.to(self.dtype))
        return embedding.float()
