"""Which candidate (a C, or a setting of a head) each tag takes, by out-of-fold AP."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from retailtag.errors import UsageError
from retailtag.statistics.one_standard_error import Choice, first_within, one_standard_error

CHOICES = ("per-group", "per-tag", "global")
EVERY_TAG = "all"
EQUAL_WEIGHT_POSITIVES = 20.0  # positives at which a tag's own curve weighs as much as its group's


def choose_candidate(
    ap: NDArray[np.float64],
    group: NDArray[np.str_],
    rule: str = "per-group",
    positives: NDArray[np.integer] | None = None,
) -> NDArray[np.intp]:
    """Candidate of each tag by the one-standard-error rule.

    `ap` (n_candidates, n_tags) is AP out of fold, the most regularised candidate first; NaN for
    tags that have no score, or that are not `informative`. A `group` (n_tags,) without any score
    takes the choice of all tags. `rule` is ``per-group``, ``global`` or ``per-tag``: a tag with P
    training `positives` (n_tags,) takes the best of its own curve shrunk toward the mean curve of
    its group, (P·own + 20·group) / (P + 20); its tolerance is the group's standard error times
    20 / (P + 20), so that the rarest tags choose as their group does.
    """
    index = np.zeros(ap.shape[1], np.intp)
    scored = np.isfinite(ap).all(axis=0)
    for name, choice in shared_choices(ap, group, rule).items():  # all tags first, then groups
        members = (group == name) | (name == EVERY_TAG)
        index[members] = choice.chosen
        if rule == "per-tag" and positives is not None and name != EVERY_TAG:
            own = np.flatnonzero(members & scored)
            index[own] = _shrunk_choice(ap[:, own], choice, positives[own])
    return index


def shared_choices(
    ap: NDArray[np.float64], group: NDArray[np.str_], rule: str = "per-group"
) -> dict[str, Choice]:
    """Choice of all tags together (``all``, first) and, unless `rule` is global, of each group.

    Parameters as in `choose_candidate`. Groups without a score are left out.

    Raises
    ------
    UsageError
        If the rule is unknown.
    """
    if rule not in CHOICES:
        raise UsageError(f"--choose-C {rule} is unknown; use one of {', '.join(CHOICES)}.")
    members = {EVERY_TAG: np.ones(len(group), bool)}
    if rule != "global":
        members |= {name: group == name for name in np.unique(group).tolist()}
    choices = {name: one_standard_error(ap[:, inside]) for name, inside in members.items()}
    return {name: choice for name, choice in choices.items() if choice is not None}


def deciding_choices(
    ap: NDArray[np.float64], group: NDArray[np.str_], rule: str = "per-group"
) -> dict[str, Choice]:
    """Those of `shared_choices` that some tag takes; that of all tags only if it is among them."""
    choices = shared_choices(ap, group, rule)
    if rule != "global" and set(group.tolist()) <= set(choices):
        choices.pop(EVERY_TAG, None)
    return choices


def informative(labels: NDArray[np.int8], fold: NDArray[np.intp]) -> NDArray[np.bool_]:
    """Tags (n_tags,) whose out-of-fold AP can tell candidates apart; all if there is none.

    They have positives in two folds or more, and negatives too. `labels` (n_images, n_tags) are 1,
    0 or -1, `fold` (n_images,).
    """
    # Where one fold holds all positives, the fit that scores them has seen none and is a constant.
    # The AP of such a tag grows with C only because the negatives of the other folds sink below
    # that constant, and goes on doing so at any C: it is no evidence, but it is alike for all such
    # tags, so that their standard error is small. In a catalogue of few products, where folds do
    # not divide products, half of the tags are of this kind.
    folds = range(int(fold.max(initial=-1)) + 1)
    n_folds = [
        np.sum([(labels[fold == k] == value).any(axis=0) for k in folds], axis=0)
        for value in (0, 1)
    ]
    tells: NDArray[np.bool_] = np.minimum(*n_folds) > 1
    return tells if tells.any() else np.ones(labels.shape[1], bool)


def _shrunk_choice(
    ap: NDArray[np.float64], shared: Choice, positives: NDArray[np.integer]
) -> NDArray[np.intp]:
    """Choice of each tag of a group by its shrunk curve; ap (n_candidates, tags) to (tags,)."""
    # The weight of a tag's own evidence, P/(P + 20): a compromise between its curve, whose noise
    # falls with P, and its group's, which is biased for it however many positives there are.
    own = positives / (positives + EQUAL_WEIGHT_POSITIVES)
    curve = own * ap + (1 - own) * shared.mean[:, None]
    return first_within(curve, (1 - own) * shared.error[:, None])
