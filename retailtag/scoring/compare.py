"""Compare models pair by pair on the same images, so that ties can be told from wins."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
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
    bootstrap_f1,
    difference_of,
    macro_f1,
    macro_replicates,
    percentile_interval,
)
from retailtag.scoring.intervals import macro_interval
from retailtag.scoring.jackknife import jackknife
from retailtag.scoring.metrics import Floats
from retailtag.scoring.permutation import PERMUTATIONS, holm, swap_p_values
from retailtag.scoring.strict_json import number, plain, row_from

COMPARED_SCOPES = ("all", "tail")
# Holm multiplies the smallest p, 1 / (swaps + 1), by the number of pairs: with fewer than 20 swaps
# per pair it could never get under 0.05. Twice that leaves room.
MIN_SWAPS_PER_PAIR = 40
ALPHA = 0.05  # a Holm-adjusted p under it makes a difference no tie
SWAP = "image swap"
NORMAL = "normal, images and seeds"


@dataclass(frozen=True)
class Comparison:
    """Macro-F1 of model `a` minus that of model `b` over the tags of one scope.

    Parameters
    ----------
    a, b : str
        Names of the models.
    scope : str
        ``all`` or ``tail``.
    difference : Difference
        Value, paired 95 % interval and standard error.
    p, p_holm : float
        Two-sided p, and p adjusted over all pairs compared in the scope; NaN where not tested.
    test : str
        What gave p: `SWAP` or `NORMAL`; empty where not tested.
    """

    a: str
    b: str
    scope: str
    difference: Difference
    p: float = math.nan
    p_holm: float = math.nan
    test: str = ""

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

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Comparison:
        """Read what `to_json` made; files of versions without a test have no p."""
        return cls(
            a=value["a"],
            b=value["b"],
            scope=value["scope"],
            difference=row_from(Difference, value["difference"]),
            p=number(value.get("p")),
            p_holm=number(value.get("p_holm")),
            test=value.get("test", ""),
        )


@dataclass(frozen=True)
class Standing:
    """Score of one model among those compared, over the tags of one scope.

    Parameters
    ----------
    model : str
        Its name.
    scope : str
        ``all`` or ``tail``.
    macro_f1, low, high : float
        Value (mean over its seeds) and 95 % interval: for one run that of its scorecard
        (`intervals.macro_interval`), for several the central 95 % of the replicates, which vary
        images and seeds.
    p_best : float
        Share of the bootstrap replicates in which no model has a higher macro-F1; ties shared.
    n_seeds : int
        Runs of the model, which differ only in their seed.
    seed_sd : float
        Standard deviation of macro-F1 between them; NaN for one run.
    """

    model: str
    scope: str
    macro_f1: float
    low: float
    high: float
    p_best: float
    n_seeds: int
    seed_sd: float


@dataclass(frozen=True)
class Contest:
    """Models compared on the same images: the ranking and every pair.

    Parameters
    ----------
    standings : tuple of Standing
        Scope by scope, best first.
    comparisons : tuple of Comparison
        For each unordered pair in the order given, scope ``all`` then ``tail``; a scope without
        a defined tag is left out.
    """

    standings: tuple[Standing, ...]
    comparisons: tuple[Comparison, ...]


@dataclass(frozen=True, eq=False)
class _Entrant:
    """A model in one scope, as in `Standing`, with its replicates (n_replicates,)."""

    value: float
    low: float
    high: float
    replicates: Floats
    n_seeds: int
    seed_sd: float


def compare_predictions(
    models: Mapping[str, Predictions],
    catalog: Catalog,
    *,
    split: str = "test",
    n_bootstrap: int = N_REPLICATES,
    seed: int = 0,
    allow_missing: bool = False,
    n_permutations: int = PERMUTATIONS,
) -> tuple[Comparison, ...]:
    """Comparisons of every two models as `hold_contest` makes them, with one run per model."""
    if len(models) < 2:
        return ()
    return hold_contest(
        {name: (p,) for name, p in models.items()},
        catalog,
        split=split,
        n_bootstrap=n_bootstrap,
        seed=seed,
        allow_missing=allow_missing,
        n_permutations=n_permutations,
    ).comparisons


def hold_contest(
    models: Mapping[str, Sequence[Predictions]],
    catalog: Catalog,
    *,
    split: str = "test",
    n_bootstrap: int = N_REPLICATES,
    seed: int = 0,
    allow_missing: bool = False,
    n_permutations: int = PERMUTATIONS,
) -> Contest:
    """Rank models and compare every two of them on the images of one split.

    Parameters
    ----------
    models : mapping of str to sequence of Predictions
        By the names that the comparisons will carry; several predictions are runs of one model
        that differ in their seed.
    catalog, split, allow_missing
        As in `retailtag.scoring.score.score_predictions`.
    n_bootstrap, seed : int
        Replicates, in which products are drawn, and the seed of everything random.
    n_permutations : int
        Swaps behind each p, see `retailtag.scoring.permutation.swap_p_values`; at least
        `MIN_SWAPS_PER_PAIR` for each compared pair.

    Raises
    ------
    ArtefactError
        As in `retailtag.scoring.aligned.align`.
    DataError
        If the models lack different images.
    """
    aligned = {
        name: [align(p, catalog, split, allow_missing=allow_missing) for p in runs]
        for name, runs in models.items()
    }
    _refuse_unequal(aligned)
    counts = {name: [product_counts(a, catalog) for a in runs] for name, runs in aligned.items()}
    tail = catalog.table.group == "tail"
    return contest_of_counts(counts, tail, n_bootstrap, seed, n_permutations)


def contest_of_counts(
    models: Mapping[str, Sequence[ProductCounts]],
    tail: NDArray[np.bool_],
    n_bootstrap: int,
    seed: int,
    n_permutations: int = PERMUTATIONS,
) -> Contest:
    r"""`hold_contest` on counts already made; `tail` (n_tags,) marks the tail tags.

    Notes
    -----
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
    names = list(models)
    runs = [run for several in models.values() for run in several]
    defined = runs[0].positives.sum(axis=0) > 0
    masks = dict(zip(COMPARED_SCOPES, (defined, defined & tail), strict=True))
    masks = {scope: mask for scope, mask in masks.items() if mask.any()}
    replicates = bootstrap_f1(runs, n_replicates=n_bootstrap, seed=seed)
    entrants = {s: _entrants(models, replicates, mask, seed) for s, mask in masks.items()}
    pairs = list(combinations(range(len(names)), 2))
    differences = {
        scope: [_difference(inside[i], inside[j]) for i, j in pairs]
        for scope, inside in entrants.items()
    }
    n_runs = [len(several) for several in models.values()]
    # Swapping images has nothing to say where a model has several seeds: those pairs get no swaps
    single = [k for k, (i, j) in enumerate(pairs) if n_runs[i] == n_runs[j] == 1]
    swap_p = swap_p_values(
        [several[0] for several in models.values()],
        [pairs[k] for k in single],
        masks,
        n_permutations=max(n_permutations, MIN_SWAPS_PER_PAIR * len(pairs)),
        seed=seed,
    )
    by_scope = {
        scope: _compared(
            names,
            pairs,
            scope,
            differences[scope],
            dict(zip(single, swap_p[scope].tolist(), strict=True)),
        )
        for scope in masks
    }
    return Contest(
        tuple(s for scope in masks for s in _standings(names, entrants[scope], scope)),
        tuple(by_scope[scope][k] for k in range(len(pairs)) for scope in masks),
    )


