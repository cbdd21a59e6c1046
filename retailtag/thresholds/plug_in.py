"""Platt scaling pooled over tags, and the threshold that maximises the expected F-beta."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from retailtag.statistics.platt import fit_counts
from retailtag.thresholds.objectives import Objective
from retailtag.thresholds.ranking import Flat, RankedTag, are_many

BINS_OF_HITS = 1024  # quantiles of the positives' scores that divide the cells
BINS_OF_ALL = 256  # quantiles of all scores that divide them too
TAGS_AT_ONCE = 1024  # whose cells by bin are multiplied by probabilities: 10 MB of float64
LARGEST_SCORE = 1e4  # scores beyond are as certain as this

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Histogram:
    """Cells of several tags by score, highest bin first; n_bins without the empty ones."""

    score: Floats  # (n_bins,), mean of the cells inside
    cells: NDArray[np.int64]  # (n_tags, n_bins)
    hits: NDArray[np.int64]  # (n_tags, n_bins), those that carry the tag

    @classmethod
    def of(cls, tags: Sequence[RankedTag]) -> Histogram:
        """Count each tag's cells; the tags must have a positive among them."""
        edges = _edges(tags)
        if are_many(tags):
            return cls._of_many(tags, edges)
        cells = []
        hits = []
        total = np.zeros(len(edges) + 1)
        for tag in tags:
            at = tag.negated.searchsorted(edges, side="right")
            bounds = np.concatenate([[0], at, [len(tag.negated)]])
            cells.append(np.diff(bounds))
            inside = np.concatenate([[0], tag.hits.searchsorted(at), [tag.positives]])
            hits.append(np.diff(inside))
            total += _sums(-np.clip(tag.negated, -LARGEST_SCORE, LARGEST_SCORE), bounds)
        counts = np.stack(cells)
        used = counts.sum(axis=0) > 0
        score = total[used] / counts.sum(axis=0)[used]
        return cls(score, counts[:, used], np.stack(hits)[:, used])

    @classmethod
    def _of_many(cls, tags: Sequence[RankedTag], edges: NDArray[np.float32]) -> Histogram:
        """The same by the bin of every cell instead of the cells of every bin."""
        flat = Flat.of(tags)
        at = edges.searchsorted(flat.negated)  # edges[at - 1] < score <= edges[at]
        n_cells = np.bincount(at, minlength=len(edges) + 1)
        used = np.flatnonzero(n_cells)
        score = -np.clip(flat.negated, -LARGEST_SCORE, LARGEST_SCORE)
        total = np.bincount(at, score, minlength=len(edges) + 1)
        # Bins without the empty ones, of all tags in one count
        bins = np.searchsorted(used, at) + flat.tag * len(used)
        shape = (len(tags), len(used))
        size = len(tags) * len(used)
        return cls(
            total[used] / n_cells[used],
            np.bincount(bins, minlength=size).reshape(shape),
            np.bincount(bins[flat.present], minlength=size).reshape(shape),
        )

    def platt(self) -> tuple[float, float]:
        """Slope a and offset b of P(tag | score z) = 1/(1 + exp(-(a z + b))), one for all tags."""
        # Bin means stand for their cells: bins are narrow where positives are, and the error is
        # of second order in their width.
        return fit_counts(self.score, self.cells.sum(axis=0), self.hits.sum(axis=0))


def _edges(tags: Sequence[RankedTag]) -> NDArray[np.float32]:
    """Negated scores that end the bins, ascending."""
    hits = np.sort(np.concatenate([tag.negated_hits for tag in tags]))
    some = np.sort(np.concatenate([_spread(tag.negated, BINS_OF_ALL) for tag in tags]))
    return np.unique(np.concatenate([_spread(hits, BINS_OF_HITS), _spread(some, BINS_OF_ALL)]))


def _spread(ascending: NDArray[np.float32], n: int) -> NDArray[np.float32]:
    """At most n of the values, evenly spaced by rank."""
    if len(ascending) <= n:
        return ascending
    return ascending[np.linspace(0, len(ascending) - 1, n).astype(np.intp)]


def _sums(values: NDArray[np.float32], bounds: NDArray[np.int64]) -> Floats:
    """Sum of the values between each two bounds, 0 for an empty stretch."""
    return np.diff(np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])[bounds])


def plug_in_thresholds(tags: Sequence[RankedTag], objective: Objective) -> Floats:
    r"""Threshold of each tag that maximises its expected F-beta under pooled probabilities.

    The tags are of one frequency group. Float64 (n_tags,), NaN if higher scores do not mean more
    positives here, or no tag has a positive.

    Notes
    -----
    With :math:`p_i` the probability of the tag's i-th highest score,

    .. math:: F^* = \max_k \frac{(1+\beta^2) \sum_{i \le k} p_i}{k + \beta^2 \sum_i p_i}

    (the expectation of a ratio taken as the ratio of expectations), and the tag should be given to
    an image as long as :math:`(1+\beta^2)\,p \ge F^*`: the threshold is the score whose
    probability is :math:`F^*/(1+\beta^2)`, for F1 half the optimum.

    References
    ----------
    Lipton, Elkan & Naryanaswamy (2014), Optimal thresholding of classifiers to maximize F1
    measure, ECML; Ye, Chai, Lee & Chieu (2012), Optimizing F-measures: a tale of two approaches,
    ICML.
    """
    undefined = np.full(len(tags), np.nan)
    if not any(tag.positives for tag in tags):
        return undefined
    histogram = Histogram.of(tags)
    slope, offset = histogram.platt()
    if not slope > 0:
        return undefined
    probability = expit(slope * histogram.score + offset)
    best = np.empty(len(tags))
    for start in range(0, len(tags), TAGS_AT_ONCE):
        cells = histogram.cells[start : start + TAGS_AT_ONCE]
        expected = cells * probability
        # F* over the bins only: the maximum is flat, so their width matters in second order.
        tp = np.cumsum(expected, axis=1)
        f = objective.f(tp, np.cumsum(cells, axis=1), expected.sum(axis=1, keepdims=True))
        best[start : start + TAGS_AT_ONCE] = f.max(axis=1)
    # Where every probability underflows there is no expectation.
    p = np.where(best > 0, best / (1 + objective.beta2), np.nan)
    thresholds: Floats = (np.log(p) - np.log1p(-p) - offset) / slope  # logit(p) = slope·z + offset
    return thresholds
