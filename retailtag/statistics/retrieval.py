"""How early a ranking by similarity has what is relevant; one query at a time.

A candidate that does not count, such as the query itself, has the similarity ``-inf``.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

RECALL_AT = (1, 5, 10)
NDCG_AT = 10
PRODUCT_METRICS = (*(f"recall@{k}" for k in RECALL_AT), "mAP@R", "MRR")
TAG_METRIC = f"nDCG@{NDCG_AT}"

Floats = NDArray[np.floating]


def relevant_ranks(similarity: Floats, relevant: NDArray[np.bool_]) -> NDArray[np.intp]:
    """Ranks, from 1, of the relevant candidates, ascending; both arguments are (n_candidates,).

    Among equally similar candidates the irrelevant ones come first: a ranking earns nothing by
    ties, and the order of the candidates changes nothing.

    Examples
    --------
    >>> is_relevant = np.array([True, False, True, False])
    >>> relevant_ranks(np.array([0.9, 0.7, 0.7, 0.1]), is_relevant).tolist()
    [1, 3]
    """
    own = np.sort(similarity[relevant])[::-1]
    others = np.sort(similarity[~relevant])
    ahead = len(others) - np.searchsorted(others, own, side="left")
    return np.asarray(ahead + np.arange(1, len(own) + 1), np.intp)


def product_metrics(ranks: NDArray[np.intp]) -> Mapping[str, float]:
    r"""`PRODUCT_METRICS` of one query from the ranks of its R relevant candidates, one or more.

    * recall@k, as metric learning has it: 1 if one of the first k is relevant, else 0;
    * AP@R: :math:`\frac1R \sum_{i \le R} P(i)\,rel(i)` with P(i) the precision of the first i;
    * reciprocal rank: 1 / rank of the first relevant one.

    References
    ----------
    Musgrave, Belongie & Lim (2020), A metric learning reality check, section 2.3 (MAP@R); Oh Song,
    Xiang, Jegelka & Savarese (2016), Deep metric learning via lifted structured feature embedding
    (recall@k).

    Examples
    --------
    >>> product_metrics(np.array([2, 3, 7]))["mAP@R"].__round__(3)  # (1/2 + 2/3) / 3
    0.389
    """
    n = len(ranks)
    precision = np.arange(1, n + 1) / ranks  # at each relevant candidate
    found = {f"recall@{k}": float(ranks[0] <= k) for k in RECALL_AT}
    return {**found, "mAP@R": float(precision[ranks <= n].sum() / n), "MRR": float(1 / ranks[0])}


def ndcg(similarity: Floats, gain: Floats, k: int = NDCG_AT) -> float:
    r"""Discounted gain of the first k over that of the best order; NaN where nothing has a gain.

    :math:`\sum_{i \le k} g_i / \log_2(i + 1)` with the gains themselves, not :math:`2^g - 1`.
    Equally similar candidates share the mean of their gains.

    Parameters
    ----------
    similarity, gain : ndarray of float, shape (n_candidates,)
        A gain is 0 or more, and 0 where the candidate does not count.

    References
    ----------
    Järvelin & Kekäläinen (2002), Cumulated gain-based evaluation of IR techniques; McSherry &
    Najork (2008), Computing information retrieval performance measures efficiently in the presence
    of tied scores.
    """
    k = min(k, len(gain))
    discount = 1 / np.log2(np.arange(2, k + 2))
    best = np.sort(np.partition(gain, len(gain) - k)[-k:])[::-1] @ discount
    if not best > 0:
        return float("nan")
    # Only candidates as similar as the k-th can take one of the first k places.
    near = similarity >= np.partition(similarity, len(similarity) - k)[-k]
    _, tied, sizes = np.unique(-similarity[near], return_inverse=True, return_counts=True)
    mean = np.bincount(tied, gain[near]) / sizes
    return float(np.repeat(mean, sizes)[:k] @ discount / best)
