"""The one-standard-error rule: the simplest candidate that the data cannot tell from the best."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Mean scores (between 0 and 1) that differ by less are equal: a tenth of a point, the last digit of
# any report. Without it the rule is scale-free, for the standard error of a difference falls with
# the difference: on a curve that has become flat, the last bits of the scores would decide. Scores
# that are off by 1e-4 of their size move a mean AP of 15 tags or more by up to 0.0003.
RESOLUTION = 1e-3

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Choice:
    """The candidate that a set of tags supports together."""

    best: int  # first candidate within the resolution of the largest mean score
    mean: Floats  # (n_candidates,), mean score over the tags
    error: Floats  # (n_candidates,), of the mean difference to the best; 0 with a single tag

    @property
    def behind(self) -> Floats:
        """How far each candidate's mean lies behind the largest, (n_candidates,)."""
        behind: Floats = self.mean.max() - self.mean
        return behind

    @property
    def within(self) -> NDArray[np.bool_]:
        """Candidates that the data cannot tell from the best, (n_candidates,)."""
        return _within(self.mean, self.error)

    @property
    def chosen(self) -> int:
        """The first candidate within one standard error of the best."""
        return int(np.argmax(self.within))


def one_standard_error(scores: Floats) -> Choice | None:
    r"""The first candidate within one standard error of the best.

    With the standard deviation :math:`s_c` of the differences to the best candidate,
    :math:`score_{\hat c t} - score_{ct}`, over T tags, the choice is the smallest c whose
    mean lies behind the largest by at most :math:`s_c / \sqrt T` plus `RESOLUTION`.

    Parameters
    ----------
    scores : ndarray of float64, shape (n_candidates, n_tags)
        The simplest candidate first; larger is better. NaN for tags without a score, which are
        left out.

    Returns
    -------
    Choice or None
        None if no tag has a score.

    Notes
    -----
    The differences are paired by tag: what makes a tag hard for every candidate cancels, so the
    tolerance is much narrower than with the standard error of the mean itself.

    On a plateau rounding would decide which candidate is the best, and so the standard errors of
    all. The scores of the best are therefore a mean of the candidates' scores with weights
    :math:`\exp(-behind_c / RESOLUTION)`, which change little where the scores do.

    References
    ----------
    Breiman, Friedman, Olshen & Stone (1984), Classification and Regression Trees, section 3.4.3;
    Hastie, Tibshirani & Friedman, The Elements of Statistical Learning, 2nd ed., section 7.10.

    Examples
    --------
    >>> one_standard_error(np.array([[0.2, 0.6, 0.4], [0.35, 0.6, 0.4]])).chosen  # one tag gains
    0
    >>> one_standard_error(np.array([[0.2, 0.6, 0.4], [0.25, 0.64, 0.46]])).chosen  # all gain
    1
    """
    scores = scores[:, np.isfinite(scores).all(axis=0)]
    n_tags = scores.shape[1]
    if not n_tags:
        return None
    mean = scores.mean(axis=1)
    best = int(first_within(mean, np.zeros(len(mean))))
    weight = np.exp((mean - mean.max()) / RESOLUTION)
    error = np.zeros(len(scores))
    if n_tags > 1:
        reference = np.average(scores, axis=0, weights=weight)
        error = (reference - scores).std(axis=1, ddof=1) / np.sqrt(n_tags)
    return Choice(best, mean, error)


def first_within(scores: Floats, tolerance: Floats) -> NDArray[np.intp]:
    """First index along axis 0 within its tolerance plus `RESOLUTION` of the largest score."""
    first: NDArray[np.intp] = np.argmax(_within(scores, tolerance), axis=0)
    return first


def _within(scores: Floats, tolerance: Floats) -> NDArray[np.bool_]:
    near: NDArray[np.bool_] = scores.max(axis=0) - scores <= tolerance + RESOLUTION
    return near
