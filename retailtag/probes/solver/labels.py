"""What the labels alone say of each tag: its prior log-odds, and whether it can be fitted."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def prior_logit(
    Y: NDArray[np.int8], sample_weight: NDArray[np.float64] | None = None
) -> NDArray[np.float32]:
    """Smoothed log-odds of each tag's prevalence; Y (n_images, n_tags) to (n_tags,)."""
    if sample_weight is None:
        positive, negative = (Y == 1).sum(axis=0), (Y == 0).sum(axis=0)
    else:
        positive, negative = sample_weight @ (Y == 1), sample_weight @ (Y == 0)
    # Half an image on each side (Jeffreys' prior): finite for a tag that is never or always on.
    return np.log((positive + 0.5) / (negative + 0.5)).astype(np.float32)


def fittable(
    Y: NDArray[np.int8], sample_weight: NDArray[np.float64] | None = None
) -> NDArray[np.bool_]:
    """Whether each tag has a positive and a negative among its known labels, (n_tags,)."""
    used = Y if sample_weight is None else Y[np.asarray(sample_weight) > 0]
    return np.logical_and((used == 1).any(axis=0), (used == 0).any(axis=0))
