"""Losses over tags, with unknown labels left out.

A loss is a frozen dataclass of numbers. ``parse_loss("asl:gamma_neg=2")`` reads one, and
``loss.build(counts)`` binds it to the label counts of the training images, which gives a function
``(logits, targets) -> losses`` of all cells.

========  ============================================  =================================
name      loss                                          equals ``bce`` at
========  ============================================  =================================
``bce``   binary cross-entropy
``asl``   asymmetric loss, Ridnik et al. 2021           gamma_pos=0, gamma_neg=0, clip=0
``focal`` focal loss, Lin et al. 2017                   gamma=0, alpha=none
``db``    distribution-balanced loss, Wu et al. 2020    alpha=0.5, beta=0, kappa=0, lam=1
========  ============================================  =================================

Conventions shared by all
-------------------------
* Targets are 1, 0, -1 (unknown), or a value between 0 and 1 (mixed images). The loss of a cell with
  logit z and target y is ``y·L⁺(z) + (1 - y)·L⁻(z)``.
* Unknown cells have the loss 0 and no gradient. Training takes the **mean over the known cells** of
  the batch. timm's asymmetric loss sums over tags (its earlier releases and the paper's code also
  over images), so its learning rates do not carry over.
* Logits of half precision are converted to float32 first. The value and the gradient are finite for
  every finite float16 logit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid, softplus
from torchvision.ops import sigmoid_focal_loss

from retailtag.errors import UsageError
from retailtag.finetuning.specs import check_range, parse_spec

CellLosses = Callable[[Tensor, Tensor], Tensor]
OPTION = "--loss"


@dataclass(frozen=True, eq=False)
class LabelCounts:
    """How often each tag is given, and known, among the training images."""

    positives: NDArray[np.int64]  # (n_tags,), cells labelled 1
    known: NDArray[np.int64]  # (n_tags,), cells labelled 1 or 0

    @classmethod
    def of(cls, labels: NDArray[np.int8]) -> LabelCounts:
        """Counts of labels (n_images, n_tags)."""
        positives = (labels == 1).sum(0, dtype=np.int64)
        return cls(positives, (labels >= 0).sum(0, dtype=np.int64))

    @property
    def log_odds(self) -> NDArray[np.float64]:
        """Log odds of each tag, ``log((n⁺ + ½)/(n⁻ + ½))``."""
        # The halves (Haldane's correction) keep tags without a positive or a negative finite.
        return np.log((self.positives + 0.5) / (self.known - self.positives + 0.5))


@dataclass(frozen=True)
class Loss:
    """Binary cross-entropy: ``L⁺ = -log σ(z)``, ``L⁻ = -log(1 - σ(z))``; base of all losses."""

    def build(self, counts: LabelCounts) -> CellLosses:
        """``(logits, targets) -> losses``, all (n, n_tags); see the module for the conventions."""
        formula = self.formula(counts)

        def losses(logits: Tensor, targets: Tensor) -> Tensor:
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
            cells = formula(logits, targets.clamp_min(0).to(logits.dtype))
            # masked_fill also zeroes the gradient; multiplying by 0 would keep a NaN.
            return cells.masked_fill(targets < 0, 0.0)

        return losses

    def formula(self, counts: LabelCounts) -> CellLosses:
        """The loss of known cells, bound to the label counts of the training images."""
        return partial(binary_cross_entropy_with_logits, reduction="none")


@dataclass(frozen=True)
class Asymmetric(Loss):
    """Asymmetric loss: easy negatives count little, and those below a probability not at all.

    ``L⁺ = -(1 - p)^γ⁺ log p`` and ``L⁻ = -q^γ⁻ log(1 - q)`` with ``p = σ(z)`` and
    ``q = max(p - clip, 0)``.

    Defaults are the paper's. Gradients flow through the focusing factor, as in its equations.
    timm's version is not used: it clamps probabilities at 1e-8, so that a positive with z < -18 has
    no gradient, and its older releases return a sum, in which unknown cells cannot be masked.

    References
    ----------
    Ridnik et al. (2021), Asymmetric Loss for Multi-Label Classification.
    """

    gamma_pos: float = 0.0  # focusing of positives and of negatives, at least 0
    gamma_neg: float = 4.0
    clip: float = 0.05  # probability by which negatives are shifted, in [0, 1)

    def __post_init__(self) -> None:
        check_range(self.gamma_pos, 0, 20, "gamma_pos", OPTION)
        check_range(self.gamma_neg, 0, 20, "gamma_neg", OPTION)
        check_range(self.clip, 0, 0.99, "clip", OPTION)

    def formula(self, counts: LabelCounts) -> CellLosses:
        """See `Loss`."""
        return self._cells

    def _cells(self, z: Tensor, y: Tensor) -> Tensor:
        # 1 - p = σ(-z), so (1 - p)^γ = exp(γ·log σ(-z)): finite where p rounds to 1.
        positive = torch.exp(self.gamma_pos * logsigmoid(-z)) * -logsigmoid(z)
        return y * positive + (1 - y) * self._negative(z)

    def _negative(self, z: Tensor) -> Tensor:
        if self.clip == 0:
            return torch.exp(self.gamma_neg * logsigmoid(z)) * softplus(z)
        # With clip > 0, -log(1 - q) is at most -log(clip), and its gradient fades as p goes to 1:
        # the paper takes a very confident false alarm for a wrong label.
        shifted = torch.sigmoid(z) - self.clip
        # x^γ with γ < 1 has an infinite slope at 0, and where() would turn it into 0·inf = NaN in
        # the backward pass: cells with q = 0 compute with a harmless 0.5 that is then discarded.
        inside = torch.where(shifted > 0, shifted, 0.5)
        cost = torch.exp(self.gamma_neg * inside.log()) * -torch.log1p(-inside)
        return torch.where(shifted > 0, cost, 0.0)


@dataclass(frozen=True)
class Focal(Loss):
    """Focal loss: cells that are already right count little.

    ``L⁺ = -α(1 - p)^γ log p`` and ``L⁻ = -(1 - α)p^γ log(1 - p)`` with ``p = σ(z)``, as torchvision
    computes them.

    Defaults are the paper's. The paper divides the sum by the number of matched anchors; tags have
    none, and the mean over cells takes its place.

    References
    ----------
    Lin et al. (2017), Focal Loss for Dense Object Detection, equation 5.
    """

    gamma: float = 2.0  # focusing: 0, or at least 1
    alpha: float | None = 0.25  # weight of positives in [0, 1]; none weighs both sides 1

    def __post_init__(self) -> None:
        check_range(self.gamma, 0, 20, "gamma", OPTION)
        # (1 - p)^γ with 0 < γ < 1 has an infinite slope where p rounds to 1: NaN gradients.
        if 0 < self.gamma < 1:
            raise UsageError(f"{OPTION} focal with gamma={self.gamma:g}: give 0, or 1 to 20.")
        if self.alpha is not None:
            check_range(self.alpha, 0, 1, "alpha", OPTION)

    def formula(self, counts: LabelCounts) -> CellLosses:
        """See `Loss`."""
        return self._cells

    def _cells(self, z: Tensor, y: Tensor) -> Tensor:
        alpha = -1.0 if self.alpha is None else self.alpha  # torchvision's sign for "no weight"
        positive = sigmoid_focal_loss(z, torch.ones_like(z), alpha, self.gamma)
        negative = sigmoid_focal_loss(z, torch.zeros_like(z), alpha, self.gamma)
        # torchvision's own handling of 0 < y < 1 is not linear in y, hence the two calls.
        return y * positive + (1 - y) * negative


@dataclass(frozen=True)
class DistributionBalanced(Loss):
    """Distribution-balanced loss: weights undo co-occurrence, negatives are tolerated.

    ``L⁺ = w·log(1 + e^{-(z - v)})`` and ``L⁻ = (w/lam)·log(1 + e^{lam·(z - v)})`` with the weight w
    of the cell and the shift v of the tag; both are derived beside the code.

    Written from the paper's equations; its code is under a non-commercial licence and was not used.
    The paper combines the loss with class-aware sampling. Defaults are those in use for COCO-MLT
    (80 tags), the larger of the paper's two data sets.

    References
    ----------
    Wu et al. (2020), Distribution-Balanced Loss for Multi-Label Classification in Long-Tailed
    Datasets, equations 3 to 5 (weights) and 9 to 10 (negative-tolerant regularisation).
    """

    alpha: float = 0.1  # lift, steepness and threshold of the weight
    beta: float = 10.0
    mu: float = 0.2
    lam: float = 2.0  # scale of negatives, above 0
    kappa: float = 0.05  # share of the prior's log odds in the shift

    def __post_init__(self) -> None:
        check_range(self.alpha, 0, 10, "alpha", OPTION)
        check_range(self.beta, 0, 1000, "beta", OPTION)
        check_range(self.mu, -10, 10, "mu", OPTION)
        check_range(self.lam, 0.01, 100, "lam", OPTION)
        check_range(self.kappa, 0, 10, "kappa", OPTION)

    def formula(self, counts: LabelCounts) -> CellLosses:
        """Bind to the frequency 1/n_k and the shift v of each tag."""
        frequency = torch.from_numpy(1 / np.maximum(counts.positives, 1))
        # v = -kappa·log(p_k/(1 - p_k)) with p_k the share of positives. The log odds are the
        # constant score of smallest loss; v > 0 for a rare tag shows training its logit lowered
        # towards it, so that negatives do not first push down a network that starts at 0.
        shift = torch.from_numpy(-self.kappa * counts.log_odds)

        def cells(z: Tensor, y: Tensor) -> Tensor:
            return self.weights(frequency.to(z), y) * self._tolerant(z - shift.to(z), y)

        return cells

    def weights(self, frequency: Tensor, y: Tensor) -> Tensor:
        """Weights (n, n_tags) from 1/n_k (n_tags,) and targets (n, n_tags)."""
        # r = (1/n_k) / Σ_{j∈J} 1/n_j over the positive tags J of the image: how often
        # class-balanced sampling draws the image for tag k, over how often for any of its tags.
        # Mixed targets enter the sum with their value.
        drawn = (y * frequency).sum(1, keepdim=True)
        # Without a positive r is infinite and the weight alpha + 1. Frequencies are at least
        # 1/n_images, so 1e-12 stands for "never drawn".
        ratio = frequency / drawn.clamp_min(1e-12)
        return self.alpha + torch.sigmoid(self.beta * (ratio - self.mu))

    def _tolerant(self, z: Tensor, y: Tensor) -> Tensor:
        # dL⁻/dz = σ(lam·z): for lam > 1 it falls off faster once the score is low.
        return y * softplus(-z) + (1 - y) * softplus(self.lam * z) / self.lam


LOSSES: dict[str, type[Loss]] = {
    "bce": Loss,
    "asl": Asymmetric,
    "focal": Focal,
    "db": DistributionBalanced,
}


def parse_loss(text: str) -> Loss:
    """Loss from ``name`` or ``name:key=value,...``; see `parse_spec`.

    Examples
    --------
    >>> parse_loss("asl:gamma_neg=2,clip=0")
    Asymmetric(gamma_pos=0.0, gamma_neg=2.0, clip=0.0)
    """
    return parse_spec(text, LOSSES, OPTION)
