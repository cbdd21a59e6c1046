"""95 % intervals of a tag's F1, of a macro average and of the difference of two.

``benchmarks/coverage.py`` tests them against known truths.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from retailtag.scoring.bootstrap import ProductCounts
from retailtag.scoring.jackknife import Jackknife, variance_of
from retailtag.scoring.metrics import Floats, ratio

Z = NormalDist().inv_cdf(0.975)  # two-sided 95 %
# Share of the jackknife bias that is taken off a tag on a single product. Without the product the
# tag vanishes, so half of what the jackknife looks at is missing: all of the bias takes off too
# much and none of it too little (``benchmarks/coverage.py``, in worlds of both kinds of models).
SINGLE_SHARE = 0.5


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


@dataclass(frozen=True)
class Estimate:
    """A macro-F1 in the population, with its 95 % interval; in [0, 1], NaN without a tag."""

    value: float
    low: float
    high: float


def population_f1(jack: Jackknife, scope: int) -> float:
    r"""Estimate the macro-F1 in the population: that on these images less its jackknife bias.

    `scope` is its row in `jack`; in [0, 1], NaN if no tag has a positive. F1 is a ratio, so from
    few positives it comes out too low, by about F1 (1 - F1) / (2TP+FP+FN). Of a tag on a single
    product it comes out too high where it has false alarms: rarer than one positive in the split,
    it is averaged only when it has one. The jackknife shows both; of a tag on a single product
    `SINGLE_SHARE` of it is taken off.
    """
    inside = jack.averaged[scope]
    if not inside.any():
        return math.nan
    bias = np.where(jack.single, SINGLE_SHARE, 1.0) * jack.bias
    return float(np.clip((jack.f1 - bias)[inside].mean(), 0.0, 1.0))


def macro_estimate(runs: Sequence[Jackknife], scope: int = 0) -> Estimate:
    r"""Macro-F1 in the population over the tags of a scope that have a positive, and its interval.

    .. math:: \hat\theta - \hat b \pm 1.96 \sqrt{\hat v + \hat v_1 + s^2 / n}

    `runs` are the n runs of one model that differ in their seed; :math:`s^2` is the variance
    between them, 0 for one run, whose share of the seed is unknown.

    The truth is the mean, over the averaged tags, of the F1 that this model with these thresholds
    has in the population. Percentile and BCa bootstrap intervals miss it on 5,000 images, for two
    reasons; each has its term here.

    * The bias :math:`\hat b` of `population_f1`. Bootstrap replicates show less of it, and those
      in which rare, hard tags vanish are shifted the other way.
    * A tag whose positives lie on a single product has no spread that resampling could show: it
      is as it is, or it vanishes. :math:`\hat v_1` is the spread of these tags among themselves
      (collapsed strata: true differences between them count as noise, which errs to the wide
      side), with a 0 and a 1 added as Agresti and Coull do for shares.

    References
    ----------
    Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapters 10 and 11; Wolter,
    "Introduction to Variance Estimation", 2007, section 2.5 (collapsed strata); Agresti and Coull,
    "Approximate is better than exact", The American Statistician 1998.
    """
    values = [population_f1(jack, scope) for jack in runs]
    inside = runs[0].averaged[scope]
    if not inside.any():
        return Estimate(math.nan, math.nan, math.nan)
    variance = variance_of(np.mean([jack.deviations[scope] for jack in runs], axis=0))
    alone = inside & runs[0].single
    if alone.any():
        f1 = np.mean([jack.f1[alone] for jack in runs], axis=0)
        # the mean of m values has 1 / m² of the variance of their sum
        variance += alone.sum() * np.append(f1, (0.0, 1.0)).var(ddof=1) / inside.sum() ** 2
    half = Z * math.sqrt(variance + seed_variance(values))
    value = float(np.mean(values))
    return Estimate(value, max(0.0, value - half), min(1.0, value + half))


def seed_variance(values: Sequence[float]) -> float:
    """Variance of the mean of a model's runs, s² / n; 0 for one run."""
    return float(np.var(values, ddof=1)) / len(values) if len(values) > 1 else 0.0


@dataclass(frozen=True)
class Difference:
    """How much larger one model's macro-F1 in the population is than another's."""

    value: float  # first minus second, of the estimates for the population; in [-1, 1]
    low: float  # 95 % paired interval
    high: float
    standard_error: float

    @property
    def is_tie(self) -> bool:
        """Whether the interval includes 0, so that the data do not tell the two apart."""
        # written so that an interval of NaN is a tie
        return not (self.low > 0 or self.high < 0)

    @property
    def detectable(self) -> float:
        """Smallest true difference found with 80 % power at the 5 % level: 2.80 standard errors."""
        return 2.802 * self.standard_error  # z(0.975) + z(0.80) = 1.960 + 0.842


def macro_difference(a: Sequence[Jackknife], b: Sequence[Jackknife], scope: int = 0) -> Difference:
    r"""Difference of two models' macro-F1 in the population, paired by product.

    .. math:: \operatorname{Var}(\hat d) = \hat v(\text{changes of a minus changes of b})
              + \frac{1}{m^2} \sum_{t\ \text{single}} d_t^2 + s_a^2 / n_a + s_b^2 / n_b

    `a` and `b` are the runs of one model each, on the same products and labels. What a product does
    to both models cancels in its change of the difference. Of the m averaged tags, those on a
    single product show no spread: their whole difference counts as noise, as in `macro_estimate`.

    The difference of macro-F1 on the images as they are is biased where one model gives tags more
    often than the other, and its percentile bootstrap interval with it.
    """
    means = [np.mean([jack.deviations[scope] for jack in runs], axis=0) for runs in (a, b)]
    values = [[population_f1(jack, scope) for jack in runs] for runs in (a, b)]
    inside = a[0].averaged[scope]
    alone = inside & a[0].single
    f1 = [np.mean([jack.f1[alone] for jack in runs], axis=0) for runs in (a, b)]
    variance = variance_of(means[0] - means[1])
    variance += float(((f1[0] - f1[1]) ** 2).sum()) / max(int(inside.sum()), 1) ** 2
    variance += sum(map(seed_variance, values))
    value = float(np.mean(values[0]) - np.mean(values[1]))
    error = math.sqrt(variance) if inside.any() else math.nan
    return Difference(value, value - Z * error, value + Z * error, error)
