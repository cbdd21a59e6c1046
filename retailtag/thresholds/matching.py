"""Thresholds of one model carried over to another that scores the same images."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from retailtag.thresholds.ranking import Logits

Thresholds = NDArray[np.float32]
Floats = NDArray[np.float64]


def match_counts(
    thresholds: Thresholds, reference: Logits, logits: Logits, group: NDArray[np.str_]
) -> Thresholds:
    """Thresholds (n_tags,) that give each group among `logits` as often as among `reference`.

    The thresholds of a frequency group all move by one number, up to which as many cells of
    `logits` (n_images, n_tags) lie as cells of `reference`, of the same images, reach
    `thresholds`. Of equal cells at the cut all are given. ``inf``, a tag that is never given, stays
    ``inf``. No label is read.

    Examples
    --------
    >>> reference = np.array([[1.0], [0.5], [-0.5]], np.float32)
    >>> zero = np.zeros(1, np.float32)
    >>> match_counts(zero, reference, 3 * reference + 2, np.array(["tail"])).tolist()
    [2.0]
    """
    matched = thresholds.copy()
    for name in np.unique(group):
        own = (group == name) & np.isfinite(thresholds)
        if own.any() and len(logits):
            at = thresholds[own].astype(np.float64)
            move = _same_place((reference[:, own] - at).ravel(), (logits[:, own] - at).ravel())
            matched[own] = (at + move).astype(np.float32)
    return matched


def _same_place(reference: Floats, values: Floats) -> float:
    """The number that has as many of `values` at or above it as `reference` (n,) has above 0.

    Between two values it lies as far from each as 0 does between its two neighbours, so that equal
    values give 0.
    """
    n = len(reference)
    k = int((reference >= 0).sum())  # given: values of rank k and above
    ends = [n - k] if k == n else [n - k - 1] if k == 0 else [n - k - 1, n - k]
    old, new = np.partition(reference, ends)[ends], np.partition(values, ends)[ends]
    if len(ends) == 1:  # all or none: the outermost value keeps its distance
        return float(new[0] - old[0])
    slope = (new[1] - new[0]) / (old[1] - old[0])
    return float(min(new[0] - slope * old[0], new[1]))
