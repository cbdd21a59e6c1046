"""Platt scaling: the one logistic curve that turns scores of many tags into log-odds."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

STEPS = 60
ENOUGH = 1e-9  # relative decrease of the mean loss at which Newton stops


def fit_platt(scores: NDArray[np.floating], labels: NDArray[np.int8]) -> tuple[float, float]:
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

    Notes
    -----
    Newton on the mean log loss, halving the step until the loss falls. Targets are smoothed to
    (P + 1)/(P + 2) and 1/(N + 2) for P positives and N negatives, so that the optimum is finite
    when scores separate the classes. Constant scores get slope 0.

    References
    ----------
    Platt (1999), Probabilistic outputs for support vector machines, §2.2; Lin, Lin & Weng (2007).

    Examples
    --------
    >>> slope, offset = fit_platt(np.array([0.0, 0.0, 1.0, 1.0]), np.array([0, 0, 1, 1], np.int8))
    >>> round(slope, 2), round(offset, 2)
    (2.2, -1.1)
    """
    known = labels >= 0
    s, y = scores[known].astype(np.float64), labels[known]
    if len(s) == 0:
        return 1.0, 0.0
    positives = int(y.sum())
    target = np.where(y == 1, (positives + 1) / (positives + 2), 1 / (len(y) - positives + 2))
    centre, spread = float(s.mean()), float(s.std()) or 1.0
    A = np.stack([(s - centre) / spread, np.ones_like(s)], axis=1)
    slope, offset = _newton(A, target)
    return slope / spread, offset - slope * centre / spread


def _newton(A: NDArray[np.float64], target: NDArray[np.float64]) -> tuple[float, float]:
    """Minimise the mean log loss of A x against soft targets; A (n, 2), the last column ones."""
    mean = target.mean()
    x = np.array([0.0, np.log(mean / (1 - mean))])
    loss = _loss(A @ x, target)
    for _ in range(STEPS):
        p = 1 / (1 + np.exp(-(A @ x)))
        gradient = A.T @ (p - target)
        hessian = (A * (p * (1 - p))[:, None]).T @ A
        hessian[np.diag_indices(2)] += 1e-12 * len(A)  # a constant score has no curvature
        step = np.linalg.solve(hessian, gradient)
        size, trial = 1.0, _loss(A @ (x - step), target)
        while trial > loss and size > 1e-6:
            size /= 2
            trial = _loss(A @ (x - size * step), target)
        if loss - trial <= ENOUGH * loss:
            break
        x, loss = x - size * step, trial
    return float(x[0]), float(x[1])


def _loss(z: NDArray[np.float64], target: NDArray[np.float64]) -> float:
    return float((np.logaddexp(0, z) - target * z).mean())
