"""A pretrained image model: its identity, preprocessing, embeddings and blocks."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from retailtag.backbones.blocks import Block, Layout, Run
from retailtag.backbones.first_token import for_first_token
from retailtag.backbones.ids import BackboneId
from retailtag.backbones.onednn import use_onednn
from retailtag.backbones.preprocess import Preprocess
from retailtag.backbones.weights import state_sha256
from retailtag.errors import UsageError
from retailtag.store.spec import FeatureSpec, canonical_json

Blocks = int | Literal["all"]
Tower = tuple[nn.Module, Layout | None]
EncodeText = Callable[[list[str], torch.device], Tensor]


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A model as its library built it, from which a `Backbone` is made."""

    id: BackboneId
    module: nn.Module  # normalised float images (n, 3, h, w) to embeddings (n, dim)
    layout: Layout | None  # None for an architecture that `blocks` does not know
    preprocess: Preprocess
    architecture: dict[str, Any]  # library, model and its arguments, as plain JSON values
    output: str  # which tensor is the embedding
    note: str = ""  # what was stripped or converted to read the weights
    # texts and a device to float32 (n_texts, dim_text), not normalised
    encode_text: EncodeText | None = None


class Backbone:
    """A pretrained image model that embeds images and whose last blocks can be trained.

    `dim` is the length of one embedding; `family` is ``cnn``, ``vit`` or ``clip``, ``other`` for an
    unknown architecture; `memory_format` that of the module's weights and of the images it is
    given; `weights_sha256` the hash of the image model's parameters and buffers as loaded, before
    any training. Raises `UsageError` if the model does not give one vector per image.
    """

    def __init__(self, model: LoadedModel, device: str = "cpu") -> None:
        self._model = model
        self._layout = model.layout
        self.id = str(model.id)
        self.device = torch.device(device)
        self.preprocess = model.preprocess
        self.family = model.layout.family if model.layout else "other"
        self.weights_sha256 = state_sha256(model.module)
        # Some architectures fix parameters, such as sinusoidal positions: these are never trained.
        self._trainable = frozenset(
            name for name, p in model.module.named_parameters() if p.requires_grad
        )
        self.module = model.module.to(self.device).eval()
        use_onednn(self.module)
        # Channels last makes convolutions on a CPU 1.2 times as fast (results/LOG.md, 2026-11-21)
        # and lets CUDA use its tensor cores without transposing.
        self.memory_format = torch.contiguous_format
        if self.family == "cnn":
            self.memory_format = torch.channels_last
            self.module.to(memory_format=torch.channels_last)
        self._mean, self._std = (
            torch.tensor(values, device=self.device).view(1, 3, 1, 1)
            for values in (model.preprocess.mean, model.preprocess.std)
        )
        self.dim = self._measured_dim()

    @property
    def blocks(self) -> tuple[Block, ...]:
        """Blocks in the order in which they run; empty for an unknown architecture."""
        return self._layout.blocks if self._layout else ()

    @property
    def has_text(self) -> bool:
        """Whether the model has a text tower."""
        return self._model.encode_text is not None

    def spec(self, engine: str = "eager-float32", dtype: str = "float32") -> FeatureSpec:
        """Identity of the embeddings that `engine` computes and that are stored as `dtype`."""
        return FeatureSpec(
            backbone=self.id,
            weights_sha256=self.weights_sha256,
            architecture=canonical_json(self._model.architecture),
            output=self._model.output,
            dim=self.dim,
            preprocessing=self.preprocess.to_json(),
            engine=engine,
            dtype=dtype,
        )

    @property
    def architecture(self) -> dict[str, Any]:
        """Library, model and its arguments, as plain JSON values."""
        return self._model.architecture

    def forward(self, pixels: Tensor) -> Tensor:
        """Normalise uint8 pixels (n, 3, h, w) on the device and embed them, differentiably."""
        embedding: Tensor = self.module(self._normalised(pixels))
        return embedding

    @torch.inference_mode()
    def embed(self, pixels: Tensor) -> Tensor:
        """Embed uint8 pixels (n, 3, h, w), on any device, to float32 (n, dim) on the device.

        Puts the module in evaluation mode, so that batch normalisation uses its stored statistics.
        Computes in float32 throughout, without TF32 on CUDA.
        """
        self.module.eval()
        with full_float32(self.device):
            return self.forward(pixels).float()

    def encode_text(self, texts: list[str]) -> Tensor:
        """Embed texts to float32 (n_texts, dim_text), not normalised.

        Raises `UsageError` if the model has no text tower.
        """
        if self._model.encode_text is None:
            raise UsageError(
                f"{self.id} has no text tower; use an image-text model such as clip or demo:clip."
            )
        return self._model.encode_text(texts, self.device).float()

    def trainable_names(self, k: Blocks) -> list[str]:
        """Names of the parameters of the last k blocks, or of the whole model, in module order.

        Raises `UsageError` if the model has fewer blocks or its architecture is unknown.
        """
        names = [n for n, _ in self.module.named_parameters() if n in self._trainable]
        if k == "all":
            return names
        last = last_blocks(self.id, self._layout, k)
        return [name for name in names if any(block.covers(name) for block in last)]

    def unfreeze_last(self, k: Blocks) -> list[nn.Parameter]:
        """Make exactly the parameters of `trainable_names` require gradients, and return them."""
        wanted = set(self.trainable_names(k))
        for name, parameter in self.module.named_parameters():
            parameter.requires_grad_(name in wanted)
        return [p for p in self.module.parameters() if p.requires_grad]

    def train_last(self, k: Blocks, *, stored_statistics: bool = False) -> None:
        """Put the last k blocks in training mode and everything before them in evaluation mode.

        Frozen batch normalisation then keeps its stored statistics, and frozen dropout stays off.
        With `stored_statistics` batch normalisation in the last k blocks does not update its own
        either; its weights and biases are trained all the same.
        """
        self.module.train(k == "all")
        last = () if k == "all" else last_blocks(self.id, self._layout, k)
        for name, module in self.module.named_modules():
            if any(block.covers(name) for block in last):
                module.train()
            if stored_statistics and isinstance(module, _BatchNorm):
                module.eval()

    def can_split_at(self, k: Blocks) -> bool:
        """Whether `split_at` can cut the model before its last `k` blocks."""
        known = self._layout is not None and self._layout.stem is not None
        return isinstance(k, int) and known and 0 < k <= len(self.blocks)

    def split_at(
        self, k: int, *, gradient_checkpointing: bool = False, first_token_only: bool = False
    ) -> tuple[Run, Run]:
        """Cut the model before the last k blocks, so that frozen activations can be cached.

        Returns ``trunk``, from uint8 pixels (n, 3, h, w) to the input of the first of these blocks,
        and ``rest``, from there to the embedding (n, dim). ``rest(trunk(x))`` equals ``forward(x)``
        bit for bit. With `first_token_only`, where a single token is pooled, the last block runs
        for that token alone (see `retailtag.backbones.first_token`): equal to rounding.

        With `gradient_checkpointing` only the input of each block behind the cut is stored for the
        backward pass, which runs the block again: less memory for one more forward pass. Raises
        `UsageError` where `can_split_at` is false.
        """
        last = last_blocks(self.id, self._layout, k)
        layout = self._layout
        if not last or layout is None or layout.stem is None or layout.finish is None:
            raise UsageError(f"{self.id} cannot be cut before its last {k} blocks; run it whole.")
        stem, finish = layout.stem, layout.finish
        frozen, trained = self._modules(self.blocks[:-k]), self._modules(last)
        if first_token_only and layout.first_token_block is not None:
            trained[-1] = layout.first_token_block

        def trunk(pixels: Tensor) -> Tensor:
            return _run(frozen, stem(self._normalised(pixels)))

        return trunk, lambda x: finish(_run(trained, x, gradient_checkpointing))

    def lean_module(self) -> nn.Module:
        """The module that engines convert: `module` without work that the embedding does not need.

        Where a single token is pooled, a copy with shared weights that runs its last block for
        that token alone (see `retailtag.backbones.first_token`): equal to rounding. Otherwise
        `module` itself.
        """
        if self._layout is None or self._layout.first_token_block is None:
            return self.module
        shared = chain(self.module.parameters(), self.module.buffers())
        # deepcopy's memo: tensors that it finds there are taken over instead of copied
        lean = copy.deepcopy(self.module, {id(tensor): tensor for tensor in shared})
        last = self.blocks[-1].name
        shortened = for_first_token(lean.get_submodule(last))
        assert shortened is not None
        lean.set_submodule(last, shortened)
        return lean

    def enable_gradient_checkpointing(self) -> None:
        """Turn on the library's gradient checkpointing; `UsageError` if it has none here."""
        for module in self.module.modules():
            switch = getattr(module, "set_grad_checkpointing", None)
            if switch is not None:
                try:
                    switch(True)
                except AssertionError:  # timm's way of saying that this model cannot
                    continue
                return
        raise UsageError(
            f"{self.id} has no gradient checkpointing; leave --gradient-checkpointing out."
        )

    def depth_of(self, name: str) -> int:
        """Number of blocks behind the one that holds the parameter `name`; all for the stem."""
        n = len(self.blocks)
        return next((n - 1 - i for i, b in enumerate(self.blocks) if b.covers(name)), n)

    def _modules(self, blocks: Sequence[Block]) -> list[Run]:
        return [self.module.get_submodule(path) for block in blocks for path in block.runs]

    def _normalised(self, pixels: Tensor) -> Tensor:
        # torchvision's ToTensor (/ 255), then Normalize ((x - mean) / std): folding both into one
        # multiply-add would round differently, and embeddings would not equal theirs bit for bit
        pixels = pixels.to(self.device, non_blocking=True)
        unit = pixels.to(torch.float32, memory_format=self.memory_format).div_(255)
        return unit.sub_(self._mean).div_(self._std)

    def _measured_dim(self) -> int:
        shape = self.embed(torch.zeros(1, 3, *self.preprocess.size, dtype=torch.uint8)).shape
        if len(shape) != 2:
            raise UsageError(
                f"{self.id} gives an array of shape {tuple(shape[1:])} per image instead of one "
                "vector; add a pooling to the id, such as ?pool=avg."
            )
        return shape[1]


@contextmanager
def full_float32(device: torch.device) -> Iterator[None]:
    """Turn TF32 off: by default cuDNN rounds the inputs of convolutions to a 10-bit mantissa."""
    cudnn = torch.backends.cudnn
    before = cudnn.allow_tf32
    cudnn.allow_tf32 = before and device.type != "cuda"
    try:
        yield
    finally:
        cudnn.allow_tf32 = before


def last_blocks(backbone_id: str, layout: Layout | None, k: Blocks) -> tuple[Block, ...]:
    """Last `k` blocks of a layout; `UsageError` if there are fewer, or the layout is unknown."""
    if layout is None:
        raise UsageError(
            f"retailtag does not know the blocks of {backbone_id}; fine-tune the whole model with "
            "--blocks all."
        )
    n = len(layout.blocks)
    if not isinstance(k, int) or not 0 <= k <= n:
        raise UsageError(f"{backbone_id} has {n} blocks; --blocks {k} must be 0 to {n}, or all.")
    return layout.blocks[n - k :]


def _run(modules: Sequence[Run], x: Tensor, checkpointed: bool = False) -> Tensor:
    for module in modules:
        x = checkpoint(module, x, use_reentrant=False) if checkpointed else module(x)
    return x
