"""Are the estimates unbiased, and do the 95 % intervals hold the truth? Simulated test splits.

    python benchmarks/coverage.py [--draws 300] [--replicates 500] [--seed 1]

A world of 250 tags with Zipf prevalence, scored by two fixed models with fixed thresholds, the
second of which gives its tags more often: scores are normal, so that each tag's F1 in the
population is known in closed form. Every draw is a new test split of 5,000 (then 1,500) images;
tags of an image come together, and an image may be one of several photographs of a product, which
share their tags and most of their score. The truth of a macro-F1 is the mean of the population F1
over the tags that the draw averages. Appends to ``results/coverage.csv``, for the macro-F1 of both
models (the second is the rival) and their difference, the bias of the estimate and how often each
kind of interval held the truth; ``headline`` is what scorecards and comparisons give,
``bias_error`` the standard error of the bias.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from record import append, stamp

from retailtag.catalog.table import GroupCutoffs
from retailtag.scoring.bootstrap import ProductCounts, bootstrap_f1, macro_replicates
from retailtag.scoring.intervals import macro_difference, macro_estimate, wilson_f1
from retailtag.scoring.jackknife import Jackknife, jackknife

NORMAL = NormalDist()
N_TRAIN = 75_000
SEEN = 0.8  # chance that a photograph shows a tag that its product carries
PHOTOGRAPHS = {"products": (0.5, 0.25, 0.15, 0.1), "images": (1.0,)}
SCOPES = ("all", "tail")
PERCENTILES = (2.5, 97.5)

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


def make_models(world: World) -> list[World]:
    """`world`'s model, and a rival that gives its tags more often, at lower thresholds."""
    rng = np.random.default_rng(1)
    n_tags = len(world.prevalence)
    return [
        world,
        replace(
            world,
            separation=world.separation + rng.normal(0.15, 0.25, n_tags),
            threshold=world.threshold + rng.normal(-0.5, 0.3, n_tags),
        ),
    ]


def draw(
    models: list[World], n_images: int, sizes: tuple[float, ...], rng: np.random.Generator
) -> list[ProductCounts]:
    """Each model's counts of one new test split.

    Its products have 1, 2, ... photographs with chances `sizes`. Models see the same images: they
    share what a product and an image add to scores.
    """
    world = models[0]
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
    shared = np.float32(0.4**0.5) * normal(n_products, n_tags)[product]
    shared += np.float32(0.1**0.5) * normal(n_images, 1)
    starts = np.flatnonzero(np.diff(product, prepend=-1))
    names = np.arange(n_products).astype(str)
    counts = []
    for model in models:
        score = shared + np.float32(0.5**0.5) * normal(n_images, n_tags)
        score += model.separation.astype(np.float32) * labels
        given = score >= model.threshold.astype(np.float32)
        matrices = (
            np.add.reduceat(cells, starts, axis=0, dtype=np.float32)
            for cells in (labels & given, given, labels)
        )
        counts.append(ProductCounts(names, *matrices, n_images))
    return counts


class Interval(NamedTuple):
    """An estimate with its 95 % interval; arrays of one entry per scope or tag."""

    value: Floats
    low: Floats
    high: Floats


def of_macro(jacks: list[Jackknife], drawn: Floats) -> dict[str, dict[str, Interval]]:
    """Every kind of interval of both models' macro-F1 and of their difference.

    `drawn` are replicates, (n_models, n_replicates, n_scopes).
    """
    counted = np.array([[np.nanmean(j.f1[inside]) for inside in j.averaged] for j in jacks])
    found: dict[str, dict[str, Interval]] = {}
    for what, plain, draws in (
        ("model", counted[0], drawn[0]),
        ("rival", counted[1], drawn[1]),
        ("difference", counted[0] - counted[1], drawn[0] - drawn[1]),
    ):
        low, high = np.nanpercentile(draws, PERCENTILES, axis=0)
        error = 1.96 * np.nanstd(draws, axis=0)
        found[what] = {
            "percentile": Interval(plain, low, high),
            "basic": Interval(plain, 2 * plain - high, 2 * plain - low),
            "normal": Interval(plain, plain - error, plain + error),
        }
    scopes = range(len(counted[0]))
    for what, estimates in (
        ("model", [macro_estimate(jacks[:1], k) for k in scopes]),
        ("rival", [macro_estimate(jacks[1:], k) for k in scopes]),
        ("difference", [macro_difference(jacks[:1], jacks[1:], k) for k in scopes]),
    ):
        columns = ([getattr(e, name) for e in estimates] for name in Interval._fields)
        found[what]["headline"] = Interval(*map(np.array, columns))
    return found


