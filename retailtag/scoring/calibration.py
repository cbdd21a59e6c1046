"""Whether probabilities mean what they say: Brier score and expected calibration error."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retailtag.catalog.table import POSITIVE, UNKNOWN
from retailtag.scoring.metrics import Floats, ratio

N_BINS = 15
BLOCK_CELLS = 1_000_000  # probabilities held at once: 8 MB of float64


def probabilities(logits: NDArray[np.floating]) -> Floats:
    """Logistic function of logits of any shape, without overflow; in [0, 1].

    Examples
    --------
    >>> probabilities(np.array([-np.inf, 0.0, 1000.0])).tolist()
    [0.0, 0.5, 1.0]
    """
    # 1 / (1 + exp(-z)) = (1 + tanh(z / 2)) / 2, without exp(1000)
    return 0.5 + 0.5 * np.tanh(0.5 * np.asarray(logits, np.float64))


@dataclass(frozen=True, eq=False)
class CalibrationSums:
    """What Brier score and calibration error of any set of tags need, over known labels."""

    count: Floats  # (n_tags, N_BINS), cells by bin of the probability
    predicted: Floats  # (n_tags, N_BINS), their summed probability
    present: Floats  # (n_tags, N_BINS), their positives
    squared: Floats  # (n_tags,), summed squared error of the probability

    def brier(self, mask: NDArray[np.bool_]) -> float:
        r"""Mean squared error of the probabilities over the pooled cells of the tags of `mask`.

        .. math:: B = \frac{1}{n} \sum_{ij} (p_{ij} - y_{ij})^2

        In [0, 1], smaller is better; NaN without a cell. Pooled over rare tags it is small for
        any model that gives no tag: compare models, not tags.

        References
        ----------
        Brier, "Verification of forecasts expressed in terms of probability", 1950; equal to
        ``sklearn.metrics.brier_score_loss`` on the pooled cells.
        """
        return float(ratio(self.squared[mask].sum(), self.count[mask].sum()))

    def error(self, mask: NDArray[np.bool_]) -> float:
        r"""Expected calibration error over the pooled cells of the tags of `mask`.

        .. math:: ECE = \sum_b \frac{n_b}{n} \left| \bar y_b - \bar p_b \right|

        over 15 bins of equal width, closed below; the last holds 1 too. In [0, 1], smaller is
        better; NaN without a cell. With equal width nearly all cells of rare tags lie in the first
        bin, where the error is that of the mean probability.

        References
        ----------
        Naeini, Cooper and Hauskrecht, "Obtaining well calibrated probabilities using Bayesian
        binning", AAAI 2015; 15 bins as in Guo et al., "On calibration of modern neural networks",
        ICML 2017, and in torchmetrics' ``binary_calibration_error``.
        """
        # n_b / n · |mean label - mean probability| = |sum of labels - sum of probabilities| / n
        gap = np.abs(self.present[mask].sum(axis=0) - self.predicted[mask].sum(axis=0)).sum()
        return float(ratio(gap, self.count[mask].sum()))


def calibration_sums(logits: NDArray[np.floating], labels: NDArray[np.int8]) -> CalibrationSums:
    """Sum probabilities and positives by tag and bin.

    `logits` (without NaN) and `labels` (1, 0, or -1: left out) are (n_images, n_tags).

    Examples
    --------
    >>> logits = np.zeros((4, 1))
    >>> sums = calibration_sums(logits, np.array([[1], [0], [0], [0]], dtype=np.int8))
    >>> sums.brier(np.array([True])), sums.error(np.array([True]))
    (0.25, 0.25)
    """
    n_images, n_tags = labels.shape
    sums = np.zeros((3, n_tags * N_BINS))
    squared = np.zeros(n_tags)
    size = max(1, BLOCK_CELLS // max(n_tags, 1))
    for start in range(0, n_images, size):
        truth = labels[start : start + size]
        known = truth != UNKNOWN
        p = probabilities(logits[start : start + size])
        y = (truth == POSITIVE).astype(np.float64)
        squared += np.where(known, (p - y) ** 2, 0.0).sum(axis=0)
        bins = np.minimum((p * N_BINS).astype(np.int64), N_BINS - 1)  # the last holds p = 1 too
        bins += N_BINS * np.arange(n_tags)  # one bincount for all tags: bin b of tag j is j B + b
        for k, weight in enumerate((None, p[known], y[known])):
            sums[k] += np.bincount(bins[known], weight, minlength=n_tags * N_BINS)
    count, predicted, present = sums.reshape(3, n_tags, N_BINS)
    return CalibrationSums(count, predicted, present, squared)
