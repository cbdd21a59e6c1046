"""Slow, obviously right comparisons: every swap tried, every hypothesis stepped through."""

import math
from itertools import product

import numpy as np


def macro_f1(predicted, labels, mask):
    """Mean F1 over the tags of `mask`, cell by cell; tags without positives left out."""
    values = []
    for j in np.flatnonzero(mask):
        tp = fp = fn = 0
        for given, label in zip(predicted[:, j], labels[:, j], strict=True):
            tp += bool(given) and label == 1
            fp += bool(given) and label == 0
            fn += (not given) and label == 1
        if tp + fn:
            values.append(2 * tp / (2 * tp + fp + fn))
    return sum(values) / len(values) if values else math.nan


def swapped(first, second, groups, choice):
    """Both predictions after swapping the images of the products where `choice` is true."""
    a, b = first.copy(), second.copy()
    for name, swap in zip(sorted(set(groups.tolist())), choice, strict=True):
        if swap:
            rows = groups == name
            a[rows], b[rows] = second[rows], first[rows]
    return a, b


def exhaustive_swap_p(first, second, labels, groups, mask):
    """Share of all 2^n swaps whose difference is at least as large as the observed one."""
    observed = abs(macro_f1(first, labels, mask) - macro_f1(second, labels, mask))
    reached = []
    for choice in product([False, True], repeat=len(set(groups.tolist()))):
        a, b = swapped(first, second, groups, choice)
        gap = abs(macro_f1(a, labels, mask) - macro_f1(b, labels, mask))
        reached.append(gap >= observed - 1e-12)
    return sum(reached) / len(reached)


def holm_rejected(p, alpha):
    """Hypotheses that Holm's procedure rejects at level alpha, stepping from the smallest p."""
    rejected = [False] * len(p)
    left = len(p)
    for k in sorted(range(len(p)), key=lambda k: p[k]):
        if p[k] > alpha / left:
            break
        rejected[k] = True
        left -= 1
    return rejected


def best_shares(replicates):
    """Share of replicates won by each model, one replicate at a time."""
    won = [0.0] * len(replicates)
    for column in zip(*replicates, strict=True):
        winners = [m for m, value in enumerate(column) if value == max(column)]
        for m in winners:
            won[m] += 1 / len(winners)
    return [w / len(replicates[0]) for w in won]
