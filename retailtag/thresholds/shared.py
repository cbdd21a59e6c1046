"""One threshold for several tags: the exact best over all scores of their positives."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import numpy as np
from numpy.typing import NDArray

from retailtag.thresholds.objectives import Objective
from retailtag.thresholds.ranking import Counts, Flat, RankedTag, are_many, between

N_PIECES = 8  # into which an interval that may hold the best cut is divided
ROUNDING = 1e-12  # relative; sums over tags that differ by less are ties

Floats = NDArray[np.float64]
Indices = NDArray[np.intp]


def best_shared_threshold(tags: Sequence[RankedTag], objective: Objective) -> float:
    """Threshold with the largest mean F-beta over the tags that have a positive.

    Midpoint between the last score taken and the next lower one of any tag; of equal means the
    highest threshold; NaN if no tag has a positive.

    Exact, by branch and bound over the distinct scores of all positives (the best cut is just
    below one of them, as for a single tag). About the square root of the number of candidates is
    evaluated. Of many tags with few cells, all cuts are evaluated in one pass over the cells.

    References
    ----------
    Land & Doig (1960), An automatic method of solving discrete programming problems,
    Econometrica 28, for branch and bound.
    """
    scored = [tag for tag in tags if tag.positives]
    if not scored:
        return float("nan")
    # Negated scores, ascending: the highest threshold first.
    candidates = np.unique(np.concatenate([tag.negated_hits for tag in scored]))
    find = _best_of_every_cut if are_many(scored) else _best_by_bounds
    return _just_below(scored, candidates[find(scored, candidates, objective)])


def _best_of_every_cut(
    tags: Sequence[RankedTag], candidates: NDArray[np.float32], objective: Objective
) -> int:
    """Index of the best candidate, from the F-beta of each tag after each of its cells."""
    flat = Flat.of(tags)
    lengths = np.array([len(tag.negated) for tag in tags])
    first = np.cumsum(lengths) - lengths
    positives = np.array([tag.positives for tag in tags])
    found = np.cumsum(flat.present)
    before: Counts = (found - flat.present)[first]  # positives of the tags before
    place = np.arange(1, len(found) + 1)
    f = objective.f(found - before[flat.tag], place - first[flat.tag], positives[flat.tag])
    # Going down through the cells of all tags, each changes the F-beta of its own tag alone.
    change = np.diff(f, prepend=0)
    change[first] = f[first]
    order = np.argsort(flat.negated, kind="stable")
    given = flat.negated[order].searchsorted(candidates, side="right")
    total = np.cumsum(change[order])[given - 1]
    return int(np.argmax(total >= total.max() * (1 - ROUNDING)))


def _best_by_bounds(
    scored: Sequence[RankedTag], candidates: NDArray[np.float32], objective: Objective
) -> int:
    """Index of the best candidate, by branch and bound."""
    positives = np.array([tag.positives for tag in scored])[:, None, None]
    low = np.array([0])
    high = np.array([len(candidates) - 1])
    best = -1.0
    best_at = 0
    while len(low):
        edges = _divide(low, high)
        tp, given = _counts(scored, candidates, edges)
        value = objective.f(tp, given, positives).mean(axis=0)
        best, best_at = _better(best, best_at, value, edges)
        # Between a higher candidate with FP⁺ false positives and a lower one with TP⁻ positives
        # F ≤ (1+b²)TP⁻ / (TP⁻ + FP⁺ + b²P): F grows with TP and falls with FP. An interval whose
        # mean bound stays below the best mean so far holds no better cut; the others are divided.
        lower_tp = tp[..., 1:]
        higher_fp = (given - tp)[..., :-1]
        bound = objective.f(lower_tp, lower_tp + higher_fp, positives).mean(axis=0)
        undecided = (bound >= best * (1 - ROUNDING)) & (np.diff(edges) > 1)
        low = edges[:, :-1][undecided]
        high = edges[:, 1:][undecided]
    return best_at


def lowest_precise_threshold(tags: Sequence[RankedTag], precision: float) -> float:
    """Lowest threshold at which the cells that all tags are given hold enough positives.

    `precision` is the least fraction of positives among the cells given, pooled over the tags.
    ``inf`` if no threshold reaches it, NaN if no tag has a positive.
    """
    scored = [tag for tag in tags if tag.positives]
    if not scored:
        return float("nan")
    candidates, tp, given = pooled_curve(scored)
    reached = np.flatnonzero(tp >= precision * given)
    return _just_below(scored, candidates[reached[-1]]) if len(reached) else float("inf")


def pooled_curve(tags: Sequence[RankedTag]) -> tuple[NDArray[np.float32], Counts, Counts]:
    """Negated scores of all tags' positives, ascending; positives and cells that reach each."""
    hits = np.sort(np.concatenate([tag.negated_hits for tag in tags]))
    candidates = np.unique(hits)
    given = reduce(np.add, (tag.negated.searchsorted(candidates, side="right") for tag in tags))
    return candidates, hits.searchsorted(candidates, side="right"), given


def _divide(low: Indices, high: Indices) -> Indices:
    """Ends of the pieces of each interval of candidates, (n_intervals, N_PIECES + 1)."""
    return low[:, None] + (high - low)[:, None] * np.arange(N_PIECES + 1) // N_PIECES


def _counts(
    tags: Sequence[RankedTag], candidates: NDArray[np.float32], edges: Indices
) -> tuple[Counts, Counts]:
    """Positives and cells of each tag at each edge, both (n_tags, *edges.shape)."""
    at, back = np.unique(edges, return_inverse=True)
    counts = np.array([tag.counts_at(-candidates[at]) for tag in tags])
    tp, given = counts[:, :, back.reshape(edges.shape)].swapaxes(0, 1)
    return tp, given


def _better(best: float, best_at: int, value: Floats, edges: Indices) -> tuple[float, int]:
    """The best mean so far and the highest threshold that reaches it."""
    top = max(best, float(value.max()))
    ties = edges[value >= top * (1 - ROUNDING)]
    known = [best_at] if best >= top * (1 - ROUNDING) else []
    return top, int(min([*ties.tolist(), *known]))


def _just_below(tags: Sequence[RankedTag], cut: np.float32) -> float:
    """Midpoint between the score -`cut` and the next lower score of any tag."""
    after = [tag.negated.searchsorted(cut, side="right") for tag in tags]
    lower = [tag.negated[k] for tag, k in zip(tags, after, strict=True) if k < len(tag.negated)]
    low = -min(lower, default=cut)
    return float(between(np.array([low]), np.array([-cut]))[0])
