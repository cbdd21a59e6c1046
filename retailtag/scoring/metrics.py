"""Multi-tag metrics as pure functions of arrays: no files, no models, numpy only.

Every function leaves unknown labels (-1) out, and gives NaN, never 0, where a metric is undefined.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retailtag.catalog.table import NEGATIVE, POSITIVE, UNKNOWN
from retailtag.errors import DataError

Floats = NDArray[np.float64]
# With so few positives, counting what each retrieves is faster than a sort of the scores
MAX_POSITIVES_TO_COUNT = 50
COLUMNS_AT_ONCE = 16  # 64 bytes of float32: a pass over a row-major matrix reads whole cache lines


@dataclass(frozen=True, eq=False)
class TagCounts:
    """Confusion counts of each tag over the images whose label is known, int64 (n_tags,)."""

    tp: NDArray[np.int64]
    fp: NDArray[np.int64]
    fn: NDArray[np.int64]
    tn: NDArray[np.int64]

    @property
    def positives(self) -> NDArray[np.int64]:
        """Support: images that carry the tag, shape (n_tags,)."""
        return self.tp + self.fn

    @property
    def predicted(self) -> NDArray[np.int64]:
        """Images (with a known label) that were given the tag, shape (n_tags,)."""
        return self.tp + self.fp


def tag_counts(predicted: NDArray[np.bool_], labels: NDArray[np.int8]) -> TagCounts:
    """Confusion counts of each tag.

    `predicted` and `labels` (1 present, 0 absent, -1 unknown: left out) are (n_images, n_tags).

    Examples
    --------
    >>> given = np.array([[True], [True], [False], [True]])
    >>> truth = np.array([[1], [0], [1], [-1]], dtype=np.int8)
    >>> counts = tag_counts(given, truth)
    >>> counts.tp.item(), counts.fp.item(), counts.fn.item(), counts.tn.item()
    (1, 1, 1, 0)
    """
    present = labels == POSITIVE
    absent = labels == NEGATIVE
    tp = (predicted & present).sum(axis=0, dtype=np.int64)
    fp = (predicted & absent).sum(axis=0, dtype=np.int64)
    return TagCounts(
        tp=tp,
        fp=fp,
        fn=present.sum(axis=0, dtype=np.int64) - tp,
        tn=absent.sum(axis=0, dtype=np.int64) - fp,
    )


def ratio(numerator: NDArray[np.generic], denominator: NDArray[np.generic]) -> Floats:
    """Divide elementwise; NaN where the denominator is 0."""
    top, bottom = np.broadcast_arrays(
        np.asarray(numerator, np.float64), np.asarray(denominator, np.float64)
    )
    return np.divide(top, bottom, out=np.full(top.shape, np.nan), where=bottom != 0)


def f1(
    tp: NDArray[np.generic], predicted: NDArray[np.generic], positives: NDArray[np.generic]
) -> Floats:
    r"""F1 from marginal counts, which may be weighted (bootstrap replicates).

    .. math:: F_1 = \frac{2\,TP}{\hat P + P} = \frac{2\,TP}{2\,TP + FP + FN}

    with :math:`\hat P` the images given the tag and :math:`P` the images that carry it.
    All are (..., n_tags); NaN where the tag has no positive.

    Examples
    --------
    >>> f1(np.array([2, 0, 0]), np.array([3, 4, 0]), np.array([3, 0, 5])).round(3).tolist()
    [0.667, nan, 0.0]
    """
    value = ratio(2 * np.asarray(tp), np.asarray(predicted) + np.asarray(positives))
    return np.where(np.asarray(positives) > 0, value, np.nan)


def f1_from_counts(counts: TagCounts) -> Floats:
    """Per-tag F1 = 2TP/(2TP+FP+FN), shape (n_tags,); NaN for a tag without positives.

    scikit-learn's ``f1_score`` gives 0 (``zero_division``) where this gives NaN. A tag that no
    scored image carries says nothing about recall, and a 0 would lower the mean by chance.

    Examples
    --------
    >>> counts = TagCounts(*(np.array([n]) for n in (6, 2, 4, 88)))
    >>> f1_from_counts(counts).round(4).item()
    0.6667
    """
    return f1(counts.tp, counts.predicted, counts.positives)


def precision_from_counts(counts: TagCounts) -> Floats:
    """Per-tag precision TP/(TP+FP), shape (n_tags,).

    0 where a tag with positives was never given (as in scikit-learn), so that precision and F1
    average over the same tags; NaN where the tag has no positive.

    Examples
    --------
    >>> never_given = TagCounts(*(np.array([n]) for n in (0, 0, 4, 96)))
    >>> precision_from_counts(never_given).item()
    0.0
    """
    value = np.nan_to_num(ratio(counts.tp, counts.predicted), nan=0.0)
    return np.where(counts.positives > 0, value, np.nan)


def recall_from_counts(counts: TagCounts) -> Floats:
    """Per-tag recall TP/(TP+FN), shape (n_tags,); NaN where the tag has no positive.

    Examples
    --------
    >>> recall_from_counts(TagCounts(*(np.array([n]) for n in (6, 2, 4, 88)))).item()
    0.6
    """
    return ratio(counts.tp, counts.positives)


def average_precision(scores: NDArray[np.floating], labels: NDArray[np.int8]) -> float:
    r"""Average precision of one tag: the step sum over distinct scores.

    .. math::
        AP = \sum_k (R_k - R_{k-1})\,P_k
           = \frac{1}{P} \sum_{i:\,y_i = 1} \frac{TP(s_i)}{N(s_i)}

    with :math:`N(s)` the images and :math:`TP(s)` the positives that score at least :math:`s`.
    Every positive sees the precision at its own score, so images with equal scores count as
    retrieved together and the row order cannot matter.

    `scores` (n_images,) are on any monotone scale, larger for more likely; infinities are allowed;
    `labels` (n_images,) are 1, 0, or -1 (left out). The result is in (0, 1], larger is better; NaN
    without a positive. Constant scores give the prevalence.

    One pass over the scores and O(m log m) for a sort of the m that reach the lowest positive, or
    O(m P) without a sort for up to `MAX_POSITIVES_TO_COUNT` positives. Equal to
    ``sklearn.metrics.average_precision_score``.

    References
    ----------
    Su, Yuan and Zhu, "A relationship between the average precision and the area under the ROC
    curve", ICTIR 2015, for the step form; scikit-learn for its handling of ties.

    Examples
    --------
    >>> truth = np.array([1, 0, 1, 0], dtype=np.int8)
    >>> average_precision(np.array([0.9, 0.8, 0.7, 0.1]), truth)  # (1/1 + 2/3) / 2
    0.8333333333333333
    >>> average_precision(np.zeros(4), truth)
    0.5
    """
    found, retrieved = retrieved_at_positives(scores, labels)
    return float(np.mean(found / retrieved)) if len(found) else float("nan")


def retrieved_at_positives(
    scores: NDArray[np.floating], labels: NDArray[np.int8]
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Positives and images that score at least as much as each positive of one tag.

    Both (n_positives,), the lowest positive first; every curve over thresholds turns at these
    points. Unknown labels are left out.
    """
    own = np.sort(scores[labels == POSITIVE])
    if not len(own):
        return np.zeros(0, np.intp), np.zeros(0, np.intp)
    if len(own) == 1:  # most tags, where there are thousands
        n_above = np.count_nonzero((scores >= own[0]) & (labels != UNKNOWN))
        return np.ones(1, np.intp), np.array([n_above], np.intp)
    # Images below the lowest positive are never retrieved: a good model leaves few to sort.
    above = scores[(scores >= own[0]) & (labels != UNKNOWN)]
    if len(own) <= MAX_POSITIVES_TO_COUNT:
        retrieved = np.array([np.count_nonzero(above >= score) for score in own], np.intp)
    else:
        retrieved = len(above) - np.searchsorted(np.sort(above), own, side="left")
    # side="left" counts scores below each positive's own, so equal scores (other positives here,
    # any image in `retrieved`) count as retrieved with it and the row order cannot matter.
    found = len(own) - np.searchsorted(own, own, side="left")
    return found, retrieved


