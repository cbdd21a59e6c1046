"""A backbone computed by another engine: same embeddings within a tolerance, other speed."""

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

    Parameters
    ----------
    backbone : Backbone
        Gives weights, preprocessing and identity; not changed.
    name : EngineName
        Engine and arithmetic, part of the identity.
    build : callable
        Converts the backbone; called once, before the first image.
    batch : int or None
        Images of every call of the engine: the last ones are filled up with zeros, so that an
        embedding does not depend on how many images were asked for at once. None: as they come.

    Notes
    -----
    A graph of one shape is what engines optimise best, and converting it again for the last
    batch of a block would cost more than the images of padding.
    """

    def __init__(
        self, backbone: Backbone, name: EngineName, build: Callable[[], Run], batch: int | None
    ) -> None:
        self.backbone, self.name, self.batch = backbone, name, batch
        self._build = build

    @property
    def id(self) -> str:
        """Resolved id of the backbone."""
        return self.backbone.id

    @property
    def dim(self) -> int:
        """Length of one embedding."""
        return self.backbone.dim

    @property
    def preprocess(self) -> Preprocess:
        """PIL image (RGB) to uint8 (3, h, w)."""
        return self.backbone.preprocess

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return self.backbone.device

    def spec(self, *, dtype: str = "float32") -> FeatureSpec:
        """Identity of the embeddings that this engine gives, stored as `dtype`."""
        return self.backbone.spec(engine=str(self.name), dtype=dtype)

    @cached_property
    def run(self) -> Run:
        """Parts uint8 (batch, 3, h, w) to parts float32 (batch, dim); building may take minutes."""
        return self._build()

    def release(self) -> None:
        """Drop what was converted; it is converted again where it is used again."""
        self.__dict__.pop("run", None)

    @torch.inference_mode()
    def embed(self, pixels: Tensor) -> Tensor:
        """Embed uint8 pixels (n, 3, h, w) to float32 (n, dim).

        Raises
        ------
        Unavailable
            If the engine cannot run this model here.
        """
        if not len(pixels):
            return pixels.new_empty((0, self.dim), dtype=torch.float32)
        n, size = len(pixels), self.batch or len(pixels)
        if n % size:
            blank = pixels.new_zeros((size - n % size, *pixels.shape[1:]))
            pixels = torch.cat([pixels, blank])
        rows = self.run(pixels.contiguous().split(size))
        return torch.cat(rows)[:n]


class Whole(nn.Module):
    """A backbone with its normalisation: uint8 (n, 3, h, w) to embeddings (n, dim), one graph.

    Parameters
    ----------
    module : Module
        Of the backbone: normalised images to embeddings.
    mean, std : (float, float, float)
        Of the normalisation, per channel.
    dtype : dtype
        Of the module's weights; the normalisation is in float32 all the same.
    memory_format : memory_format
        That its convolutions want.
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
        self.module, self.dtype, self.memory_format = module, dtype, memory_format
        for name, values in (("mean", preprocess.mean), ("std", preprocess.std)):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1), persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """Normalise as the backbone does, and embed; float32."""
        unit = pixels.to(torch.float32, memory_format=self.memory_format) / 255
        normalised = (unit - self.mean) / self.std
        embedding: Tensor = self.module(normalised.to(self.dtype))
        return embedding.float()
