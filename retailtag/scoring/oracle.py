"""F1 at the best threshold in hindsight: what a perfect choice of threshold would have given."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from retailtag.scoring.metrics import Floats, columns, retrieved_at_positives


def oracle_f1(scores: NDArray[np.floating], labels: NDArray[np.int8]) -> float:
    r"""Largest F1 of one tag over all thresholds, chosen on the very labels it is scored on.

    .. math:: F_1^* = \max_k \frac{2\,TP_k}{k + P}

    with :math:`TP_k` the positives among the k highest scores, at the k where the score changes
    (equal scores are given or withheld together).

    Parameters
    ----------
    scores : ndarray of float, shape (n_images,)
        Any monotone scale, without NaN.
    labels : ndarray of int8, shape (n_images,)
        1, 0, or -1 (left out).

    Returns
    -------
    float
        In (0, 1]; NaN without a positive. An upper bound: no rule that does not see these labels
        can be expected to reach it, least of all for a tag with few positives.

    Notes
    -----
    Exact: one sort and a cumulative sum, O(n log n).

    References
    ----------
    Lipton, Elkan and Naryanaswamy, "Optimal thresholding of classifiers to maximize F1 measure",
    ECML 2014.

    Examples
    --------
    >>> oracle_f1(np.array([0.9, 0.8, 0.7, 0.1]), np.array([1, 0, 1, 0], dtype=np.int8))
    0.8
    """
    return _best(*retrieved_at_positives(scores, labels))


def ap_and_oracle(logits: NDArray[np.floating], labels: NDArray[np.int8]) -> tuple[Floats, Floats]:
    """Average precision and oracle F1 of every tag from one sort, (n_images, n_tags) to (n_tags,).

    Raises as `retailtag.scoring.metrics.average_precision_per_tag` does.
    """
    value = np.full((2, logits.shape[1]), np.nan)
    for j, pair in enumerate(columns(logits, labels)):
        found, retrieved, n_positive = retrieved_at_positives(*pair)
        if n_positive:
            value[:, j] = np.mean(found / retrieved), _best(found, retrieved, n_positive)
    return value[0], value[1]


def _best(found: NDArray[np.intp], retrieved: NDArray[np.intp], n_positive: int) -> float:
    # F1 rises only where a threshold takes in another positive: those are the candidates
    return float((2 * found / (retrieved + n_positive)).max()) if n_positive else float("nan")
