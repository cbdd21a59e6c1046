"""Platt scaling pooled over tags, and the threshold that maximises the expected F-beta."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retailtag.probes.curves import RankedTag
from retailtag.probes.objectives import Objective

BINS_OF_HITS = 1024  # quantiles of the positives' scores that divide the cells
BINS_OF_ALL = 256  # quantiles of all scores that divide them too
LARGEST = 1e4  # scores beyond are as certain as this
STEPS = 100  # Newton steps at most

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Histogram:
    """Cells of several tags by score, highest bin first; n_bins without the empty ones.

    Parameters
    ----------
    score : ndarray of float64, shape (n_bins,)
        Mean of the cells inside.
    cells : ndarray of int64, shape (n_tags, n_bins)
    hits : ndarray of int64, shape (n_tags, n_bins)
        Those that carry the tag.
    """

    score: Floats
    cells: NDArray[np.int64]
    hits: NDArray[np.int64]

    @classmethod
    def of(cls, tags: Sequence[RankedTag]) -> Histogram:
        """Count each tag's cells; the tags must have a positive among them."""
        edges = _edges(tags)
        cells, hits, total = [], [], np.zeros(len(edges) + 1)
        for tag in tags:
            at = tag.negated.searchsorted(edges, side="right")
            bounds = np.concatenate([[0], at, [len(tag.negated)]])
            cells.append(np.diff(bounds))
            inside = np.concatenate([[0], tag.hits.searchsorted(at), [tag.positives]])
            hits.append(np.diff(inside))
            total += _sums(-np.clip(tag.negated, -LARGEST, LARGEST), bounds)
        counts = np.stack(cells)
        used = counts.sum(axis=0) > 0
        score = total[used] / counts.sum(axis=0)[used]
        return cls(score, counts[:, used], np.stack(hits)[:, used])


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


def fit_platt(histogram: Histogram) -> tuple[float, float]:
    r"""Slope a and offset b of P(tag | score z) = 1/(1 + exp(-(a z + b))), one for all tags.

    Parameters
    ----------
    histogram : Histogram

    Returns
    -------
    (float, float)
        The maximum of the likelihood of Platt's smoothed targets, :math:`(N_+ + 1)/(N_+ + 2)` for
        the :math:`N_+` positives and :math:`1/(N_- + 2)` for the rest, so that separated scores
        have one as well.

    Notes
    -----
    Newton steps with step halving in two dimensions, on bin means. The bins are narrow where
    positives are, and the error is of second order in their width.

    References
    ----------
    Platt (1999), Probabilistic outputs for support vector machines; Lin, Lin & Weng (2007), A note
    on Platt's probabilistic outputs, Machine Learning 68, for the Newton steps.
    """
    cells, hits = histogram.cells.sum(axis=0), histogram.hits.sum(axis=0)
    n, positives = int(cells.sum()), int(hits.sum())
    high, low = (positives + 1) / (positives + 2), 1 / (n - positives + 2)
    aimed = high * hits + low * (cells - hits)
    centre = float(np.average(histogram.score, weights=cells))
    spread = float(np.sqrt(np.average((histogram.score - centre) ** 2, weights=cells))) or 1.0
    z = np.stack([(histogram.score - centre) / spread, np.ones(len(cells))])
    start = np.array([0.0, np.log(aimed.sum() / (n - aimed.sum()))])
    slope, offset = _newton(z, cells.astype(np.float64), aimed, start)
    return slope / spread, offset - slope * centre / spread


def _newton(z: Floats, cells: Floats, aimed: Floats, theta: Floats) -> Floats:
    """Minimise Σ cells·log(1 + e^u) - aimed·u with u = theta·z; z (2, n_bins)."""

    def loss(theta: Floats) -> float:
        u = theta @ z
        return float(cells @ np.logaddexp(0, u) - aimed @ u)

    now = loss(theta)
    for _ in range(STEPS):
        p = expit(theta @ z)
        gradient = z @ (cells * p - aimed)
        hessian = (z * (cells * p * (1 - p))) @ z.T
        step = np.linalg.solve(hessian + 1e-9 * np.trace(hessian) * np.eye(2), gradient)
        size = 1.0
        while (then := loss(theta - size * step)) > now and size > 1e-6:
            size /= 2
        if size <= 1e-6:
            break
        theta, gain, now = theta - size * step, now - then, then
        if gain <= 1e-13 * abs(now):
            break
    return theta


def expit(u: Floats) -> Floats:
    """1 / (1 + exp(-u)) without overflow."""
    result: Floats = 0.5 * (1 + np.tanh(0.5 * u))
    return result


def plug_in_thresholds(tags: Sequence[RankedTag], objective: Objective) -> Floats:
    r"""Threshold of each tag that maximises its expected F-beta under pooled probabilities.

    Parameters
    ----------
    tags : sequence of RankedTag
        Of one frequency group, with at least one positive among them.
    objective : Objective

    Returns
    -------
    ndarray of float64, shape (n_tags,)
        NaN if higher scores do not mean more positives here.

    Notes
    -----
    With :math:`p_i` the probability of the tag's i-th highest score,

    .. math:: F^* = \max_k \frac{(1+\beta^2) \sum_{i \le k} p_i}{k + \beta^2 \sum_i p_i}

    (the expectation of a ratio taken as the ratio of expectations), and it pays to give the tag to
    an image as long as :math:`(1+\beta^2)\,p \ge F^*`: the threshold is the score whose
    probability is :math:`F^*/(1+\beta^2)`, for F1 half the optimum. F* is taken over the bins of
    `Histogram`; a maximum is flat, so their width matters in second order only.

    References
    ----------
    Lipton, Elkan & Naryanaswamy (2014), Optimal thresholding of classifiers to maximize F1
    measure, ECML; Ye, Chai, Lee & Chieu (2012), Optimizing F-measures: a tale of two approaches,
    ICML.
    """
    histogram = Histogram.of(tags)
    slope, offset = fit_platt(histogram)
    if not slope > 0:
        return np.full(len(tags), np.nan)
    expected = histogram.cells * expit(slope * histogram.score + offset)
    given = np.cumsum(histogram.cells, axis=1)
    best = objective.f(np.cumsum(expected, axis=1), given, expected.sum(axis=1, keepdims=True)).max(
        axis=1
    )
    # Where every probability underflows there is no expectation to go by.
    p = np.where(best > 0, best / (1 + objective.beta2), np.nan)
    thresholds: Floats = (np.log(p) - np.log1p(-p) - offset) / slope
    return thresholds
