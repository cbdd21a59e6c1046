"""Two images made into one, for targets of many tags.

``parse_mix("mixup:alpha=0.2")`` reads a setting; ``mix(inputs, targets, key)`` mixes a batch.

==========  =====================================================================
name        what is mixed
==========  =====================================================================
``none``    nothing
``mixup``   all values: ``share·x_i + (1 - share)·x_j`` (Zhang et al. 2018)
``cutmix``  places: a rectangle of x_j pasted into x_i (Yun et al. 2019)
==========  =====================================================================

Pixels are mixed, before the frozen part of a network: what it makes of an image cannot be kept
then. The target is ``share·y_i + (1 - share)·y_j`` in every tag, and **unknown where either is**.
The partner j is another image of the batch, drawn for each i, and so is the share.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from retailtag.finetuning.specs import check_range, parse_spec, spec_text

OPTION = "--mix"
_STREAM = 0x313C  # keeps these draws apart from others of the same seed


class Mix(Protocol):
    """Settings of a mixture."""

    def __call__(
        self, inputs: Tensor, targets: Tensor, key: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        """Mixed inputs and targets.

        Parameters
        ----------
        inputs : Tensor, shape (n, ...)
            Bytes or floats; the dtype is kept.
        targets : Tensor, shape (n, n_tags)
            1, 0 or -1.
        key : sequence of int
            Such as (seed, epoch, step): the result is a function of it and the batch.

        Returns
        -------
        tuple
            Inputs as given in shape and dtype; targets float32, -1 where unknown.
        """


@dataclass(frozen=True)
class NoMix:
    """The batch as it is."""

    def __call__(
        self, inputs: Tensor, targets: Tensor, key: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        """`inputs` and float `targets`."""
        return inputs, targets.float()

    def __str__(self) -> str:
        return spec_text(self, MIXES)


@dataclass(frozen=True)
class Mixup:
    """Values of two images averaged, with a share from Beta(alpha, alpha).

    Parameters
    ----------
    alpha : float
        Above 0; small values leave most images nearly whole.
    p : float
        Share of the images that are mixed.

    References
    ----------
    Zhang et al. (2018), mixup: Beyond Empirical Risk Minimization.
    """

    alpha: float = 0.2
    p: float = 1.0

    def __post_init__(self) -> None:
        check_range(self.alpha, 0.001, 100, "alpha", OPTION)
        check_range(self.p, 0, 1, "p", OPTION)

    def __call__(
        self, inputs: Tensor, targets: Tensor, key: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        """See `Mix`."""
        rng = np.random.default_rng([*key, _STREAM])
        partner, share = _partners(len(inputs), rng), _shares(len(inputs), self.alpha, self.p, rng)
        weight = share.to(inputs.device).reshape(-1, *[1] * (inputs.ndim - 1))
        mixed = inputs[partner].float().lerp_(inputs.float(), weight)  # in place: batches are big
        if not inputs.is_floating_point():
            mixed.round_()
        return mixed.to(inputs.dtype), _mixed_targets(targets, partner, share)

    def __str__(self) -> str:
        return spec_text(self, MIXES)


@dataclass(frozen=True)
class Cutmix:
    """A rectangle of one image pasted into another, its area's share from Beta(alpha, alpha).

    Parameters
    ----------
    alpha : float
        Above 0; 1 draws the area uniformly.
    p : float
        Share of the images that are mixed.

    Notes
    -----
    The rectangle keeps the image's aspect, its centre lies anywhere, and what hangs out is cut
    off; targets are mixed by the area that was pasted in fact. A tag whose article was covered
    stays in the target, as in the paper.

    References
    ----------
    Yun et al. (2019), CutMix: Regularization Strategy to Train Strong Classifiers with Localizable
    Features.
    """

    alpha: float = 1.0
    p: float = 0.5

    def __post_init__(self) -> None:
        check_range(self.alpha, 0.001, 100, "alpha", OPTION)
        check_range(self.p, 0, 1, "p", OPTION)

    def __call__(
        self, inputs: Tensor, targets: Tensor, key: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        """See `Mix`; `inputs` (n, channels, h, w)."""
        rng = np.random.default_rng([*key, _STREAM])
        n, _, h, w = inputs.shape
        partner, share = _partners(n, rng), _shares(n, self.alpha, self.p, rng)
        pasted = torch.zeros(n, h, w, dtype=torch.bool)
        for i, side in enumerate((1 - share).sqrt().tolist()):
            top, bottom = _cut(h, side, rng)
            left, right = _cut(w, side, rng)
            pasted[i, top:bottom, left:right] = True
        share = 1 - pasted.float().mean((1, 2))
        mixed = torch.where(pasted[:, None].to(inputs.device), inputs[partner], inputs)
        return mixed, _mixed_targets(targets, partner, share)

    def __str__(self) -> str:
        return spec_text(self, MIXES)


MIXES: dict[str, type[Mix]] = {"none": NoMix, "mixup": Mixup, "cutmix": Cutmix}


def parse_mix(text: str) -> Mix:
    """Mixture from ``name`` or ``name:key=value,...``.

    Raises
    ------
    UsageError
        If the name or a key is unknown, or a value is out of range.

    Examples
    --------
    >>> parse_mix("cutmix:p=1")
    Cutmix(alpha=1.0, p=1.0)
    """
    return parse_spec(text, MIXES, OPTION)


def _partners(n: int, rng: np.random.Generator) -> Tensor:
    """For each of n images another one (n,); itself where n is 1."""
    away = rng.integers(1, n, n) if n > 1 else np.zeros(n, np.int64)
    return torch.from_numpy((np.arange(n) + away) % n)


def _shares(n: int, alpha: float, p: float, rng: np.random.Generator) -> Tensor:
    """Share (n,) that each image keeps of itself; 1 for those that are not mixed."""
    share = rng.beta(alpha, alpha, n)
    return torch.from_numpy(np.where(rng.random(n) < p, share, 1.0)).float()


def _cut(length: int, share: float, rng: np.random.Generator) -> tuple[int, int]:
    """Start and end of a stretch of `share` of `length` around a random centre."""
    half, centre = share * length / 2, int(rng.integers(length))
    return max(0, round(centre - half)), min(length, round(centre + half))


def _mixed_targets(targets: Tensor, partner: Tensor, share: Tensor) -> Tensor:
    """Targets (n, n_tags) mixed by `share` (n,); -1 where an image that takes part is unknown."""
    own = targets.float()
    other, weight = own[partner], share.to(targets.device)[:, None]
    mixed = weight * own + (1 - weight) * other
    unknown = ((own < 0) & (weight > 0)) | ((other < 0) & (weight < 1))
    return mixed.masked_fill(unknown, -1.0)
