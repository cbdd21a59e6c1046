"""What the labels alone say of each tag: its prior log-odds, and whether it can be fitted."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from retailtag.ranks import ALONE, Ranks


def prior_logit(
    Y: NDArray[np.int8],
    sample_weight: NDArray[np.float64] | None = None,
    ranks: Ranks = ALONE,
) -> NDArray[np.float32]:
    """Smoothed log-odds of each tag's prevalence; Y (n_images, n_tags) to (n_tags,).

    Here and below, several processes have a part of the images each.
    """
    if sample_weight is None:
        positive, negative = _counts(Y, ranks)
    else:
        weighted = np.stack([sample_weight @ (Y == 1), sample_weight @ (Y == 0)])
        positive, negative = ranks.total(weighted)
    # Half an image on each side (Jeffreys' prior): finite for a tag that is never or always on.
    return np.log((positive + 0.5) / (negative + 0.5)).astype(np.float32)


def fittable(
    Y: NDArray[np.int8],
    sample_weight: NDArray[np.float64] | None = None,
    ranks: Ranks = ALONE,
) -> NDArray[np.bool_]:
    """Whether each tag has a positive and a negative among its known labels, (n_tags,)."""
    used = Y if sample_weight is None else Y[np.asarray(sample_weight) > 0]
    return fewest(used, ranks) > 0


def fewest(Y: NDArray[np.int8], ranks: Ranks = ALONE) -> NDArray[np.float64]:
    """Positives or negatives of each tag, whichever are fewer, (n_tags,)."""
    return _counts(Y, ranks).min(axis=0)


def _counts(Y: NDArray[np.int8], ranks: Ranks) -> NDArray[np.float64]:
    """Positives and negatives of each tag, (2, n_tags)."""
    return ranks.total(np.stack([(Y == 1).sum(axis=0), (Y == 0).sum(axis=0)]).astype(np.float64))
