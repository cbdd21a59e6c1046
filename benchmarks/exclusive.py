"""What at most one and exactly one value of an attribute give, against tags that ignore each other.

    python benchmarks/exclusive.py CATALOGUE --features FOLDER --one-of gender,season [--dry]
    python benchmarks/exclusive.py --quick

From the feature store of a backbone: logistic regression on a few strengths, C per group of tags
and the threshold rule chosen out of fold, as `retailtag probe` chooses them. Then for the tags of
the attributes named, all together (``all``) and each attribute: macro-F1, that of the tail, and the
share of images with a value that are given it and no other, out of fold and on the test split. Out
of fold, thresholds are tuned on the scores of the other folds.

The tag of an attribute that wins is the one with the largest logit less `share` of its threshold:
at 0 the likeliest tag, at 1 the one furthest above its threshold, at 0.75 the product's. With
``independent`` every tag is given by its threshold. The demo's attributes overlap by noise in
`colour` and `detail`; leave these out. `--quick` draws 200 images and records nothing. Appends to
``results/exclusive.csv``.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from record import append, stamp
from sweep_choices import Scores, store_of, sweep, tuner

from retailtag.backbones import load_backbone
from retailtag.catalog.catalog import Catalog
from retailtag.catalog.readers import read_catalog
from retailtag.context import RunContext
from retailtag.demo.drawing.write import write_demo_catalogue
from retailtag.extraction.extract import extract
from retailtag.probes.choice import choose_candidate
from retailtag.probes.solver.fit import make_solver
from retailtag.runs.probe import load_rows
from retailtag.runs.sweep import fit_at
from retailtag.scoring.assignments import right_alone
from retailtag.scoring.metrics import f1_from_counts, macro, tag_counts
from retailtag.settings import ComputeSettings
from retailtag.statistics.exclusive import (
    AT_MOST_ONE,
    EXACTLY_ONE,
    INDEPENDENT,
    assign,
    attribute_columns,
)

QUICK_ATTRIBUTES = "master,gender,season"
ALL = "all"
LARGEST = 1e4  # threshold, so that an infinite one has a share
SHARES = (0.0, 0.5, 0.75, 1.0)
WAYS = (
    (INDEPENDENT, ""),
    *((how, share) for how in (AT_MOST_ONE, EXACTLY_ONE) for share in SHARES),
)

Cells = NDArray[np.bool_]
Given = dict[tuple[str, Any], Cells]  # (n_images, n_tags) by assignment and share


def given_by(
    logits: NDArray[np.float32],
    thresholds: NDArray[np.float32],
    tags: tuple[str, ...],
    attributes: tuple[str, ...],
) -> Given:
    """Tags given by every one of `WAYS`."""
    passes = assign(logits, thresholds)
    inside = np.zeros(len(tags), bool)
    for name in attributes:
        inside[attribute_columns(tags, name)] = True
    given: Given = {(INDEPENDENT, ""): passes}
    for share in SHARES:
        # with thresholds of 0 the largest score wins, whatever share of them the product takes
        scores = logits - np.float32(share) * thresholds.clip(-LARGEST, LARGEST)
        winner = assign(scores, np.zeros_like(thresholds), tags, attributes, EXACTLY_ONE)
        given[EXACTLY_ONE, share] = np.where(inside, winner, passes)
        given[AT_MOST_ONE, share] = np.where(inside, winner & passes, passes)
    return given


def out_of_fold(
    scores: Scores, group: NDArray[np.str_], tags: tuple[str, ...], attributes: tuple[str, ...]
) -> Given:
    """As `given_by`, each fold by the thresholds that the other folds choose."""
    tune = tuner("chosen", group)
    given = {way: np.zeros(scores.logits.shape, bool) for way in WAYS}
    for k in np.unique(scores.fold):
        inside = scores.fold == k
        thresholds = tune(scores.where(~inside)).thresholds
        for way, cells in given_by(scores.logits[inside], thresholds, tags, attributes).items():
            given[way][inside] = cells
    return given


def measures(
    where: str,
    given: Cells,
    labels: NDArray[np.int8],
    group: NDArray[np.str_],
    columns: dict[str, NDArray[np.intp]],
) -> dict[str, dict[str, Any]]:
    """Figures of one way on one set of images: by attribute, and of all of them."""
    f1 = f1_from_counts(tag_counts(given, labels))
    right = {name: right_alone(given, labels, own) for name, own in columns.items()}
    columns = {ALL: np.concatenate(list(columns.values())), **columns}
    right[ALL] = np.concatenate(list(right.values()))
    tail = {name: own[group[own] == "tail"] for name, own in columns.items()}
    return {
        name: {
            "tags": len(own),
            f"{where}_macro_f1": round(macro(f1[own]), 4),
            f"{where}_tail_macro_f1": round(macro(f1[tail[name]]), 4),
            f"{where}_right": round(float(right[name].mean()), 4),
        }
        for name, own in columns.items()
    }


def table(catalog: Catalog, args: argparse.Namespace) -> list[dict[str, Any]]:
    """One row per attribute and way."""
    tags, labels, group = catalog.table.tags, catalog.table.labels, catalog.table.group
    attributes = catalog.table.exclusive
    columns = {name: attribute_columns(tags, name) for name in attributes}
    store = store_of(args.features, args.backbone)
    train = load_rows(catalog, store, catalog.rows("train"), args.folds)
    test = load_rows(catalog, store, catalog.rows("test"), 0)
    found = sweep(catalog, train, args)
    positives = (labels[train.rows] == 1).sum(axis=0)
    choice = choose_candidate(found.evidence, group, "per-group", positives)
    scores = Scores(found.logits(choice), labels[train.rows], found.fold.astype(np.intp))
    tuned = tuner("chosen", group)(scores)
    solver = make_solver("torch", args.device)
    weight, bias = fit_at(train.X, scores.labels, found.C[choice], solver).raw()
    sets = {
        "out_of_fold": (out_of_fold(scores, group, tags, attributes), scores.labels),
        "test": (
            given_by(test.X @ weight.T + bias, tuned.thresholds, tags, attributes),
            labels[test.rows],
        ),
    }
    rows = []
    for how, share in WAYS:
        figures = [
            measures(s, given[how, share], y, group, columns) for s, (given, y) in sets.items()
        ]
        for name in (ALL, *attributes):
            row = {"attribute": name, "assignment": how, "share": share}
            rows.append({**row, **figures[0][name], **figures[1][name]})
    size = {
        "catalogue": args.name or catalog.path.parent.name,
        "images": len(train.rows),
        "test_images": len(test.rows),
        "backbone": args.backbone,
        "rule": tuned.rule,
    }
    return [{**size, **row} for row in rows]


def quick_world(folder: Path, args: argparse.Namespace) -> Path:
    """Draw and embed 200 images; `args` then names what was made."""
    args.features, args.name, args.one_of = folder / "features", "quick", QUICK_ATTRIBUTES
    path = write_demo_catalogue(folder / "demo", 200, workers=1).catalogue
    compute = ComputeSettings(device="cpu", features=args.features)
    extract(RunContext(read_catalog(path), compute=compute), load_backbone(args.backbone))
    return path


def main() -> None:
    """Measure, print and record."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("catalogue", type=Path, nargs="?")
    parser.add_argument("--one-of", help="attributes, comma-separated")
    parser.add_argument("--features", type=Path, default=Path("features"))
    parser.add_argument("--backbone", default="demo:cnn")
    parser.add_argument("--name", help="of the catalogue; default: that of its folder")
    parser.add_argument("--grid", default="1e-3,1e-2,1e-1")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--quick", action="store_true", help="toy size; record nothing")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    parser.add_argument("--dry", action="store_true", help="record nothing")
    args = parser.parse_args()
    if not (args.quick or (args.catalogue and args.one_of)):
        parser.error("give CATALOGUE and --one-of, or --quick")
    with tempfile.TemporaryDirectory() as folder:
        path = quick_world(Path(folder), args) if args.quick else args.catalogue
        catalog = read_catalog(path, one_of=args.one_of.split(","))
        rows = table(catalog, args)
    if args.json:
        print(json.dumps(rows))
    else:
        shown = list(rows[0])[5:]
        for line in (dict(zip(shown, shown, strict=True)), *rows):
            print(*(str(line[name]).ljust(12) for name in shown))
    if not (args.dry or args.quick):
        append("exclusive.csv", [{**stamp(), **row} for row in rows])


if __name__ == "__main__":
    main()
