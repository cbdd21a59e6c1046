"""How close two sets of embeddings are, and how close they must be."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Tolerance(NamedTuple):
    """How far a recomputed embedding may be from the reference."""

    cosine: float  # smallest, after a common mean is subtracted from both
    rounding: float  # largest change of a row by rounding alone, relative to its norm

    @property
    def min_centred_norm(self) -> float:
        """Norm after centring, relative to the row's norm, below which rounding explains an angle.

        Let r be that relative norm. A change by g of the row's norm is g / r of the centred one,
        an angle whose cosine is 1 - (g / r)**2 / 2; it stays above `cosine` if
        r >= g / sqrt(2 (1 - cosine)).
        """
        return self.rounding / math.sqrt(2 * (1 - self.cosine))


# float32: another kernel, thread count or batch changes a row by about 1e-6 of its norm. bfloat16
# gives smallest centred cosines of 0.988 to 0.999 (measured on ResNet-50, ViT-S/14 and CLIP
# ViT-B/32), and other weights or pixels give far less: 0.99999 tells them apart.
EXACT = Tolerance(0.99999, 1e-5)
# Stored as float16: a value rounds by at most 2**-11 of itself. The limit allows embeddings whose
# mean is up to 90 times as long as what is left without it.
HALF = Tolerance(0.999, 2.0**-11)
# --precision fast promises 0.99; bfloat16 rounds by at most 2**-8.
FAST = Tolerance(0.99, 2.0**-8)


def centred_cosine(
    stored: NDArray[np.float32],
    again: NDArray[np.float32],
    mean: NDArray[np.float64],
    limit: Tolerance = EXACT,
) -> NDArray[np.float64]:
    """Cosine of each pair of rows after `mean` is subtracted from both; 1 for equal rows.

    `stored` and `again` are (n, dim), `mean` (dim,) and the result (n,) in [-1, 1]. It is 1 if the
    stored row is too close to the mean for an angle, which `limit` decides, and both rows are equal
    within rounding; otherwise 0 if one of them is the mean itself.

    Embeddings of one backbone share a large mean: without subtracting it the cosine of any two is
    near 1 and hides a change.
    """
    a, b = stored - mean, again - mean
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    cosine = np.divide((a * b).sum(axis=1), norms, out=np.zeros(len(a)), where=norms > 0)
    size = np.linalg.norm(stored, axis=1)
    at_mean = np.linalg.norm(a, axis=1) < limit.min_centred_norm * size
    equal = np.linalg.norm(a - b, axis=1) <= limit.rounding * size
    return np.where(at_mean & equal, 1.0, np.clip(cosine, -1.0, 1.0))