def average_precision_per_tag(logits: NDArray[np.floating], labels: NDArray[np.int8]) -> Floats:
    """Average precision of every tag, float64 (n_tags,); see `average_precision`.

    Raises `DataError` if the shapes differ or a logit is NaN.

    Examples
    --------
    >>> logits = np.array([[2.0, 1.0], [1.0, 2.0], [0.0, 3.0]])
    >>> labels = np.array([[1, 0], [0, 0], [0, 0]], dtype=np.int8)
    >>> average_precision_per_tag(logits, labels).tolist()
    [1.0, nan]
    """
    return np.array([average_precision(*pair) for pair in columns(logits, labels)], np.float64)


def columns(
    logits: NDArray[np.floating], labels: NDArray[np.int8]
) -> Iterator[tuple[NDArray[np.floating], NDArray[np.int8]]]:
    """Yield contiguous scores and labels by tag; raises as `average_precision_per_tag` does."""
    if logits.shape != labels.shape:
        raise DataError(f"Logits have shape {logits.shape} and labels {labels.shape}; align them.")
    for start in range(0, logits.shape[1], COLUMNS_AT_ONCE):
        block = slice(start, start + COLUMNS_AT_ONCE)
        scores = np.ascontiguousarray(logits[:, block].T)
        truth = np.ascontiguousarray(labels[:, block].T)
        if np.isnan(scores).any():
            raise DataError("Logits hold NaN; the model that made them diverged.")
        yield from zip(scores, truth, strict=True)


def macro(values: Floats, mask: NDArray[np.bool_] | None = None) -> float:
    """Mean over the tags of `mask` (all by default) where `values` is not NaN; NaN if none is left.

    Macro-F1 is the mean of per-tag F1, never the F1 of mean precision and mean recall: the two
    can rank models differently.

    References
    ----------
    Opitz and Burst, "Macro F1 and Macro F1", arXiv:1911.03347.

    Examples
    --------
    >>> macro(np.array([0.2, np.nan, 0.6]))
    0.4
    >>> macro(np.array([0.2, np.nan, 0.6]), np.array([False, True, False]))
    nan
    """
    defined = ~np.isnan(values)
    inside = values[defined if mask is None else mask & defined]
    return float(inside.mean()) if len(inside) else float("nan")


def micro_f1(counts: TagCounts) -> float:
    """F1 of the pooled cells, 2ΣTP/(2ΣTP+ΣFP+ΣFN), false alarms of every tag included.

    In [0, 1], larger is better; NaN if no cell is positive or given.

    Examples
    --------
    >>> micro_f1(TagCounts(*(np.array(n) for n in ([3, 1], [1, 0], [0, 3], [6, 6]))))
    0.6666666666666666
    """
    tp = int(counts.tp.sum())
    wrong = int(counts.fp.sum() + counts.fn.sum())
    return 2 * tp / (2 * tp + wrong) if tp + wrong else float("nan")
