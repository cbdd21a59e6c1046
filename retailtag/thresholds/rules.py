"""The threshold rules, each exact on one set of ranked cells."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from retailtag.thresholds.objectives import Objective
from retailtag.thresholds.per_tag import Replicates, best_own_threshold, lowest_own_threshold
from retailtag.thresholds.plug_in import plug_in_thresholds
from retailtag.thresholds.ranking import RankedTag, between, just_below_only
from retailtag.thresholds.shared import (
    best_shared_threshold,
    lowest_precise_threshold,
    pooled_curve,
)

ROUNDING = 1e-9  # of (1+b²)P, which may be a whole number
EQUAL_WEIGHT = 20.0  # positives (or cells given) of a tag that weigh as much as its group

_INF = np.float32(np.inf)

Floats = NDArray[np.float64]


class ThresholdRules:
    """Thresholds of every rule for one set of ranked cells; what rules share is computed once.

    `group` (n_tags,) names the frequency group of each tag; the replicates are of rankings at least
    as long as the longest.
    """

    def __init__(
        self,
        tags: Sequence[RankedTag],
        group: NDArray[np.str_],
        objective: Objective,
        replicates: Replicates,
    ) -> None:
        self._tags = tags
        self._group = group
        self._objective = objective
        self._replicates = replicates
        self._precision = objective.precision or 0.0
        self._positives = np.array([tag.positives for tag in tags])

    def thresholds(self, rule: str) -> NDArray[np.float32]:
        """Thresholds (n_tags,) by one of `retailtag.thresholds.tuning.RULES`."""
        by_rule: dict[str, Callable[[], Floats]] = {
            "fixed": lambda: np.zeros(len(self._tags)),
            "global": lambda: np.full(len(self._tags), self._everyone),
            "group": lambda: self._grouped,
            "per-tag": lambda: self._own,
            "shrunk": self._shrunk,
            "bagged": self._bagged,
        }
        return by_rule[rule]().astype(np.float32)

    def capped(self, rule: str) -> NDArray[np.float32]:
        """As `thresholds`, but high enough for no tag to exceed (1+b²) cells for each positive.

        Where scores say little, F-beta is largest when nearly every cell is given; out of fold that
        is mostly luck, on new images it floods them. A tag without a positive counts as half a one.

        References
        ----------
        Lipton, Elkan & Naryanaswamy (2014), Optimal Thresholding of Classifiers to Maximize F1
        Measure, on the F1 of uninformative scores.
        """
        thresholds = self.thresholds(rule)
        first_out, limits = self._limits
        return np.where(thresholds <= first_out, limits, thresholds)

    @cached_property
    def _limits(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Highest score of each tag that must not be given, and the threshold above it, (n_tags,).

        ``-inf`` where every cell may be given.
        """
        first_out, limits = np.full((2, len(self._tags)), -np.inf, np.float32)
        for j, tag in enumerate(self._tags):
            most = int((1 + self._objective.beta2) * max(tag.positives, 0.5) + ROUNDING)
            if most < len(tag.negated):
                out = -tag.negated[most : most + 1]
                n_given = int(tag.negated.searchsorted(-out[0], side="left"))
                above = -tag.negated[n_given - 1 : n_given] if n_given else np.nextafter(out, _INF)
                first_out[j], limits[j] = out[0], between(out, above)[0]
        return first_out, limits

    @cached_property
    def _everyone(self) -> float:
        """One threshold for all tags: 0, or ``inf`` under a precision, without any positive."""
        shared = self._shared(self._tags)
        if np.isnan(shared):
            return float("inf") if self._precision else 0.0
        return shared

    def _shared(self, tags: Sequence[RankedTag]) -> float:
        if self._precision:
            return lowest_precise_threshold(tags, self._precision)
        return best_shared_threshold(tags, self._objective)

    @cached_property
    def _grouped(self) -> Floats:
        """Threshold of each tag's group, that of all tags for a group without a positive."""
        grouped = self._by_group(lambda tags: np.full(len(tags), self._shared(tags)))
        return np.where(np.isnan(grouped), self._everyone, grouped)

    @cached_property
    def _own(self) -> Floats:
        """Each tag's own best, its group's without a positive."""
        if self._precision:
            return self._with_own(1, lambda tag: lowest_own_threshold(tag, self._precision))
        own = self._with_own(
            2, lambda tag: best_own_threshold(tag.cuts, tag.positives, self._objective)
        )
        own[self._positives == 1] = self._only
        return own

    @cached_property
    def _only(self) -> Floats:
        """Thresholds of the tags with one positive: they have one cut, and nothing to choose."""
        single = np.flatnonzero(self._positives == 1).tolist()
        return just_below_only([self._tags[k] for k in single]).astype(np.float64)

    def _shrunk(self) -> Floats:
        if self._precision:
            own = self._by_group(self._shrunken_precision)
            return np.where(self._positives > 0, own, self._grouped)
        return self._blend(self._own, self._grouped)

    def _shrunken_precision(self, tags: Sequence[RankedTag]) -> Floats:
        """Lowest thresholds by precisions with at most 20 cells of the other tags, (n_tags,)."""
        # A precision of few cells is no evidence: to the cells of a tag above a score are added
        # up to 20 of the other tags of its group, with those tags' precision above that score.
        own = np.full(len(tags), np.nan)
        scored = [k for k, tag in enumerate(tags) if tag.positives]
        if scored:
            score, tp, given = pooled_curve([tags[k] for k in scored])
        for k in scored:
            cuts = tags[k].cuts
            at = score.searchsorted(tags[k].negated[cuts.given - 1])
            others = given[at] - cuts.given
            cells = np.minimum(others, EQUAL_WEIGHT)
            hits = cells * (tp[at] - cuts.tp) / np.maximum(others, 1)
            own[k] = lowest_own_threshold(tags[k], self._precision, (hits, cells))
        return own

    def _bagged(self) -> Floats:
        """Means over replicates, shrunk to the plug-in; the group's where either is undefined."""
        bagged = self._with_own(2, lambda t: self._replicates.threshold(t, self._objective))
        only = self._only if self._replicates.draw_one else np.full(len(self._only), np.nan)
        bagged[self._positives == 1] = np.where(np.isfinite(only), only, np.nan)
        bagged = np.where(np.isnan(bagged), self._own, bagged)
        expected = self._by_group(lambda tags: plug_in_thresholds(tags, self._objective))
        return self._blend(bagged, np.where(np.isnan(expected), self._grouped, expected))

    def _blend(self, own: Floats, base: Floats) -> Floats:
        """(P·own + 20·base) / (P + 20); own where an infinite score leaves no mean."""
        # The variance of a tag's own threshold falls about as 1/P, while what it gains over its
        # group's does not depend on P: hence the weight P/(P + 20).
        share = self._positives / (self._positives + EQUAL_WEIGHT)
        both = np.isfinite(own) & np.isfinite(base)
        mean = share * np.where(both, own, 0) + (1 - share) * np.where(both, base, 0)
        return np.where(both, mean, np.where(self._positives > 0, own, base))

    def _with_own(self, least: int, threshold: Callable[[RankedTag], float]) -> Floats:
        """Own thresholds of the tags with at least so many positives, the others' groups'."""
        own = self._grouped.copy()
        for k in np.flatnonzero(self._positives >= least).tolist():
            own[k] = threshold(self._tags[k])
        return own

    def _by_group(self, thresholds: Callable[[Sequence[RankedTag]], Floats]) -> Floats:
        """Thresholds (n_tags,) from those of each group's tags."""
        found = np.full(len(self._tags), np.nan)
        for name in np.unique(self._group):
            members = np.flatnonzero(self._group == name)
            found[members] = thresholds([self._tags[k] for k in members.tolist()])
        return found
