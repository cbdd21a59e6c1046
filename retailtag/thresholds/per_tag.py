"""A tag's own threshold: at its best cut, or averaged over bootstrap replicates."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from retailtag.thresholds.objectives import Objective
from retailtag.thresholds.ranking import Cuts, RankedTag

N_REPLICATES = 25

Floats = NDArray[np.float64]


def best_own_threshold(cuts: Cuts, positives: int, objective: Objective) -> float:
    """Threshold of one tag with the largest F-beta; of equal ones the highest."""
    best = int(np.argmax(objective.f(cuts.tp, cuts.given, positives)))
    return float(cuts.threshold[best])


def lowest_own_threshold(
    tag: RankedTag, precision: float, prior: tuple[Floats, Floats] | None = None
) -> float:
    """Lowest threshold of one tag at which the precision is reached, ``inf`` if it never is.

    `prior` holds positives and cells, both (n_cuts,), that are added to those above each cut.
    """
    # Just below a positive: going on to the next positive through negatives alone would lower
    # the precision and not raise the recall.
    cuts = tag.cuts
    hits, cells = prior or (0, 0)
    reached = np.flatnonzero(cuts.tp + hits >= precision * (cuts.given + cells))
    return float(cuts.threshold[reached[-1]]) if len(reached) else float("inf")


class Replicates:
    """Poisson bootstrap replicates of a ranking, the same weights on ranks for every tag.

    A positive is weighted by its rank among the positives, a negative among the negatives.

    References
    ----------
    Breiman (1996), Bagging predictors; Hanley & MacGibbon (2006), Creating non-parametric
    bootstrap samples using Poisson frequencies, for the weights.
    """

    # Image i of a replicate counts Poisson(1) times, independently of all others, so weights can
    # be drawn by rank as well as by image. That makes the result independent of the order of the
    # images and lets all tags and folds share one cumulative sum. Tags then share their weights
    # rank by rank, which no tag's own threshold can see. Ranks are counted within positives and
    # within negatives: two cells with nearly equal scores that change places then change the count
    # of one cut by one cell; on common ranks they would change weights too, and every cut below.

    def __init__(self, n_images: int, seed: int) -> None:
        draw = np.random.default_rng(seed).poisson(1.0, (2, N_REPLICATES, n_images + 1))
        draw[..., 0] = 0  # the sum over no cell
        self._negatives, self._positives = np.cumsum(draw, axis=-1, dtype=np.int32)

    @property
    def draw_one(self) -> bool:
        """Whether a replicate draws the positive of a tag that has one."""
        return bool(self._positives[:, 1:2].any())

    def threshold(self, tag: RankedTag, objective: Objective) -> float:
        """Mean of the replicates' best finite thresholds; NaN if none of them has one."""
        cuts = tag.cuts
        positives = self._positives[:, tag.positives, None]
        # Weighted TP and k of every cut, (N_REPLICATES, n_cuts).
        tp = self._positives[:, cuts.tp]
        given = tp + self._negatives[:, cuts.given - cuts.tp]
        value = objective.f(tp, given, positives)
        best = cuts.threshold[np.argmax(value, axis=1)[positives[:, 0] > 0]]
        best = best[np.isfinite(best)]
        return float(best.mean(dtype=np.float64)) if len(best) else float("nan")
