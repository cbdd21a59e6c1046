"""A backbone and its head as one thing that is trained, saved, interpolated and asked."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

from retailtag.backbones.backbone import Backbone
from retailtag.backbones.blocks import Run
from retailtag.errors import UsageError
from retailtag.finetuning.head import Head, HeadInit
from retailtag.finetuning.precision import Precision
from retailtag.settings import FinetuneSettings

State = dict[str, Tensor]
_BODY, _HEAD = "backbone.", "head."


class Network:
    """The trained part of a backbone, with the head that follows it.

    Parameters
    ----------
    backbone : Backbone
        Unfrozen in place.
    start : HeadInit
        Where the head starts.
    config : FinetuneSettings
    compiled : bool
        Let ``torch.compile`` fuse the forward and backward passes.

    Attributes
    ----------
    trunk : callable or None
        uint8 pixels (n, 3, h, w) to the activations that enter the first trained block; None where
        everything is trained or the model cannot be cut.
    """

    def __init__(
        self,
        backbone: Backbone,
        start: HeadInit,
        config: FinetuneSettings,
        *,
        compiled: bool = False,
    ) -> None:
        self.backbone, self.config = backbone, config
        self.head = Head(start).to(backbone.device)
        self.precision = Precision.choose(config.mixed_precision, backbone.device)
        backbone.unfreeze_last(config.trained_blocks)
        self.trunk, rest = self._cut()
        self._rest = _compiled(rest) if compiled else rest
        self._names = self._trained_names()

    def _cut(self) -> tuple[Run | None, Run]:
        backbone, k = self.backbone, self.config.trained_blocks
        if isinstance(k, int) and backbone.can_split_at(k):
            return backbone.split_at(
                k, gradient_checkpointing=self.config.gradient_checkpointing, first_token_only=True
            )
        if self.config.gradient_checkpointing:
            backbone.enable_gradient_checkpointing()
        return None, backbone.forward

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return self.backbone.device

    def train(self) -> None:
        """Training mode for what is trained, evaluation mode for what is frozen."""
        config = self.config
        self.backbone.train_last(
            config.trained_blocks, stored_statistics=config.uses_stored_statistics
        )
        self.head.train()

    def eval(self) -> None:
        """Evaluation mode."""
        self.backbone.module.eval()
        self.head.eval()

    def activations(self, pixels: Tensor) -> Tensor:
        """What enters the trained part, of uint8 pixels (n, 3, h, w); without gradients."""
        if self.trunk is None:
            return pixels.to(self.device, non_blocking=True)
        with torch.no_grad(), self.precision.autocast():
            return self.trunk(pixels)

    def embedding(self, activations: Tensor) -> Tensor:
        """Embeddings (n, dim) in float32 of what `activations` gave, differentiably."""
        with self.precision.autocast():
            return self._rest(activations).float()

    def logits(self, activations: Tensor) -> Tensor:
        """Logits (n, n_tags) in float32 of what `activations` gave, differentiably."""
        logits: Tensor = self.head(self.embedding(activations))
        return logits

    def parameters(self) -> list[nn.Parameter]:
        """Everything that receives gradients, backbone first."""
        body = [p for p in self.backbone.module.parameters() if p.requires_grad]
        return [*body, *self.head.parameters()]

    def state(self) -> State:
        """Copies, on the CPU, of all that training changes: parameters, statistics, head."""
        return {name: t.detach().to("cpu", copy=True) for name, t in self.live().items()}

    def load(self, state: State) -> None:
        """Take over what `state` gave."""
        live = self.live()
        if live.keys() != state.keys():
            raise UsageError("A saved training state belongs to other blocks; train again.")
        with torch.no_grad():
            for name, tensor in live.items():
                tensor.copy_(state[name])

    def load_body(self, state: State) -> None:
        """Take over the backbone's part of what `state` gave, and keep the head."""
        head = {name: t for name, t in self.live().items() if name.startswith(_HEAD)}
        self.load({**state, **head})

    def live(self) -> State:
        """The tensors themselves, by name."""
        body = self.backbone.module.state_dict()
        head = self.head.state_dict()
        return {f"{_BODY}{n}": body[n] for n in self._names} | {
            f"{_HEAD}{n}": t for n, t in head.items()
        }

    def _trained_names(self) -> list[str]:
        """Parameters and buffers of the trained blocks, in module order."""
        names = list(self.backbone.module.state_dict())
        k = self.config.trained_blocks
        if k == "all":
            return names
        blocks = self.backbone.blocks[len(self.backbone.blocks) - k :]
        return [name for name in names if any(block.covers(name) for block in blocks)]


def _compiled(run: Run) -> Run:
    return cast("Callable[[Tensor], Tensor]", torch.compile(run, dynamic=True))
