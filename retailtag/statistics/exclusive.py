"""Attributes with one value an image, such as ``gender``: which of their tags an image is given.

The tags of the attribute ``gender`` are those that begin with ``gender:``. The attribute ``tags``
is that of the tags without such a prefix, as in a folder of images per tag.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from retailtag.errors import UsageError

INDEPENDENT = "independent"
AT_MOST_ONE = "at-most-one"
EXACTLY_ONE = "exactly-one"
ASSIGNMENTS = (INDEPENDENT, AT_MOST_ONE, EXACTLY_ONE)
PLAIN = "tags"  # attribute of the tags without a prefix
# Of the threshold, taken off a logit before tags are compared. Thresholds of rare tags are low, as
# their logits are: with 0 frequent tags win too often, with 1 rare tags do where a probe is weak.
# Out of fold 1 earns a point of macro-F1 more on the real catalogue, and 2 points fewer images are
# right on the demo, with less macro-F1 (results/exclusive.csv).
THRESHOLD_SHARE = 0.75


def attribute_columns(tags: Sequence[str], attribute: str) -> NDArray[np.intp]:
    """Columns of an attribute's tags, in the order of their names.

    Examples
    --------
    >>> attribute_columns(["red", "gender:Women", "gender:Men"], "gender").tolist()
    [2, 1]
    >>> attribute_columns(["red", "gender:Women", "gender:Men"], "tags").tolist()
    [0]
    """
    prefix = f"{attribute}:"
    if attribute == PLAIN:
        own = [j for j, tag in enumerate(tags) if ":" not in tag]
    else:
        own = [j for j, tag in enumerate(tags) if tag.startswith(prefix)]
    return np.array(sorted(own, key=tags.__getitem__), np.intp)


def assign(
    logits: NDArray[np.floating],
    thresholds: NDArray[np.float32],
    tags: Sequence[str] = (),
    exclusive: Iterable[str] = (),
    assignment: str = INDEPENDENT,
) -> NDArray[np.bool_]:
    """Tags that each image is given, (n_images, n_tags).

    Parameters
    ----------
    logits : ndarray of float, shape (n_images, n_tags)
    thresholds : ndarray of float32, shape (n_tags,)
        A tag passes where its logit is at least its threshold (``inf``: never).
    tags : sequence of str
        Names of the columns.
    exclusive : iterable of str
        Attributes with one value an image.
    assignment : str
        ``independent``: every tag that passes. ``at-most-one``: of the tags of each exclusive
        attribute only the one with the largest logit less three quarters of its threshold, if it
        passes. ``exactly-one``: that tag, whether it passes or not. Other tags are given if they
        pass.

    Examples
    --------
    >>> logits = np.array([[3.0, 2.0], [-1.0, -2.0]])
    >>> tags, thresholds = ("gender:Men", "gender:Women"), np.array([2.5, 1.0], np.float32)
    >>> assign(logits, thresholds, tags, ["gender"], "at-most-one").tolist()
    [[False, True], [False, False]]
    >>> assign(logits, thresholds, tags, ["gender"], "exactly-one").tolist()
    [[False, True], [False, True]]
    """
    given: NDArray[np.bool_] = logits >= thresholds
    if assignment == INDEPENDENT:
        return given
    for attribute in exclusive:
        columns = attribute_columns(tags, attribute)
        if not len(columns):
            continue
        own = given[:, columns]
        best = np.argmax(_comparable(logits[:, columns], thresholds[columns]), axis=1)
        winner = np.arange(len(columns)) == best[:, None]
        given[:, columns] = winner & own if assignment == AT_MOST_ONE else winner
    return given


def _comparable(
    logits: NDArray[np.floating], thresholds: NDArray[np.float32]
) -> NDArray[np.floating]:
    """Logits less a share of the thresholds, (n_images, n_tags) without NaN."""
    if np.isposinf(thresholds).all():
        return logits
    taken_off = THRESHOLD_SHARE * thresholds
    alike = np.isinf(logits) & (logits == taken_off)  # inf less inf is no number
    return np.subtract(logits, taken_off, where=~alike, out=np.zeros(logits.shape))


def check_assignment(assignment: str, exclusive: Sequence[str]) -> None:
    """Raise `UsageError` for an assignment that concerns no attribute."""
    if assignment != INDEPENDENT and not exclusive:
        raise UsageError(
            f"--assign {assignment} concerns attributes with one value an image, and none is "
            "recorded; name them with --one-of, such as --one-of gender,season."
        )
