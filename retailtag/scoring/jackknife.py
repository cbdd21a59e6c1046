"""Leave one product out: bias and variance of F1 in closed form from its counts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retailtag.catalog.table import POSITIVE, UNKNOWN
from retailtag.scoring.bootstrap import ProductCounts
from retailtag.scoring.metrics import Floats, f1

BLOCK_CELLS = 1_000_000  # float64 deviations held at once: 8 MB
MAX_EXACT_POSITIVES = 50  # up to which AP without each product is computed anew


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


def ap_gradient(scores: NDArray[np.floating], labels: NDArray[np.int8]) -> Floats:
    r"""Derivative of one tag's average precision by the weight of each image, (n_images,).

    With weights w, :math:`T(s)` the weight of the positives that score at least s, :math:`N(s)`
    that of all images, and P the weight of the positives,

    .. math:: AP = \frac{1}{P} \sum_{i:\,y_i = 1} w_i \frac{T(s_i)}{N(s_i)}, \qquad
       \frac{\partial AP}{\partial w_j} = \frac{1}{P} \Big[
       y_j \Big(\frac{T(s_j)}{N(s_j)} - AP\Big)
       + \sum_{i:\,y_i = 1,\,s_i \le s_j} \Big(\frac{y_j}{N(s_i)} - \frac{T(s_i)}{N(s_i)^2}\Big)
       \Big]

    at w = 1. `scores` and `labels` (1, 0, or -1: left out) are (n_images,); 0 everywhere for a tag
    without a positive. The sum over all images is 0.

    Examples
    --------
    >>> ap_gradient(np.array([0.9, 0.8, 0.7]), np.array([0, 1, 0], np.int8)).tolist()
    [-0.25, 0.25, 0.0]
    """
    gradient = np.zeros(len(scores))
    known = np.flatnonzero(labels != UNKNOWN)
    score, truth = scores[known], labels[known] == POSITIVE
    positives = int(truth.sum())
    if not positives:
        return gradient
    own = np.sort(score[truth])  # of the positives, ascending
    retrieved = len(score) - np.searchsorted(np.sort(score), own, side="left")  # N(s_i)
    found = positives - np.searchsorted(own, own, side="left")  # T(s_i)
    precision = found / retrieved
    # Sums over the k lowest positives of 1 / N and T / N²: image j takes those with s_i <= s_j.
    inverse = np.concatenate([[0.0], np.cumsum(1 / retrieved)])
    lost = np.concatenate([[0.0], np.cumsum(precision / retrieved)])
    below = np.searchsorted(own, score, side="right")
    value = truth * inverse[below] - lost[below]
    at_own = precision[np.searchsorted(own, score[truth], side="left")]
    value[truth] += at_own - precision.mean()
    gradient[known] = value / positives
    return gradient


def ap_deviations(
    scores: NDArray[np.floating],
    labels: NDArray[np.int8],
    row: NDArray[np.intp],
    n_products: int,
) -> Floats:
    """AP of one tag without each product minus that with all, (n_products,).

    `row` (n_images,) is the product of each image. Exact up to `MAX_EXACT_POSITIVES` positives; of
    more, where AP has next to no bias, to first order by `ap_gradient`. 0 for a product without
    which the tag has no positive.
    """
    known = labels != UNKNOWN
    score, truth, row = scores[known], labels[known] == POSITIVE, row[known]
    positives = int(truth.sum())
    if not positives:
        return np.zeros(n_products)
    if positives > MAX_EXACT_POSITIVES:
        gradient = ap_gradient(score, labels[known])
        return -np.bincount(row, gradient, minlength=n_products).astype(np.float64)
    own = np.sort(score[truth])  # of the positives, ascending
    # Images and positives of each product that score at least as much as each positive
    # (n_products, positives): a cell counts for the positives up to its own place.
    above, found = np.zeros((2, n_products, positives + 1), np.int64)
    place = np.searchsorted(own, score, side="right")
    np.add.at(above, (row, place), 1)
    np.add.at(found, (row[truth], place[truth]), 1)
    above = above[:, ::-1].cumsum(axis=1)[:, ::-1][:, 1:]
    found = found[:, ::-1].cumsum(axis=1)[:, ::-1][:, 1:]
    held = np.zeros((n_products, positives), bool)  # the product's own positives
    held[row[truth], np.argsort(np.argsort(score[truth], kind="stable"), kind="stable")] = True
    n_above, n_found = above.sum(axis=0), found.sum(axis=0)
    left = np.where(held, 0.0, (n_found - found) / np.maximum(n_above - above, 1)).sum(axis=1)
    n_left = positives - held.sum(axis=1)
    value = float(np.mean(n_found / n_above))
    return np.where(n_left > 0, left / np.maximum(n_left, 1) - value, 0.0)