def trials(
    models: list[World], n_images: int, unit: str, draws: int, n_replicates: int, seed: int
) -> Iterator[tuple[str, str, float, float, float, float]]:
    """Scope, kind, error of the estimate, whether the interval is below or above the truth, width.

    One that could not be formed (NaN) holds nothing and counts as below.
    """
    rng = np.random.default_rng(seed)
    every = GroupCutoffs().scopes(models[0].train_count)
    scopes, truth = np.array([every[name] for name in SCOPES]), [model.f1 for model in models]
    for r in range(draws):
        counts = draw(models, n_images, PHOTOGRAPHS[unit], rng)
        jacks = [jackknife(c, scopes) for c in counts]
        replicates = bootstrap_f1(counts, n_replicates=n_replicates, seed=seed + r)
        drawn = np.stack([macro_replicates(replicates, inside) for inside in scopes], axis=-1)
        true = np.array([[t[inside].mean() for inside in jacks[0].averaged] for t in truth])
        for what, kinds in of_macro(jacks, drawn).items():
            target = {"model": true[0], "rival": true[1]}.get(what, true[0] - true[1])
            for kind, (value, low, high) in kinds.items():
                for k, scope in enumerate(SCOPES):
                    name = scope if what == "model" else f"{scope}, {what}"
                    t = target[k]
                    yield name, kind, value[k] - t, not high[k] >= t, low[k] > t, high[k] - low[k]
        yield from of_tags(jacks[0], counts[0], replicates[0], truth[0])


def of_tags(
    jack: Jackknife, counts: ProductCounts, replicates: Floats, truth: Floats
) -> Iterator[tuple[str, str, float, float, float, float]]:
    """Rows of `trials` for the tags with a positive, averaged over them."""
    some = ~np.isnan(jack.f1)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "All-NaN slice")  # a tag without a positive
        kinds = {
            "headline": wilson_f1(counts, jack.event_products),
            "percentile": np.nanpercentile(replicates, PERCENTILES, axis=0),
        }
    error = (jack.f1 - truth)[some].mean()
    for kind, (low, high) in kinds.items():
        below, above = ~(high[some] >= truth[some]), low[some] > truth[some]
        yield (
            *("one tag", kind, error),
            *(below.mean(), above.mean(), np.nanmean((high - low)[some])),
        )


def summarise(
    found: list[tuple[str, str, float, float, float, float]], facts: dict[str, object]
) -> list[dict[str, object]]:
    """One row per scope and kind of interval."""
    rows = []
    for scope, kind in dict.fromkeys((row[0], row[1]) for row in found):
        values = np.array([row[2:] for row in found if row[:2] == (scope, kind)], float)
        bias, below, above, width = values.mean(axis=0)
        rows.append(
            {
                **facts,
                "scope": scope,
                "interval": kind,
                "coverage": round(1 - below - above, 4),
                "below_truth": round(below, 4),
                "above_truth": round(above, 4),
                "width": round(width, 4),
                "bias": round(bias, 4),
                "bias_error": round(values[:, 0].std(ddof=1) / len(values) ** 0.5, 4),
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
    models, rows = make_models(make_world()), []
    for n_images in args.images:
        for unit in args.units:
            plan = (n_images, unit, args.draws, args.replicates, args.seed)
            names = ("images", "unit", "draws", "replicates", "seed")
            found = list(trials(models, *plan))
            rows += summarise(found, {**stamp(), **dict(zip(names, plan, strict=True))})
    for row in rows:
        columns = ("images", "unit", "scope", "interval", "coverage", "width", "bias")
        print(*(str(row[name]).ljust(11) for name in columns))
    if not args.dry:
        append("coverage.csv", rows)


if __name__ == "__main__":
    main()
