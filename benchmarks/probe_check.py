"""How far from its optimum a logistic regression is, in float64 and by no solver under test."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Doubles = NDArray[np.float64]
NEGLIGIBLE = 1e-8  # of the largest curvature: images under it are left out of the Hessian
CELLS = 8_000_000  # (image, tag) cells in flight


def objective(x: Doubles, y: NDArray[np.int8], c: float, w: Doubles, b: float) -> float:
    """½‖w‖² + C·Σ log(1 + exp(-s(w·x + b))) of one tag; x (n, dim), y (n,) of 0 and 1."""
    s = np.where(y == 1, 1.0, -1.0)
    return 0.5 * float(w @ w) + c * float(np.logaddexp(0, -s * (x @ w + b)).sum())


def optimum(x: Doubles, y: NDArray[np.int8], c: float, w: Doubles, b: float) -> float:
    """Least objective of one tag, by damped Newton steps from (w, b).

    Parameters
    ----------
    x : ndarray of float64, shape (n_images, dim)
    y : ndarray of int8, shape (n_images,)
        Both classes present.
    c : float
    w, b : ndarray of float64, shape (dim,), and float
        The best solution at hand.

    Returns
    -------
    float
        Too large by less than 1e-8 of itself: half the last squared Newton decrement.

    Raises
    ------
    ArithmeticError
        If 100 steps do not get there.
    """
    theta, f = np.append(w, b), objective(x, y, c, w, b)
    for _ in range(100):
        g, H = _derivatives(x, y, c, theta)
        d = -np.linalg.solve(H, g)
        if -g @ d < 1e-8 * f:
            return f
        step, slope = 1.0, g @ d
        while step > 1e-9:
            trial = theta + step * d
            f_trial = objective(x, y, c, trial[:-1], trial[-1])
            if f_trial <= f + 1e-4 * step * slope:
                break
            step /= 2
        theta, f = trial, f_trial
    raise ArithmeticError(f"Newton's method did not reach the optimum at C={c:g}.")


def _derivatives(
    x: Doubles, y: NDArray[np.int8], c: float, theta: Doubles
) -> tuple[Doubles, Doubles]:
    """Gradient (dim + 1,), and the Hessian (dim + 1, dim + 1) of the images that matter to it."""
    s = np.where(y == 1, 1.0, -1.0)
    wrong = _sigmoid(-s * (x @ theta[:-1] + theta[-1]))
    residual = -c * s * wrong
    g = np.append(theta[:-1] + x.T @ residual, residual.sum())
    curvature = c * wrong * (1 - wrong)
    rows = np.flatnonzero(curvature > NEGLIGIBLE * curvature.max())
    root = np.sqrt(curvature[rows])[:, None]
    A = np.column_stack([x[rows] * root, root])
    H = A.T @ A
    H[np.diag_indices(len(g) - 1)] += 1.0
    return g, H


def objectives_and_bounds(
    x: Doubles, Y: NDArray[np.int8], c: float, W: Doubles, b: Doubles
) -> tuple[Doubles, Doubles]:
    """Objective of every tag at a C, and a bound on its relative suboptimality, in float64.

    Parameters
    ----------
    x : ndarray of float64, shape (n_images, dim)
    Y : ndarray of int8, shape (n_images, n_tags)
        0 or 1.
    c : float
    W, b : ndarray of float64, shapes (n_tags, dim) and (n_tags,)

    Returns
    -------
    objective, bound : ndarray of float64, shape (n_tags,)

    Notes
    -----
    With b(w) the best intercept, F(w) = f(w, b(w)) is 1-strongly convex, so that
    F(w) - F* <= ½‖∇F(w)‖², where ∇F(w) is the gradient of f at fixed b = b(w).
    """
    at_once = max(1, CELLS // len(x))
    parts = [slice(i, i + at_once) for i in range(0, len(W), at_once)]
    found = [_objectives_and_bounds(x, Y[:, p], c, W[p], b[p]) for p in parts]
    f, bound = (np.concatenate(column) for column in zip(*found, strict=True))
    return f, bound


def _objectives_and_bounds(
    x: Doubles, Y: NDArray[np.int8], c: float, W: Doubles, b: Doubles
) -> tuple[Doubles, Doubles]:
    S = np.where(Y == 1, 1.0, -1.0)
    u = x @ W.T
    penalty = 0.5 * np.square(W).sum(axis=1)
    f = penalty + c * np.logaddexp(0, -S * (u + b)).sum(axis=0)
    best = b.copy()
    for _ in range(8):  # Newton on the intercept alone, from a solution that is nearly there
        wrong = _sigmoid(-S * (u + best))
        best += (S * wrong).sum(axis=0) / (wrong * (1 - wrong)).sum(axis=0).clip(1e-300)
    wrong = _sigmoid(-S * (u + best))
    slack = f - penalty - c * np.logaddexp(0, -S * (u + best)).sum(axis=0)
    G = W - c * ((S * wrong).T @ x)
    return f, (np.maximum(slack, 0) + 0.5 * np.square(G).sum(axis=1)) / f


def _sigmoid(m: Doubles) -> Doubles:
    return np.exp(-np.logaddexp(0, -m))
