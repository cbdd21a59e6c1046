"""Which candidate a tag takes, from the out-of-fold average precision of each."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retailtag.errors import UsageError

CHOICES = ("per-group", "per-tag", "global")
EVERY_TAG = "all"
SHRINK = 20.0  # positives at which a tag's own curve and its group's weigh the same


@dataclass(frozen=True, eq=False)
class SharedChoice:
    """What the tags of a group support together.

    Parameters
    ----------
    name : str
        Of the group; ``all`` where it is every tag.
    best : int
        Candidate with the largest mean AP, the first of equals.
    chosen : int
        First candidate within one standard error of it.
    mean : ndarray of float64, shape (n_candidates,)
        AP averaged over the tags that have one.
    error : ndarray of float64, shape (n_candidates,)
        Standard error of the mean difference to `best`; 0 with a single tag.
    """

    name: str
    best: int
    chosen: int
    mean: NDArray[np.float64]
    error: NDArray[np.float64]


def choose_candidate(
    ap: NDArray[np.float64],
    group: NDArray[np.str_],
    rule: str = "per-group",
    positives: NDArray[np.integer] | None = None,
) -> NDArray[np.intp]:
    r"""Candidate of each tag: the first within one standard error of the best.

    With the mean :math:`\bar d_c` and the standard deviation :math:`s_c` of the differences
    :math:`d_{ct} = AP_{\hat c t} - AP_{ct}` to the best candidate :math:`\hat c` over the T tags
    of a group, the choice is the smallest c with :math:`\bar d_c \le s_c / \sqrt T`.

    Parameters
    ----------
    ap : ndarray of float64, shape (n_candidates, n_tags)
        Out-of-fold AP, the most regularised candidate first; NaN for tags that have no score.
    group : ndarray of str, shape (n_tags,)
    rule : {"per-group", "per-tag", "global"}
        ``per-tag``: a tag with P positives takes the best of its own curve shrunk toward the mean
        curve of its group, (P·own + 20·group) / (P + 20); its tolerance is the group's standard
        error times 20 / (P + 20), so that the rarest tags choose as their group does.
    positives : ndarray of int, shape (n_tags,), optional
        Training positives of each tag; needed for ``per-tag``.

    Returns
    -------
    ndarray of int, shape (n_tags,)
        A group without any score takes the choice of all tags.

    Raises
    ------
    UsageError
        If the rule is unknown.

    Notes
    -----
    The differences are paired by tag: what makes a tag hard for every candidate cancels, so the
    tolerance is much narrower than with the standard error of the mean itself.

    References
    ----------
    Breiman, Friedman, Olshen & Stone (1984), Classification and Regression Trees, section 3.4.3,
    the 1 SE rule; Hastie, Tibshirani & Friedman, The Elements of Statistical Learning, 2nd
    edition, section 7.10.
    """
    choice = np.zeros(ap.shape[1], np.intp)
    scored = np.isfinite(ap).all(axis=0)
    for shared in shared_choices(ap, group, rule):
        members = (group == shared.name) | (shared.name == EVERY_TAG)
        choice[members] = shared.chosen
        if rule == "per-tag" and positives is not None and shared.name != EVERY_TAG:
            own = np.flatnonzero(members & scored)
            choice[own] = _shrunk_choice(ap[:, own], shared, positives[own])
    return choice


def shared_choices(
    ap: NDArray[np.float64], group: NDArray[np.str_], rule: str = "per-group"
) -> list[SharedChoice]:
    """Choices of all tags together (``all``, first) and, unless `rule` is global, of each group.

    Parameters and errors are those of `choose_candidate`. Groups without a score are left out.
    """
    if rule not in CHOICES:
        raise UsageError(f"--choose-C {rule} is unknown; use one of {', '.join(CHOICES)}.")
    scored = np.isfinite(ap).all(axis=0)
    found = [_shared(EVERY_TAG, ap[:, scored])] if scored.any() else []
    for name in np.unique(group).tolist() if rule != "global" else ():
        members = (group == name) & scored
        if members.any():
            found.append(_shared(name, ap[:, members]))
    return found


def _shared(name: str, ap: NDArray[np.float64]) -> SharedChoice:
    mean, n_tags = ap.mean(axis=1), ap.shape[1]
    best = int(np.argmax(mean))
    behind = ap[best] - ap
    error = np.zeros(len(ap))
    if n_tags > 1:
        error = behind.std(axis=1, ddof=1) / np.sqrt(n_tags)
    return SharedChoice(name, best, int(_first_within(mean, error)), mean, error)


def _shrunk_choice(
    ap: NDArray[np.float64], shared: SharedChoice, positives: NDArray[np.integer]
) -> NDArray[np.intp]:
    """Choice of each tag of a group by its shrunk curve; ap (n_candidates, tags) to (tags,)."""
    own = positives / (positives + SHRINK)
    curve = own * ap + (1 - own) * shared.mean[:, None]
    return _first_within(curve, (1 - own) * shared.error[:, None])


def _first_within(curve: NDArray[np.float64], tolerance: NDArray[np.float64]) -> NDArray[np.intp]:
    """First index along axis 0 whose value is within its tolerance of the largest."""
    rounding = 1e-12
    near: NDArray[np.bool_] = curve.max(axis=0) - curve <= tolerance + rounding
    first: NDArray[np.intp] = np.argmax(near, axis=0)
    return first
