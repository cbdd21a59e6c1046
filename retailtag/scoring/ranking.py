"""Per-image metrics: how well the tags of an image rank above the others.

Means run over the images that carry at least one known tag, the same set for every model; unknown
labels (-1) are left out. Tags with equal scores count as ranked together, so that the order of the
tag axis cannot matter.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retailtag.catalog.table import POSITIVE, UNKNOWN
from retailtag.errors import DataError
from retailtag.scoring.metrics import Floats, macro, ratio

BLOCK_CELLS = 1_000_000  # scores sorted at once: the working arrays stay near 50 MB
CUTOFFS = (1, 3, 5)  # k of precision at k


@dataclass(frozen=True)
class SampleScores:
    """Means over the images that carry at least one known tag, in [0, 1]; NaN without any image."""

    n_images: int  # images averaged
    n_without_tag: int  # images left out because no known tag is on them
    sample_f1: float
    lrap: float
    coverage_error: float  # tags until all true ones are seen; at least 1, smaller is better
    precision_at_1: float  # NaN where no image has as many known tags
    precision_at_3: float
    precision_at_5: float


NO_SAMPLES = SampleScores(0, 0, *[float("nan")] * 6)  # of a card without images


def sample_f1(predicted: NDArray[np.bool_], labels: NDArray[np.int8]) -> Floats:
    r"""F1 of every image: its given tags against its true ones.

    .. math:: F_1(i) = \frac{2\,|Y_i \cap \hat Y_i|}{|Y_i| + |\hat Y_i|}

    with :math:`Y_i` the known tags of image i and :math:`\hat Y_i` those it was given; (n_images,),
    NaN for an image without a known tag. scikit-learn's ``f1_score(average="samples")`` counts
    those as 0.

    References
    ----------
    Godbole and Sarawagi, "Discriminative methods for multi-labeled classification", PAKDD 2004.

    Examples
    --------
    >>> given = np.array([[True, True, False], [True, False, False]])
    >>> sample_f1(given, np.array([[1, 0, 0], [0, 0, -1]], dtype=np.int8)).round(3).tolist()
    [0.667, nan]
    """
    present = labels == POSITIVE
    both = (predicted & present).sum(axis=1)
    n_true = present.sum(axis=1)
    n_given = (predicted & (labels != UNKNOWN)).sum(axis=1)
    return np.where(n_true > 0, ratio(2 * both, n_true + n_given), np.nan)


@dataclass(frozen=True, eq=False)
class _Ranked:
    """Tags of each image from the highest score down, unknown ones last; all (n_images, n_tags)."""

    present: NDArray[np.bool_]
    found: NDArray[np.int64]  # true tags up to and including a place
    first: NDArray[np.int64]  # where the run of equal scores around a place begins
    last: NDArray[np.int64]  # and where it ends
    n_known: NDArray[np.int64]

    def found_through(self, place: NDArray[np.int64]) -> NDArray[np.int64]:
        """True tags at `place` (same shape) or above."""
        return np.take_along_axis(self.found, place, axis=1)


def _rank(logits: NDArray[np.floating], labels: NDArray[np.int8]) -> _Ranked:
    known = labels != UNKNOWN
    keys = np.where(known, -logits, np.nan)  # NumPy sorts NaN last
    order = np.argsort(keys, axis=1)
    keys = np.take_along_axis(keys, order, axis=1)
    present = np.take_along_axis(labels == POSITIVE, order, axis=1)
    place = np.broadcast_to(np.arange(keys.shape[1]), keys.shape)
    # A run of equal scores begins where the score differs from the one before and ends before the
    # next beginning. The first place of a run is carried forward by a running maximum, the last
    # place backward by a running minimum.
    begins = np.ones(keys.shape, bool)
    begins[:, 1:] = keys[:, 1:] != keys[:, :-1]
    ends = np.ones(keys.shape, bool)
    ends[:, :-1] = begins[:, 1:]
    first = np.maximum.accumulate(np.where(begins, place, 0), axis=1)
    backward = np.where(ends, place, keys.shape[1])[:, ::-1]
    last = np.minimum.accumulate(backward, axis=1)[:, ::-1]
    return _Ranked(present, present.cumsum(axis=1), first, last, known.sum(axis=1))


def label_ranking(ranked: _Ranked) -> Floats:
    r"""Average precision over the true tags of each image, shape (n_images,).

    .. math:: LRAP(i) = \frac{1}{|Y_i|} \sum_{j \in Y_i} \frac{TP_i(s_{ij})}{N_i(s_{ij})}

    with :math:`N_i(s)` the tags and :math:`TP_i(s)` the true tags of image i that score at least
    s. In (0, 1], larger is better; NaN for an image without a known tag.

    References
    ----------
    Schapire and Singer, "BoosTexter", 2000; scikit-learn's
    ``label_ranking_average_precision_score``, which gives 1 where this gives NaN.
    """
    # N and TP of a tag's score count through the last tag of equal score, so that ties share them
    precision = ranked.found_through(ranked.last) / (ranked.last + 1)
    return ratio((precision * ranked.present).sum(axis=1), ranked.present.sum(axis=1))


def coverage(ranked: _Ranked) -> Floats:
    r"""Tags to go down, from the highest score, until all true ones are seen; shape (n_images,).

    .. math:: C(i) = \max_{j \in Y_i} N_i(s_{ij})

    At least 1, smaller is better; NaN for an image without a known tag.

    References
    ----------
    Tsoumakas, Katakis and Vlahavas, "Mining multi-label data", 2010; equal to scikit-learn's
    ``coverage_error``, which counts images without a tag as 0.
    """
    depth = np.where(ranked.present, ranked.last + 1, 0).max(axis=1, initial=0)
    return np.where(depth > 0, depth, np.nan)


def precision_at(ranked: _Ranked, k: int) -> Floats:
    """Share of true tags among the k highest, shape (n_images,).

    Where equal scores straddle place k, the expectation over their random order. In [0, 1], larger
    is better; NaN for an image without a known tag, or with fewer than k known labels.

    References
    ----------
    Manning, Raghavan and Schuetze, "Introduction to Information Retrieval", 2008, section 8.4;
    McSherry and Najork, "Computing information retrieval performance measures efficiently in the
    presence of tied scores", ECIR 2008.
    """
    n_images, n_tags = ranked.present.shape
    if n_tags < k:
        return np.full(n_images, np.nan)
    first = ranked.first[:, k - 1 : k]
    last = ranked.last[:, k - 1 : k]
    # Place k lies in a run of equal scores from `first` to `last`. All true tags above the run
    # count; of those in it, the share (k - first) of (last - first + 1) that places up to k take.
    above = np.where(first > 0, ranked.found_through(np.maximum(first - 1, 0)), 0)
    tied = ranked.found_through(last) - above
    hits = above + (k - first) * tied / (last - first + 1)
    defined = ranked.present.any(axis=1) & (ranked.n_known >= k)
    return np.where(defined, hits[:, 0] / k, np.nan)


def sample_scores(
    logits: NDArray[np.floating], predicted: NDArray[np.bool_], labels: NDArray[np.int8]
) -> SampleScores:
    """All per-image metrics from one sort of each image's scores.

    All are (n_images, n_tags): `logits` without NaN and comparable between the tags of an image,
    `labels` 1, 0, or -1 (left out). Raises `DataError` if the shapes differ or a logit is NaN.

    Examples
    --------
    >>> logits = np.array([[3.0, 2.0, 1.0], [1.0, 2.0, 3.0]])
    >>> labels = np.array([[1, 0, 1], [0, 0, 1]], dtype=np.int8)
    >>> scores = sample_scores(logits, logits >= 2, labels)
    >>> round(scores.lrap, 4), scores.coverage_error, scores.precision_at_1
    (0.9167, 2.0, 1.0)
    """
    if not logits.shape == predicted.shape == labels.shape:
        raise DataError(f"Logits have shape {logits.shape} and labels {labels.shape}; align them.")
    if np.isnan(logits).any():
        raise DataError("Logits hold NaN; the model that made them diverged.")
    n_images, n_tags = labels.shape
    lrap = np.full(n_images, np.nan)
    depth = np.full(n_images, np.nan)
    precision = np.full((len(CUTOFFS), n_images), np.nan)
    size = max(1, BLOCK_CELLS // max(n_tags, 1))
    for start in range(0, n_images, size):
        rows = slice(start, start + size)
        ranked = _rank(logits[rows], labels[rows])
        lrap[rows] = label_ranking(ranked)
        depth[rows] = coverage(ranked)
        for row, k in zip(precision, CUTOFFS, strict=True):
            row[rows] = precision_at(ranked, k)
    f1 = sample_f1(predicted, labels)
    n_averaged = int((~np.isnan(f1)).sum())
    return SampleScores(
        n_images=n_averaged,
        n_without_tag=n_images - n_averaged,
        sample_f1=macro(f1),
        lrap=macro(lrap),
        coverage_error=macro(depth),
        precision_at_1=macro(precision[0]),
        precision_at_3=macro(precision[1]),
        precision_at_5=macro(precision[2]),
    )
