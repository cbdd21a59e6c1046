"""95 % intervals: percentile and BCa of any statistic, and those that are shown to cover.

The headline of a macro-F1 is `macro_interval`, that of one tag's F1 `wilson_f1`;
``benchmarks/coverage.py`` compares all of them where the truth is known.
"""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from retailtag.scoring.bootstrap import ProductCounts
from retailtag.scoring.jackknife import Jackknife
from retailtag.scoring.metrics import Floats, ratio

LEVELS = (0.025, 0.975)
_NORMAL = NormalDist()
Z = _NORMAL.inv_cdf(LEVELS[1])


def quantiles(columns: Floats, levels: Floats) -> Floats:
    """Quantiles of each column with NaN left out, linear between order statistics.

    Parameters
    ----------
    columns : ndarray of float64, shape (n_replicates, m)
        Sorted down each column, NaN last, as ``numpy.sort`` leaves them.
    levels : ndarray of float64, shape (n_levels, m)
        In [0, 1].

    Returns
    -------
    ndarray of float64, shape (n_levels, m)
        NaN for a column without a number.

    Examples
    --------
    >>> quantiles(np.array([[1.0], [2.0], [np.nan]]), np.array([[0.25], [1.0]])).tolist()
    [[1.25], [2.0]]
    """
    count = (~np.isnan(columns)).sum(axis=0)
    place = np.where(np.isnan(levels), 0.0, levels) * np.maximum(count - 1, 0)
    below = np.floor(place).astype(np.intp)
    above = np.minimum(below + 1, np.maximum(count - 1, 0))
    low = np.take_along_axis(columns, below, axis=0)
    high = np.take_along_axis(columns, above, axis=0)
    value = low + (place - below) * (high - low)
    return np.where(np.isnan(levels), np.nan, value)


def percentile_intervals(ordered: Floats) -> Floats:
    """Central 95 % of each sorted column, (n_replicates, m) to (2, m)."""
    levels = np.repeat(np.array(LEVELS)[:, None], ordered.shape[1], axis=1)
    return quantiles(ordered, levels)


def bca_intervals(estimate: Floats, ordered: Floats, acceleration: Floats) -> Floats:
    r"""Bias-corrected and accelerated bootstrap intervals, 95 %.

    .. math::
        \alpha_q = \Phi\left(z_0 + \frac{z_0 + z_q}{1 - a\,(z_0 + z_q)}\right), \qquad
        z_0 = \Phi^{-1}\left(\frac{\#\{\theta^* < \hat\theta\}
              + \tfrac12 \#\{\theta^* = \hat\theta\}}{B}\right)

    with the quantiles of the replicates at :math:`\alpha_{0.025}` and :math:`\alpha_{0.975}`.

    Parameters
    ----------
    estimate : ndarray of float64, shape (m,)
        On the data as it is.
    ordered : ndarray of float64, shape (n_replicates, m)
        Replicates, sorted down each column, NaN last (left out).
    acceleration : ndarray of float64, shape (m,)
        From the jackknife.

    Returns
    -------
    ndarray of float64, shape (2, m)
        NaN where all replicates lie on one side of the estimate: no bootstrap interval holds it.

    References
    ----------
    Efron, "Better bootstrap confidence intervals", JASA 1987; ties as in ``scipy.stats.bootstrap``.
    """
    count = (~np.isnan(ordered)).sum(axis=0)
    side = ratio((ordered < estimate).sum(axis=0) + (ordered <= estimate).sum(axis=0), 2 * count)
    levels = np.full((2, len(estimate)), np.nan)
    for j, (share, a) in enumerate(zip(side.tolist(), acceleration.tolist(), strict=True)):
        if 0 < share < 1:
            z0 = _NORMAL.inv_cdf(share)
            levels[:, j] = [_bca_level(z0, a, sign * Z) for sign in (-1, 1)]
    return quantiles(ordered, levels)


def _bca_level(z0: float, acceleration: float, z: float) -> float:
    shrink = 1 - acceleration * (z0 + z)
    # past the pole of the formula the level has reached its end
    return _NORMAL.cdf(z0 + (z0 + z) / shrink) if shrink > 0 else float(z > 0)


