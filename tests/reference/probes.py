"""Slow, obviously right versions of what `retailtag.probes` does fast."""

import math
import warnings

import numpy as np


def objective(w, b, x, y, c, weight=1.0):
    """½‖w‖² + C·Σ weight·log(1 + exp(-s(w·x + b))) in float64; x (n, dim), y (n,) of 0 and 1."""
    w = np.asarray(w, np.float64)
    m = np.where(y == 1, 1, -1) * (np.asarray(x, np.float64) @ w + float(b))
    # log(1 + exp(-m)) without the cancellation of softplus(u) - y·u at confident positives.
    return 0.5 * float(w @ w) + c * float((weight * np.logaddexp(0, -m)).sum())


class NoReferenceError(AssertionError):
    """Rounding in float64 keeps the reference itself from its optimum: nothing can be compared."""


def optimum(x, y, c, weight=1.0):
    """Smallest objective: scikit-learn's newton-cholesky in float64, polished, and certified."""
    x = np.asarray(x, np.float64)
    w, b = newton(x, y, c, weight, *_sklearn_head(x, y, c, weight))
    best = objective(w, b, x, y, c, weight)
    if suboptimality(w, b, x, y, c, weight) > 1e-7:
        raise NoReferenceError(f"the reference is not at its optimum at C={c:g}")
    return best


def _sklearn_head(x, y, c, weight):
    """Weights and intercept of `LogisticRegression(solver="newton-cholesky")` at a tight tol."""
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=c, tol=1e-11, max_iter=2000, solver="newton-cholesky")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it gives up on nearly singular Hessians; we go on
        model.fit(x, y, sample_weight=np.broadcast_to(weight, y.shape))
    return model.coef_[0], float(model.intercept_[0])


def newton(x, y, c, weight, w, b, steps=200):
    """Damped Newton in float64 from (w, b); each step a least-squares problem, never H itself.

    With J = [√(C·h)·(x, 1); (I, 0)], J'J is the Hessian, at the square root of its condition.
    """
    s, theta = np.where(y == 1, 1.0, -1.0), np.append(w, b)
    A = np.column_stack([x, np.ones(len(x))])
    identity = np.eye(len(theta))[:-1]
    f = objective(theta[:-1], theta[-1], x, y, c, weight)
    for _ in range(steps):
        wrong = _sigmoid(-s * (A @ theta))
        root = np.sqrt(c * weight * np.maximum(wrong * (1 - wrong), 1e-30))
        scaled = np.divide(c * weight * s * wrong, root, out=np.zeros(len(x)), where=root > 0)
        J = np.vstack([root[:, None] * A, identity])
        d = np.linalg.lstsq(J, np.concatenate([scaled, -theta[:-1]]), rcond=0.0)[0]
        for halving in range(40):
            trial = theta + 0.5**halving * d
            f_trial = objective(trial[:-1], trial[-1], x, y, c, weight)
            if f_trial < f:
                break
        else:
            break
        done = f - f_trial <= 1e-15 * f
        theta, f = trial, f_trial
        if done:
            break
    return theta[:-1], theta[-1]


def suboptimality(w, b, x, y, c, weight=1.0):
    """Bound on (objective - optimum) / objective in float64.

    With b(w) the best intercept, F(w) = f(w, b(w)) is 1-strongly convex and its gradient is that
    of f at fixed b, so F(w) - F* <= ½‖∇F(w)‖².
    """
    from scipy.optimize import brentq

    x, s = np.asarray(x, np.float64), np.where(y == 1, 1.0, -1.0)
    u = x @ w

    def residual(intercept):
        return weight * s * _sigmoid(-s * (u + intercept))

    reach = np.abs(u).max() + 60
    best_b = brentq(lambda t: residual(t).sum(), -reach, reach, xtol=1e-12)
    f = objective(w, b, x, y, c, weight)
    slack = f - objective(w, best_b, x, y, c, weight)
    g = w - c * (x.T @ residual(best_b))
    return (max(slack, 0.0) + 0.5 * float(g @ g)) / f


def _sigmoid(m):
    return np.exp(-np.logaddexp(0, -m))


def best_f1(logits, labels):
    """Largest F1 over every threshold that can be told apart, by trying each."""
    known = labels >= 0
    z, y = logits[known], labels[known]
    best = 0.0
    for t in np.unique(z):
        predicted = z >= t
        tp = int((predicted & (y == 1)).sum())
        best = max(best, 2 * tp / (int(predicted.sum()) + int((y == 1).sum())))
    return best


def f1_at(threshold, logits, labels):
    """F1 of one threshold by counting."""
    known = labels >= 0
    z, y = logits[known], labels[known]
    predicted = z >= threshold
    tp = int((predicted & (y == 1)).sum())
    total = int(predicted.sum()) + int((y == 1).sum())
    return 2 * tp / total if total else 0.0


def one_standard_error(ap):
    """First candidate within one standard error plus 0.001 of the best; lists of lists."""
    n_tags = len(ap[0])
    means = [sum(row) / n_tags for row in ap]
    weights = [math.exp((mean - max(means)) / 1e-3) for mean in means]
    of_tags = [sum(w * a for w, a in zip(weights, t, strict=True)) for t in zip(*ap, strict=True)]
    best = [total / sum(weights) for total in of_tags]
    for c, row in enumerate(ap):
        behind = [a - b for a, b in zip(best, row, strict=True)]
        mean = sum(behind) / n_tags
        spread = sum((d - mean) ** 2 for d in behind) / max(n_tags - 1, 1)
        if max(means) - means[c] <= (spread / n_tags) ** 0.5 + 1e-3:
            return c
    raise AssertionError("the best candidate is within its own standard error")
