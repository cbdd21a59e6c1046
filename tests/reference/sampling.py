"""Slow, obviously right repeat factors."""

import math


def repeat_factors(labels, t):
    """One factor an image: the largest max(1, sqrt(t / f)) of its tags (LVIS)."""
    n_images, n_tags = len(labels), len(labels[0])
    share = [sum(row[tag] == 1 for row in labels) / n_images for tag in range(n_tags)]
    factors = []
    for row in labels:
        given = [max(1.0, math.sqrt(t / share[tag])) for tag in range(n_tags) if row[tag] == 1]
        factors.append(max(given, default=1.0))
    return factors
