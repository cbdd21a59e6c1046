"""F1 at the best threshold in hindsight: what a perfect choice of threshold would have given."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from retailtag.catalog.table import POSITIVE, UNKNOWN
from retailtag.scoring.metrics import Floats


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
    known = labels != UNKNOWN
    truth = labels[known] == POSITIVE
    n_positive = int(truth.sum())
    if not n_positive:
        return float("nan")
    found = np.sort(scores[known][truth])
    # F1 rises only where a positive is added: each distinct positive score is a candidate
    everything = np.sort(scores[known])
    given = len(everything) - np.searchsorted(everything, found, side="left")
    tp = n_positive - np.searchsorted(found, found, side="left")
    return float((2 * tp / (given + n_positive)).max())


def oracle_f1_per_tag(logits: NDArray[np.floating], labels: NDArray[np.int8]) -> Floats:
    """`oracle_f1` of every column: (n_images, n_tags) twice to (n_tags,)."""
    columns = zip(logits.T, labels.T, strict=True)
    return np.array([oracle_f1(scores, truth) for scores, truth in columns], np.float64)
