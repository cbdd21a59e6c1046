"""Decision thresholds on logits, tuned and chosen on images that the scores were not fitted on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retailtag.errors import UsageError
from retailtag.statistics.one_standard_error import one_standard_error
from retailtag.thresholds.objectives import Objective
from retailtag.thresholds.per_tag import Replicates
from retailtag.thresholds.ranking import Labels, Logits, RankedTag, keep_images, rank_tags
from retailtag.thresholds.rules import ThresholdRules

# Of what the rules give: a run finished under another version is made again, since models are
# compared under their thresholds.
VERSION = 2
# From restrained to free: one number, one per group, then a threshold for every tag, the less
# averaged and shrunken the later. Of rules that the folds cannot tell apart the first is taken,
# since a freer one has more to lose on other images.
RULES = ("fixed", "global", "group", "bagged", "shrunk", "per-tag")
PRECISION_RULES = tuple(rule for rule in RULES if rule != "bagged")
AUTO = "auto"
FALLBACK = "shrunk"  # rule taken where none can be chosen by cross-fit
MAX_POSITIVES_FOR_GROUP = 2  # positives of the median tail tag up to which only groups are tuned

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Tuning:
    """How thresholds are tuned: the rule or ``auto``, what for, and the seed of the replicates.

    Parameters
    ----------
    rule : str
        ``fixed``: logit 0 (probability 0.5). ``global``, ``group``: one threshold for all tags or
        for each group, maximising the mean of its tags' F-beta. ``per-tag``: each tag's own best.
        ``shrunk``: (P·per-tag + 20·group) / (P + 20) for a tag with P positives here.
        ``bagged``: mean of the own best over 25 Poisson bootstrap replicates, shrunk in the same
        way to the threshold that maximises the expected F-beta under probabilities from Platt
        scaling pooled over the group. ``auto``: chosen by cross-fit where there are folds;
        without, ``shrunk``, or ``group`` if the median tail tag has at most 2 positives; under a
        precision, ``shrunk``.
    objective : str
        ``f1``, ``fbeta:B`` or ``precision:P``, the lowest threshold that reaches the precision: on
        the pooled cells of all tags or of the group, or on the tag's own; ``shrunk`` adds to the
        cells of the tag above a score at most 20 with the precision of the group's other tags
        there. ``inf`` where it is never reached: the tag is never given.
    capped : bool
        Whether no tag may be given in more than (1+b²) cells for each of its positives: twice as
        often as it is present, for F1. ``auto`` always is; `ThresholdRules.capped` says why.
    seed : int
        Of the replicates.
    max_tags : float, optional
        Most tags an image on average. Where the rule gives more, all thresholds are raised by one
        number of logits, the smallest that brings them down to it.

    Raises
    ------
    UsageError
        If the rule or the objective is unknown, the rule has no form for a precision, or `max_tags`
        is not above 0.

    Notes
    -----
    A tag without positives takes its group's threshold, a group without any that of all tags.
    Averages are of logits, so that a threshold and its shrunken version are on one scale for all
    tags. No rule depends on the order of the images.

    The cross-fit: each rule tunes thresholds on the scores of all folds but one and counts on that
    one; a tag's F-beta is of its counts over all folds. In sample the freest rule always wins. Of
    the rules within one standard error of the best mean F-beta the most restrained is taken.

    Examples
    --------
    >>> logits = np.array([[2.0], [1.0], [0.0], [-1.0]], np.float32)
    >>> labels = np.array([[1], [1], [0], [0]], np.int8)
    >>> Tuning("per-tag").tune(logits, labels, np.array(["tail"])).thresholds.tolist()
    [0.5]
    """

    rule: str = AUTO
    objective: str = "f1"
    seed: int = 0
    max_tags: float | None = None
    capped: bool = False

    def __post_init__(self) -> None:
        known = (AUTO, *RULES)
        if self.rule not in known:
            raise UsageError(f"--thresholds {self.rule} is unknown; use one of {', '.join(known)}.")
        if self.goal.precision is not None and self.rule not in (AUTO, *PRECISION_RULES):
            raise UsageError(
                f"--thresholds {self.rule} maximises F-beta and cannot aim at --objective "
                f"{self.objective}; use one of {', '.join((AUTO, *PRECISION_RULES))}."
            )

        if self.max_tags is not None and not 0 < self.max_tags < math.inf:
            raise UsageError(
                f"--max-tags {self.max_tags:g} is out of range; give the most tags an image, above "
                "0, such as 12."
            )

    @property
    def goal(self) -> Objective:
        """The objective, parsed."""
        return Objective.parse(self.objective)

    def tune(
        self,
        logits: Logits,
        labels: Labels,
        group: NDArray[np.str_],
        fold: NDArray[np.intp] | None = None,
    ) -> Tuned:
        """Thresholds of every tag, and the cross-fit scores of every rule where there are folds.

        `logits`, float32 (n_images, n_tags), are out-of-fold or validation scores, never scores of
        images that were fitted; cells whose label is -1 are left out. `group` (n_tags,) is the
        frequency group of each tag, `fold` (n_images,) the folds of the scores.
        """
        return self.tune_ranked(rank_tags(logits, labels), group, fold)

    def tune_ranked(
        self,
        tags: Sequence[RankedTag],
        group: NDArray[np.str_],
        fold: NDArray[np.intp] | None = None,
    ) -> Tuned:
        """As `tune`, of cells that are ranked already; `fold` is indexed by their images."""
        scores: dict[str, dict[str, float]] = {}
        f = None
        capped = self.goal.precision is None and (self.capped or self.rule == AUTO)
        rule = FALLBACK if self.rule == AUTO else self.rule
        if self.goal.precision is None:  # reaching a precision is no score to rank rules by
            if fold is not None:
                crossed = _cross_fit(tags, group, fold, self, capped=capped)
                chosen, scores = _most_restrained_of_the_best(crossed, group)
                rule = chosen if self.rule == AUTO else rule
                f = crossed[RULES.index(rule)]
            elif self.rule == AUTO:
                rule = _validation_rule(tags, group)
        rules = ThresholdRules(tags, group, self.goal, _replicates(tags, self.seed))
        thresholds = rules.capped(rule) if capped else rules.thresholds(rule)
        shift = 0.0 if self.max_tags is None else smallest_shift(tags, thresholds, self.max_tags)
        thresholds = (thresholds + np.float32(shift)).astype(np.float32)
        return Tuned(thresholds, rule, self.objective, scores, f, self.max_tags, shift, capped)


@dataclass(frozen=True, eq=False)
class Tuned:
    """Thresholds and how they came about."""

    thresholds: NDArray[np.float32]  # (n_tags,), logits from which tags are given; ``inf``: never
    rule: str  # one of `RULES`
    objective: str
    # By rule: ``all`` and ``tail``, the cross-fit macro F-beta over all tags and over the tail
    # (left out without a positive); ``behind``, how far ``all`` lies behind the best rule, and
    # ``se``, the standard error of that. Empty where no cross-fit was made.
    cross_fit: dict[str, dict[str, float]] = field(default_factory=dict)
    # (n_tags,), cross-fit F-beta under the rule, NaN without a positive; None without a cross-fit
    f: Floats | None = None
    max_tags: float | None = None
    shift: float = 0.0  # by which all thresholds were raised for `max_tags`
    capped: bool = False  # see `Tuning`

    @property
    def facts(self) -> dict[str, Any]:
        """What artefacts record, JSON-able."""
        facts: dict[str, Any] = {"rule": self.rule, "objective": self.objective}
        if self.capped:
            facts["capped"] = True
        if self.max_tags is not None:
            facts |= {"max_tags": self.max_tags, "shift": self.shift}
        return {**facts, "cross_fit": self.cross_fit}


def smallest_shift(
    tags: Sequence[RankedTag], thresholds: NDArray[np.float32], max_tags: float
) -> float:
    """Smallest rise of all thresholds (n_tags,) that gives at most `max_tags` an image on average.

    0 where they give no more as they are. A tag with unknown cells is taken to be given among them
    as often as among the others.

    Examples
    --------
    >>> logits = np.array([[3.0, 1.0], [2.0, 0.5]], np.float32)
    >>> tags = rank_tags(logits, np.array([[1, 0], [1, 1]], np.int8))
    >>> smallest_shift(tags, np.zeros(2, np.float32), 1.0)
    1.5
    """
    margins, shares = [np.zeros(0)], [np.zeros(0)]
    for tag, threshold in zip(tags, thresholds.tolist(), strict=True):
        if math.isfinite(threshold) and len(tag.negated):
            margin = -tag.negated.astype(np.float64) - threshold
            margins.append(margin[margin >= 0])
            shares.append(np.full(len(margins[-1]), 1 / len(tag.negated)))
    margin = np.concatenate(margins)
    order = np.argsort(-margin, kind="stable")
    margin = margin[order]
    total = np.cumsum(np.concatenate(shares)[order])
    # The rounding of sums of 1 / n must not turn exactly max_tags into more.
    n_kept = int(np.searchsorted(total, max_tags * (1 + 1e-9), side="right"))
    if n_kept == len(margin):
        return 0.0
    dropped = float(margin[n_kept])
    higher = margin[margin > dropped]  # cells that are equal are given together or not at all
    # Half way to the next higher cell, so that rounding to float32 decides nothing.
    return (dropped + float(higher[-1])) / 2 if len(higher) else dropped + 1.0


def _cross_fit(
    tags: Sequence[RankedTag],
    group: NDArray[np.str_],
    fold: NDArray[np.intp],
    tuning: Tuning,
    *,
    capped: bool,
) -> Floats:
    """Cross-fit F-beta (n_rules, n_tags) of every rule, NaN for tags without a positive."""
    positives = np.array([tag.positives for tag in tags])
    tp, given = np.zeros((2, len(RULES), len(tags)), np.int64)
    objective, replicates = tuning.goal, _replicates(tags, tuning.seed)
    for k in np.unique(fold):
        others = keep_images(tags, fold != k)
        rules = ThresholdRules(others, group, objective, replicates)
        by_rule = rules.capped if capped else rules.thresholds
        thresholds = np.stack([by_rule(rule) for rule in RULES])
        for j, (whole, seen) in enumerate(zip(tags, others, strict=True)):
            # Counts of the fold itself: those of all images less those of the other folds.
            all_tp, all_given = whole.counts_at(thresholds[:, j])
            seen_tp, seen_given = seen.counts_at(thresholds[:, j])
            tp[:, j] += all_tp - seen_tp
            given[:, j] += all_given - seen_given
    f: Floats = np.where(positives > 0, objective.f(tp, given, positives), np.nan)
    return f


def _most_restrained_of_the_best(
    f: Floats, group: NDArray[np.str_]
) -> tuple[str, dict[str, dict[str, float]]]:
    """Rule and table from the cross-fit F-beta of each rule and tag, f (n_rules, n_tags)."""
    choice = one_standard_error(f)
    if choice is None:
        return FALLBACK, {}
    tail = np.isfinite(f[0]) & (group == "tail")
    table = {}
    for k, rule in enumerate(RULES):
        row = {"all": choice.mean[k], "behind": choice.behind[k], "se": choice.error[k]}
        if tail.any():
            row["tail"] = f[k, tail].mean()
        table[rule] = {name: float(value) for name, value in row.items()}
    return RULES[choice.chosen], table


def _validation_rule(tags: Sequence[RankedTag], group: NDArray[np.str_]) -> str:
    """``group`` where the median tail tag has too few positives for a threshold of its own."""
    tail = [tag.positives for tag, name in zip(tags, group, strict=True) if name == "tail"]
    return "group" if tail and np.median(tail) <= MAX_POSITIVES_FOR_GROUP else FALLBACK


def _replicates(tags: Sequence[RankedTag], seed: int) -> Replicates:
    return Replicates(max((len(tag.negated) for tag in tags), default=0), seed)
