"""95 % intervals of one tag's F1 and of a macro average; ``benchmarks/coverage.py`` tests both."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from retailtag.scoring.bootstrap import ProductCounts
from retailtag.scoring.jackknife import Jackknife
from retailtag.scoring.metrics import Floats, ratio

Z = NormalDist().inv_cdf(0.975)  # two-sided 95 %


def wilson_f1(counts: ProductCounts, event_products: NDArray[np.int64]) -> Floats:
    """Wilson's 95 % score interval of every tag's F1, (2, n_tags); NaN without a positive.

    The trials are `event_products` (n_tags,), the products with an image that carries the tag or
    was given it, because photographs of one product are not independent. Unlike a bootstrap
    interval it has a width where no or every image is right.

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
    tp, predicted, positives = counts.totals()
    # Of the images that carry the tag or were given it (TP + FP + FN), TP do both: a binomial
    # share, the Jaccard index J = TP / (TP + FP + FN).
    share = np.where(positives > 0, ratio(tp, predicted + positives - tp), np.nan)
    n = np.maximum(event_products, 1)
    # Wilson: the p for which |J - p| = Z sqrt(p (1 - p) / n), the two roots of a quadratic in p.
    middle = (share + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z * np.sqrt(share * (1 - share) / n + Z**2 / (4 * n**2)) / (1 + Z**2 / n)
    jaccard = np.clip(np.stack([middle - half, middle + half]), 0.0, 1.0)
    # F1 = 2 TP / (2 TP + FP + FN) = 2 J / (1 + J) rises with J, so its interval is J's, mapped.
    value = 2 * share / (1 + share)
    low, high = 2 * jaccard / (1 + jaccard)
    return np.stack([np.minimum(low, value), np.maximum(high, value)])


def macro_interval(jack: Jackknife, scope: int) -> tuple[float, float]:
    r"""95 % interval of macro-F1 over the tags of a scope that have a positive.

    .. math:: \hat\theta - \hat b \pm 1.96 \sqrt{\hat v + \hat v_1}

    `scope` is its row in `jack`. Low and high lie in [0, 1], with the estimate between them; NaN if
    no tag has a positive.

    The truth is the mean, over the averaged tags, of the F1 that this model with these thresholds
    has in the population. Percentile and BCa bootstrap intervals miss it on 5,000 images, for two
    reasons; each has its term here.

    * F1 is a ratio, so from few positives it comes out too low by about F1 (1 - F1) / (2TP+FP+FN):
      the jackknife bias :math:`\hat b` is taken off. Bootstrap replicates show less of it, and
      those in which rare, hard tags vanish are shifted the other way.
    * A tag whose positives lie on a single product has no spread that resampling could show: it
      is as it is, or it vanishes. :math:`\hat v_1` is the spread of these tags among themselves
      (collapsed strata: true differences between them count as noise, which errs to the wide
      side), with a 0 and a 1 added as Agresti and Coull do for shares; their bias is taken as 0.

    References
    ----------
    Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapters 10 and 11; Wolter,
    "Introduction to Variance Estimation", 2007, section 2.5 (collapsed strata); Agresti and Coull,
    "Approximate is better than exact", The American Statistician 1998.
    """
    averaged = jack.scopes[scope] & ~np.isnan(jack.f1)
    n_tags = int(averaged.sum())
    if not n_tags:
        return float("nan"), float("nan")
    single = averaged & (jack.positive_products < 2)
    estimate = float(jack.f1[averaged].mean())
    bias = float(jack.bias[averaged & ~single].sum()) / n_tags
    variance = float(jack.scope_variance[scope])
    if single.any():
        spread = np.append(jack.f1[single], (0.0, 1.0)).var(ddof=1)
        # The mean of n_tags values has 1 / n_tags² of the variance of their sum. The jackknife's
        # own variance of these tags is in scope_variance already, so only the excess is added.
        own = float(jack.variance[single].sum())
        variance += max(0.0, float(single.sum() * spread) - own) / n_tags**2
    half = Z * variance**0.5
    low = estimate - bias - half
    high = estimate - bias + half
    return max(0.0, min(low, estimate)), min(1.0, max(high, estimate))
