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
    Difference,
    ProductCounts,
    bootstrap_macro,
    difference_of,
    macro_f1,
    percentile_interval,
)
from retailtag.scoring.intervals import macro_interval
from retailtag.scoring.jackknife import jackknife
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
    """Macro-F1 of model `a` minus that of model `b` over the tags of one scope."""

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
    macro_f1: float  # mean over its seeds
    # 95 % interval: for one run that of its scorecard (`intervals.macro_interval`), for several the
    # central 95 % of the replicates, which vary images and seeds
    low: float
    high: float
    p_best: float  # share of the replicates in which no model has a higher macro-F1; ties shared
    n_seeds: int  # runs of the model, which differ only in their seed
    seed_sd: float  # standard deviation of macro-F1 between them; NaN for one run


@dataclass(frozen=True)
class Contest:
    """Models compared on the same images; a scope without a defined tag is left out."""

    standings: tuple[Standing, ...]  # scope by scope, best first
    comparisons: tuple[Comparison, ...]  # for each pair in the order given, ``all`` then ``tail``


@dataclass(frozen=True, eq=False)
class _Entrant:
    """A model in one scope, its probability of being best still missing, and its replicates."""

    standing: Standing
    replicates: Floats  # (n_replicates,)


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

    The keys of `models` are the names that the comparisons will carry; several predictions under
    one are runs of one model that differ in their seed. Products are drawn in
    `n_bootstrap` replicates; `seed` is that of everything random. `n_permutations`, the swaps
    behind each p (see `retailtag.scoring.permutation.swap_p_values`), is at least
    `MIN_SWAPS_PER_PAIR` for each compared pair. The rest is as in
    `retailtag.scoring.score.score_predictions`.

    Raises `ArtefactError` as `retailtag.scoring.aligned.align` does, and `DataError` if the models
    lack different images.

    A model with n seeds scores the mean of its runs' macro-F1, in every replicate too. To each
    replicate is added a draw from N(0, s²/n), s² being the sample variance of macro-F1 between
    the runs, so that interval, standard error and probability of being best carry

    .. math:: \operatorname{Var}(\hat d) = \operatorname{Var}_{images}(\hat d)
              + s_a^2 / n_a + s_b^2 / n_b

    A model with one run adds nothing: its seed's share is unknown, not 0. Swapping images says
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
        tuple(s for inside in entrants.values() for s in _standings(inside)),
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
        values = np.array([macro_f1(counts, mask) for counts in runs])
        drawn = replicates[start : start + n].mean(axis=0)
        start += n
        if n > 1:
            sd = float(values.std(ddof=1))
            noise = np.random.default_rng([seed, k]).standard_normal(len(drawn))
            drawn = drawn + noise * sd / math.sqrt(n)  # s²/n, see hold_contest
            low, high = percentile_interval(drawn)
        else:
            sd = math.nan
            low, high = macro_interval(jackknife(runs[0], mask[None]), 0)
        value = float(values.mean())
        found.append(_Entrant(Standing(name, scope, value, low, high, math.nan, n, sd), drawn))
    return found


def _compared(
    entrants: Sequence[_Entrant], pairs: Sequence[tuple[int, int]], swap_p: Mapping[int, float]
) -> list[Comparison]:
    """Comparisons of one scope; `swap_p` holds p of the pairs (by position) that were swapped."""
    found = []
    for k, (i, j) in enumerate(pairs):
        a, b = entrants[i], entrants[j]
        d = difference_of(a.standing.macro_f1, b.standing.macro_f1, a.replicates, b.replicates)
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


def _standings(entrants: Sequence[_Entrant]) -> list[Standing]:
    """Models of one scope, the best first, by name among equals."""
    shares = best_shares(np.array([e.replicates for e in entrants])).tolist()
    found = [replace(e.standing, p_best=p) for e, p in zip(entrants, shares, strict=True)]
    return sorted(found, key=lambda s: (-s.macro_f1, s.model))


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
