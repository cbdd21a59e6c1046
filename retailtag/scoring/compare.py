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

COMPARED = ("all", "tail")
SWAPS_A_PAIR = 40  # swaps at least: with fewer than 20, Holm could never reach 0.05
ALPHA = 0.05  # of the Holm-adjusted p under which a difference is no tie
SWAP, NORMAL = "image swap", "normal, images and seeds"


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
        Two-sided p, and adjusted over all pairs compared in the scope; NaN where not tested.
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
        back = Difference(-d.value, -d.high, -d.low, d.standard_error)
        return Comparison(self.b, self.a, self.scope, back, self.p, self.p_holm, self.test)

    def to_json(self) -> dict[str, Any]:
        """Plain dictionary, the verdict included."""
        return {**plain(asdict(self)), "verdict": self.verdict}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Comparison:
        """Read what `to_json` made; without p, what versions made that had no test."""
        return cls(
            value["a"],
            value["b"],
            value["scope"],
            row_from(Difference, value["difference"]),
            number(value.get("p")),
            number(value.get("p_holm")),
            value.get("test", ""),
        )


@dataclass(frozen=True)
class Standing:
    """Where one model stands among those compared, over the tags of one scope.

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
        Runs behind the model, differing in their seed alone.
    seed_sd : float
        Standard deviation of macro-F1 between them; NaN for one run, whose seed's share of the
        variance nobody knows.
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
    """A model in one scope: value, interval, replicates (n_replicates,), what its seeds add."""

    value: float
    interval: tuple[float, float]
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
    """Paired differences of every two models, over all tags and over the tail.

    Parameters, order and exceptions are those of `hold_contest`, with one run a model.
    """
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
        Swaps behind each p, see `retailtag.scoring.permutation.swap_p_values`; `SWAPS_A_PAIR` for
        each compared pair where that is more.

    Raises
    ------
    ArtefactError
        As in `retailtag.scoring.score.align`.
    DataError
        If the models lack different images.
    """
    runs = [(name, p) for name, several in models.items() for p in several]
    aligned = [align(p, catalog, split, allow_missing=allow_missing) for _, p in runs]
    _refuse_unequal([name for name, _ in runs], aligned)
    counts: dict[str, list[ProductCounts]] = {name: [] for name in models}
    for (name, _), one in zip(runs, aligned, strict=True):
        counts[name].append(product_counts(one, catalog))
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
    error; with two or three seeds s² is rough and that p with it.

    References
    ----------
    Bouthillier et al., "Accounting for Variance in Machine Learning Benchmarks", 2021.
    """
    names, flat = list(models), [c for runs in models.values() for c in runs]
    defined = flat[0].positives.sum(axis=0) > 0
    masks = {s: m for s, m in zip(COMPARED, (defined, defined & tail), strict=True) if m.any()}
    replicates = bootstrap_f1(flat, n_replicates=n_bootstrap, seed=seed)
    entrants = {s: _entrants(models, replicates, mask, seed) for s, mask in masks.items()}
    pairs = list(combinations(range(len(names)), 2))
    differences = {
        scope: [_difference(inside[i], inside[j]) for i, j in pairs]
        for scope, inside in entrants.items()
    }
    tests = _tests(list(models.values()), pairs, masks, differences, n_permutations, seed)
    comparisons = tuple(
        Comparison(names[i], names[j], scope, differences[scope][k], *tests[scope][k])
        for k, (i, j) in enumerate(pairs)
        for scope in masks
    )
    standings = tuple(s for scope in masks for s in _standings(names, entrants[scope], scope))
    return Contest(standings, comparisons)


def _entrants(
    models: Mapping[str, Sequence[ProductCounts]],
    replicates: Floats,
    mask: NDArray[np.bool_],
    seed: int,
) -> list[_Entrant]:
    """One per model; `replicates` is (n_runs, n_replicates, n_tags), model after model."""
    found, start = [], 0
    for k, runs in enumerate(models.values()):
        values = np.array([macro_f1(c, mask) for c in runs])
        drawn = macro_replicates(replicates[start : start + len(runs)], mask).mean(axis=0)
        start += len(runs)
        sd = float(values.std(ddof=1)) if len(runs) > 1 else math.nan
        if len(runs) > 1:
            noise = np.random.default_rng([seed, k]).standard_normal(len(drawn))
            drawn = drawn + noise * sd / math.sqrt(len(runs))
            bounds = percentile_interval(drawn)
        else:
            bounds = macro_interval(jackknife(runs[0], mask[None]), 0)
        found.append(_Entrant(float(values.mean()), bounds, drawn, len(runs), sd))
    return found


def _difference(a: _Entrant, b: _Entrant) -> Difference:
    return difference_of(a.value, b.value, a.replicates, b.replicates)


def _tests(
    models: Sequence[Sequence[ProductCounts]],
    pairs: Sequence[tuple[int, int]],
    masks: Mapping[str, NDArray[np.bool_]],
    differences: Mapping[str, Sequence[Difference]],
    n_permutations: int,
    seed: int,
) -> dict[str, list[tuple[float, float, str]]]:
    """By scope and pair: p, p adjusted over the scope's pairs, and the test behind it."""
    single = [k for k, (i, j) in enumerate(pairs) if len(models[i]) == len(models[j]) == 1]
    swaps = swap_p_values(
        [runs[0] for runs in models],
        [pairs[k] for k in single],
        masks,
        n_permutations=max(n_permutations, SWAPS_A_PAIR * len(pairs)),
        seed=seed,
    )
    found = {}
    for scope, inside in differences.items():
        p = np.array([_normal_p(d) for d in inside])
        p[single] = swaps[scope]
        tests = [SWAP if k in single else NORMAL for k in range(len(pairs))]
        found[scope] = list(zip(p.tolist(), holm(p).tolist(), tests, strict=True))
    return found


def _normal_p(d: Difference) -> float:
    """Two-sided p of value over standard error; 1 where there is no difference at all."""
    if d.standard_error > 0:
        return math.erfc(abs(d.value) / d.standard_error / math.sqrt(2))
    return 1.0 if d.value == 0 else 0.0


def _standings(names: list[str], entrants: list[_Entrant], scope: str) -> list[Standing]:
    """Models of one scope, the best first, by name among equals."""
    shares = best_shares(np.array([e.replicates for e in entrants]))
    found = []
    for name, e, share in zip(names, entrants, shares.tolist(), strict=True):
        found.append(Standing(name, scope, e.value, *e.interval, share, e.n_seeds, e.seed_sd))
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
    kept = replicates[:, ~np.isnan(replicates).any(axis=0)]
    if not kept.shape[1]:
        return np.full(len(replicates), np.nan)
    best = kept == kept.max(axis=0)
    shares: Floats = (best / best.sum(axis=0)).mean(axis=1)
    return shares


def _refuse_unequal(names: list[str], aligned: list[Aligned]) -> None:
    for name, other in zip(names[1:], aligned[1:], strict=True):
        if not np.array_equal(other.rows, aligned[0].rows):
            raise DataError(
                f"{names[0]} and {name} have predictions for different images of the split, so "
                "their scores cannot be compared; predict the images that one of them lacks."
            )
