"""Decision thresholds on logits, chosen on images that the scores were not fitted on."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from retailtag.errors import UsageError

RULES = ("fixed", "global", "group", "per-tag", "shrunk")
SHRINK = 20.0  # positives at which a tag's own threshold and its group's weigh the same
CANDIDATES = 400  # logits tried for a threshold that several tags share

Logits = NDArray[np.float32]
Labels = NDArray[np.int8]


def tune_thresholds(
    logits: Logits, labels: Labels, group: NDArray[np.str_], rule: str = "shrunk"
) -> NDArray[np.float32]:
    """Thresholds that maximise F1, per tag, per group or for all.

    Parameters
    ----------
    logits : ndarray of float32, shape (n_images, n_tags)
        Out-of-fold or validation scores, never scores of images that were fitted.
    labels : ndarray of int8, shape (n_images, n_tags)
        -1 cells are left out.
    group : ndarray of str, shape (n_tags,)
        Frequency group of each tag.
    rule : {"fixed", "global", "group", "per-tag", "shrunk"}
        ``fixed``: logit 0 (probability 0.5). ``global``, ``group``: one threshold for all tags or
        for each group, maximising the mean of its tags' F1. ``per-tag``: each tag's own best.
        ``shrunk``: (P·per-tag + 20·group) / (P + 20) for a tag with P positives here.

    Returns
    -------
    ndarray of float32, shape (n_tags,)

    Raises
    ------
    UsageError
        If the rule is unknown.

    Notes
    -----
    A tag without positives here takes its group's threshold. Averages are of logits, so that a
    threshold and its shrunken version are on one scale for all tags.

    References
    ----------
    Lipton, Elkan & Naryanaswamy (2014), Optimal thresholding of classifiers to maximize F1.
    """
    if rule not in RULES:
        raise UsageError(f"--thresholds {rule} is unknown; use one of {', '.join(RULES)}.")
    if rule == "fixed":
        return np.zeros(labels.shape[1], np.float32)
    everyone = np.zeros_like(group) if rule == "global" else group
    shared = _shared_thresholds(logits, labels, everyone)
    if rule in ("global", "group"):
        return shared
    own = np.array([best_f1_threshold(z, y) for z, y in zip(logits.T, labels.T, strict=True)])
    positives = (labels == 1).sum(axis=0)
    own = np.where(positives > 0, own, shared)
    if rule == "per-tag":
        return own.astype(np.float32)
    return ((positives * own + SHRINK * shared) / (positives + SHRINK)).astype(np.float32)


def best_f1_threshold(logits: Logits, labels: Labels) -> float:
    """Threshold of one tag with the largest F1 = 2TP/(k + P) among its k highest scores.

    Parameters
    ----------
    logits : ndarray of float32, shape (n_images,)
    labels : ndarray of int8, shape (n_images,)
        -1 cells are left out.

    Returns
    -------
    float
        Midpoint between the last score taken and the next lower one; the lowest score where
        everything is taken; ``inf`` for a tag without positives. Of equal F1, the higher
        threshold (fewer predictions).

    Examples
    --------
    >>> best_f1_threshold(np.array([2.0, 1.0, 0.0, -1.0]), np.array([1, 1, 0, 0]))
    0.5
    """
    known = labels >= 0
    z, y = logits[known], labels[known]
    positives = int(y.sum())
    if positives == 0:
        return float("inf")
    order = np.argsort(-z, kind="stable")
    z, hits = z[order], np.cumsum(y[order], dtype=np.int64)
    last = np.flatnonzero(np.append(z[:-1] > z[1:], True))  # a cut never separates equal scores
    f1 = 2 * hits[last] / (last + 1 + positives)
    cut = last[int(np.argmax(f1))]
    if cut == len(z) - 1:
        return float(z[cut])
    return _between(z[cut + 1], z[cut])


def _between(low: np.float32, high: np.float32) -> float:
    """A float32 number t with low < t <= high; the midpoint where one exists."""
    middle = np.float32((np.float64(low) + np.float64(high)) / 2)
    return float(middle if middle > low else high)


def _shared_thresholds(
    logits: Logits, labels: Labels, group: NDArray[np.str_]
) -> NDArray[np.float32]:
    """For each group, the candidate logit with the largest mean F1 of its tags, (n_tags,)."""
    shared = np.zeros(labels.shape[1], np.float32)
    for name in np.unique(group):
        tags = np.flatnonzero(group == name)
        scored = tags[(labels[:, tags] == 1).any(axis=0)]
        if len(scored) == 0:
            continue
        candidates = _candidates(logits[:, scored], labels[:, scored])
        curves = [_f1_curve(logits[:, t], labels[:, t], candidates) for t in scored]
        shared[tags] = candidates[int(np.argmax(np.mean(curves, axis=0)))]
    return shared


def _candidates(logits: Logits, labels: Labels) -> NDArray[np.float32]:
    """Evenly spaced logits over the range where positives lie, (CANDIDATES,)."""
    low, high = np.quantile(logits[labels == 1], [0.0, 1.0])
    return np.linspace(low, high, CANDIDATES, dtype=np.float32)


def _f1_curve(
    logits: Logits, labels: Labels, candidates: NDArray[np.float32]
) -> NDArray[np.float64]:
    """F1 of one tag at each candidate threshold, (n_candidates,)."""
    positive = np.sort(logits[labels == 1])
    known = np.sort(logits[labels >= 0])
    tp = len(positive) - np.searchsorted(positive, candidates)
    predicted = len(known) - np.searchsorted(known, candidates)
    return 2 * tp / (predicted + len(positive))
