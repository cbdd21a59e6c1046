"""Slow, obviously right versions of the threshold rules: every threshold is tried and counted."""

import numpy as np


def counts_at(threshold, logits, labels):
    """Positives, images given, and positives above the threshold, by counting."""
    known = labels >= 0
    given = known & (logits >= threshold)
    return int((given & (labels == 1)).sum()), int(given.sum()), int((labels == 1).sum())


def f_at(threshold, logits, labels, beta=1.0):
    """F-beta of one threshold, 0 where nothing is given and none carries the tag."""
    tp, given, positives = counts_at(threshold, logits, labels)
    total = given + beta**2 * positives
    return (1 + beta**2) * tp / total if total else 0.0


def best_f(logits, labels, beta=1.0):
    """Largest F-beta over every threshold that can be told apart."""
    return max(f_at(t, logits, labels, beta) for t in np.unique(logits[labels >= 0]))


def best_mean_f(logits, labels, beta=1.0):
    """Largest mean F-beta of several tags (with positives) under one threshold."""
    candidates = np.unique(logits[labels >= 0])
    columns = [j for j in range(labels.shape[1]) if (labels[:, j] == 1).any()]
    return max(
        np.mean([f_at(t, logits[:, j], labels[:, j], beta) for j in columns]) for t in candidates
    )


def largest_recall_at(precision, logits, labels):
    """Most positives that any threshold of at least this precision finds; None if there is none."""
    pairs = [counts_at(t, logits, labels)[:2] for t in np.unique(logits[labels >= 0])]
    found = [tp for tp, given in pairs if tp > 0 and tp >= precision * given]
    return max(found, default=None)


def platt(scores, truth):
    """Slope and offset of the smoothed targets' largest likelihood, by a general optimiser."""
    from scipy.optimize import minimize

    n, positives = len(truth), int(truth.sum())
    aimed = np.where(truth, (positives + 1) / (positives + 2), 1 / (n - positives + 2))

    def loss(theta):
        u = theta[0] * scores + theta[1]
        return np.mean(np.logaddexp(0, u) - aimed * u)

    found = minimize(loss, np.zeros(2), method="BFGS", options={"gtol": 1e-9})
    return found.x


def expected_f(threshold, p, logits, beta=1.0):
    """Expected counts' F-beta of the images at or above a threshold; p (n,) probabilities."""
    given = logits >= threshold
    return (1 + beta**2) * p[given].sum() / (given.sum() + beta**2 * p.sum())
