"""A tag's own threshold: at its best cut, averaged over bootstrap replicates, or smoothed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from retailtag.thresholds.objectives import Objective
from retailtag.thresholds.ranking import Cuts, RankedTag

REPLICATES = 25
WIDTH = 0.45  # of the smoothing, in standard deviations at one positive
STEPS_A_WIDTH = 8  # points of the smoothed curve in one bandwidth
MOST_POINTS = 4096  # of a smoothed curve

Floats = NDArray[np.float64]


def best_own_threshold(cuts: Cuts, positives: int, objective: Objective) -> float:
    """Threshold of one tag with the largest F-beta; of equal ones the highest."""
    best = int(np.argmax(objective.f(cuts.tp, cuts.given, positives)))
    return float(cuts.threshold[best])


def lowest_own_threshold(
    tag: RankedTag, precision: float, prior: tuple[Floats, Floats] | None = None
) -> float:
    """Lowest threshold of one tag at which the precision is reached, ``inf`` if it never is.

    Parameters
    ----------
    tag : RankedTag
        With a positive.
    precision : float
    prior : (ndarray of float64 (n_cuts,), ndarray of float64 (n_cuts,)), optional
        Positives and cells that are added to those above each cut.

    Notes
    -----
    The lowest cut just below a positive: going on to the next positive through negatives alone
    would lower the precision and not raise the recall.
    """
    cuts = tag.cuts
    hits, cells = prior or (0, 0)
    reached = np.flatnonzero(cuts.tp + hits >= precision * (cuts.given + cells))
    return float(cuts.threshold[reached[-1]]) if len(reached) else float("inf")


class Replicates:
    """Poisson bootstrap replicates of a ranking, the same weights on ranks for every tag.

    Parameters
    ----------
    n_images : int
        Longest ranking.
    seed : int

    Notes
    -----
    Image i of a replicate counts Poisson(1) times, independently of all others. Independent
    weights can be drawn by rank as well as by image, which makes the result independent of the
    order of the images and lets all tags and folds share one cumulative sum. Tags then share
    their weights rank by rank, which no tag's own threshold can see.

    References
    ----------
    Breiman (1996), Bagging predictors; Hanley & MacGibbon (2006), Creating non-parametric
    bootstrap samples using Poisson frequencies, for the weights.
    """

    def __init__(self, n_images: int, seed: int) -> None:
        draw = np.random.default_rng(seed).poisson(1.0, (REPLICATES, n_images))
        self._weight = draw.astype(np.uint8)
        self._total = np.cumsum(self._weight, axis=1, dtype=np.int32)

    def threshold(self, tag: RankedTag, objective: Objective) -> float:
        """Mean of the replicates' best finite thresholds; NaN if none of them has one."""
        cuts = tag.cuts
        found = np.cumsum(self._weight[:, tag.hits], axis=1, dtype=np.int32)
        positives = found[:, -1:]
        value = objective.f(found[:, cuts.tp - 1], self._total[:, cuts.given - 1], positives)
        best = cuts.threshold[np.argmax(value, axis=1)[positives[:, 0] > 0]]
        best = best[np.isfinite(best)]
        return float(best.mean(dtype=np.float64)) if len(best) else float("nan")


def smoothed_thresholds(tags: Sequence[RankedTag], objective: Objective) -> Floats:
    r"""Threshold of each tag that maximises its kernel-smoothed F-beta.

    Parameters
    ----------
    tags : sequence of RankedTag
        Of one frequency group, each with a positive.
    objective : Objective

    Returns
    -------
    ndarray of float64, shape (n_tags,)
        The best own threshold where no two positives of a tag of the group differ.

    Notes
    -----
    The expected F-beta of a threshold when the next model's scores all lie a little higher or
    lower, by a normal of width h:

    .. math:: F_h(t) = \int F_\beta(t + h u)\, \varphi(u)\, du

    maximised over points h/8 apart. :math:`h = 0.45\,s\,P^{-1/5}`, half of Silverman's width, with
    s the standard deviation of positives' scores within tags, pooled over the group because a
    rare tag has too few to tell its own. In simulated worlds (``benchmarks/thresholds.py``, other
    draws than the published ones) half was best, a quarter and the whole close behind, and
    smoothing the counts in place of F far worse at the whole width: the false alarms rise
    exponentially towards lower thresholds, so smoothing them moves the optimum up.

    References
    ----------
    Nadaraya (1964), On estimating regression; Watson (1964), Smooth regression analysis;
    Silverman (1986), Density estimation, eq. 3.31, for the width.
    """
    s = _pooled_spread([tag.negated_hits for tag in tags])
    return np.array(
        [
            _smoothed(tag, WIDTH * s * tag.positives**-0.2, objective)
            if s > 0
            else best_own_threshold(tag.cuts, tag.positives, objective)
            for tag in tags
        ]
    )


def _pooled_spread(values: Sequence[NDArray[np.float32]]) -> float:
    """Standard deviation within the arrays, pooled; infinite values left out."""
    finite = [v[np.isfinite(v)].astype(np.float64) for v in values]
    squares = sum(float(((v - v.mean()) ** 2).sum()) for v in finite if len(v))
    free = sum(len(v) - 1 for v in finite if len(v))
    return (squares / free) ** 0.5 if free else 0.0


def _smoothed(tag: RankedTag, h: float, objective: Objective) -> float:
    scores = -tag.negated_hits[np.isfinite(tag.negated_hits)].astype(np.float64)
    if not len(scores):
        return best_own_threshold(tag.cuts, tag.positives, objective)
    step = max(h / STEPS_A_WIDTH, float(np.ptp(scores)) / MOST_POINTS)
    reach = int(np.ceil(4 * h / step))
    n = int(np.ceil(np.ptp(scores) / step)) + 1
    points = scores.max() - step * np.arange(-2 * reach, n + 2 * reach)
    tp, given = tag.counts_at(points.astype(np.float32))
    kernel = np.exp(-0.5 * (step / h * np.arange(-reach, reach + 1)) ** 2)
    value = np.convolve(objective.f(tp, given, tag.positives), kernel / kernel.sum(), mode="valid")
    return float(points[reach + int(np.argmax(value))])
