"""Mixup and CutMix for targets of many tags.

``parse_mix("mixup:alpha=0.2")`` reads a setting; ``mix(inputs, targets, key)`` mixes a batch.

==========  =====================================================================
name        what is mixed
==========  =====================================================================
``none``    nothing
``mixup``   all values: ``share·x_i + (1 - share)·x_j`` (Zhang et al. 2018)
``cutmix``  places: a rectangle of x_j pasted into x_i (Yun et al. 2019)
==========  =====================================================================

Pixels are mixed, before the frozen part of a network, so that its activations cannot be cached. The
target is ``share·y_i + (1 - share)·y_j`` in every tag, and **unknown where either is**. The partner
j is another image of the batch; it and the share are drawn for each i. torchvision's ``MixUp`` and
``CutMix`` draw one share per batch from the global generator and know no unknown labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from retailtag.finetuning.specs import check_range, parse_spec

Mixed = tuple[Tensor, Tensor]
OPTION = "--mix"
_STREAM = 0x313C  # separates these draws from others of the same seed


@dataclass(frozen=True)
class Mix:
    """The batch as it is, and the base of all mixtures."""

    def __call__(
        self, inputs: Tensor, targets: Tensor, key: Sequence[int], own: slice | None = None
    ) -> Mixed:
        """Mixed inputs of the same dtype; targets float32, -1 where unknown.

        `inputs` are uint8 or float (n, ...), `targets` (n, n_tags) 1, 0 or -1. The result is a
        function of the batch and `key`, such as (seed, epoch, step). Of the images `own` alone,
        `inputs` are those and then their `partners`; the targets are still of the whole batch.
        """
        return inputs, targets.float()

    def partners(self, n: int, key: Sequence[int]) -> NDArray[np.intp]:
        """Which image of a batch of `n` each image is mixed with; empty if with none."""
        return np.empty(0, np.intp)


@dataclass(frozen=True)
class _Pairs(Mix):
    """Pairs of images, with a share from Beta(alpha, alpha) in a part `p` of the images."""

    alpha: float = 0.2  # above 0; small values leave most images nearly whole, 1 is uniform
    p: float = 1.0  # share of the images that are mixed

    def __post_init__(self) -> None:
        check_range(self.alpha, 0.001, 100, "alpha", OPTION)
        check_range(self.p, 0, 1, "p", OPTION)

    def partners(self, n: int, key: Sequence[int]) -> NDArray[np.intp]:
        """See `Mix`."""
        found: NDArray[np.intp] = self.draw(n, np.random.default_rng([*key, _STREAM]))[0].numpy()
        return found

    def draw(self, n: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Partner (n,) of each image, and the share (n,) that the image keeps of itself."""
        # A shift of 1 to n - 1 modulo n never lands on the image itself; a single image has to.
        shift = rng.integers(1, n, n) if n > 1 else np.zeros(n, np.int64)
        partner = torch.from_numpy((np.arange(n) + shift) % n)
        share = rng.beta(self.alpha, self.alpha, n)
        return partner, torch.from_numpy(np.where(rng.random(n) < self.p, share, 1.0)).float()


@dataclass(frozen=True)
class Mixup(_Pairs):
    """Values of two images averaged, with a share from Beta(alpha, alpha).

    References
    ----------
    Zhang et al. (2018), mixup: Beyond Empirical Risk Minimization.
    """

    def __call__(
        self, inputs: Tensor, targets: Tensor, key: Sequence[int], own: slice | None = None
    ) -> Mixed:
        """See `Mix`."""
        partner, share = self.draw(len(targets), np.random.default_rng([*key, _STREAM]))
        first, second = _pairs(inputs, partner, own)
        weight = share[own or slice(None)].to(inputs.device)
        weight = weight.reshape(-1, *[1] * (inputs.ndim - 1))  # (n, 1, 1, 1)
        mixed = second.float().lerp_(first.float(), weight)  # in place: batches are big
        if not inputs.is_floating_point():
            mixed.round_()
        return mixed.to(inputs.dtype), _mixed_targets(targets, partner, share)


@dataclass(frozen=True)
class Cutmix(_Pairs):
    """A rectangle of one image pasted into another, its area's share from Beta(alpha, alpha).

    The rectangle has the aspect of the image and a centre anywhere in it; what extends beyond the
    edge is cut off, and targets are mixed by the area that was in fact pasted. A tag whose article
    was covered stays in the target, as in the paper.

    References
    ----------
    Yun et al. (2019), CutMix: Regularization Strategy to Train Strong Classifiers with Localizable
    Features.
    """

    alpha: float = 1.0
    p: float = 0.5

    def __call__(
        self, inputs: Tensor, targets: Tensor, key: Sequence[int], own: slice | None = None
    ) -> Mixed:
        """See `Mix`."""
        rng = np.random.default_rng([*key, _STREAM])
        n, (h, w) = len(targets), inputs.shape[2:]  # images (n, 3, h, w)
        partner, share = self.draw(n, rng)
        pasted = torch.zeros(n, h, w, dtype=torch.bool)
        # An area share of 1 - share has sides of √(1 - share).
        for i, side in enumerate((1 - share).sqrt().tolist()):
            top, bottom = _stretch(h, side, rng)
            left, right = _stretch(w, side, rng)
            pasted[i, top:bottom, left:right] = True
        share = 1 - pasted.float().mean((1, 2))
        first, second = _pairs(inputs, partner, own)
        pasted = pasted[own or slice(None), None].to(inputs.device)
        mixed = torch.where(pasted, second, first)
        return mixed, _mixed_targets(targets, partner, share)


MIXES: dict[str, type[Mix]] = {"none": Mix, "mixup": Mixup, "cutmix": Cutmix}


def parse_mix(text: str) -> Mix:
    """Mixture from ``name`` or ``name:key=value,...``; see `parse_spec`.

    Examples
    --------
    >>> parse_mix("cutmix:p=1")
    Cutmix(alpha=1.0, p=1.0)
    """
    return parse_spec(text, MIXES, OPTION)


def _pairs(inputs: Tensor, partner: Tensor, own: slice | None) -> tuple[Tensor, Tensor]:
    """Images, and the partner of each."""
    if own is None:
        return inputs, inputs[partner]
    first, second = inputs.chunk(2)
    return first, second


def _stretch(length: int, share: float, rng: np.random.Generator) -> tuple[int, int]:
    """Start and end of a stretch of `share` of `length` around a random centre."""
    half = share * length / 2
    centre = int(rng.integers(length))
    return max(0, round(centre - half)), min(length, round(centre + half))


def _mixed_targets(targets: Tensor, partner: Tensor, share: Tensor) -> Tensor:
    """Targets (n, n_tags) mixed by `share` (n,); -1 where an image that takes part is unknown."""
    own = targets.float()
    other = own[partner]
    weight = share.to(targets.device)[:, None]
    mixed = weight * own + (1 - weight) * other
    unknown = ((own < 0) & (weight > 0)) | ((other < 0) & (weight < 1))
    return mixed.masked_fill(unknown, -1.0)
