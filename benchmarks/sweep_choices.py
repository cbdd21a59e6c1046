"""What do the choices after the sweep give? Thresholds by four rules, C for all, by group, by tag.

    python benchmarks/sweep_choices.py CATALOGUE --features FOLDER --backbones a,b [--dry]

For each backbone, from its feature store: one out-of-fold sweep as `retailtag probe` runs it, then
for every way to choose C (one for all, per group, per tag) and every threshold rule (fixed at
probability 0.5, global, per tag, the rule chosen by cross-fit) macro-F1 over all tags and over the
tail, out of fold and on the test split. Out of fold, thresholds are cross-fit: tuned on the scores
of the other folds and counted on one, the counts pooled over folds; where the rule is chosen, it
is chosen anew on the other folds each time. C was chosen by AP on the same scores, which favours
the freer ways to choose it a little. For the test split thresholds are tuned on all
out-of-fold scores and the probe is fitted to all training images. Tags without a positive in what
is counted are left out of its averages. Appends to ``results/sweep_choices.csv``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from record import append, stamp

from retailtag.catalog.catalog import Catalog
from retailtag.catalog.folds import k_folds
from retailtag.catalog.readers import read_catalog
from retailtag.probes.choice import choose_candidate
from retailtag.probes.grid import parse_grid
from retailtag.probes.solver.fit import make_solver
from retailtag.probes.sweep import Sweep, Sweeper
from retailtag.runs.probe import Features, load_rows
from retailtag.runs.sweep import fit_at
from retailtag.scoring.metrics import (
    average_precision_per_tag,
    f1_from_counts,
    macro,
    tag_counts,
)
from retailtag.store import FeatureStore, list_stores
from retailtag.thresholds.tuning import AUTO, Tuned, Tuning

CHOICES = ("global", "per-group", "per-tag")
CHOSEN = "chosen"  # by cross-fit over the folds of the scores
RULES = ("fixed", "global", "per-tag", CHOSEN)

Logits = NDArray[np.float32]
Labels = NDArray[np.int8]


@dataclass(frozen=True)
class Scores:
    """Logits (n_images, n_tags) with their labels, and the folds where they are out of fold."""

    logits: Logits
    labels: Labels
    fold: NDArray[np.intp]

    def where(self, rows: NDArray[np.bool_]) -> Scores:
        """Only some images."""
        return Scores(self.logits[rows], self.labels[rows], self.fold[rows])


Tune = Callable[[Scores], Tuned]


def tuner(name: str, group: NDArray[np.str_]) -> Tune:
    """Thresholds from scores, by a rule of this table."""
    tuning = Tuning(AUTO if name == CHOSEN else name)

    def tune(scores: Scores) -> Tuned:
        fold = scores.fold if name == CHOSEN else None
        return tuning.tune(scores.logits, scores.labels, group, fold)

    return tune


def cross_fit(scores: Scores, tune: Tune) -> NDArray[np.bool_]:
    """Tags given (n_images, n_tags) by thresholds tuned on the other folds."""
    given = np.zeros(scores.logits.shape, bool)
    for k in np.unique(scores.fold):
        inside = scores.fold == k
        given[inside] = scores.logits[inside] >= tune(scores.where(~inside)).thresholds
    return given


def macro_f1(
    given: NDArray[np.bool_], labels: Labels, group: NDArray[np.str_], where: str
) -> dict[str, float | int]:
    """Macro-F1 over all tags and over the tail, and how many tags each is of."""
    f1, row = f1_from_counts(tag_counts(given, labels)), {}
    has_positive = (labels == 1).any(axis=0)
    for scope, inside in (("", has_positive), ("tail_", has_positive & (group == "tail"))):
        row[f"{where}_{scope}macro_f1"] = round(macro(f1, inside), 4) if inside.any() else np.nan
        row[f"{where}_{scope}tags"] = int(inside.sum())
    return row


def sweep(catalog: Catalog, train: Features, args: argparse.Namespace) -> Sweep:
    """The out-of-fold sweep of the product, over the grid as it is asked for."""
    labels, products = catalog.table.labels[train.rows], catalog.group[train.rows]
    fold = k_folds(labels, products, catalog.image_ids[train.rows], args.folds, args.seed)
    solver = make_solver("torch", args.device)
    sweeper = Sweeper(train.X, labels, fold, solver, average_precision_per_tag)
    return sweeper.sweep(parse_grid(args.grid))


def rows_of(
    catalog: Catalog, store: FeatureStore, args: argparse.Namespace
) -> list[dict[str, Any]]:
    """All rows of a backbone."""
    train = load_rows(catalog, store, catalog.rows("train"), args.folds)
    test = load_rows(catalog, store, catalog.rows("test"), 0)
    group, labels = catalog.table.group, catalog.table.labels
    solver = make_solver("torch", args.device)
    found, rows = sweep(catalog, train, args), []
    positives = (labels[train.rows] == 1).sum(axis=0)
    for choose in CHOICES:
        choice = choose_candidate(found.evidence, group, choose, positives)
        scores = Scores(found.logits(choice), labels[train.rows], found.fold.astype(np.intp))
        weight, bias = fit_at(train.X, scores.labels, found.C[choice], solver).raw()
        test_logits = test.X @ weight.T + bias
        ap = macro(found.ap[choice, np.arange(len(choice))])
        for name in RULES:
            tune = tuner(name, group)
            tuned = tune(scores)
            given = test_logits >= tuned.thresholds
            rows.append(
                {
                    "backbone": store.spec.backbone,
                    "choose_C": choose,
                    "C": " ".join(f"{c:.3g}" for c in np.unique(found.C[choice])),
                    "out_of_fold_macro_ap": round(ap, 4),
                    "thresholds": name,
                    "rule": tuned.rule,
                    **macro_f1(cross_fit(scores, tune), scores.labels, group, "out_of_fold"),
                    **macro_f1(given, labels[test.rows], group, "test"),
                }
            )
    return rows


def store_of(features: Path, backbone: str) -> FeatureStore:
    """The one store of a backbone.

    Raises
    ------
    SystemExit
        If there is none, or several.
    """
    stores = [store for store in list_stores(features) if store.spec.backbone == backbone]
    if len(stores) != 1:
        raise SystemExit(f"{features} holds {len(stores)} stores of {backbone}; one is needed.")
    return stores[0]


def main() -> None:
    """Sweep, print and record."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("catalogue", type=Path)
    parser.add_argument("--features", type=Path, default=Path("features"))
    parser.add_argument("--backbones", required=True, help="comma-separated")
    parser.add_argument("--grid", default="1e-6:1e5:45")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    parser.add_argument("--dry", action="store_true", help="record nothing")
    args = parser.parse_args()
    catalog, facts = read_catalog(args.catalogue), stamp()
    size = {"images": len(catalog.rows("train")), "folds": args.folds, "grid": args.grid}
    stores = [store_of(args.features, backbone) for backbone in args.backbones.split(",")]
    rows = [{**facts, **size, **row} for store in stores for row in rows_of(catalog, store, args)]
    if args.json:
        print(json.dumps(rows))
    else:
        shown = [name for name in rows[0] if name not in facts and name not in size]
        for line in (dict(zip(shown, shown, strict=True)), *rows):
            print(*(str(line[name]).ljust(22) for name in shown))
    if not args.dry:
        append("sweep_choices.csv", rows)


if __name__ == "__main__":
    main()
