"""A stratified sample of (tag, C) pairs, and what it says of the whole grid."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

RANGES = 3  # parts of the grid that are sampled apart


class Pair(NamedTuple):
    """One sampled fit: its tag and C, its stratum, and how many fits of the stratum there are."""

    tag: int
    k: int
    stratum: int
    size: int


class Measured(NamedTuple):
    """One timed fit of a pair and its relative suboptimality."""

    pair: Pair
    seconds: float
    suboptimality: float


def sample_pairs(
    group: NDArray[np.str_], n_C: int, n_pairs: int, rng: np.random.Generator
) -> list[Pair]:
    """Pairs drawn without replacement, from every stratum in proportion to its size, at least 1."""
    part = np.arange(n_C) * RANGES // n_C
    pairs = []
    names = [(name, r) for name in np.unique(group) for r in range(RANGES)]
    for stratum, (name, r) in enumerate(names):
        tags, strengths = np.flatnonzero(group == name), np.flatnonzero(part == r)
        size = len(tags) * len(strengths)
        share = round(n_pairs * size / (len(group) * n_C))
        least = min(2, size) if n_pairs >= 2 * len(names) else min(1, size)
        for cell in rng.choice(size, min(size, max(share, least)), replace=False):
            tag, k = tags[cell // len(strengths)], strengths[cell % len(strengths)]
            pairs.append(Pair(int(tag), int(k), stratum, size))
    return pairs


def one_per_stratum(pairs: list[Pair]) -> list[Pair]:
    """The first pair of each stratum."""
    return list({pair.stratum: pair for pair in reversed(pairs)}.values())[::-1]


def grid_seconds(found: list[Measured]) -> tuple[float, float]:
    """Seconds of the whole grid, and the standard error of that; NaN from single pairs.

    Σ_h N_h·mean_h and sqrt(Σ_h N_h²·s_h²/n_h·(1 - n_h/N_h)) over strata h of N_h fits, n_h timed
    (Cochran 1977, Sampling Techniques, section 5.4).
    """
    total, variance = 0.0, 0.0
    for stratum in {one.pair.stratum for one in found}:
        inside = [one for one in found if one.pair.stratum == stratum]
        seconds, size, n = (
            np.array([one.seconds for one in inside]),
            inside[0].pair.size,
            len(inside),
        )
        total += size * float(seconds.mean())
        spread = float(seconds.var(ddof=1)) if n > 1 else float("nan")
        variance += size**2 * spread / n * (1 - n / size)
    return total, variance**0.5
