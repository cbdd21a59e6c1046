"""A backbone and its head as one model that is trained, saved and interpolated."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from retailtag.backbones.backbone import Backbone
from retailtag.backbones.blocks import Run
from retailtag.errors import UsageError
from retailtag.finetuning.head import Head, HeadInit
from retailtag.finetuning.mixed_precision import MixedPrecision
from retailtag.ranks import ALONE, Ranks
from retailtag.settings import FinetuneSettings

State = dict[str, Tensor]
_BODY, _HEAD = "backbone.", "head."


class Network:
    """A backbone, cut into a frozen and a trained part, and the head that follows it.

    The backbone is unfrozen in place; `compiled` lets ``torch.compile`` fuse the passes of the
    trained part. `frozen_part` maps uint8 pixels (n, 3, h, w) to the activations that enter the
    first trained block; it is None where everything is trained or the model cannot be cut. `ranks`
    are the processes that train it, each of which has the same network.
    """

    def __init__(
        self,
        backbone: Backbone,
        start: HeadInit,
        config: FinetuneSettings,
        *,
        compiled: bool = False,
        ranks: Ranks = ALONE,
    ) -> None:
        self.backbone = backbone
        self.device = backbone.device
        self.config = config
        self.ranks = ranks
        self.head = Head(start).to(backbone.device)
        self.precision = MixedPrecision.choose(config.mixed_precision, backbone.device)
        backbone.unfreeze_last(config.trained_blocks)
        self.frozen_part, trained_part = self._cut()
        if compiled:
            trained_part = cast("Run", torch.compile(trained_part, dynamic=True))
        self._trained_part = trained_part
        self._names = self._trained_names()

    def _cut(self) -> tuple[Run | None, Run]:
        backbone = self.backbone
        k = self.config.trained_blocks
        if isinstance(k, int) and backbone.can_split_at(k):
            return backbone.split_at(
                k, gradient_checkpointing=self.config.gradient_checkpointing, first_token_only=True
            )
        if self.config.gradient_checkpointing:
            backbone.enable_gradient_checkpointing()
        return None, backbone.forward

    def train(self) -> None:
        """Training mode for what is trained, evaluation mode for what is frozen."""
        config = self.config
        # The head starts from a probe on embeddings made with the stored statistics of batch
        # normalisation. On other images than the pretraining's, the statistics of a batch move
        # every embedding at the first step, so trained blocks keep the stored ones by default.
        self.backbone.train_last(
            config.trained_blocks, stored_statistics=config.uses_stored_statistics
        )
        self.head.train()

    def eval(self) -> None:
        """Evaluation mode."""
        self.backbone.module.eval()
        self.head.eval()

    def activations(self, pixels: Tensor) -> Tensor:
        """Input of the trained part for uint8 pixels (n, 3, h, w); without gradients."""
        if self.frozen_part is None:
            return pixels.to(self.device, non_blocking=True)
        with torch.no_grad(), self.precision.autocast():
            return self.frozen_part(pixels)

    def embedding(self, activations: Tensor) -> Tensor:
        """Embeddings (n, dim) in float32 of activations, differentiably."""
        with self.precision.autocast():
            return self._trained_part(activations).float()

    def logits(self, activations: Tensor) -> Tensor:
        """Logits (n, n_tags) in float32 of activations, differentiably."""
        # The head stays outside autocast: its logits and their gradients are float32.
        logits: Tensor = self.head(self.embedding(activations))
        return logits

    def parameters(self) -> list[nn.Parameter]:
        """All parameters that receive gradients, backbone first."""
        body = [p for p in self.backbone.module.parameters() if p.requires_grad]
        return [*body, *self.head.parameters()]

    def batch_statistics(self) -> list[Tensor]:
        """What batch normalisation in training mode has stored of its batches."""
        layers = [m for m in self.backbone.module.modules() if isinstance(m, _BatchNorm)]
        stored = [t for m in layers if m.training for t in (m.running_mean, m.running_var)]
        return [t for t in stored if t is not None]

    def state(self) -> State:
        """Copies, on the CPU, of all tensors that training changes."""
        return {name: t.detach().to("cpu", copy=True) for name, t in self.live().items()}

    def load(self, state: State) -> None:
        """Restore what `state` returned."""
        live = self.live()
        if live.keys() != state.keys():
            raise UsageError("A saved training state belongs to other blocks; train again.")
        with torch.no_grad():
            for name, tensor in live.items():
                tensor.copy_(state[name])

    def load_body(self, state: State) -> None:
        """Restore the backbone's tensors of what `state` returned, and keep the head."""
        head = {name: t for name, t in self.live().items() if name.startswith(_HEAD)}
        self.load({**state, **head})

    def live(self) -> State:
        """The live tensors that training changes, by name."""
        body = self.backbone.module.state_dict()
        tensors = {f"{_BODY}{name}": body[name] for name in self._names}
        tensors.update({f"{_HEAD}{name}": t for name, t in self.head.state_dict().items()})
        return tensors

    def _trained_names(self) -> list[str]:
        """Parameters and buffers of the trained blocks, in module order."""
        names = list(self.backbone.module.state_dict())
        k = self.config.trained_blocks
        if k == "all":
            return names
        blocks = self.backbone.blocks[len(self.backbone.blocks) - k :]
        return [name for name in names if any(block.covers(name) for block in blocks)]
