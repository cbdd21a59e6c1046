"""One pretrained image model: its identity, preprocessing, embedding and blocks."""

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
from retailtag.backbones.first_token import FirstToken
from retailtag.backbones.ids import BackboneId
from retailtag.backbones.onednn import use_onednn
from retailtag.backbones.preprocess import Preprocess
from retailtag.backbones.weights import state_sha256
from retailtag.errors import UsageError
from retailtag.store.spec import FeatureSpec, canonical_json

Blocks = int | Literal["all"]
EncodeText = Callable[[list[str], torch.device], Tensor]


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """What a library's module hands over to make a `Backbone`.

    Parameters
    ----------
    id : BackboneId
        Resolved id.
    module : Module
        Normalised float images (n, 3, h, w) to embeddings (n, dim).
    layout : Layout or None
        Its blocks; None for an architecture that `retailtag.backbones.blocks` does not know.
    preprocess : Preprocess
        Resize, crop and normalisation.
    architecture : dict
        Library, model and its arguments, JSON-able.
    output : str
        Which tensor is the embedding.
    encode_text : callable or None
        Texts and a device to float32 (n, dim_text), not normalised.
    """

    id: BackboneId
    module: nn.Module
    layout: Layout | None
    preprocess: Preprocess
    architecture: dict[str, Any]
    output: str
    encode_text: EncodeText | None = None