def wilson_f1(counts: ProductCounts, event_products: NDArray[np.int64]) -> Floats:
    r"""95 % score interval of every tag's F1.

    Among the images that carry the tag or were given it, those that do both are a binomial share,
    the Jaccard index J, and :math:`F_1 = 2J / (1 + J)` rises with it: Wilson's interval of J,
    mapped. Unlike a bootstrap it has a width where no or every image is right.

    Parameters
    ----------
    counts : ProductCounts
        Of one model.
    event_products : ndarray of int64, shape (n_tags,)
        Products with an image that carries the tag or was given it: the trials counted, since
        photographs of one product are not independent.

    Returns
    -------
    ndarray of float64, shape (2, n_tags)
        Low and high; NaN for a tag without a positive.

    References
    ----------
    Wilson, JASA 1927; Lam, Gopal and Qian, "Confidence intervals for the F1 score: a comparison of
    four methods", arXiv:2309.14621 (the indirect Wilson interval).

    Examples
    --------
    >>> from retailtag.scoring.bootstrap import count_by_product
    >>> truth = np.ones((4, 1), np.int8)
    >>> counts = count_by_product(np.zeros((4, 1), bool), truth, np.array(list("abcd")))
    >>> wilson_f1(counts, np.array([4])).round(3).tolist()
    [[0.0], [0.658]]
    """
    tp, predicted, positives = (
        m.sum(axis=0, dtype=np.float64) for m in (counts.tp, counts.predicted, counts.positives)
    )
    share = np.where(positives > 0, ratio(tp, predicted + positives - tp), np.nan)
    n = np.maximum(event_products, 1)
    middle = (share + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z * np.sqrt(share * (1 - share) / n + Z**2 / (4 * n**2)) / (1 + Z**2 / n)
    jaccard = np.clip(np.stack([middle - half, middle + half]), 0.0, 1.0)
    value = 2 * share / (1 + share)
    low, high = 2 * jaccard / (1 + jaccard)
    return np.stack([np.minimum(low, value), np.maximum(high, value)])


def macro_interval(jack: Jackknife, scope: int, inside: NDArray[np.bool_]) -> tuple[float, float]:
    r"""95 % interval of macro-F1 over the averaged tags: the one that is shown to cover.

    .. math:: \hat\theta - \hat b \pm 1.96 \sqrt{\hat v + \hat v_1}

    Parameters
    ----------
    jack : Jackknife
        Moments of the model over products.
    scope : int
        Row of the scope in `jack`.
    inside : ndarray of bool, shape (n_tags,)
        Tags of the scope; those without a positive take no part.

    Returns
    -------
    tuple of float
        Low and high, in [0, 1]; they hold the estimate; NaN if no tag is averaged.

    Notes
    -----
    The truth is the mean, over the averaged tags, of the F1 that this model with these thresholds
    has in the population. Two things keep bootstrap intervals from it, and each has its term.

    * F1 is a ratio, so from few positives it comes out too low by about F1 (1 - F1) / (2TP+FP+FN):
      the jackknife bias :math:`\hat b` is taken off. Bootstrap replicates show less of it, and
      those that leave vanished (rare, hard) tags out are shifted the other way.
    * A tag whose positives lie on a single product has no spread that resampling could show: it
      is as it is, or it vanishes. :math:`\hat v_1` is the spread of these tags among themselves
      (collapsed strata: true differences between them are counted as noise, which errs to the
      wide side), with a 0 and a 1 added as Agresti and Coull do for shares; their bias is taken
      as 0.

    References
    ----------
    Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapters 10 and 11; Wolter,
    "Introduction to Variance Estimation", 2007, section 2.5 (collapsed strata); Agresti and Coull,
    "Approximate is better than exact", The American Statistician 1998.
    """
    kept = inside & ~np.isnan(jack.f1)
    n_tags = int(kept.sum())
    if not n_tags:
        return float("nan"), float("nan")
    single = kept & (jack.positive_products < 2)
    estimate = float(jack.f1[kept].mean())
    bias = float(jack.tags.bias[kept & ~single].sum()) / n_tags
    variance = float(jack.scopes.variance[scope])
    if single.any():
        spread = np.append(jack.f1[single], (0.0, 1.0)).var(ddof=1)
        own = float(jack.tags.variance[single].sum())
        variance += max(0.0, float(single.sum() * spread) - own) / n_tags**2
    half = Z * variance**0.5
    low, high = estimate - bias - half, estimate - bias + half
    return max(0.0, min(low, estimate)), min(1.0, max(high, estimate))
