"""How well frozen embeddings find photographs of one product, and products tagged alike.

    python benchmarks/similar.py CATALOGUE --features FOLDER --backbones ID,ID [--name NAME]
        [--weights ID=PATH ...] [--images 100000 --dim 768] [--dry]

Runs `retailtag similar --evaluate`: one row per backbone, metric and scope. Then searches
`--images` random vectors of `--dim` values in turn by `retailtag.neighbours` (its 10 nearest), by
scikit-learn's exact search and by a plain NumPy sort: one row each with the median milliseconds per
query of three passes. ``--tiny`` searches 2,000 vectors of 16 values.

Appends to ``results/similar.csv`` and ``results/similar_speed.csv``.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from record import append, stamp
from sklearn.neighbors import NearestNeighbors

import retailtag as rt
from retailtag.backbones import components_of
from retailtag.neighbours import directions, fill_directions, nearest, row_blocks

QUERIES, K, PASSES = 64, 10, 3


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("catalogue", type=Path)
    parser.add_argument("--features", type=Path, required=True)
    parser.add_argument("--backbones", required=True)
    parser.add_argument("--weights", action="append", default=[])
    parser.add_argument("--name", default="")
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=768)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--dry", action="store_true")
    args = parser.parse_args()
    if args.tiny:
        args.images, args.dim = 2000, 16
    name = args.name or args.catalogue.stem
    scores = evaluated(args, name)
    speeds = timed(args.images, args.dim)
    for row in (*scores, *speeds):
        print(row)
    if not args.dry:
        append("similar.csv", [{**stamp(), **row} for row in scores])
        append("similar_speed.csv", [{**stamp(), **row} for row in speeds])


def evaluated(args: argparse.Namespace, name: str) -> list[dict[str, Any]]:
    """One row per backbone, metric and scope."""
    start = time.perf_counter()
    made = rt.evaluate_similar(
        args.catalogue, args.backbones, features=args.features, weights=args.weights
    )
    seconds = time.perf_counter() - start
    return [
        {
            "catalogue": name,
            "images": one.searched["images"],
            "backbone": "+".join(
                part.partition("?")[0] for part in components_of(one.searched["backbone"])
            ),
            "relevant": score.relevance,
            "metric": score.metric,
            "scope": score.scope,
            "queries": score.n_queries,
            "products": score.n_products,
            "value": round(score.value, 4),
            "low": round(score.low, 4),
            "high": round(score.high, 4),
            "seconds": round(seconds / len(made.evaluations), 1),
        }
        for one in made.evaluations
        for score in one.scores
    ]


def timed(n_images: int, dim: int) -> list[dict[str, Any]]:
    """Milliseconds per query of three exact searches, which are compared with each other."""
    rng = np.random.default_rng(0)
    zero = np.zeros(dim, np.float32)
    keys = rng.standard_normal((n_images, dim), dtype=np.float32)
    fill_directions(keys, zero, keys)  # in place: a million vectors take 3 GB
    asked = directions(rng.standard_normal((QUERIES, dim), dtype=np.float32), zero)
    fitted = NearestNeighbors(n_neighbors=K, algorithm="brute").fit(keys)
    ways: dict[str, Callable[[], NDArray[np.int64]]] = {
        "retailtag": lambda: nearest(keys, (asked[r] for r in row_blocks(QUERIES)), K)[0],
        "scikit-learn": lambda: fitted.kneighbors(asked, return_distance=False),
        "sort": lambda: np.argsort(-(asked @ keys.T), axis=1)[:, :K],
    }
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    found = {}
    for _ in range(PASSES):  # in turn, so that other jobs disturb all alike
        for way, search in ways.items():
            start = time.perf_counter()
            found[way] = search()
            seconds[way].append(time.perf_counter() - start)
    return [
        {
            "images": n_images,
            "dim": dim,
            "way": way,
            "ms_per_query": round(1000 * float(np.median(seconds[way])) / QUERIES, 2),
            "agrees": float((found[way] == found["sort"]).mean()),
        }
        for way in ways
    ]


if __name__ == "__main__":
    main()