def _entrants(
    models: Mapping[str, Sequence[ProductCounts]],
    replicates: Floats,
    mask: NDArray[np.bool_],
    seed: int,
) -> list[_Entrant]:
    """One per model; `replicates` is (n_runs, n_replicates, n_tags), model after model."""
    found = []
    start = 0
    for k, runs in enumerate(models.values()):
        values = np.array([macro_f1(counts, mask) for counts in runs])
        drawn = macro_replicates(replicates[start : start + len(runs)], mask).mean(axis=0)
        start += len(runs)
        if len(runs) > 1:
            sd = float(values.std(ddof=1))
            noise = np.random.default_rng([seed, k]).standard_normal(len(drawn))
            drawn = drawn + noise * sd / math.sqrt(len(runs))  # s²/n, see contest_of_counts
            low, high = percentile_interval(drawn)
        else:
            sd = math.nan
            low, high = macro_interval(jackknife(runs[0], mask[None]), 0)
        found.append(_Entrant(float(values.mean()), low, high, drawn, len(runs), sd))
    return found


def _difference(a: _Entrant, b: _Entrant) -> Difference:
    return difference_of(a.value, b.value, a.replicates, b.replicates)


def _compared(
    names: Sequence[str],
    pairs: Sequence[tuple[int, int]],
    scope: str,
    differences: Sequence[Difference],
    swap_p: Mapping[int, float],
) -> list[Comparison]:
    """Comparisons of one scope; `swap_p` holds p of the pairs (by position) that were swapped."""
    p = np.array([swap_p.get(k, _normal_p(d)) for k, d in enumerate(differences)])
    p_holm = holm(p)
    return [
        Comparison(
            a=names[i],
            b=names[j],
            scope=scope,
            difference=differences[k],
            p=float(p[k]),
            p_holm=float(p_holm[k]),
            test=SWAP if k in swap_p else NORMAL,
        )
        for k, (i, j) in enumerate(pairs)
    ]


def _normal_p(d: Difference) -> float:
    """Two-sided p of value over standard error; 1 where there is no difference at all."""
    if d.standard_error > 0:
        return math.erfc(abs(d.value) / d.standard_error / math.sqrt(2))
    return 1.0 if d.value == 0 else 0.0


def _standings(names: list[str], entrants: list[_Entrant], scope: str) -> list[Standing]:
    """Models of one scope, the best first, by name among equals."""
    shares = best_shares(np.array([e.replicates for e in entrants])).tolist()
    found = [
        Standing(
            model=name,
            scope=scope,
            macro_f1=e.value,
            low=e.low,
            high=e.high,
            p_best=share,
            n_seeds=e.n_seeds,
            seed_sd=e.seed_sd,
        )
        for name, e, share in zip(names, entrants, shares, strict=True)
    ]
    return sorted(found, key=lambda s: (-s.macro_f1, s.model))


def best_shares(replicates: Floats) -> Floats:
    """Share of the replicates in which each model has the highest value, ties shared.

    Parameters
    ----------
    replicates : ndarray of float64, shape (n_models, n_replicates)
        Replicates with a NaN are left out.

    Returns
    -------
    ndarray of float64, shape (n_models,)
        Sums to 1; NaN if no replicate is left.

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
