"""Calibrated probabilities from the scores that a model kept, and how far they can be trusted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retailtag.catalog.catalog import Catalog
from retailtag.catalog.folds import k_folds
from retailtag.runs.tune import Model
from retailtag.scoring.calibration import calibration_sums
from retailtag.tagger.calibration import Calibration
from retailtag.thresholds.plug_in import Histogram
from retailtag.thresholds.ranking import RankedTag, keep_images, rank_tags
from retailtag.thresholds.rules import EQUAL_WEIGHT

N_FOLDS = 5  # of a validation set, whose images are in none
SMALLEST_SLOPE = 1e-3  # scores that say nothing keep their order
BEFORE, AFTER = "before", "after"


@dataclass(frozen=True, eq=False)
class FittedCalibration:
    """Curves for the deployed model, and their error on images that they were not fitted on."""

    curves: Calibration
    facts: dict[str, Any]  # JSON-able: how they were fitted, and `CalibrationSums` by scope


def calibrate(
    model: Model, catalog: Catalog, rows: NDArray[np.intp], seed: int
) -> FittedCalibration:
    """Fit the calibration of a model on its kept scores; `rows` as `Model.rows` gives them.

    The errors are cross-fit: each fold's scores (of a validation set each fifth, no product
    divided) are calibrated by the curves of the other folds.
    """
    labels = catalog.table.labels[rows]
    logits, group = model.scores.logits, catalog.table.group
    fold = folds_of(model, catalog, rows, seed)
    tags = rank_tags(logits, labels)
    crossed = np.empty(logits.shape, np.float32)
    for k in np.unique(fold):
        inside = fold == k
        curves = shrunken_curves(keep_images(tags, ~inside), group)
        crossed[inside] = curves.slope * logits[inside] + curves.offset
    return FittedCalibration(
        shrunken_curves(tags, group),
        {
            "method": "platt, shrunk to the frequency group",
            "scores": "out-of-fold" if model.scores.fold is not None else "validation",
            "n_images": len(rows),
            "cross_fit": _errors(logits, crossed, labels, group),
        },
    )


def folds_of(
    model: Model, catalog: Catalog, rows: NDArray[np.intp], seed: int
) -> NDArray[np.integer]:
    """Fold (n_images,) of each kept score: that of the probe, or one drawn for a validation set."""
    if model.scores.fold is not None:
        return model.scores.fold
    products, ids = catalog.group[rows], catalog.image_ids[rows]
    n = min(N_FOLDS, len(np.unique(products)))
    if n < 2:  # a single product cannot be divided: its errors are those without calibration
        return np.zeros(len(rows), np.intp)
    return k_folds(catalog.table.labels[rows], products, ids, n, seed)


def errors_on(
    curves: Calibration,
    logits: NDArray[np.float32],
    labels: NDArray[np.int8],
    group: NDArray[np.str_],
) -> dict[str, dict[str, dict[str, float]]]:
    """Errors by scope, before and after calibration, of images that no curve was fitted on."""
    return _errors(logits, curves.slope * logits + curves.offset, labels, group)


def _errors(
    logits: NDArray[np.float32],
    calibrated: NDArray[np.float32],
    labels: NDArray[np.int8],
    group: NDArray[np.str_],
) -> dict[str, dict[str, dict[str, float]]]:
    """Brier score and expected calibration error of all tags and of the tail."""
    sums = {BEFORE: calibration_sums(logits, labels), AFTER: calibration_sums(calibrated, labels)}
    scopes = {"all": np.ones(len(group), bool), "tail": group == "tail"}
    return {
        scope: {
            when: {"calibration_error": one.error(own), "brier": one.brier(own)}
            for when, one in sums.items()
        }
        for scope, own in scopes.items()
        if (labels[:, own] >= 0).any()
    }


def shrunken_curves(
    tags: tuple[RankedTag, ...], group: NDArray[np.str_], equal_weight: float = EQUAL_WEIGHT
) -> Calibration:
    r"""Platt scaling of each tag, shrunk to that of its frequency group.

    `equal_weight` is the number of positives of a tag that weigh as much as its group.

    Notes
    -----
    With P positives, slope and offset of a tag are :math:`(P\,own + 20\,group)/(P + 20)`, as its
    threshold is: a rare tag has the curve of its group, a frequent one its own. The group's curve
    is fitted to the pooled cells of all its tags. Among Platt scaling and isotonic regression, for
    all tags, each group or each tag, this has the smallest or nearly the smallest cross-fit log
    loss (results/calibration.csv).
    """
    slope = np.ones(len(tags))
    offset = np.zeros(len(tags))
    for name in np.unique(group):
        members = [k for k in np.flatnonzero(group == name).tolist() if len(tags[k].negated)]
        if not any(tags[k].positives for k in members):
            continue  # no curve can be fitted: the logistic stays
        shared = _platt([tags[k] for k in members])
        for k in members:
            share = 0.0
            own = shared
            if tags[k].positives:
                share = tags[k].positives / (tags[k].positives + equal_weight)
                own = _platt([tags[k]])
            slope[k], offset[k] = share * own + (1 - share) * shared
    return Calibration(slope.astype(np.float32), offset.astype(np.float32))


def _platt(tags: list[RankedTag]) -> NDArray[np.float64]:
    """Slope, above 0, and offset for the pooled cells of tags."""
    slope, offset = Histogram.of(tags).platt()
    return np.array([max(slope, SMALLEST_SLOPE), offset])
