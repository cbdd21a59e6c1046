"""Compare models pair by pair on the same images, so that ties can be told from wins."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retailtag.catalog.catalog import Catalog
from retailtag.errors import DataError
from retailtag.predictions import Predictions
from retailtag.scoring.aligned import Aligned, align, product_counts
from retailtag.scoring.bootstrap import (
    N_REPLICATES,
    ProductCounts,
    bootstrap_macro,
    macro_f1,
)
from retailtag.scoring.intervals import (
    Difference,
    macro_difference,
    macro_estimate,
    population_f1,
    seed_variance,
)
from retailtag.scoring.jackknife import Jackknife, jackknife
from retailtag.scoring.metrics import Floats
from retailtag.scoring.permutation import PERMUTATIONS, holm, swap_p_values
from retailtag.scoring.strict_json import plain
from retailtag.statistics.exclusive import INDEPENDENT

# Holm multiplies the smallest p, 1 / (swaps + 1), by the number of pairs: with fewer than 20 swaps
# per pair it could never get under 0.05. Twice that leaves room.
MIN_SWAPS_PER_PAIR = 40
ALPHA = 0.05  # a Holm-adjusted p under it makes a difference no tie
SWAP = "image swap"
NORMAL = "normal, images and seeds"


@dataclass(frozen=True)
class Comparison:
    """Macro-F1 in the population of model `a` minus that of `b` over the tags of one scope."""

    a: str
    b: str
    scope: str  # ``all`` or ``tail``
    difference: Difference
    p: float = math.nan  # two-sided; NaN where not tested, as in files of early versions
    p_holm: float = math.nan  # adjusted over all pairs compared in the scope
    test: str = ""  # what gave p: `SWAP` or `NORMAL`

    @property
    def is_tie(self) -> bool:
        """Whether the data do not tell the two apart.

        They do if the interval excludes 0 and, where tested, the adjusted p is under `ALPHA`.
        """
        return self.difference.is_tie or (bool(self.test) and not self.p_holm < ALPHA)

    @property
    def verdict(self) -> str:
        """``tie``, or ``ahead`` or ``behind`` for model `a`."""
        if self.is_tie:
            return "tie"
        return "ahead" if self.difference.value > 0 else "behind"

    def reversed(self) -> Comparison:
        """The same comparison seen from `b`."""
        d = self.difference
        back = Difference(value=-d.value, low=-d.high, high=-d.low, standard_error=d.standard_error)
        return Comparison(self.b, self.a, self.scope, back, self.p, self.p_holm, self.test)

    def to_json(self) -> dict[str, Any]:
        """Plain dictionary, the verdict included."""
        return {**plain(asdict(self)), "verdict": self.verdict}


@dataclass(frozen=True)
class Standing:
    """Score of one model among those compared, over the tags of one scope."""

    model: str
    scope: str  # ``all`` or ``tail``
    macro_f1_population: float  # estimate for the population, mean over its seeds
    low: float  # its 95 % interval, see `intervals.macro_estimate`
    high: float
    macro_f1: float  # on these images, mean over its seeds
    p_best: float  # share of the replicates in which no model has a higher macro-F1; ties shared
    n_seeds: int  # runs of the model, which differ only in their seed
    seed_sd: float  # standard deviation of the estimate between them; NaN for one run


@dataclass(frozen=True)
class Contest:
    """Models compared on the same images; a scope without a defined tag is left out."""

    standings: tuple[Standing, ...]  # scope by scope, best first
    comparisons: tuple[Comparison, ...]  # for each pair in the order given, ``all`` then ``tail``


@dataclass(frozen=True, eq=False)
class _Entrant:
    """A model in one scope, its probability of being best still missing, and its replicates."""

    standing: Standing
    runs: Sequence[Jackknife]  # of the scope alone
    replicates: Floats  # (n_replicates,), whose mean is the estimate for the population


def hold_contest(
    models: Mapping[str, Sequence[Predictions]],
    catalog: Catalog,
    *,
    split: str = "test",
    n_bootstrap: int = N_REPLICATES,
    seed: int = 0,
    allow_missing: bool = False,
    n_permutations: int = PERMUTATIONS,
    assignment: str = INDEPENDENT,
) -> Contest:
    r"""Rank models and compare every two of them on the images of one split.

    Models are ranked by their macro-F1 in the population (`intervals.population_f1`) and compared
    by the paired differences of it (`intervals.macro_difference`).

    The keys of `models` are the names that the comparisons will carry; several predictions under
    one are runs of one model that differ in their seed. Products are drawn in `n_bootstrap`
    replicates for the probability of being best; `seed` is that of everything random.
    `n_permutations`, the swaps behind each p (see
    `retailtag.scoring.permutation.swap_p_values`), is at least `MIN_SWAPS_PER_PAIR` for each
    compared pair. The rest is as in
    `retailtag.scoring.score.score_predictions`.

    Raises `ArtefactError` as `retailtag.scoring.aligned.align` does, and `DataError` if the models
    lack different images.

    A model with n seeds scores the mean of its runs, in every replicate too. The variance between
    runs, s²/n, enters intervals, standard errors and, as draws from N(0, s²/n), the replicates. A
    model with one run adds nothing: its seed's share is unknown, not 0.

    Replicates are shifted so that their mean is the estimate for the population, and stretched so
    that no difference varies less than its standard error says. Swaps compare
    macro-F1 on these images: two models that can be swapped have the same bias. Swapping says
    nothing about seeds, so p of a pair with several seeds is the normal one of value over standard
    error; with two or three seeds s² is rough, and so is that p.

    References
    ----------
    Bouthillier et al., "Accounting for Variance in Machine Learning Benchmarks", 2021.
    """
    aligned = {
        name: [
            align(p, catalog, split, allow_missing=allow_missing, assignment=assignment)
            for p in runs
        ]
        for name, runs in models.items()
    }
    _refuse_unequal(aligned)
    counts = {name: [product_counts(a, catalog) for a in runs] for name, runs in aligned.items()}
    runs = [run for several in counts.values() for run in several]
    defined = runs[0].positives.sum(axis=0) > 0
    scopes = {"all": defined, "tail": defined & (catalog.table.group == "tail")}
    masks = {scope: mask for scope, mask in scopes.items() if mask.any()}
    drawn = bootstrap_macro(runs, masks, n_replicates=n_bootstrap, seed=seed)
    entrants = {s: _entrants(counts, s, drawn[s], mask, seed) for s, mask in masks.items()}
    pairs = list(combinations(range(len(counts)), 2))
    # Swapping images has nothing to say where a model has several seeds: those pairs get no swaps
    several = [len(runs) > 1 for runs in counts.values()]
    single = [k for k, (i, j) in enumerate(pairs) if not (several[i] or several[j])]
    swap_p = swap_p_values(
        [runs[0] for runs in counts.values()],
        [pairs[k] for k in single],
        masks,
        n_permutations=max(n_permutations, MIN_SWAPS_PER_PAIR * len(pairs)),
        seed=seed,
    )
    by_scope = {
        scope: _compared(inside, pairs, dict(zip(single, swap_p[scope].tolist(), strict=True)))
        for scope, inside in entrants.items()
    }
    return Contest(
        tuple(s for scope in masks for s in _standings(entrants[scope], by_scope[scope])),
        tuple(by_scope[scope][k] for k in range(len(pairs)) for scope in masks),
    )


def _entrants(
    models: Mapping[str, Sequence[ProductCounts]],
    scope: str,
    replicates: Floats,
    mask: NDArray[np.bool_],
    seed: int,
) -> list[_Entrant]:
    """One per model; `replicates` is (n_runs, n_replicates), model after model."""
    found = []
    start = 0
    for k, (name, runs) in enumerate(models.items()):
        n = len(runs)
        jacks = [jackknife(counts, mask[None]) for counts in runs]
        estimate = macro_estimate(jacks)
        drawn = replicates[start : start + n].mean(axis=0)
        start += n
        drawn = drawn - np.nanmean(drawn) + estimate.value
        of_seeds = seed_variance([population_f1(jack, 0) for jack in jacks])
        if n > 1:
            noise = np.random.default_rng([seed, k]).standard_normal(len(drawn))
            drawn = drawn + noise * math.sqrt(of_seeds)
        standing = Standing(
            model=name,
            scope=scope,
            macro_f1_population=estimate.value,
            low=estimate.low,
            high=estimate.high,
            macro_f1=float(np.mean([macro_f1(counts, mask) for counts in runs])),
            p_best=math.nan,
            n_seeds=n,
            seed_sd=math.sqrt(n * of_seeds) if n > 1 else math.nan,
        )
        found.append(_Entrant(standing, jacks, drawn))
    return found


def _compared(
    entrants: Sequence[_Entrant], pairs: Sequence[tuple[int, int]], swap_p: Mapping[int, float]
) -> list[Comparison]:
    """Comparisons of one scope; `swap_p` holds p of the pairs (by position) that were swapped."""
    found = []
    for k, (i, j) in enumerate(pairs):
        a, b = entrants[i], entrants[j]
        d = macro_difference(a.runs, b.runs)
        p = swap_p.get(k, _normal_p(d))
        test = SWAP if k in swap_p else NORMAL
        found.append(
            Comparison(a.standing.model, b.standing.model, a.standing.scope, d, p=p, test=test)
        )
    adjusted = holm(np.array([c.p for c in found])).tolist()
    return [replace(c, p_holm=p) for c, p in zip(found, adjusted, strict=True)]


def _normal_p(d: Difference) -> float:
    """Two-sided p of value over standard error; 1 where there is no difference at all."""
    if d.standard_error > 0:
        return math.erfc(abs(d.value) / d.standard_error / math.sqrt(2))
    return 1.0 if d.value == 0 else 0.0


def _standings(entrants: Sequence[_Entrant], compared: Sequence[Comparison]) -> list[Standing]:
    """Models of one scope, the best first, by name among equals."""
    estimates = np.array([[e.standing.macro_f1_population] for e in entrants])
    replicates = np.array([e.replicates for e in entrants])
    by_name = {e.standing.model: drawn for e, drawn in zip(entrants, replicates, strict=True)}
    # Resampling shows no spread of tags on a single product: the replicates of a difference vary
    # less than its interval says. Stretched to the standard errors, they do not contradict a tie.
    spread = [(c, float(np.nanstd(by_name[c.a] - by_name[c.b]))) for c in compared]
    stretch = max([1.0, *(c.difference.standard_error / sd for c, sd in spread if sd > 0)])
    shares = best_shares(estimates + stretch * (replicates - estimates)).tolist()
    found = [replace(e.standing, p_best=p) for e, p in zip(entrants, shares, strict=True)]
    return sorted(found, key=lambda s: (-s.macro_f1_population, s.model))


def best_shares(replicates: Floats) -> Floats:
    """Share of the replicates in which each model has the highest value, ties shared, (n_models,).

    `replicates` (n_models, n_replicates) with a NaN are left out; all shares NaN if none is left.

    Examples
    --------
    >>> best_shares(np.array([[0.5, 0.4, 0.3, 0.2], [0.5, 0.1, 0.2, 0.1]])).tolist()
    [0.875, 0.125]
    """
    defined = replicates[:, ~np.isnan(replicates).any(axis=0)]
    if not defined.shape[1]:
        return np.full(len(replicates), np.nan)
    best = defined == defined.max(axis=0)
    shares: Floats = (best / best.sum(axis=0)).mean(axis=1)  # a tie of two gives each a half
    return shares


def _refuse_unequal(aligned: Mapping[str, Sequence[Aligned]]) -> None:
    first, *others = [(name, run) for name, runs in aligned.items() for run in runs]
    for name, other in others:
        if not np.array_equal(other.rows, first[1].rows):
            raise DataError(
                f"{first[0]} and {name} have predictions for different images of the split, so "
                "their scores cannot be compared; predict the images that one of them lacks."
            )
