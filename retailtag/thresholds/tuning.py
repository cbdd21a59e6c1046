"""Decision thresholds on logits, tuned and chosen on images that the scores were not fitted on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retailtag.errors import UsageError
from retailtag.statistics.one_standard_error import one_standard_error
from retailtag.thresholds.objectives import F1, Objective
from retailtag.thresholds.per_tag import Replicates
from retailtag.thresholds.ranking import Labels, Logits, RankedTag, keep_images, rank_tags
from retailtag.thresholds.rules import Menu

RULES = ("fixed", "global", "group", "bagged", "shrunk", "smoothed", "per-tag")  # freest last
PRECISION_RULES = tuple(rule for rule in RULES if rule not in ("bagged", "smoothed"))
AUTO = "auto"
FALLBACK = "shrunk"  # rule taken where none can be chosen by cross-fit
FEW = 2  # positives of the median tail tag up to which a validation part supports its group only

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Tuning:
    """How thresholds are tuned: the rule or ``auto``, what for, and the seed of the replicates.

    Parameters
    ----------
    rule : str
        One of `RULES`, or ``auto``: with folds the rule is chosen by cross-fit (`choose_rule`);
        without, on a small validation part, ``shrunk``, or ``group`` where the median tail tag
        has at most 2 positives. Under a precision, ``auto`` is ``shrunk``.
    objective : str
        ``f1``, ``fbeta:B`` or ``precision:P``.
    seed : int

    Raises
    ------
    UsageError
        If the rule or the objective is unknown, or the rule has no form for a precision.
    """

    rule: str = AUTO
    objective: str = "f1"
    seed: int = 0

    def __post_init__(self) -> None:
        known = (AUTO, *RULES)
        if self.rule not in known:
            raise UsageError(f"--thresholds {self.rule} is unknown; use one of {', '.join(known)}.")
        if self.goal.precision is not None and self.rule not in (AUTO, *PRECISION_RULES):
            raise UsageError(
                f"--thresholds {self.rule} maximises F-beta and cannot aim at --objective "
                f"{self.objective}; use one of {', '.join((AUTO, *PRECISION_RULES))}."
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

        Parameters
        ----------
        logits : ndarray of float32, shape (n_images, n_tags)
            Out-of-fold or validation scores, never scores of images that were fitted.
        labels : ndarray of int8, shape (n_images, n_tags)
            -1 cells are left out.
        group : ndarray of str, shape (n_tags,)
            Frequency group of each tag.
        fold : ndarray of int, shape (n_images,), optional
            The folds of the scores.
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
        rule = FALLBACK if self.rule == AUTO else self.rule
        if self.goal.precision is None:
            if fold is not None:
                crossed = _cross_fit(tags, group, fold, self.goal, self.seed)
                chosen, scores = _most_restrained_of_the_best(crossed, group)
                rule = chosen if self.rule == AUTO else rule
                f = crossed[RULES.index(rule)]
            elif self.rule == AUTO:
                rule = _validation_rule(tags, group)
        menu = Menu(tags, group, self.goal, _replicates(tags, self.seed))
        return Tuned(menu.thresholds(rule), rule, self.objective, scores, f)


@dataclass(frozen=True, eq=False)
class Tuned:
    """Thresholds and how they came about.

    Parameters
    ----------
    thresholds : ndarray of float32, shape (n_tags,)
        A tag is given where its logit is at least its threshold; ``inf``: never.
    rule : str
        One of `RULES`.
    objective : str
    cross_fit : dict
        See `RuleChoice.scores`; empty where no cross-fit was made.
    f : ndarray of float64, shape (n_tags,), or None
        Cross-fit F-beta of each tag under the rule, NaN without a positive; None where no
        cross-fit was made.
    """

    thresholds: NDArray[np.float32]
    rule: str
    objective: str
    cross_fit: dict[str, dict[str, float]] = field(default_factory=dict)
    f: Floats | None = None

    @property
    def facts(self) -> dict[str, Any]:
        """What artefacts record, JSON-able."""
        return {"rule": self.rule, "objective": self.objective, "cross_fit": self.cross_fit}


@dataclass(frozen=True)
class RuleChoice:
    """The rule that cross-fit supports.

    Parameters
    ----------
    rule : str
    scores : dict
        By rule: ``all`` and ``tail``, the cross-fit macro F-beta over all tags and over the tail
        (left out where it has no positive); ``behind``, how far ``all`` lies behind the best rule,
        and ``se``, the standard error of that.
    """

    rule: str
    scores: dict[str, dict[str, float]]


def tune_thresholds(
    logits: Logits,
    labels: Labels,
    group: NDArray[np.str_],
    rule: str = FALLBACK,
    *,
    objective: Objective = F1,
    seed: int = 0,
) -> NDArray[np.float32]:
    """Thresholds that maximise F-beta or reach a precision, by one rule.

    Parameters
    ----------
    logits : ndarray of float32, shape (n_images, n_tags)
        Out-of-fold or validation scores, never scores of images that were fitted.
    labels : ndarray of int8, shape (n_images, n_tags)
        -1 cells are left out.
    group : ndarray of str, shape (n_tags,)
        Frequency group of each tag.
    rule : str
        ``fixed``: logit 0 (probability 0.5). ``global``, ``group``: one threshold for all tags or
        for each group, maximising the mean of its tags' F-beta. ``per-tag``: each tag's own best.
        ``shrunk``: (P·per-tag + 20·group) / (P + 20) for a tag with P positives here.
        ``smoothed``: each tag's own best on a kernel-smoothed curve. ``bagged``: mean of the own
        best over 25 Poisson replicates, shrunk in the same way to the threshold that maximises
        the expected F-beta under probabilities from Platt scaling pooled over the group.
    objective : Objective
        Under a precision: the lowest threshold that reaches it, on the pooled cells of all tags or
        of the group, or on the tag's own; ``shrunk`` adds to the cells of the tag above a score
        at most 20 with the precision of the group's other tags there. ``inf`` where it is never
        reached: the tag is never given.
    seed : int
        Of the replicates.

    Returns
    -------
    ndarray of float32, shape (n_tags,)

    Raises
    ------
    UsageError
        If the rule is unknown or has no form for a precision.

    Notes
    -----
    A tag without positives here takes its group's threshold, a group without any that of all
    tags. Averages are of logits, so that a threshold and its shrunken version are on one scale
    for all tags. No rule depends on the order of the images.

    References
    ----------
    Lipton, Elkan & Naryanaswamy (2014), Optimal thresholding of classifiers to maximize F1
    measure, ECML; the other sources stand with `best_shared_threshold`, `plug_in_thresholds`,
    `Replicates` and `smoothed_thresholds`.

    Examples
    --------
    >>> logits = np.array([[2.0], [1.0], [0.0], [-1.0]], np.float32)
    >>> labels = np.array([[1], [1], [0], [0]], np.int8)
    >>> tune_thresholds(logits, labels, np.array(["tail"]), "per-tag").tolist()
    [0.5]
    """
    known = RULES if objective.precision is None else PRECISION_RULES
    if rule not in known:
        raise UsageError(f"--thresholds {rule} is unknown here; use one of {', '.join(known)}.")
    tags = rank_tags(logits, labels)
    return Menu(tags, group, objective, _replicates(tags, seed)).thresholds(rule)


def choose_rule(
    logits: Logits,
    labels: Labels,
    group: NDArray[np.str_],
    fold: NDArray[np.intp],
    *,
    objective: Objective = F1,
    seed: int = 0,
) -> RuleChoice:
    """The most restrained rule within one standard error of the best cross-fit macro F-beta.

    Parameters
    ----------
    logits : ndarray of float32, shape (n_images, n_tags)
        Out-of-fold scores.
    labels : ndarray of int8, shape (n_images, n_tags)
    group : ndarray of str, shape (n_tags,)
    fold : ndarray of int, shape (n_images,)
        The folds of the scores.
    objective : Objective
        An F-beta: reaching a precision is no score that rules could be ranked by.
    seed : int

    Returns
    -------
    RuleChoice

    Notes
    -----
    Each rule tunes thresholds on the scores of all folds but one and counts on that one; a tag's
    F-beta is of its counts over all folds. In sample the freest rule always wins. The standard
    error is that of the mean over tags of the difference to the best rule, tag by tag. `RULES`
    stand in the order of their freedom: one number, one a group, then a threshold for every tag,
    the less shrunken and averaged the later. Of rules that the folds cannot tell apart a freer one
    has more to lose on other images.

    References
    ----------
    Breiman, Friedman, Olshen & Stone (1984), Classification and Regression Trees, sec. 3.4.3, for
    the rule of one standard error.
    """
    crossed = _cross_fit(rank_tags(logits, labels), group, fold, objective, seed)
    return RuleChoice(*_most_restrained_of_the_best(crossed, group))


def _cross_fit(
    tags: Sequence[RankedTag],
    group: NDArray[np.str_],
    fold: NDArray[np.intp],
    objective: Objective,
    seed: int,
) -> Floats:
    """Cross-fit F-beta (n_rules, n_tags) of every rule, NaN for tags without a positive."""
    positives = np.array([tag.positives for tag in tags])
    tp, given = np.zeros((2, len(RULES), len(tags)), np.int64)
    replicates = _replicates(tags, seed)
    for k in np.unique(fold):
        others = keep_images(tags, fold != k)
        menu = Menu(others, group, objective, replicates)
        thresholds = np.stack([menu.thresholds(rule) for rule in RULES])
        for j, (whole, seen) in enumerate(zip(tags, others, strict=True)):
            in_all, in_seen = whole.counts_at(thresholds[:, j]), seen.counts_at(thresholds[:, j])
            tp[:, j] += in_all[0] - in_seen[0]  # the counts of the fold itself
            given[:, j] += in_all[1] - in_seen[1]
    f: Floats = np.where(positives > 0, objective.f(tp, given, positives), np.nan)
    return f


def _most_restrained_of_the_best(
    f: Floats, group: NDArray[np.str_]
) -> tuple[str, dict[str, dict[str, float]]]:
    """Rule and table from the cross-fit F-beta of each rule and tag, f (n_rules, n_tags)."""
    found = one_standard_error(f)
    if found is None:
        return FALLBACK, {}
    tail = np.isfinite(f[0]) & (group == "tail")
    behind = found.behind
    table = {}
    for k, rule in enumerate(RULES):
        row = {"all": found.mean[k], "behind": behind[k], "se": found.error[k]}
        if tail.any():
            row["tail"] = f[k, tail].mean()
        table[rule] = {name: float(value) for name, value in row.items()}
    return RULES[found.chosen], table


def _validation_rule(tags: Sequence[RankedTag], group: NDArray[np.str_]) -> str:
    """``group`` where the median tail tag has too few positives for a threshold of its own."""
    tail = [tag.positives for tag, name in zip(tags, group, strict=True) if name == "tail"]
    return "group" if tail and np.median(tail) <= FEW else FALLBACK


def _replicates(tags: Sequence[RankedTag], seed: int) -> Replicates:
    return Replicates(max((len(tag.negated) for tag in tags), default=0), seed)
