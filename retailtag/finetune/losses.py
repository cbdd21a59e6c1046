"""Losses over tags, with unknown labels left out."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits


def masked_bce(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean binary cross-entropy over the known cells.

    -(1/K) Σ [y log σ(z) + (1 - y) log(1 - σ(z))] over the K cells with y in {0, 1}.

    Parameters
    ----------
    logits : Tensor of float, shape (n, n_tags)
    labels : Tensor of int8, shape (n, n_tags)
        1, 0, or -1 for a cell that takes no part.

    Returns
    -------
    Tensor, scalar
        0 if no cell is known.
    """
    known = labels >= 0
    target = labels.clamp_min(0).to(logits.dtype)
    cells = binary_cross_entropy_with_logits(logits, target, reduction="none")
    return (cells * known).sum() / known.sum().clamp_min(1)
