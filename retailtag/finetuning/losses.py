"""Losses over tags, with unknown labels left out.

Every loss is a frozen dataclass of numbers: ``parse_loss("asl:gamma_neg=2")`` reads one,
``str(loss)`` writes it back, and ``loss.build(counts)`` binds it to the label counts of the
fitted images, which gives a `TagLoss`: ``(logits, targets) -> scalar``.

========  ============================================  =================================
name      loss                                          equals ``bce`` at
========  ============================================  =================================
``bce``   binary cross-entropy
``asl``   asymmetric loss, Ridnik et al. 2021           gamma_pos=0, gamma_neg=0, clip=0
``focal`` focal loss, Lin et al. 2017                   gamma=0, alpha=none
``db``    distribution-balanced loss, Wu et al. 2020    alpha=0.5, beta=0, kappa=0, lam=1
``la``    logit-adjusted BCE, after Menon et al. 2021   tau=0
========  ============================================  =================================

Conventions shared by all
-------------------------
* Targets are 1, 0, -1 (unknown), or anything between 0 and 1 (mixed images). A loss is
  ``y·L⁺(z) + (1 - y)·L⁻(z)`` in a cell with logit z and target y.
* Cells with a negative target take no part in sum, mean or gradient. The value is the **mean over
  the known cells** of the batch, 0 where there is none. timm's asymmetric loss sums over tags
  (its earlier releases and the paper's code over images too): learning rates found with it belong
  to gradients that are n_tags (n·n_tags) times larger, before clipping and Adam's normalisation.
* ``smoothing=s`` replaces y by ``(1 - s)·y + s/2`` (Szegedy et al. 2016 for two outcomes).
* Logits of half precision are raised to float32 first; a value and gradient are finite for every
  finite float16 logit.

References
----------
Szegedy et al. (2016), Rethinking the Inception Architecture for Computer Vision, section 7.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid, softplus

from retailtag.finetuning.specs import check_range, parse_spec, spec_text

Cells = Callable[[Tensor, Tensor], Tensor]
OPTION = "--loss"


@dataclass(frozen=True, eq=False)
class LabelCounts:
    """How often each tag is given, and known, among the images that are fitted.

    Parameters
    ----------
    positives, known : ndarray of int64, shape (n_tags,)
        Cells labelled 1, and cells labelled 1 or 0.
    """

    positives: NDArray[np.int64]
    known: NDArray[np.int64]

    @classmethod
    def of(cls, labels: NDArray[np.int8]) -> LabelCounts:
        """Counts of labels (n_images, n_tags)."""
        positives = (labels == 1).sum(0, dtype=np.int64)
        return cls(positives, (labels >= 0).sum(0, dtype=np.int64))

    @property
    def log_odds(self) -> NDArray[np.float64]:
        """Log odds of each tag, ``log((n⁺ + ½)/(n⁻ + ½))``: finite without a positive too."""
        return np.log((self.positives + 0.5) / (self.known - self.positives + 0.5))


class Loss(Protocol):
    """Settings of a loss; `build` binds them to the counts of a catalogue."""

    @property
    def smoothing(self) -> float:
        """Share of label smoothing."""

    def build(self, counts: LabelCounts) -> TagLoss:
        """Loss over (logits, targets), both (n, n_tags), of a catalogue with these counts."""


@dataclass(frozen=True, eq=False)
class TagLoss:
    """Mean of a loss over the known cells; see the module for what all losses share.

    Parameters
    ----------
    formula : callable
        ``(logits, targets) -> losses``, all of shape (n, n_tags), targets in [0, 1].
    smoothing : float
    weigh : callable, optional
        ``(logits, targets) -> weights`` of the cells, from targets before smoothing.
    """

    formula: Cells
    smoothing: float = 0.0
    weigh: Cells | None = None

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Scalar mean over the known cells.

        Parameters
        ----------
        logits : Tensor of float, shape (n, n_tags)
        targets : Tensor of int8 or float, shape (n, n_tags)
        """
        return self.cells(logits, targets).sum() / (targets >= 0).sum().clamp_min(1)

    def cells(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Losses (n, n_tags), 0 in unknown cells, for sums over more than one batch."""
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        unknown, targets = targets < 0, targets.clamp_min(0).to(logits.dtype)
        losses = self.formula(logits, (1 - self.smoothing) * targets + self.smoothing / 2)
        if self.weigh:
            losses = losses * self.weigh(logits, targets)
        return losses.masked_fill(unknown, 0.0)


class _Spec:
    """What all settings share: their text, and the range of the smoothing."""

    smoothing: float

    def __post_init__(self) -> None:
        check_range(self.smoothing, 0, 1, "smoothing", OPTION)
        self._check()

    def _check(self) -> None:
        """Check the settings of one loss."""

    def __str__(self) -> str:
        return spec_text(self, LOSSES)


@dataclass(frozen=True)
class Bce(_Spec):
    """Binary cross-entropy: ``L⁺ = -log σ(z)``, ``L⁻ = -log(1 - σ(z))``."""

    smoothing: float = 0.0

    def build(self, counts: LabelCounts) -> TagLoss:
        """The same for every catalogue."""
        return TagLoss(_bce, self.smoothing)


@dataclass(frozen=True)
class Asymmetric(_Spec):
    """Asymmetric loss: easy negatives count little, and those below a probability nothing.

    ``L⁺ = -(1 - p)^γ⁺ log p`` and ``L⁻ = -q^γ⁻ log(1 - q)`` with ``p = σ(z)`` and
    ``q = max(p - clip, 0)``.

    Parameters
    ----------
    gamma_pos, gamma_neg : float
        Focusing of positives and negatives, at least 0.
    clip : float
        Probability by which negatives are shifted, in [0, 1).

    Notes
    -----
    Defaults are the paper's. Gradients flow through the focusing factor, as in its equations.
    With ``clip > 0`` a very confident false alarm costs at most ``-log(clip)`` and its gradient
    fades: the paper counts it as probably mislabelled.

    References
    ----------
    Ridnik et al. (2021), Asymmetric Loss for Multi-Label Classification.
    """

    gamma_pos: float = 0.0
    gamma_neg: float = 4.0
    clip: float = 0.05
    smoothing: float = 0.0

    def _check(self) -> None:
        check_range(self.gamma_pos, 0, 20, "gamma_pos", OPTION)
        check_range(self.gamma_neg, 0, 20, "gamma_neg", OPTION)
        check_range(self.clip, 0, 0.99, "clip", OPTION)

    def build(self, counts: LabelCounts) -> TagLoss:
        """The same for every catalogue."""
        return TagLoss(self._cells, self.smoothing)

    def _cells(self, z: Tensor, y: Tensor) -> Tensor:
        positive = torch.exp(self.gamma_pos * logsigmoid(-z)) * -logsigmoid(z)
        return y * positive + (1 - y) * self._negative(z)

    def _negative(self, z: Tensor) -> Tensor:
        if self.clip == 0:
            return torch.exp(self.gamma_neg * logsigmoid(z)) * softplus(z)
        shifted = torch.sigmoid(z) - self.clip
        # Powers with an exponent below 1 have an infinite slope at 0: those cells never enter.
        inside = torch.where(shifted > 0, shifted, 0.5)
        cost = torch.exp(self.gamma_neg * inside.log()) * -torch.log1p(-inside)
        return torch.where(shifted > 0, cost, 0.0)


@dataclass(frozen=True)
class Focal(_Spec):
    """Focal loss: cells that are already right count little.

    ``L⁺ = -α(1 - p)^γ log p`` and ``L⁻ = -(1 - α)p^γ log(1 - p)`` with ``p = σ(z)``.

    Parameters
    ----------
    gamma : float
        Focusing, at least 0.
    alpha : float, optional
        Weight of positives in [0, 1]; ``none`` weighs both sides 1.

    Notes
    -----
    Defaults are the paper's. The paper divides the sum by the number of matched anchors; tags
    have none, and the mean over cells stands in its place.

    References
    ----------
    Lin et al. (2017), Focal Loss for Dense Object Detection, equation 5.
    """

    gamma: float = 2.0
    alpha: float | None = 0.25
    smoothing: float = 0.0

    def _check(self) -> None:
        check_range(self.gamma, 0, 20, "gamma", OPTION)
        if self.alpha is not None:
            check_range(self.alpha, 0, 1, "alpha", OPTION)

    def build(self, counts: LabelCounts) -> TagLoss:
        """The same for every catalogue."""
        return TagLoss(self._cells, self.smoothing)

    def _cells(self, z: Tensor, y: Tensor) -> Tensor:
        positive = torch.exp(self.gamma * logsigmoid(-z)) * softplus(-z)
        negative = torch.exp(self.gamma * logsigmoid(z)) * softplus(z)
        up, down = (1.0, 1.0) if self.alpha is None else (self.alpha, 1 - self.alpha)
        return up * y * positive + down * (1 - y) * negative


@dataclass(frozen=True)
class DistributionBalanced(_Spec):
    """Distribution-balanced loss: weights undo co-occurrence, negatives are tolerated.

    Of an image with known positive tags J, the cell of tag k weighs

    ``w = alpha + σ(beta·(r - mu))`` with ``r = (1/n_k) / Σ_{j∈J} 1/n_j``,

    n being counts of positives: r is how often class-balanced sampling would draw the image for
    tag k, over how often it draws it for any of its tags. The cell's loss is
    ``L⁺ = w·log(1 + e^{-(z - v)})`` and ``L⁻ = (w/lam)·log(1 + e^{lam·(z - v)})`` with
    ``v = -kappa·log(p_k/(1 - p_k))``, p_k being the share of positives. The log odds are the
    constant score of smallest loss; v > 0 for a rare tag has training see the logit lowered
    towards it, so that a network that starts at 0 is not pushed down by negatives first.
    ``lam > 1`` lets a negative's gradient fall off faster once its score is low, so that
    negatives do not push without end.

    Parameters
    ----------
    alpha, beta, mu : float
        Lift, steepness and threshold of the weight.
    lam : float
        Scale of negatives, above 0.
    kappa : float
        Share of the prior's log odds in the shift.

    Notes
    -----
    Written from the paper's equations; its code is under a non-commercial licence and was not
    used. The paper has no image without a positive; here r is then infinite, its limit for an
    image never drawn, and w = alpha + 1. Counts below 1 count as 1; p_k as `LabelCounts.log_odds`.
    Mixed targets enter Σ with their value. The paper combines the loss with class-aware sampling.
    Defaults are those in use for COCO-MLT (80 tags), the larger of the paper's two data sets.

    References
    ----------
    Wu et al. (2020), Distribution-Balanced Loss for Multi-Label Classification in Long-Tailed
    Datasets, equations 3 to 5 (weights) and 9 to 10 (negative-tolerant regularisation).
    """

    alpha: float = 0.1
    beta: float = 10.0
    mu: float = 0.2
    lam: float = 2.0
    kappa: float = 0.05
    smoothing: float = 0.0

    def _check(self) -> None:
        check_range(self.alpha, 0, 10, "alpha", OPTION)
        check_range(self.beta, 0, 1000, "beta", OPTION)
        check_range(self.mu, -10, 10, "mu", OPTION)
        check_range(self.lam, 0.01, 100, "lam", OPTION)
        check_range(self.kappa, 0, 10, "kappa", OPTION)

    def build(self, counts: LabelCounts) -> TagLoss:
        """Bound to 1/n_k and the shift v of the catalogue."""
        frequency = _PerTag(1 / np.maximum(counts.positives, 1))
        shift = _PerTag(-self.kappa * counts.log_odds)
        return TagLoss(
            lambda z, y: self._cells(z - shift(z), y),
            self.smoothing,
            lambda z, y: self._weights(frequency(z), y),
        )

    def _cells(self, z: Tensor, y: Tensor) -> Tensor:
        """Negative-tolerant losses of shifted logits."""
        return y * softplus(-z) + (1 - y) * softplus(self.lam * z) / self.lam

    def _weights(self, frequency: Tensor, y: Tensor) -> Tensor:
        """Weights (n, n_tags) from 1/n_k (n_tags,) and targets (n, n_tags)."""
        drawn = (y * frequency).sum(1, keepdim=True)
        # 1e-12 stands for "never drawn": frequencies are at least 1/n_images.
        ratio = frequency / drawn.clamp_min(1e-12)
        return self.alpha + torch.sigmoid(self.beta * (ratio - self.mu))


@dataclass(frozen=True)
class LogitAdjusted(_Spec):
    """Logit-adjusted BCE: training sees the logit raised by tau times the prior's log odds.

    ``BCE(z + tau·log(p_k/(1 - p_k)), y)``, p_k being the share of positives; z alone is the
    score. Rare tags are trained at a lowered logit, so that their z comes out higher.

    Parameters
    ----------
    tau : float
        At 1 the best z is the log likelihood ratio of the image with against without the tag:
        the score that would be right if half of the images carried it.

    Notes
    -----
    The paper adjusts a softmax; with one sigmoid a tag the same derivation adds the log odds. The
    shift is a constant of the tag, and a trained bias absorbs it: at the optimum the ranking
    within a tag is that of ``bce``, tuned thresholds undo the rest. What differs is the way
    there: starting from a probe whose bias holds the prior, first steps pull the positives.

    References
    ----------
    Menon et al. (2021), Long-tail Learning via Logit Adjustment
    (the logit-adjusted softmax cross-entropy).
    """

    tau: float = 1.0
    smoothing: float = 0.0

    def _check(self) -> None:
        check_range(self.tau, -10, 10, "tau", OPTION)

    def build(self, counts: LabelCounts) -> TagLoss:
        """Bound to the log odds of the catalogue."""
        offset = _PerTag(self.tau * counts.log_odds)
        return TagLoss(lambda z, y: _bce(z + offset(z), y), self.smoothing)


class _PerTag:
    """Constants (n_tags,) of a catalogue, given in the dtype and on the device of logits."""

    def __init__(self, values: NDArray[np.float64]) -> None:
        self._values = torch.from_numpy(values)
        self._held: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    def __call__(self, like: Tensor) -> Tensor:
        key = (like.device, like.dtype)
        if key not in self._held:
            self._held[key] = self._values.to(like.device, like.dtype)
        return self._held[key]


def _bce(z: Tensor, y: Tensor) -> Tensor:
    return binary_cross_entropy_with_logits(z, y, reduction="none")


LOSSES: dict[str, type[Loss]] = {
    "bce": Bce,
    "asl": Asymmetric,
    "focal": Focal,
    "db": DistributionBalanced,
    "la": LogitAdjusted,
}


def parse_loss(text: str) -> Loss:
    """Loss from ``name`` or ``name:key=value,...``.

    Raises
    ------
    UsageError
        If the name or a key is unknown, or a value is out of range.

    Examples
    --------
    >>> parse_loss("asl:gamma_neg=2,clip=0")
    Asymmetric(gamma_pos=0.0, gamma_neg=2.0, clip=0.0, smoothing=0.0)
    >>> str(parse_loss("focal:alpha=none,smoothing=0.1"))
    'focal:alpha=none,smoothing=0.1'
    """
    return parse_spec(text, LOSSES, OPTION)
