"""Slow, obviously right scoring: one image and one replicate at a time."""

import math

import numpy as np


def tag_counts(predicted, labels):
    """Counts of each tag as (tp, fp, fn, tn), cell by cell."""
    n_images, n_tags = labels.shape
    counts = np.zeros((4, n_tags), dtype=np.int64)
    for i in range(n_images):
        for j in range(n_tags):
            if labels[i, j] == 1:
                counts[0 if predicted[i, j] else 2, j] += 1
            elif labels[i, j] == 0:
                counts[1 if predicted[i, j] else 3, j] += 1
    return counts


def f1(tp, fp, fn):
    """F1 from precision and recall; NaN without positives."""
    if tp + fn == 0:
        return math.nan
    if tp == 0:
        return 0.0
    precision, recall = tp / (tp + fp), tp / (tp + fn)
    return 2 * precision * recall / (precision + recall)


def average_precision(scores, labels):
    """Step sum over distinct scores, the highest first: sum of (R_k - R_{k-1}) P_k."""
    known = [(s, y) for s, y in zip(scores, labels, strict=True) if y != -1]
    n_positive = sum(y == 1 for _, y in known)
    if not n_positive:
        return math.nan
    total, recall_before = 0.0, 0.0
    for threshold in sorted({s for s, _ in known}, reverse=True):
        kept = [y for s, y in known if s >= threshold]
        recall = sum(y == 1 for y in kept) / n_positive
        total += (recall - recall_before) * sum(y == 1 for y in kept) / len(kept)
        recall_before = recall
    return total


def weighted_macro_f1(predicted, labels, product, weight, mask):
    """Macro-F1 when product p is present weight[p] times; tags without positives dropped."""
    values = []
    for j in np.flatnonzero(mask):
        tp = fp = fn = 0.0
        for i, p in enumerate(product):
            w = weight[p]
            if labels[i, j] == 1:
                tp, fn = (tp + w, fn) if predicted[i, j] else (tp, fn + w)
            elif labels[i, j] == 0 and predicted[i, j]:
                fp += w
        value = f1(tp, fp, fn)
        if not math.isnan(value):
            values.append(value)
    return sum(values) / len(values) if values else math.nan
