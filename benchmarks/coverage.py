"""Do the 95 % intervals hold the truth 95 % of the time? Simulated splits with a known truth.

    python benchmarks/coverage.py [--draws 300] [--replicates 500] [--seed 1]

A world of 250 tags with Zipf prevalence, scored by a fixed model with fixed thresholds: scores are
normal, so that each tag's F1 in the population is known in closed form. Every draw is a new test
split of 5,000 (then 1,500) images; tags of an image come together, and an image may be one of
several photographs of a product, which share their tags and most of their score. The truth of a
macro-F1 is the mean of the population F1 over the tags that the draw averages. Appends to
``results/coverage.csv`` how often each kind of interval held it.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray
from record import append, stamp

from retailtag.catalog.table import GroupCutoffs
from retailtag.scoring.bootstrap import (
    PERCENTILES,
    ProductCounts,
    bootstrap_f1,
    macro_replicates,
)
from retailtag.scoring.intervals import macro_interval, wilson_f1
from retailtag.scoring.jackknife import jackknife

NORMAL = NormalDist()
N_TRAIN = 75_000
SEEN = 0.8  # chance that a photograph shows a tag that its product carries
PHOTOGRAPHS = {"products": (0.5, 0.25, 0.15, 0.1), "images": (1.0,)}
SCOPES = ("all", "tail")

Floats = NDArray[np.float64]


def upper(z: Floats) -> Floats:
    """Chance that a standard normal exceeds z, elementwise."""
    return np.vectorize(lambda v: NORMAL.cdf(-v), otypes=[float])(z)


@dataclass(frozen=True)
class World:
    """Tags, a fitted model, and what its F1 truly is; arrays of shape (n_tags,).

    A score is standard normal, plus `separation` where the tag is present; `loading`
    (n_tags, 6) ties the tags of an image together.
    """

    prevalence: Floats
    separation: Floats
    threshold: Floats
    loading: Floats
    train_count: NDArray[np.int64]

    @property
    def f1(self) -> Floats:
        """F1 in the population."""
        return population_f1(self.prevalence, self.separation, self.threshold)


def population_f1(prevalence: Floats, separation: Floats, threshold: Floats) -> Floats:
    """2 TP / (predicted + positives) as shares of all images."""
    tp = prevalence * upper(threshold - separation)
    return 2 * tp / (tp + (1 - prevalence) * upper(threshold) + prevalence)


def make_world(n_tags: int = 250, seed: int = 0) -> World:
    """Zipf tags from 16,000 training images to 2; thresholds as tuning leaves them."""
    rng = np.random.default_rng(seed)
    rank = np.arange(1, n_tags + 1) * 250 / n_tags
    count = np.maximum(16_000 / rank**1.05 * np.exp(-np.maximum(rank - 180, 0) / 22), 2)
    prevalence = count / N_TRAIN
    separation = 2.8 + 0.55 * np.log10(count / 10 + 0.1) + rng.normal(0, 0.4, n_tags)
    grid = np.linspace(-1, 7, 400)[:, None]
    best = grid[population_f1(prevalence, separation, grid + 0 * separation).argmax(axis=0), 0]
    threshold = best + rng.normal(0, 0.8, n_tags) / np.sqrt(np.maximum(count, 4) / 4)
    loading = rng.normal(size=(n_tags, 6))
    loading *= 0.7 / np.linalg.norm(loading, axis=1, keepdims=True)
    return World(prevalence, separation, threshold, loading, count.astype(np.int64))


def draw(world: World, n_images: int, sizes: tuple[float, ...], rng) -> ProductCounts:
    """Counts of a new test split whose products have 1, 2, ... photographs with chances `sizes`."""
    size = rng.choice(len(sizes), p=sizes, size=n_images) + 1
    product = np.repeat(np.arange(n_images), size)[:n_images]
    n_products, n_tags = product[-1] + 1, len(world.prevalence)
    seen = SEEN if len(sizes) > 1 else 1.0

    def normal(*shape: int) -> NDArray[np.float32]:
        return rng.standard_normal(shape, dtype=np.float32)

    latent = normal(n_products, 6) @ world.loading.T.astype(np.float32)
    latent += np.float32(0.51**0.5) * normal(n_products, n_tags)
    bar = [NORMAL.inv_cdf(1 - p) for p in np.minimum(world.prevalence / seen, 0.999).tolist()]
    labels = (latent > np.array(bar, np.float32))[product]
    labels &= rng.random(labels.shape, dtype=np.float32) < seen
    score = np.float32(0.4**0.5) * normal(n_products, n_tags)[product]
    score += np.float32(0.5**0.5) * normal(n_images, n_tags)
    score += np.float32(0.1**0.5) * normal(n_images, 1)
    score += world.separation.astype(np.float32) * labels
    given = score >= world.threshold.astype(np.float32)
    starts = np.flatnonzero(np.diff(product, prepend=-1))
    tp, predicted, positives = (
        np.add.reduceat(cells, starts, axis=0, dtype=np.float32)
        for cells in (labels & given, given, labels)
    )
    return ProductCounts(np.arange(n_products).astype(str), tp, predicted, positives, n_images)


def intervals_of(
    counts: ProductCounts, scopes: dict[str, NDArray[np.bool_]], n_replicates: int, seed: int
) -> tuple[Floats, dict[str, Floats], dict[str, Floats]]:
    """Per-tag F1, then every kind of interval of the scopes and of the tags, (2, m) each."""
    stacked = np.array(list(scopes.values()))
    jack = jackknife(counts, stacked)
    replicates = bootstrap_f1([counts], n_replicates=n_replicates, seed=seed)[0]
    estimate = np.array([np.nanmean(jack.f1[inside]) for inside in stacked])
    drawn = np.stack([macro_replicates(replicates, inside) for inside in stacked], axis=1)
    percentile = np.nanpercentile(drawn, PERCENTILES, axis=0)
    error = 1.96 * np.nanstd(drawn, axis=0)
    of_scopes = {
        "headline": np.array([macro_interval(jack, k) for k in range(len(stacked))]).T,
        "percentile": percentile,
        "basic": 2 * estimate - percentile[::-1],
        "normal": np.stack([estimate - error, estimate + error]),
    }
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "All-NaN slice")  # a tag without a positive
        of_tags = {
            "headline": wilson_f1(counts, jack.event_products),
            "percentile": np.nanpercentile(replicates, PERCENTILES, axis=0),
        }
    return jack.f1, of_scopes, of_tags


def trials(
    world: World, n_images: int, unit: str, draws: int, n_replicates: int, seed: int
) -> Iterator[tuple[str, str, float, float, float]]:
    """Scope, kind, whether the interval lay below the truth, above it, and its width.

    One that could not be formed (NaN) holds nothing and counts as below.
    """
    rng = np.random.default_rng(seed)
    every = GroupCutoffs().scopes(world.train_count)
    scopes, truth = {name: every[name] for name in SCOPES}, world.f1
    for r in range(draws):
        counts = draw(world, n_images, PHOTOGRAPHS[unit], rng)
        f1, of_scopes, of_tags = intervals_of(counts, scopes, n_replicates, seed + r)
        defined = ~np.isnan(f1)
        true = np.array([truth[inside & defined].mean() for inside in scopes.values()])
        for kind, (low, high) in of_scopes.items():
            for k, scope in enumerate(scopes):
                yield scope, kind, not high[k] >= true[k], low[k] > true[k], high[k] - low[k]
        for kind, (low, high) in of_tags.items():
            bottom, top = low[defined], high[defined]
            below, above = ~(top >= truth[defined]), bottom > truth[defined]
            yield "one tag", kind, below.mean(), above.mean(), np.nanmean(top - bottom)


def summarise(found: list[tuple[str, str, float, float, float]], facts: dict) -> list[dict]:
    """One row per scope and kind of interval."""
    rows = []
    for scope, kind in dict.fromkeys((row[0], row[1]) for row in found):
        values = np.array([row[2:] for row in found if row[:2] == (scope, kind)], float)
        below, above, width = values.mean(axis=0)
        rows.append(
            {
                **facts,
                "scope": scope,
                "interval": kind,
                "coverage": round(1 - below - above, 4),
                "below_truth": round(below, 4),
                "above_truth": round(above, 4),
                "width": round(width, 4),
            }
        )
    return rows


def main() -> None:
    """Simulate, print and record."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--draws", type=int, default=300)
    parser.add_argument("--replicates", type=int, default=500)
    parser.add_argument("--images", type=int, nargs="+", default=[5000, 1500])
    parser.add_argument("--units", nargs="+", choices=list(PHOTOGRAPHS), default=list(PHOTOGRAPHS))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--dry", action="store_true", help="print only; record nothing")
    args = parser.parse_args()
    world, rows = make_world(), []
    for n_images in args.images:
        for unit in args.units:
            plan = (n_images, unit, args.draws, args.replicates, args.seed)
            names = ("images", "unit", "draws", "replicates", "seed")
            found = list(trials(world, *plan))
            rows += summarise(found, {**stamp(), **dict(zip(names, plan, strict=True))})
    for row in rows:
        columns = ("images", "unit", "scope", "interval", "coverage", "width")
        print(*(str(row[name]).ljust(11) for name in columns))
    if not args.dry:
        append("coverage.csv", rows)


if __name__ == "__main__":
    main()
