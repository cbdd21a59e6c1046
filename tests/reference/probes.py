"""Slow, obviously right versions of what `retailtag.probes` does fast."""

import numpy as np


def objective(w, b, x, y, c):
    """½‖w‖² + C·Σ log(1 + exp(-s(w·x + b))) in float64; x (n, dim), y (n,) of 0 and 1."""
    u = x.astype(np.float64) @ w.astype(np.float64) + float(b)
    return 0.5 * float(w.astype(np.float64) @ w) + c * float((np.logaddexp(0, u) - y * u).sum())


def optimum(x, y, c):
    """Smallest objective, by Newton steps of scikit-learn in float64."""
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=c, tol=1e-11, max_iter=2000, solver="newton-cholesky")
    model.fit(x.astype(np.float64), y)
    return objective(model.coef_[0], model.intercept_[0], x, y, c)


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
    """First candidate whose mean loss to the best is at most its standard error; lists of lists."""
    n_tags = len(ap[0])
    means = [sum(row) / n_tags for row in ap]
    best = means.index(max(means))
    for c, row in enumerate(ap):
        behind = [a - b for a, b in zip(ap[best], row, strict=True)]
        mean = sum(behind) / n_tags
        spread = sum((d - mean) ** 2 for d in behind) / max(n_tags - 1, 1)
        if mean <= (spread / n_tags) ** 0.5 + 1e-12:
            return c
    raise AssertionError("the best candidate is within its own standard error")
