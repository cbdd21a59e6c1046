"""Slow, obviously right scoring: one image and one replicate at a time."""

import itertools
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


def sample_f1(predicted, labels):
    """F1 of each image from its sets of tags; None for an image without a tag."""
    values = []
    for given, truth in zip(predicted, labels, strict=True):
        own = {j for j, y in enumerate(truth) if y == 1}
        named = {j for j, y in enumerate(truth) if given[j] and y != -1}
        values.append(2 * len(own & named) / (len(own) + len(named)) if own else None)
    return values


def label_ranking(scores, labels):
    """Mean over an image's tags of the share of tags at or above it that are true."""
    values = []
    for row, truth in zip(scores, labels, strict=True):
        own = [j for j, y in enumerate(truth) if y == 1]
        shares = []
        for j in own:
            at_least = [k for k, y in enumerate(truth) if y != -1 and row[k] >= row[j]]
            shares.append(sum(truth[k] == 1 for k in at_least) / len(at_least))
        values.append(sum(shares) / len(shares) if own else None)
    return values


def coverage(scores, labels):
    """Tags that score at least as much as the lowest true tag of each image."""
    values = []
    for row, truth in zip(scores, labels, strict=True):
        own = [row[j] for j, y in enumerate(truth) if y == 1]
        depth = (
            sum(y != -1 and s >= min(own) for s, y in zip(row, truth, strict=True)) if own else 0
        )
        values.append(depth if own else None)
    return values


def precision_at(scores, labels, k):
    """Mean precision of the k highest over every order of equal scores."""
    values = []
    for row, truth in zip(scores, labels, strict=True):
        known = [(s, y) for s, y in zip(row, truth, strict=True) if y != -1]
        if len(known) < k or not any(y == 1 for _, y in known):
            values.append(None)
            continue
        hits = []
        for order in itertools.permutations(known):
            if all(a[0] >= b[0] for a, b in itertools.pairwise(order)):
                hits.append(sum(y == 1 for _, y in order[:k]) / k)
        values.append(sum(hits) / len(hits))
    return values


def mean_of(values):
    """Mean of the values that are defined."""
    kept = [v for v in values if v is not None]
    return sum(kept) / len(kept) if kept else math.nan


def brier(logits, labels):
    """Mean squared error of the probability, cell by cell."""
    errors = [
        (1 / (1 + math.exp(-z)) - y) ** 2
        for z, y in zip(logits.ravel().tolist(), labels.ravel().tolist(), strict=True)
        if y != -1
    ]
    return sum(errors) / len(errors) if errors else math.nan


def calibration_error(logits, labels, n_bins):
    """Weighted gap between mean probability and share of positives, bin by bin."""
    cells = [
        (1 / (1 + math.exp(-z)), y)
        for z, y in zip(logits.ravel().tolist(), labels.ravel().tolist(), strict=True)
        if y != -1
    ]
    total = 0.0
    for b in range(n_bins):
        last = b == n_bins - 1
        inside = [c for c in cells if int(c[0] * n_bins) == b or (last and c[0] >= 1)]
        if inside:
            gap = sum(p for p, _ in inside) - sum(y for _, y in inside)
            total += abs(gap)
    return total / len(cells) if cells else math.nan


def oracle_f1(scores, labels):
    """Largest F1 over every threshold that can be told apart, by trying each."""
    known = [(s, y) for s, y in zip(scores, labels, strict=True) if y != -1]
    n_positive = sum(y == 1 for _, y in known)
    if not n_positive:
        return math.nan
    values = []
    for threshold in {s for s, _ in known}:
        given = [y for s, y in known if s >= threshold]
        values.append(2 * sum(y == 1 for y in given) / (len(given) + n_positive))
    return max(values)


def leave_one_out(predicted, labels, product, tag):
    """F1 of one tag without each product in turn; a tag that vanishes keeps its F1."""
    names = sorted(set(product.tolist()))
    weight = dict.fromkeys(names, 1)
    mask = np.arange(labels.shape[1]) == tag
    whole = weighted_macro_f1(predicted, labels, product, weight, mask)
    values = []
    for name in names:
        value = weighted_macro_f1(predicted, labels, product, {**weight, name: 0}, mask)
        values.append(whole if math.isnan(value) else value)
    return whole, values


def jackknife(whole, values):
    """Bias and variance from the values with one left out, by their formulas."""
    n, mean = len(values), sum(values) / len(values)
    square = sum((mean - v) ** 2 for v in values)
    return (n - 1) * (mean - whole), (n - 1) / n * square
