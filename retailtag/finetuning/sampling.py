"""Which images an epoch shows, and how often.

``parse_sampler("repeat:t=0.001")`` reads a sampler, ``sampler.factors(labels)`` says how often an
epoch shows each training image, and `epoch_order` is the order of one epoch.

===========  ===============================================================================
name         an epoch
===========  ===============================================================================
``shuffle``  every image once, in random order
``repeat``   repeat-factor sampling: images of rare tags more often (Gupta et al. 2019)
===========  ===============================================================================
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retailtag.finetuning.specs import check_range, parse_spec

OPTION = "--sampler"
_STREAM = 0x5A3B  # separates these draws from others of the same seed and epoch


def epoch_order(factors: NDArray[np.float64], seed: int, epoch: int) -> NDArray[np.intp]:
    """Positions of the images in the order of `epoch`; a function of (seed, epoch) alone.

    An epoch shows each image `factors` (n_images,) times in expectation; all are at least 1.
    """
    rng = np.random.default_rng([seed, epoch, _STREAM])
    whole = np.floor(factors)
    # A factor of 2.3 becomes 3 with probability 0.3 and 2 otherwise: its mean is right.
    up = rng.random(len(factors)) < factors - whole
    return rng.permutation(np.repeat(np.arange(len(whole)), whole.astype(np.int64) + up))


@dataclass(frozen=True)
class Sampler:
    """Every image once per epoch."""

    def factors(self, labels: NDArray[np.int8]) -> NDArray[np.float64]:
        """Repeat factors (n_images,) of images with labels (n_images, n_tags) of 1, 0 or -1."""
        return np.ones(len(labels))


@dataclass(frozen=True)
class RepeatFactor(Sampler):
    """Images of rare tags come more often, by the rarest tag that they carry.

    ``r_c = max(1, √(t/f_c))`` with f_c the share of images that carry tag c. The factor of an image
    is the largest r_c of its tags, 1 if it has none.

    An unknown label counts as not given: f_c is how often an epoch shows a positive. LVIS takes
    t = 0.001 at 57,000 images, where a tag below 57 images is repeated; a tag of 50 in 80,000
    comes 1.26 times as often. Smaller catalogues need a larger t.

    References
    ----------
    Gupta, Dollár & Girshick (2019), LVIS: A Dataset for Large Vocabulary Instance Segmentation,
    section 5 (repeat factor sampling).
    """

    t: float = 0.001  # share of images below which a tag is repeated, in (0, 1]

    def __post_init__(self) -> None:
        check_range(self.t, 1e-9, 1, "t", OPTION)

    def factors(self, labels: NDArray[np.int8]) -> NDArray[np.float64]:
        """See `Sampler`."""
        given = labels == 1
        share = given.sum(0) / max(len(labels), 1)
        with np.errstate(divide="ignore"):  # a tag without an image repeats none
            # The square root weakens the pull: with t/f, all tags below t would be shown alike.
            per_tag = np.maximum(1.0, np.sqrt(self.t / share))
        factors = np.ones(len(labels))
        for tag in np.flatnonzero(per_tag > 1):  # a loop avoids (n_images, n_tags) floats
            rows = np.flatnonzero(given[:, tag])
            factors[rows] = np.maximum(factors[rows], per_tag[tag])
        return factors


SAMPLERS: dict[str, type[Sampler]] = {"shuffle": Sampler, "repeat": RepeatFactor}


def parse_sampler(text: str) -> Sampler:
    """Sampler from ``name`` or ``name:key=value``; see `parse_spec`.

    Examples
    --------
    >>> parse_sampler("repeat:t=0.01")
    RepeatFactor(t=0.01)
    """
    return parse_spec(text, SAMPLERS, OPTION)
