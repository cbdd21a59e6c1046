"""How near two sets of embeddings are, and how near they must be."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Tolerance(NamedTuple):
    """How far an embedding computed again may lie from the stored one."""

    cosine: float  # smallest, after a common mean is taken off both
    gap: float  # what rounding alone may move a row by, as a part of its norm

    @property
    def least(self) -> float:
        """Norm after centring, as a part of the row's norm, below which `gap` alone fails.

        A move by g of a row that the mean leaves 1/r of costs 1 - cos = (g r)**2 / 2.
        """
        return self.gap / math.sqrt(2 * (1 - self.cosine))


# float32: another kernel, thread count or batch moves a row by some 1e-6 of its norm. bfloat16
# arithmetic gives centred cosines of 0.988 to 0.999 (smallest, ResNet-50, ViT-S/14 and CLIP
# ViT-B/32), other weights or pixels far less.
EXACT = Tolerance(0.99999, 1e-5)
# float16: rounding moves a value by 2**-11 of itself at most; the mean may be 90 times the rest.
HALF = Tolerance(0.999, 2.0**-11)
# Arithmetic other than float32 was asked for with --precision fast, which promises 0.99.
FAST = Tolerance(0.99, 2.0**-8)


def centred_cosine(
    stored: NDArray[np.float32],
    again: NDArray[np.float32],
    mean: NDArray[np.float64],
    limit: Tolerance = EXACT,
) -> NDArray[np.float64]:
    """Cosine of each pair of rows after `mean` is taken off both, in [-1, 1]; larger is nearer.

    Parameters
    ----------
    stored, again : ndarray of float32, shape (n, dim)
    mean : ndarray of float64, shape (dim,)
    limit : Tolerance
        Says which rows lie too near the mean for an angle.

    Returns
    -------
    ndarray of float64, shape (n,)
        1 where the stored row is nearer the mean than rounding allows to judge, and both rows
        are equal within rounding; otherwise 0 where one of them is the mean itself.

    Notes
    -----
    Embeddings of one backbone share a large mean, so that the plain cosine of any two is near 1
    and hides drift.
    """
    a, b = stored - mean, again - mean
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    cosine = np.divide((a * b).sum(axis=1), norms, out=np.zeros(len(a)), where=norms > 0)
    size = np.linalg.norm(stored, axis=1)
    at_mean = np.linalg.norm(a, axis=1) < limit.least * size
    equal = np.linalg.norm(a - b, axis=1) <= limit.gap * size
    return np.where(at_mean & equal, 1.0, np.clip(cosine, -1.0, 1.0))