class Backbone:
    """A pretrained image model that embeds, and can be unfrozen from a block on.

    Parameters
    ----------
    parts : LoadedModel
        What was built and loaded; the weights' hash is taken now, before any training.
    device : str
        Where it runs.

    Attributes
    ----------
    id : str
        Canonical resolved id.
    dim : int
        Length of one embedding.
    module : Module
        Normalised float images (n, 3, h, w) to (n, dim).
    preprocess : Preprocess
        PIL image to uint8 (3, h, w); cheap to copy to other threads and processes.
    family : str
        ``cnn``, ``vit``, ``clip``, or ``other`` where the blocks are not known.
    blocks : tuple of Block
        In running order; empty for ``other``.
    memory_format : memory_format
        In which its module's weights lie, and images go in.
    weights_sha256 : str
        Hash of the image model's parameters and buffers as loaded (`state_sha256`).

    Raises
    ------
    UsageError
        If the model does not give one vector per image.
    """

    def __init__(self, parts: LoadedModel, device: str = "cpu") -> None:
        self._parts = parts
        self._layout = parts.layout
        self.id = str(parts.id)
        self.device = torch.device(device)
        self.preprocess = parts.preprocess
        self.family = parts.layout.family if parts.layout else "other"
        self.weights_sha256 = state_sha256(parts.module)
        # parameters that the architecture itself holds fixed stay fixed (sine positions, say)
        self._trainable = frozenset(
            n for n, p in parts.module.named_parameters() if p.requires_grad
        )
        self.module = parts.module.to(self.device).eval()
        use_onednn(self.module)
        # convolutions run a fifth to a half faster on a CPU with channels last
        self.memory_format = torch.contiguous_format
        if self.family == "cnn":
            self.memory_format = torch.channels_last
            self.module.to(memory_format=torch.channels_last)
        self._mean, self._std = (
            torch.tensor(values, device=self.device).view(1, 3, 1, 1)
            for values in (parts.preprocess.mean, parts.preprocess.std)
        )
        self.dim = self._probe_dim()

    @property
    def blocks(self) -> tuple[Block, ...]:
        """Blocks in running order, see `retailtag.backbones.blocks`."""
        return self._layout.blocks if self._layout else ()

    @property
    def has_text(self) -> bool:
        """Whether `encode_text` embeds texts beside the images."""
        return self._parts.encode_text is not None

    def spec(self, engine: str = "eager-float32", dtype: str = "float32") -> FeatureSpec:
        """Identity of the embeddings that this backbone gives, stored as `dtype`."""
        return FeatureSpec(
            backbone=self.id,
            weights_sha256=self.weights_sha256,
            architecture=canonical_json(self._parts.architecture),
            output=self._parts.output,
            dim=self.dim,
            preprocessing=self.preprocess.to_json(),
            engine=engine,
            dtype=dtype,
        )

    def forward(self, pixels: Tensor) -> Tensor:
        """Normalise uint8 pixels (n, 3, h, w) on the device and embed them, differentiably."""
        embedding: Tensor = self.module(self._normalised(pixels))
        return embedding

    @torch.inference_mode()
    def embed(self, pixels: Tensor) -> Tensor:
        """Embed uint8 pixels (n, 3, h, w), on any device, to float32 (n, dim) on the device.

        Puts the module in evaluation mode: normalisation uses stored statistics. Computes in
        float32 throughout, on CUDA too.
        """
        self.module.eval()
        with full_float32(self.device):
            return self.forward(pixels).float()

    def encode_text(self, texts: list[str]) -> Tensor:
        """Embed texts to float32 (n, dim_text), not normalised.

        Raises
        ------
        UsageError
            If the model has no text tower.
        """
        if self._parts.encode_text is None:
            raise UsageError(
                f"{self.id} has no text tower; use an image-text model such as clip or demo:clip."
            )
        return self._parts.encode_text(texts, self.device).float()

    def trainable_names(self, k: Blocks) -> list[str]:
        """Names of the parameters in `module` that "the last k blocks" covers, in module order.

        Parameters
        ----------
        k : int or "all"
            Number of blocks from the end, 0 for none; ``all`` is the whole model.

        Raises
        ------
        UsageError
            If the model has fewer blocks, or its blocks are not known.
        """
        names = [n for n, _ in self.module.named_parameters() if n in self._trainable]
        if k == "all":
            return names
        last = last_blocks(self.id, self._layout, k)
        return [name for name in names if any(block.covers(name) for block in last)]

    def unfreeze_last(self, k: Blocks) -> list[nn.Parameter]:
        """Let exactly the parameters of `trainable_names` receive gradients; returns them."""
        wanted = set(self.trainable_names(k))
        for name, parameter in self.module.named_parameters():
            parameter.requires_grad_(name in wanted)
        return [p for n, p in self.module.named_parameters() if n in wanted]

    def train_last(self, k: Blocks, *, stored_statistics: bool = False) -> None:
        """Put the last k blocks in training mode and everything before them in evaluation mode.

        Frozen batch normalisation so keeps its stored statistics, and frozen dropout stays off.

        Parameters
        ----------
        k : int or "all"
        stored_statistics : bool
            Let batch normalisation in the last k blocks use its stored statistics too, and keep
            them; its weights and biases are trained all the same.
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
        layout = self._layout
        whole = layout is None or layout.stem is None or layout.finish is None
        return isinstance(k, int) and not whole and 0 < k <= len(self.blocks)

    def split_at(
        self, k: int, *, gradient_checkpointing: bool = False, first_token_only: bool = False
    ) -> tuple[Run, Run]:
        """Cut the model before the last k blocks, so that frozen activations can be kept.

        Parameters
        ----------
        k : int
            Number of blocks in the second part, at least 1.
        gradient_checkpointing : bool
            Keep only the input of every block of the second part for the backward pass and run
            the block again there: less memory for a forward pass more.
        first_token_only : bool
            Where a single token is pooled, run the last block for that token alone (see
            `retailtag.backbones.first_token`): equal to rounding, not bit for bit.

        Returns
        -------
        trunk : callable
            uint8 pixels (n, 3, h, w) to the input of the first of the last k blocks.
        rest : callable
            That to the embedding (n, dim); ``rest(trunk(x))`` equals ``forward(x)`` bit for bit.

        Raises
        ------
        UsageError
            If the model cannot be run in two parts.
        """
        last = last_blocks(self.id, self._layout, k)
        layout = self._layout
        if not last or layout is None or layout.stem is None or layout.finish is None:
            raise UsageError(f"{self.id} cannot be cut before its last {k} blocks; run it whole.")
        stem, finish = layout.stem, layout.finish
        first = [self._module(path) for b in self.blocks[:-k] for path in b.runs]
        second: list[Run] = [self._module(path) for b in last for path in b.runs]
        if first_token_only and layout.first_token_block is not None:
            second[-1] = layout.first_token_block
        run_second = _run_again if gradient_checkpointing else _run

        def trunk(pixels: Tensor) -> Tensor:
            return _run(first, stem(self._normalised(pixels)))

        return trunk, lambda x: finish(run_second(second, x))

    def lean_module(self) -> nn.Module:
        """What computes the embeddings of `module` with the least work, for engines to convert.

        Where a single token is pooled, it is a copy that runs its last block for that token alone
        (see `retailtag.backbones.first_token`): equal to rounding, weights shared. Elsewhere it is
        `module` itself.
        """
        if self._layout is None or self._layout.first_token_block is None:
            return self.module
        shared = chain(self.module.parameters(), self.module.buffers())
        lean = copy.deepcopy(self.module, {id(tensor): tensor for tensor in shared})
        last = self.blocks[-1].name
        lean.set_submodule(last, FirstToken(lean.get_submodule(last)))
        return lean

    def enable_gradient_checkpointing(self) -> None:
        """Let the whole model run its blocks again in the backward pass instead of keeping them.

        Raises
        ------
        UsageError
            If the model's library has no such mode for it.
        """
        for module in self.module.modules():
            switch = getattr(module, "set_grad_checkpointing", None)
            if switch is not None:
                try:
                    switch(True)
                except AssertionError:  # timm's way of saying that this model cannot
                    continue
                return
        raise UsageError(
            f"{self.id} has no gradient checkpointing; leave --checkpoint-gradients out."
        )

    def depth_of(self, name: str) -> int:
        """Number of blocks after the one that holds the parameter `name`; all for the stem."""
        n = len(self.blocks)
        return next((n - 1 - i for i, b in enumerate(self.blocks) if b.covers(name)), n)

    def _module(self, path: str) -> nn.Module:
        return self.module.get_submodule(path)

    def _normalised(self, pixels: Tensor) -> Tensor:
        # the order of ToTensor and Normalize, so that results equal theirs bit for bit
        pixels = pixels.to(self.device, non_blocking=True)
        unit = pixels.to(torch.float32, memory_format=self.memory_format).div_(255)
        return unit.sub_(self._mean).div_(self._std)

    def _probe_dim(self) -> int:
        shape = self.embed(torch.zeros(1, 3, *self.preprocess.size, dtype=torch.uint8)).shape
        if len(shape) != 2:
            raise UsageError(
                f"{self.id} gives an array of shape {tuple(shape[1:])} per image instead of one "
                "vector; add a pooling to the id, such as ?pool=avg."
            )
        return shape[1]


@contextmanager
def full_float32(device: torch.device) -> Iterator[None]:
    """Keep cuDNN from TF32 inside the block: it convolves with 10 bits of mantissa unasked."""
    cudnn = torch.backends.cudnn
    before = cudnn.allow_tf32
    cudnn.allow_tf32 = before and device.type != "cuda"
    try:
        yield
    finally:
        cudnn.allow_tf32 = before


def last_blocks(backbone_id: str, layout: Layout | None, k: Blocks) -> tuple[Block, ...]:
    """Last `k` blocks of a layout.

    Raises
    ------
    UsageError
        If there are fewer, or the layout is not known.
    """
    if layout is None:
        raise UsageError(
            f"retailtag does not know which parts of {backbone_id} are its last blocks; fine-tune "
            "it whole with --blocks all."
        )
    n = len(layout.blocks)
    if not isinstance(k, int) or not 0 <= k <= n:
        raise UsageError(f"{backbone_id} has {n} blocks; --blocks {k} must be 0 to {n}, or all.")
    return layout.blocks[n - k :]


def _run(modules: Sequence[Run], x: Tensor) -> Tensor:
    for module in modules:
        x = module(x)
    return x


def _run_again(modules: Sequence[Run], x: Tensor) -> Tensor:
    for module in modules:
        x = checkpoint(module, x, use_reentrant=False)
    return x
