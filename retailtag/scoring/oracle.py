"""F1 at the best threshold in hindsight, an upper bound on what threshold tuning can give."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from retailtag.scoring.metrics import Floats, columns, retrieved_at_positives


def ap_and_oracle(logits: NDArray[np.floating], labels: NDArray[np.int8]) -> tuple[Floats, Floats]:
    r"""Average precision and oracle F1 of every tag from one sort, (n_images, n_tags) to (n_tags,).

    The oracle is the largest F1 over all thresholds, chosen on the very labels it is scored on:

    .. math:: F_1^* = \max_k \frac{2\,TP_k}{k + P}

    with :math:`TP_k` the positives among the k highest scores, at the k where the score changes
    (equal scores are given or withheld together). In (0, 1]; NaN without a positive. No rule that
    does not see these labels can be expected to reach it, least of all for few positives.

    Raises as `retailtag.scoring.metrics.average_precision_per_tag` does.

    References
    ----------
    Lipton, Elkan and Naryanaswamy, "Optimal thresholding of classifiers to maximize F1 measure",
    ECML 2014.

    Examples
    --------
    >>> scores = np.array([[0.9], [0.8], [0.7], [0.1]])
    >>> ap_and_oracle(scores, np.array([[1], [0], [1], [0]], dtype=np.int8))[1].tolist()
    [0.8]
    """
    ap = np.full(logits.shape[1], np.nan)
    oracle = np.full(logits.shape[1], np.nan)
    for j, (scores, truth) in enumerate(columns(logits, labels)):
        found, retrieved = retrieved_at_positives(scores, truth)
        if len(found):
            ap[j] = np.mean(found / retrieved)
            # Lowering a threshold raises F1 only where it takes in another positive, so those at
            # the positives' own scores are all the candidates.
            oracle[j] = (2 * found / (retrieved + len(found))).max()
    return ap, oracle
