"""Leave one product out: bias and variance of F1 in closed form from its counts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retailtag.scoring.bootstrap import ProductCounts
from retailtag.scoring.metrics import Floats, f1

BLOCK_CELLS = 1_000_000  # float64 deviations held at once: 8 MB


@dataclass(frozen=True, eq=False)
class Jackknife:
    """What leaving out one product at a time tells about every tag's F1 and its averages."""

    averaged: NDArray[np.bool_]  # (n_scopes, n_tags), tags of each average: those with a positive
    f1: Floats  # (n_tags,), on the data as it is; NaN without a positive
    bias: Floats  # (n_tags,), expected estimate minus truth; 0 for an undefined tag
    # (n_scopes, n_products), change of each average without a product, by its tags on several
    # products: a tag on a single one vanishes with it, which shows no spread
    deviations: Floats
    single: NDArray[np.bool_]  # (n_tags,), tags whose positives lie on a single product
    event_products: NDArray[np.int64]  # (n_tags,), products that carry the tag or were given it


def variance_of(deviations: Floats) -> float:
    r"""Jackknife variance from the deviations (n,) of the n leave-one-out values.

    .. math:: v = \frac{n - 1}{n} \sum_i (d_i - \bar d)^2

    The bias is :math:`(n - 1)\,\bar d`.

    References
    ----------
    Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 11.
    """
    n = len(deviations)
    return float((n - 1) / n * ((deviations - deviations.mean()) ** 2).sum())


def jackknife(counts: ProductCounts, scopes: NDArray[np.bool_]) -> Jackknife:
    """Jackknife over products of all tags and of the averages over `scopes` (n_scopes, n_tags).

    Tags without a positive take no part. O(n_products n_tags), in blocks of bounded memory.
    """
    totals = counts.totals()
    value = f1(*totals)
    averaged = scopes & ~np.isnan(value)
    single = np.count_nonzero(counts.positives, axis=0) == 1
    share = averaged / np.maximum(averaged.sum(axis=1, keepdims=True), 1)
    weights = np.where(single, 0.0, share).T  # (n_tags, n_scopes)
    n_products, n_tags = counts.tp.shape
    summed = np.zeros(n_tags)
    by_scope = np.empty((n_products, len(scopes)))
    size = max(1, BLOCK_CELLS // max(n_tags, 1))
    for start in range(0, n_products, size):
        block = slice(start, start + size)
        rows = (matrix[block] for matrix in counts.matrices())
        # Without product i, F1 is 2 (TP - tp_i) / (predicted + positives - d_i): no rescoring
        left_out = f1(*(total - row for total, row in zip(totals, rows, strict=True)))
        deviation = np.nan_to_num(left_out - value)  # 0 where the tag vanished
        summed += deviation.sum(axis=0)
        by_scope[block] = deviation @ weights
    return Jackknife(
        averaged=averaged,
        f1=value,
        bias=(n_products - 1) * summed / n_products,
        deviations=by_scope.T,
        single=single,
        event_products=np.count_nonzero(counts.positives + counts.predicted, axis=0),
    )
