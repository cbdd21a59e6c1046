"""Effect sizes with intervals that count groups, not images."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from retailtag.statistics.drift import Estimate

Z = 1.959964  # of a two-sided 95 % interval
Floats = NDArray[np.float64]
Codes = NDArray[np.intp]
Labels = NDArray[np.bool_]


def _of_groups(values: Floats, group: Codes) -> Floats:
    """Sums of values (n, ...) by group."""
    sums = np.zeros((int(group.max()) + 1, *values.shape[1:]))
    np.add.at(sums, group, values)
    return sums


def superiority(reference: Floats, new: Floats, groups: tuple[Codes, Codes]) -> Estimate:
    """P(new > reference) + P(new = reference) / 2 of images drawn at random, with its interval.

    Parameters
    ----------
    reference, new : ndarray of float64, shapes (n_reference,) and (n_new,)
    groups : pair of ndarray of int
        Group of each image, from 0, of either side.

    Notes
    -----
    The area under the ROC curve of "is new". Its variance is that of the mean placements, summed by
    group; the interval is made on the logit scale, so that it stays within 0 and 1.

    References
    ----------
    DeLong, DeLong and Clarke-Pearson, Biometrics 44, 1988; Obuchowski, "Nonparametric analysis of
    clustered ROC curve data", Biometrics 53, 1997.

    Examples
    --------
    >>> one = np.arange(4)
    >>> superiority(np.array([1.0, 2, 3, 4]), np.array([2.0, 3, 4, 5]), (one, one)).value
    0.71875
    """
    if not len(reference) or not len(new):
        return Estimate(np.nan, np.nan, np.nan)
    return _within_unit(*_area(reference, new, groups), min(len(np.unique(g)) for g in groups))


def halved_superiority(
    scores: tuple[Floats, Floats], groups: tuple[Codes, Codes], halves: tuple[Labels, Labels]
) -> Estimate:
    """`superiority` of scores that were fitted on the other half of each side.

    The areas of both halves are averaged. Without a shift they are nearly the same number, since
    the score of either half is about the product of both halves' differences: the variance is
    that of one half.
    """
    areas = []
    for half in (False, True):
        own = [halves[side] == half for side in (0, 1)]
        a, b = (scores[side][own[side]] for side in (0, 1))
        areas.append(_area(a, b, (groups[0][own[0]], groups[1][own[1]])))
    value, variance = np.mean(areas, axis=0).tolist()
    sides = list(zip(groups, halves, strict=True))
    fewest = min(len(np.unique(group[half == k])) for group, half in sides for k in (False, True))
    return _within_unit(value, variance, fewest)


def _area(reference: Floats, new: Floats, groups: tuple[Codes, Codes]) -> tuple[float, float]:
    """Area under the ROC curve, and its variance by groups."""
    of_new = _below(np.sort(reference), new)
    of_reference = 1 - _below(np.sort(new), reference)
    value = float(of_new.mean())
    variance = 0.0
    for placements, group in ((of_reference, groups[0]), (of_new, groups[1])):
        sums = _of_groups(placements - value, group)
        n = len(np.unique(group))
        variance += float((sums**2).sum()) / len(placements) ** 2 * n / max(n - 1, 1)
    return value, variance


def _within_unit(value: float, variance: float, n: int) -> Estimate:
    """Interval of an area, made on the logit scale; `n` groups of the smaller side."""
    edge = 0.5 / n
    inside = float(np.clip(value, edge, 1 - edge))
    if variance == 0:  # all new images above all others: the bound of Birnbaum and Klose
        variance = inside * (1 - inside) / n
    half = Z * np.sqrt(variance) / (inside * (1 - inside))
    centre = np.log(inside / (1 - inside))
    low, high = (float(1 / (1 + np.exp(-(centre + sign * half)))) for sign in (-1, 1))
    return Estimate(value, min(low, value), max(high, value))


def _below(ordered: Floats, values: Floats) -> Floats:
    """Share of `ordered` values under each value, equal ones counted half."""
    left = np.searchsorted(ordered, values, side="left")
    right = np.searchsorted(ordered, values, side="right")
    return (left + right) / (2 * len(ordered))


def rates(cells: NDArray[np.bool_], group: Codes) -> tuple[Floats, Floats]:
    """Share of images of each column (n_columns,), and the independent images that it is worth.

    Images of one group resemble each other: n images are worth n / deff, where deff is the variance
    of the share by groups over that of independent images, between 1 and the size of a group.
    """
    n = len(cells)
    share = cells.mean(axis=0)
    sizes = np.bincount(group).astype(np.float64)
    sums = _of_groups(cells.astype(np.float64), group) - sizes[:, None] * share
    plain = n * share * (1 - share)
    # a share of 0 or 1 tells nothing about its variance: groups then count as one image each
    whole = float((sizes**2).sum() / n)
    deff = np.divide((sums**2).sum(axis=0), plain, out=np.full(len(share), whole), where=plain > 0)
    return share, n / np.clip(deff, 1, max(whole, 1))


def wilson(share: Floats, n: Floats) -> tuple[Floats, Floats]:
    """Ends of Wilson's 95 % interval of shares of `n` independent images.

    Examples
    --------
    >>> low, high = wilson(np.array([0.1]), np.array([50.0]))
    >>> low.round(3).tolist(), high.round(3).tolist()
    ([0.043], [0.214])
    """
    centre = (share + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z / (1 + Z**2 / n) * np.sqrt(share * (1 - share) / n + Z**2 / (4 * n**2))
    return np.minimum(centre - half, share).clip(0, 1), np.maximum(centre + half, share).clip(0, 1)


def rate_estimates(
    reference: tuple[Floats, Floats], new: tuple[Floats, Floats]
) -> list[tuple[Estimate, Estimate, Estimate]]:
    """Reference, new and difference of every column, from what `rates` gives for either side.

    References
    ----------
    Newcombe, "Interval estimation for the difference between independent proportions", Statistics
    in Medicine 17, 1998, method 10.
    """
    (a, n), (b, m) = reference, new
    a_low, a_high = wilson(a, n)
    b_low, b_high = wilson(b, m)
    low = b - a - np.sqrt((b - b_low) ** 2 + (a_high - a) ** 2)
    high = b - a + np.sqrt((b_high - b) ** 2 + (a - a_low) ** 2)
    sides = ((a, a_low, a_high), (b, b_low, b_high), (b - a, low, high))
    return [
        (Estimate(*row[0:3]), Estimate(*row[3:6]), Estimate(*row[6:9]))
        for row in np.stack([values for side in sides for values in side], axis=1).tolist()
    ]
