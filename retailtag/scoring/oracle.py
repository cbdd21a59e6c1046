"""F1 at the best threshold in hindsight, an upper bound on what threshold tuning can give."""

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
    ap = np.full(logits.shape[1], np.nan)
    oracle = np.full(logits.shape[1], np.nan)
    for j, (scores, truth) in enumerate(columns(logits, labels)):
        found, retrieved, n_positive = retrieved_at_positives(scores, truth)
        if n_positive:
            ap[j] = np.mean(found / retrieved)
            oracle[j] = _best(found, retrieved, n_positive)
    return ap, oracle


def _best(found: NDArray[np.intp], retrieved: NDArray[np.intp], n_positive: int) -> float:
    # Lowering a threshold raises F1 only where it takes in another positive, so the thresholds at
    # the positives' own scores are all the candidates.
    return float((2 * found / (retrieved + n_positive)).max()) if n_positive else float("nan")
