"""What a backbone costs, from its architecture alone: no weights are read or downloaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from retailtag.backbones.factory import build_model
from retailtag.backbones.ids import resolve_id


@dataclass(frozen=True)
class Cost:
    """Size and compute of one backbone's image model."""

    flops: float  # of one image's forward pass; a multiply-add counts as two
    parameters: int  # of the image model, without classifier and text tower
    dim: int  # length of one embedding
    size: tuple[int, int]  # height and width of the images
    has_text: bool  # whether it has a text tower

    @property
    def weight_bytes(self) -> int:
        """Size of the parameters in float32."""
        return 4 * self.parameters


def cost_of(backbone_id: str) -> Cost:
    """Count a backbone's operations and parameters.

    Counts convolutions, matrix products and attention, as `torch.utils.flop_counter` does, but not
    norms, activations and pooling (one or two per cent of these models). The model is built on the
    meta device, which allocates nothing.
    """
    with torch.device("meta"):
        model = build_model(resolve_id(backbone_id), random_weights=True)
        module = model.module.eval()
        counter = FlopCounterMode(display=False)
        # Without gradients evaluation mode takes a fused attention kernel, which is not counted.
        with counter, torch.enable_grad():
            embedding = module(torch.zeros(1, 3, *model.preprocess.size))
    return Cost(
        flops=float(counter.get_total_flops()),
        parameters=sum(p.numel() for p in module.parameters()),
        dim=embedding.shape[-1],
        size=model.preprocess.size,
        has_text=model.encode_text is not None,
    )


def cost_of_all(backbone_ids: Sequence[str]) -> Cost:
    """Cost of embedding an image with several backbones; `size` is that of the first.

    Joint embeddings lie in no space of texts, so several backbones have no text tower.
    """
    costs = [cost_of(backbone_id) for backbone_id in backbone_ids]
    return Cost(
        flops=sum(c.flops for c in costs),
        parameters=sum(c.parameters for c in costs),
        dim=sum(c.dim for c in costs),
        size=costs[0].size,
        has_text=len(costs) == 1 and costs[0].has_text,
    )
