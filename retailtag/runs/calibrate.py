"""Calibrated probabilities from the scores that a model kept, and how far they can be trusted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retailtag.calibration import Calibration
from retailtag.catalog.catalog import Catalog
from retailtag.catalog.folds import k_folds
from retailtag.runs.tune import Model
from retailtag.scoring.calibration import calibration_sums
from retailtag.thresholds.platt import shrunken_curves
from retailtag.thresholds.ranking import keep_images, rank_tags

N_FOLDS = 5  # of a validation set, whose images are in none
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
