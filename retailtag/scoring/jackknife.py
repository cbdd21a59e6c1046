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

    scopes: NDArray[np.bool_]  # (n_scopes, n_tags), tags of each average
    f1: Floats  # (n_tags,), on the data as it is; NaN without a positive
    bias: Floats  # (n_tags,), expected estimate minus truth; 0 for an undefined tag
    variance: Floats  # (n_tags,), of the estimate; 0 for an undefined tag
    # (n_scopes,), of the mean over fixed tags: one that vanishes with a product keeps its F1
    scope_variance: Floats
    positive_products: NDArray[np.int64]  # (n_tags,), products that carry the tag
    event_products: NDArray[np.int64]  # (n_tags,), products that carry it or were given it


def moments(n: int, sums: Floats) -> tuple[Floats, Floats]:
    r"""Jackknife bias and variance from sums of the deviations of the n leave-one-out values.

    With :math:`d_i = \hat\theta_{(i)} - \hat\theta` and its mean :math:`\bar d`:

    .. math:: b = (n - 1)\,\bar d, \qquad v = \frac{n - 1}{n} \sum_i (d_i - \bar d)^2

    `sums` (2, ...) holds the sums over i of :math:`d_i` and :math:`d_i^2`.

    References
    ----------
    Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 11.
    """
    first, second = sums
    mean = first / n
    # Σ(d - mean)² = Σd² - n mean², which rounding can bring below 0
    square = np.maximum(second - n * mean**2, 0.0)
    return (n - 1) * mean, (n - 1) / n * square


def jackknife(counts: ProductCounts, scopes: NDArray[np.bool_]) -> Jackknife:
    """Jackknife over products of all tags and of the averages over `scopes` (n_scopes, n_tags).

    Tags without a positive take no part. O(n_products n_tags), in blocks of bounded memory.
    """
    totals = counts.totals()
    value = f1(*totals)
    members = (scopes & ~np.isnan(value)).astype(np.float64).T  # (n_tags, n_scopes)
    n_members = members.sum(axis=0)
    n_products, n_tags = counts.tp.shape
    by_tag = np.zeros((2, n_tags))
    by_scope = np.zeros((2, len(scopes)))
    size = max(1, BLOCK_CELLS // max(n_tags, 1))
    for start in range(0, n_products, size):
        rows = (matrix[start : start + size] for matrix in counts.matrices())
        # Without product i, F1 is 2 (TP - tp_i) / (predicted + positives - d_i): no rescoring
        left_out = f1(*(total - row for total, row in zip(totals, rows, strict=True)))
        deviation = np.nan_to_num(left_out - value)  # 0 where the tag vanished
        by_tag += _powers(deviation)
        total, count = np.broadcast_arrays(deviation @ members, n_members)
        by_scope += _powers(np.divide(total, count, out=np.zeros(total.shape), where=count > 0))
    bias, variance = moments(n_products, by_tag)
    return Jackknife(
        scopes=scopes,
        f1=value,
        bias=bias,
        variance=variance,
        scope_variance=moments(n_products, by_scope)[1],
        positive_products=np.count_nonzero(counts.positives, axis=0),
        event_products=np.count_nonzero(counts.positives + counts.predicted, axis=0),
    )


def _powers(deviation: Floats) -> Floats:
    """Sums over rows of d and d squared, (rows, m) to (2, m)."""
    return np.stack([deviation.sum(axis=0), (deviation**2).sum(axis=0)])
