"""Curves over the thresholds and the probabilities of one model on one split."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retailtag.scoring.aligned import Aligned
from retailtag.scoring.calibration import calibration_sums
from retailtag.scoring.metrics import f1_from_counts, macro, ratio, tag_counts

N_POINTS = 33  # of a trade-off; odd, so that one is at the thresholds as they are
MOST_TAGS, FEWEST_TAGS = 3.0, 0.15  # at the ends, times those given at the thresholds


@dataclass(frozen=True)
class OperatingPoint:
    """What thresholds give: tags an image, precision and recall of all cells, macro-F1."""

    name: str  # what the thresholds were tuned for; empty for a point of a curve
    shift: float  # added to the model's own thresholds, in logits
    tags_per_image: float
    precision: float
    recall: float
    macro_f1: float
    tail_macro_f1: float


@dataclass(frozen=True)
class ReliabilityBin:
    """Cells of a group whose probability lies in one bin."""

    group: str
    n_cells: int
    predicted: float  # mean probability
    present: float  # share that carries the tag


def operating_point(
    name: str,
    given: NDArray[np.bool_],
    labels: NDArray[np.int8],
    is_tail: NDArray[np.bool_],
    shift: float = 0.0,
) -> OperatingPoint:
    """Point of the tags given to images; `given` and `labels` are (n_images, n_tags)."""
    counts = tag_counts(given, labels)
    f1 = f1_from_counts(counts)
    tp = counts.tp.sum()
    return OperatingPoint(
        name=name,
        shift=shift,
        tags_per_image=float(given.sum() / max(len(given), 1)),
        precision=float(ratio(tp, counts.predicted.sum())),
        recall=float(ratio(tp, counts.positives.sum())),
        macro_f1=macro(f1),
        tail_macro_f1=macro(f1, is_tail),
    )


def trade_off(aligned: Aligned, is_tail: NDArray[np.bool_]) -> tuple[OperatingPoint, ...]:
    """Points as all thresholds (n_tags,) are lowered and raised together, most tags first.

    They run from three times as many tags as the thresholds give to a seventh; attributes with one
    value an image are left to their thresholds.
    """
    thresholds = aligned.thresholds
    finite = np.isfinite(thresholds)
    margins = (aligned.logits[:, finite] - thresholds[finite]).ravel()
    n_given = int((margins >= 0).sum())
    if not n_given:
        return ()
    # Equal steps of the logarithm of the number of cells given; the middle one is as they are.
    half = N_POINTS // 2
    more = np.geomspace(MOST_TAGS * n_given, n_given, half, endpoint=False)
    fewer = np.geomspace(n_given, max(FEWEST_TAGS * n_given, 1), half + 1)[1:]
    ranks = np.minimum(np.concatenate([more, fewer]).astype(np.intp), len(margins) - 1)
    cuts = -np.partition(-margins, np.unique(ranks))[ranks]
    shifts = sorted({0.0, *cuts[np.isfinite(cuts)].tolist()})
    return tuple(
        operating_point(
            "", aligned.logits >= thresholds + np.float32(shift), aligned.labels, is_tail, shift
        )
        for shift in shifts
    )


def reliability(aligned: Aligned, group: NDArray[np.str_]) -> tuple[ReliabilityBin, ...]:
    """Mean probability against the share present, by group (n_tags,) and bin; empty bins left out.

    Bins as in `retailtag.scoring.calibration`.
    """
    sums = calibration_sums(aligned.logits, aligned.labels)
    found = []
    for name in dict.fromkeys(sorted(group.tolist())):
        own = group == name
        columns = (sums.count[own].sum(axis=0), sums.predicted[own].sum(axis=0),
                   sums.present[own].sum(axis=0))  # fmt: skip
        for n, predicted, present in zip(*(c.tolist() for c in columns), strict=True):
            if n:
                found.append(ReliabilityBin(name, int(n), predicted / n, present / n))
    return tuple(found)
