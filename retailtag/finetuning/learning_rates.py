"""Learning rates: of each block, and over the course of a training."""

from __future__ import annotations

import math
from collections import defaultdict

import torch
from torch import nn

from retailtag.backbones.backbone import Backbone
from retailtag.settings import FinetuneSettings


def make_optimiser(
    backbone: Backbone, head: nn.Module, config: FinetuneSettings
) -> torch.optim.Optimizer:
    """AdamW whose groups carry the ``peak`` learning rate of their block.

    Only the unfrozen parameters of `backbone` are trained.

    References
    ----------
    Howard and Ruder (2018), Universal Language Model Fine-tuning (a learning rate per block).
    Clark et al. (2020), ELECTRA (the geometric form).
    Loshchilov and Hutter (2019), Decoupled Weight Decay Regularization.
    """
    grouped: dict[tuple[float, bool], list[nn.Parameter]] = defaultdict(list)
    for name, parameter in backbone.module.named_parameters():
        if parameter.requires_grad:
            # lr·decay^d with d blocks after the parameter's own: early blocks hold general
            # features and move least. The stem counts as the block before the first.
            peak = config.lr * config.layer_decay ** backbone.depth_of(name)
            grouped[peak, parameter.ndim > 1].append(parameter)
    for parameter in head.parameters():
        grouped[config.head_lr, parameter.ndim > 1].append(parameter)
    groups = [
        {
            "params": parameters,
            "lr": peak,
            "peak": peak,
            # Decay pulls towards 0, which means "no effect" for a matrix but not for the scale
            # of a normalisation or a bias.
            "weight_decay": config.weight_decay if is_matrix else 0.0,
        }
        for (peak, is_matrix), parameters in grouped.items()
    ]
    return torch.optim.AdamW(groups, fused=True)  # one pass over the weights instead of ten


def set_learning_rates(optimiser: torch.optim.Optimizer, factor: float) -> None:
    """Give every group `factor` of its peak learning rate."""
    for group in optimiser.param_groups:
        group["lr"] = factor * group["peak"]


def warmup_cosine(step: float, steps: float, warmup: float) -> float:
    """Factor of the peak learning rate: linear over ``warmup * steps``, then a half cosine to 0.

    `step` of `steps` are done, and `warmup` is a share of them in [0, 1).

    Examples
    --------
    >>> [round(warmup_cosine(s, 10, 0.2), 2) for s in (0, 1, 2, 6, 10)]
    [0.5, 1.0, 1.0, 0.5, 0.0]
    """
    rising = max(1, round(warmup * steps))
    if step < rising:
        return min(1.0, (step + 1) / rising)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - rising) / max(1, steps - rising))))
