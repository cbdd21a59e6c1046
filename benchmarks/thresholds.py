"""Cost of the threshold rules and of choosing between them, and what each earns on new images.

    python benchmarks/thresholds.py [--quick] [--json] [--dry] [--draws N]

A simulated world of 75,000 images and 250 tags with a Zipf tail, whose truth is known: a tag's
evidence x is normal, N(0, 1) without the tag and N(d, s²) with it, d and s the tag's own; its score
is the log-odds that x gives under equal spreads, shrunk the more the rarer the tag (a regularised
probe) and moved a little by each fold (five probes made the scores). So scores are miscalibrated,
rare tags more. Rules are tuned on the pooled scores; `all_f1` and `tail_f1` are macro-F1 on
infinitely many new images, scored without a fold's shift, by the normal distribution function: no
test split and no luck. `oracle` takes each tag's best threshold for those. Means over the draws;
`seconds` is the least over the draws, of each rule by itself on ranked cells (`rank`), and of
the whole cross-fit sweep from the scores to the chosen rule (`sweep`; its F1 is that of the rules
it chose). Appends to ``results/thresholds.csv``.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from record import append, stamp
from scipy.special import ndtr

from retailtag.thresholds.objectives import Objective
from retailtag.thresholds.per_tag import Replicates
from retailtag.thresholds.ranking import rank_tags
from retailtag.thresholds.rules import ThresholdRules
from retailtag.thresholds.tuning import RULES, Tuning

Floats = NDArray[np.float64]
T = TypeVar("T")

N_FOLDS = 5
TAIL, FREQUENT = 50, 500
GRID = 2000  # thresholds tried for the oracle


@dataclass(frozen=True, eq=False)
class World:
    """Tags (n_tags,) by prevalence, separation d, spread s of positives, slope and offset."""

    prevalence: Floats
    d: Floats
    s: Floats
    slope: Floats
    offset: Floats

    @classmethod
    def draw(cls, n_images: int, n_tags: int, rng: np.random.Generator) -> World:
        """Zipf prevalences, a third of the tags in the tail at full size; rare tags flatter."""
        count = np.maximum(16_000 / np.arange(1, n_tags + 1) ** 1.05 * n_images / 75_000, 3)
        count = np.where(np.arange(n_tags) > 0.65 * n_tags, count / 3, count)
        prevalence = count / n_images
        d = rng.normal(3.2, 0.6, n_tags).clip(1.5)
        rare = 20 / (count + 20)
        slope = (1 - 0.6 * rare) * rng.lognormal(0, 0.1, n_tags)
        return cls(prevalence, d, rng.uniform(0.9, 1.4, n_tags), slope, rng.normal(0, 0.3, n_tags))

    def score(self, x: NDArray[np.floating]) -> Floats:
        """Logits of evidence x (..., n_tags)."""
        prior = np.log(self.prevalence / (1 - self.prevalence))
        return self.slope * (self.d * x - self.d**2 / 2) + prior + self.offset

    def f1(self, thresholds: Floats) -> Floats:
        """F1 on infinitely many new images, thresholds (..., n_tags)."""
        prior = np.log(self.prevalence / (1 - self.prevalence))
        x = ((thresholds - prior - self.offset) / self.slope + self.d**2 / 2) / self.d
        tp = self.prevalence * ndtr((self.d - x) / self.s)
        fp = (1 - self.prevalence) * ndtr(-x)
        value: Floats = 2 * tp / (tp + fp + self.prevalence)
        return value

    def oracle(self) -> Floats:
        """Largest F1 of each tag."""
        x = np.linspace(-1, 8, GRID)[:, None] * np.ones(len(self.d))
        return self.f1(self.score(x)).max(axis=0)

    def images(
        self, n: int, rng: np.random.Generator
    ) -> tuple[NDArray[np.float32], NDArray[np.int8], NDArray[np.intp]]:
        """Pooled out-of-fold logits and labels (n, n_tags), and folds (n,)."""
        shape = n, len(self.d)
        fold = rng.integers(0, N_FOLDS, n)
        labels = (rng.random(shape, np.float32) < self.prevalence).astype(np.int8)
        x = rng.standard_normal(shape, np.float32)
        x = np.where(labels == 1, self.d + self.s * x, x)
        shift = rng.normal(0, 0.25, (N_FOLDS, len(self.d)))
        return (self.score(x) + shift[fold]).astype(np.float32), labels, fold


def timed(work: Callable[[], T]) -> tuple[T, float]:
    """What it gives, and its seconds."""
    start = time.perf_counter()
    result = work()
    return result, time.perf_counter() - start


def one_draw(n_images: int, n_tags: int, seed: int) -> dict[str, dict[str, float]]:
    """Seconds and F1 by rule, for ``oracle``, ``rank`` and ``sweep`` too."""
    rng = np.random.default_rng(seed)
    world = World.draw(n_images, n_tags, rng)
    logits, labels, fold = world.images(n_images, rng)
    count = (labels == 1).sum(axis=0)
    group = np.where(count < TAIL, "tail", np.where(count < FREQUENT, "common", "frequent"))

    def earned(f1: Floats) -> dict[str, float]:
        return {"all_f1": float(f1.mean()), "tail_f1": float(f1[group == "tail"].mean())}

    tags, seconds = timed(lambda: rank_tags(logits, labels))
    rows: dict[str, dict[str, float]] = {"rank": {"seconds": seconds}}
    replicates = Replicates(n_images, seed=0)
    for rule in RULES:
        rules = ThresholdRules(tags, group, Objective(), replicates)
        thresholds, seconds = timed(partial(rules.thresholds, rule))
        rows[rule] = {"seconds": seconds, **earned(world.f1(thresholds.astype(np.float64)))}
    tuned, seconds = timed(partial(Tuning().tune, logits, labels, group, fold))
    rows["sweep"] = {**rows[tuned.rule], "seconds": seconds}
    rows["oracle"] = earned(world.oracle())
    return rows


def table(n_images: int, n_tags: int, draws: int) -> list[dict[str, object]]:
    """One row a rule: least seconds and mean F1 over the draws."""
    found = [one_draw(n_images, n_tags, seed) for seed in range(draws)]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    rows: list[dict[str, object]] = []
    for rule in found[0]:
        row: dict[str, object] = {"images": n_images, "tags": n_tags, "draws": draws, "rule": rule}
        for name, over in (("seconds", np.min), ("all_f1", np.mean), ("tail_f1", np.mean)):
            known = name in found[0][rule]
            row[name] = round(float(over([f[rule][name] for f in found])), 4) if known else None
        rows.append({**row, "peak_rss_mib": round(peak, 1)})
    return rows


def main() -> None:
    """Measure, print and record."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="toy size; record nothing")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--dry", action="store_true", help="print only; record nothing")
    parser.add_argument("--draws", type=int, default=5, help="worlds to average over")
    args = parser.parse_args()
    size = (5000, 40) if args.quick else (75_000, 250)
    facts = stamp()
    rows = [{**facts, **row} for row in table(*size, args.draws)]
    if args.json:
        sweep = next(row["seconds"] for row in rows if row["rule"] == "sweep")
        print(json.dumps({"sweep_seconds": sweep, "rows": rows}))
    else:
        shown = ("rule", "seconds", "all_f1", "tail_f1")
        print(*(name.ljust(10) for name in shown))
        for row in rows:
            print(*(str(row[name]).ljust(10) for name in shown))
    if not (args.dry or args.quick):
        append("thresholds.csv", rows)


if __name__ == "__main__":
    main()
