"""Which calibration holds up: none, Platt scaling or isotonic regression, for whom.

    python benchmarks/calibration.py RUN... [--catalogue CATALOGUE] [--dry]

RUN is the folder of a probe or a fine-tune with its kept scores and predictions. Every calibration
is fitted on the scores of all folds but one (of a validation set, on four fifths of its products)
and measured on the rest, then fitted on all of them and measured on the test split: log loss, Brier
score and expected calibration error of all tags, of the tail and of the frequent tags.
`retailtag export` fits ``platt, shrunk``. Appends to ``results/calibration.csv``.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from record import append, stamp
from sklearn.isotonic import IsotonicRegression

from retailtag.api import read_catalog
from retailtag.catalog.catalog import Catalog
from retailtag.predictions import Predictions
from retailtag.runs.calibrate import folds_of
from retailtag.runs.tune import Model
from retailtag.scoring.aligned import align
from retailtag.scoring.calibration import calibration_sums
from retailtag.scoring.files import recorded_catalog
from retailtag.thresholds.platt import shrunken_curves
from retailtag.thresholds.ranking import rank_tags

SURE = 1e-6  # probabilities of an isotonic step are kept from 0 and 1, whose log loss is infinite
SCOPES = ("all", "tail", "frequent")

Logits = NDArray[np.float32]
Labels = NDArray[np.int8]
Groups = NDArray[np.str_]
Map = Callable[[Logits], Logits]  # logits (n_images, n_tags) to calibrated ones


def _platt(logits: Logits, labels: Labels, group: Groups, equal_weight: float) -> Map:
    curves = shrunken_curves(rank_tags(logits, labels), group, equal_weight)
    return lambda z: (curves.slope * z + curves.offset).astype(np.float32)


def _isotonic(logits: Logits, labels: Labels, group: Groups) -> Map:
    """One step function for the pooled cells of each group."""
    maps = {}
    for name in np.unique(group):
        own = group == name
        known = labels[:, own] >= 0
        fitted = IsotonicRegression(y_min=SURE, y_max=1 - SURE, out_of_bounds="clip")
        maps[name] = fitted.fit(logits[:, own][known], labels[:, own][known])

    def calibrated(z: Logits) -> Logits:
        p = np.empty(z.shape)
        for name, fitted in maps.items():
            own = group == name
            p[:, own] = fitted.predict(z[:, own].ravel()).reshape(-1, int(own.sum()))
        return np.log(p / (1 - p)).astype(np.float32)

    return calibrated


def ways(group: Groups) -> dict[str, Callable[[Logits, Labels], Map]]:
    """Every calibration by its name."""
    everyone, alone = np.full(len(group), "all"), np.arange(len(group)).astype(str)
    return {
        "none": lambda z, y: lambda other: other,
        "platt, all tags": lambda z, y: _platt(z, y, everyone, np.inf),
        "platt, group": lambda z, y: _platt(z, y, group, np.inf),
        "platt, tag": lambda z, y: _platt(z, y, group, 0.0),
        "platt, shrunk": lambda z, y: _platt(z, y, group, 20.0),
        "isotonic, all tags": lambda z, y: _isotonic(z, y, everyone),
        "isotonic, group": lambda z, y: _isotonic(z, y, group),
        "isotonic, tag": lambda z, y: _isotonic(z, y, alone),
    }


def measures(where: str, z: Logits, labels: Labels, scope: NDArray[np.bool_]) -> dict[str, float]:
    """Errors of calibrated logits over the known cells of some tags."""
    known = (labels >= 0) & scope
    loss = np.logaddexp(0, z.astype(np.float64)) - z * (labels == 1)
    sums = calibration_sums(z, labels)
    return {
        f"{where}_log_loss": round(float(loss[known].mean()), 5),
        f"{where}_brier": round(sums.brier(scope), 5),
        f"{where}_calibration_error": round(sums.error(scope), 5),
    }


def table(folder: Path, catalog: Catalog, seed: int = 0) -> Iterator[dict[str, Any]]:
    """One row per calibration and scope."""
    model = Model.load(folder)
    rows = model.rows(catalog)
    logits, labels = model.scores.logits, catalog.table.labels[rows]
    group, fold = catalog.table.group, folds_of(model, catalog, rows, seed)
    test = align(model.predictions, catalog, "test", allow_missing=True)
    facts = model.predictions.provenance
    for name, fit in ways(group).items():
        crossed = np.empty_like(logits)
        for k in np.unique(fold):
            inside = fold == k
            crossed[inside] = fit(logits[~inside], labels[~inside])(logits[inside])
        fresh = fit(logits, labels)(test.logits)
        for scope in SCOPES:
            own = (group == scope) | (scope == "all")
            if not (labels[:, own] >= 0).any():
                continue
            yield {
                "catalogue": catalog.path.parent.name,
                "backbone": str(facts.get("backbone")).partition("?")[0],
                "strategy": facts.get("strategy"),
                "images": len(rows),
                "test_images": len(test.rows),
                "calibration": name,
                "tags": scope,
                **measures("cross_fit", crossed, labels, own),
                **measures("test", fresh, test.labels, own),
            }


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Measure, print and record."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--catalogue", type=Path, help="default: the one that each run records")
    parser.add_argument("--dry", action="store_true", help="record nothing")
    args = parser.parse_args(arguments)
    rows = []
    for folder in args.runs:
        predictions = Predictions.load(folder / "predictions.npz")
        catalog = recorded_catalog(folder, predictions, read_catalog, args.catalogue)
        rows += table(folder, catalog)
    shown = list(rows[0])[1:]
    for line in (dict(zip(shown, shown, strict=True)), *rows):
        print(*(str(line[name]).ljust(18) for name in shown))
    if not args.dry:
        append("calibration.csv", [{**stamp(), **row} for row in rows])
    return rows


if __name__ == "__main__":
    main()
