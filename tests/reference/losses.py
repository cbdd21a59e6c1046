"""Slow, obviously right versions of the losses over tags: one cell at a time, in float64."""

import numpy as np


def _sigmoid(z):
    return 1 / (1 + np.exp(-z))


def bce(z, y):
    return -y * np.log(_sigmoid(z)) - (1 - y) * np.log(1 - _sigmoid(z))


def asymmetric(z, y, gamma_pos, gamma_neg, clip):
    p = _sigmoid(z)
    q = max(p - clip, 0)
    return -y * (1 - p) ** gamma_pos * np.log(p) - (1 - y) * q**gamma_neg * np.log(1 - q)


def focal(z, y, gamma, alpha):
    p = _sigmoid(z)
    found = -alpha * (1 - p) ** gamma * np.log(p)
    return y * found - (1 - y) * (1 - alpha) * p**gamma * np.log(1 - p)


def negative_tolerant(z, y, lam, kappa, prior):
    best_constant = -np.log(1 / prior - 1)
    shifted = z - -kappa * best_constant
    pull = y * np.log(1 + np.exp(-shifted))
    return pull + (1 - y) * np.log(1 + np.exp(lam * shifted)) / lam


def balanced_weight(row, tag, n_positive, alpha, beta, mu):
    """Weight of one cell of an image with targets `row` (-1 unknown)."""
    per_tag = (1 / len(row)) * (1 / n_positive[tag])
    per_image = (1 / len(row)) * sum(y / n for y, n in zip(row, n_positive, strict=True) if y > 0)
    return alpha + _sigmoid(beta * (per_tag / per_image - mu))


def mean_of_known(cell, logits, targets):
    """Mean of ``cell(z, y, image, tag)`` over the cells that are known."""
    losses = []
    for i, k in np.ndindex(targets.shape):
        if targets[i, k] >= 0:
            losses.append(cell(logits[i, k], targets[i, k], i, k))
    return np.mean(losses)
