"""Cost of a scorecard and of 2,000 replicates, against scikit-learn and torchmetrics.

    python benchmarks/scorer.py [--quick] [--json] [--dry]

One run, in turn: our whole scorecard (every metric and interval; the intervals have a closed form,
so no replicate is drawn) and our replicates, which comparisons use, on 5,000 images and 250 tags;
the same replicates through scikit-learn's ``f1_score`` and torchmetrics' ``multilabel_f1_score``,
timed on a few and multiplied up to all (column `timed`); our scorecard on 80,000 images. The F1 of
the timed replicates must agree with ours. Each size runs in a process of its own, so that
`peak_mib` is its own peak, data and interpreter included. Appends to ``results/scorer.csv``.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from record import append, stamp

from retailtag.catalog.catalog import Catalog
from retailtag.catalog.table import TagTable
from retailtag.predictions import Predictions
from retailtag.scoring.bootstrap import bootstrap_f1, count_by_product, replicate_weights
from retailtag.scoring.score import score_predictions

N_TRAIN = 75_000
SEED = 0


@dataclass
class NoImages:
    """Stands for the images, which scoring never reads."""

    def read(self, index: int) -> bytes:
        """Refuse."""
        raise AssertionError("scoring reads no image")

    def name(self, index: int) -> str:
        """Its row."""
        return str(index)


def make_data(n_images: int, n_tags: int) -> tuple[Catalog, Predictions]:
    """Zipf tags and noisy logits; every image its own product, as the rivals' replicates are."""
    rng = np.random.default_rng(SEED)
    count = np.maximum(16_000 / np.arange(1, n_tags + 1) ** 1.05 * 250 / n_tags, 2).astype(np.int64)
    labels = (rng.random((n_images, n_tags), np.float32) < count / N_TRAIN).astype(np.int8)
    logits = rng.standard_normal((n_images, n_tags), dtype=np.float32) + 4 * labels
    ids = np.array([f"i{k:06d}" for k in range(n_images)])
    tags = tuple(f"t{j}" for j in range(n_tags))
    catalog = Catalog(
        path=Path("simulated.csv"),
        image_ids=ids,
        split=np.full(n_images, "test"),
        group=ids,
        title=np.full(n_images, ""),
        table=TagTable(tags, labels, count),
        images=NoImages(),
    )
    thresholds = np.full(n_tags, 2.5, np.float32)
    return catalog, Predictions(ids, tags, logits, thresholds, np.array(["training-1"]))


def timed(work: Callable[[], object], repeats: int = 3) -> float:
    """Least seconds of a few runs."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def resamples(n_images: int, n_replicates: int) -> Iterator[NDArray[np.intp]]:
    """Rows of each replicate, as the weights of our bootstrap draw them."""
    for weights in replicate_weights(n_images, n_replicates, SEED):
        for row in weights:
            yield np.repeat(np.arange(n_images), row.astype(np.intp))


def rivals(labels: NDArray[np.int8], given: NDArray[np.bool_]) -> dict[str, Callable]:
    """Per-tag F1 of a replicate by each rival, from the rows drawn."""
    import sklearn.metrics
    import torch
    from torchmetrics.functional.classification import multilabel_f1_score

    truth, guess = torch.from_numpy(labels).long(), torch.from_numpy(given).int()

    def scikit_learn(rows: NDArray[np.intp]) -> NDArray[np.float64]:
        return sklearn.metrics.f1_score(labels[rows], given[rows], average=None, zero_division=0)

    def torchmetrics(rows: NDArray[np.intp]) -> NDArray[np.float64]:
        index = torch.from_numpy(rows)
        value = multilabel_f1_score(guess[index], truth[index], labels.shape[1], average=None)
        return value.numpy()

    return {"scikit-learn": scikit_learn, "torchmetrics": torchmetrics}


def against_rivals(
    catalog: Catalog, predictions: Predictions, n_replicates: int, n_timed: int
) -> list[dict]:
    """Seconds of all replicates by us and by each rival; ratio to ours."""
    labels, given = catalog.table.labels, predictions.predicted
    counts = count_by_product(given, labels, catalog.group)
    ours = timed(lambda: bootstrap_f1([counts], n_replicates=n_replicates, seed=SEED))
    rows = [{"method": "our replicates", "seconds": ours, "timed": n_replicates, "ratio": 1.0}]
    expected = np.nan_to_num(bootstrap_f1([counts], n_replicates=n_timed, seed=SEED)[0])
    drawn = list(resamples(len(labels), n_timed))
    for name, f1 in rivals(labels, given).items():
        np.testing.assert_allclose([f1(r) for r in drawn], expected, atol=1e-5)  # and warm up
        each = timed(lambda f1=f1: [f1(r) for r in drawn], repeats=2) / n_timed
        seconds = each * n_replicates
        rows.append({"method": name, "seconds": seconds, "timed": n_timed, "ratio": seconds / ours})
    return rows


def measure(n_images: int, n_tags: int, n_replicates: int, n_timed: int) -> list[dict]:
    """Rows of one size; rivals only where `n_timed` is not 0. Memory is read before they load."""
    catalog, predictions = make_data(n_images, n_tags)

    def scorecard() -> None:
        score_predictions(predictions, catalog)

    whole = timed(scorecard, repeats=3 if n_timed else 1)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    first = {"method": "our scorecard", "seconds": whole, "timed": 0}
    rows = [{**first, "ratio": float("nan"), "peak_mib": peak}]
    if n_timed:
        others = against_rivals(catalog, predictions, n_replicates, n_timed)
        rows[0]["ratio"] = whole / others[0]["seconds"]
        rows += [{**row, "peak_mib": float("nan")} for row in others]
    size = {"images": n_images, "tags": n_tags, "replicates": n_replicates}
    return [{**size, **row} for row in rows]


def in_child(plan: tuple[int, ...]) -> list[dict]:
    """`measure` in a fresh process."""
    command = [sys.executable, __file__, "--child", *map(str, plan)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Measure, print and record."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="toy sizes; record nothing")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    parser.add_argument("--dry", action="store_true", help="print only; record nothing")
    parser.add_argument("--child", type=int, nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(measure(*args.child)))
        return
    plans = [(5000, 250, 2000, 8), (80_000, 250, 2000, 0)]
    if args.quick:
        plans = [(300, 30, 100, 3), (2000, 30, 100, 0)]
    facts = stamp()
    rows = [{**facts, **row} for plan in plans for row in in_child(plan)]
    for row in rows:
        row.update({k: round(v, 4) for k, v in row.items() if isinstance(v, float)})
    if args.json:
        print(json.dumps(rows))
    else:
        shown = ("images", "tags", "replicates", "method", "seconds", "timed", "ratio", "peak_mib")
        print(*(name.ljust(14) for name in shown))
        for row in rows:
            print(*(str(row[name]).ljust(14) for name in shown))
    if not (args.dry or args.quick):
        append("scorer.csv", rows)


if __name__ == "__main__":
    main()
