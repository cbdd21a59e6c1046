"""Typical times with intervals, and ratios of times that were measured in turn.

The tasks of one measurement run in turns: each turn visits every task once. Within a visit calls
follow one another closely and share what else the machine is doing, so the medians of the visits,
not the calls, are the observations. Turns differ by rare and large disturbances: the estimates are
those of Hodges and Lehmann with the intervals of Wilcoxon's signed-rank test, which assume no
distribution, on logarithms, so that times and ratios of times follow one rule.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95
BOOTSTRAPS = 400  # replicates of an interval
MIN_TURNS = 6  # with fewer no signed-rank interval reaches 95 %


class Typical(NamedTuple):
    """A typical time or ratio with its 95 % interval."""

    value: float
    low: float
    high: float

    @property
    def width(self) -> float:
        """Half the interval as a share of the value."""
        return (self.high - self.low) / (2 * self.value)


def typical(times: Sequence[float]) -> Typical:
    """Typical value of positive times, one per turn, with its 95 % interval.

    Fewer than six turns give their range instead.

    Examples
    --------
    >>> [round(v, 2) for v in typical([10, 11, 9, 10, 10, 10, 60])]
    [10.0, 9.49, 24.49]
    """
    logs = np.log(np.asarray(times, np.float64))
    # Walsh averages: means of every two observations, and of each with itself.
    i, j = np.triu_indices(len(logs))
    walsh = np.sort((logs[i] + logs[j]) / 2)
    dropped = _dropped(len(logs))
    bounds = (walsh[dropped], walsh[-1 - dropped])
    value, low, high = np.exp([np.median(walsh), *bounds])
    return Typical(float(value), float(low), float(high))


def ratio(a: Sequence[float], b: Sequence[float]) -> Typical:
    """Typical ratio of the times of `a` to those of `b`, measured in the same turns.

    What slows a whole turn down cancels, so that a ratio is often known far better than the times.

    Examples
    --------
    >>> turns = [1.0, 1.1, 3.0, 1.0, 2.0, 1.2]
    >>> [round(v, 2) for v in ratio([2 * t for t in turns], turns)]
    [2.0, 2.0, 2.0]
    """
    quotients: NDArray[np.float64] = np.asarray(a, np.float64) / np.asarray(b, np.float64)
    return typical(quotients.tolist())


def quantile(turns: Sequence[NDArray[np.float64]], q: float) -> Typical:
    """Quantile of the calls of all turns, with the 95 % interval of a bootstrap over turns."""
    draws = np.random.default_rng(0).integers(len(turns), size=(BOOTSTRAPS, len(turns)))
    drawn = [np.quantile(np.concatenate([turns[i] for i in draw]), q) for draw in draws]
    low, high = np.quantile(drawn, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Typical(float(np.quantile(np.concatenate(turns), q)), float(low), float(high))


@cache
def _dropped(n: int) -> int:
    """Walsh averages beyond either end of the interval for n turns."""
    if n < MIN_TURNS:
        return 0
    # chance[w] that the signed-rank statistic, a sum of ranks 1 to n with fair coins, is w
    chance = np.ones(1)
    for rank in range(1, n + 1):
        without = np.append(chance, np.zeros(rank))
        chance = (without + np.roll(without, rank)) / 2
    # The k-th smallest average bounds the interval from below if P(W <= k - 1) is in the tail.
    return int(np.searchsorted(np.cumsum(chance), (1 - CONFIDENCE) / 2, side="right")) - 1
