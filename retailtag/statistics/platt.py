"""Platt scaling: one logistic curve that turns the scores of many tags into log-odds."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

MAX_STEPS = 100  # of Newton's method
MIN_STEP_SIZE = 1e-6

Floats = NDArray[np.float64]


def fit_sigmoid(scores: NDArray[np.floating], labels: NDArray[np.int8]) -> tuple[float, float]:
    """Slope and offset such that slope * score + offset is the log-odds of a positive.

    Parameters
    ----------
    scores : ndarray of float, any shape
        Of images that the scores were not fitted on.
    labels : ndarray of int8, same shape
        1, 0, or -1 for cells that are left out. All known cells count alike.

    Returns
    -------
    slope, offset : float
        1 and 0 without any known cell; see `fit_counts`.

    Examples
    --------
    >>> slope, offset = fit_sigmoid(np.array([0.0, 0.0, 1.0, 1.0]), np.array([0, 0, 1, 1], np.int8))
    >>> round(slope, 2), round(offset, 2)
    (2.2, -1.1)
    """
    known = labels >= 0
    score, hits = scores[known].astype(np.float64), labels[known].astype(np.float64)
    return fit_counts(score, np.ones_like(hits), hits) if len(score) else (1.0, 0.0)


def fit_counts(score: Floats, cells: NDArray[Any], hits: NDArray[Any]) -> tuple[float, float]:
    r"""Slope a and offset b of P(positive | score z) = 1/(1 + exp(-(a z + b))), of counted cells.

    Parameters
    ----------
    score : ndarray of float64, shape (n,)
    cells, hits : ndarray, shape (n,)
        Cells at each score, and the positives among them.

    Returns
    -------
    (float, float)
        The maximum of the likelihood of Platt's smoothed targets, :math:`(N_+ + 1)/(N_+ + 2)` for
        the :math:`N_+` positives and :math:`1/(N_- + 2)` for the rest, so that separated scores
        have one as well. Constant scores have slope 0.

    References
    ----------
    Platt (1999), Probabilistic outputs for support vector machines; Lin, Lin & Weng (2007), A note
    on Platt's probabilistic outputs, Machine Learning 68, for the Newton steps.
    """
    n = float(cells.sum())
    positives = float(hits.sum())
    high = (positives + 1) / (positives + 2)
    low = 1 / (n - positives + 2)
    aimed: Floats = (high * hits + low * (cells - hits)).astype(np.float64)
    centre = float(np.average(score, weights=cells))
    spread = float(np.sqrt(np.average((score - centre) ** 2, weights=cells))) or 1.0
    # Standardised scores make the Hessian well conditioned whatever the unit of the scores.
    z = np.stack([(score - centre) / spread, np.ones(len(cells))])
    start = np.array([0.0, np.log(aimed.sum() / (n - aimed.sum()))])
    slope, offset = _newton(z, cells.astype(np.float64), aimed, start)
    return float(slope / spread), float(offset - slope * centre / spread)


def _newton(z: Floats, cells: Floats, aimed: Floats, theta: Floats) -> Floats:
    """Minimise Σ cells·log(1 + e^u) - aimed·u with u = theta·z; z (2, n)."""

    def loss(theta: Floats) -> float:
        u = theta @ z
        return float(cells @ np.logaddexp(0, u) - aimed @ u)

    now = loss(theta)
    for _ in range(MAX_STEPS):
        p = expit(theta @ z)
        gradient = z @ (cells * p - aimed)
        hessian = (z * (cells * p * (1 - p))) @ z.T
        # The ridge keeps it regular where every p(1-p) vanishes; constant scores keep slope 0.
        step = np.linalg.solve(hessian + 1e-9 * np.trace(hessian) * np.eye(2), gradient)
        size = 1.0
        while (then := loss(theta - size * step)) > now and size > MIN_STEP_SIZE:
            size /= 2
        if size <= MIN_STEP_SIZE:
            break
        theta = theta - size * step
        gain = now - then
        now = then
        if gain <= 1e-13 * abs(now):
            break
    return theta
