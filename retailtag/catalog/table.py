"""Tags, labels and the frequency groups they fall in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from retailtag.errors import DataError

POSITIVE, NEGATIVE, UNKNOWN = 1, 0, -1
GROUPS = ("tail", "common", "frequent")


@dataclass(frozen=True)
class GroupCutoffs:
    """Where a tag's training count puts it: tail < `tail` <= common < `frequent` <= frequent.

    Parameters
    ----------
    tail : int
        A tag with fewer positive training images than this is a tail tag.
    frequent : int
        A tag with at least this many is a frequent tag.

    Examples
    --------
    >>> GroupCutoffs().group_of(np.array([3, 49, 50, 499, 500])).tolist()
    ['tail', 'tail', 'common', 'common', 'frequent']
    """

    tail: int = 50
    frequent: int = 500

    def group_of(self, train_count: NDArray[np.int64]) -> NDArray[np.str_]:
        """Name the group of each tag; `train_count` (n_tags,) to names (n_tags,)."""
        return np.array(GROUPS)[np.digitize(train_count, [self.tail, self.frequent])]


@dataclass(frozen=True, eq=False)
class TagTable:
    """Which image carries which tag, and how often each was seen in training.

    Parameters
    ----------
    tags : tuple of str, length n_tags
        Distinct tag names; their order is the order of every tag axis.
    labels : ndarray of int8, shape (n_images, n_tags)
        1 present, 0 absent, -1 not annotated. Unknown cells take no part in fitting, thresholds
        or scores.
    train_count : ndarray of int64, shape (n_tags,)
        Positive images of each tag in the training split.
    cutoffs : GroupCutoffs
        Stored as data, so that a scorecard says which cut-offs it used.

    Raises
    ------
    DataError
        If shapes disagree, a tag repeats, or a label is not 1, 0 or -1.
    """

    tags: tuple[str, ...]
    labels: NDArray[np.int8]
    train_count: NDArray[np.int64]
    cutoffs: GroupCutoffs = field(default_factory=GroupCutoffs)

    def __post_init__(self) -> None:
        if len(set(self.tags)) != len(self.tags):
            raise DataError("The tag list names a tag twice; keep one of them.")
        if self.labels.ndim != 2 or self.labels.shape[1] != len(self.tags):
            raise DataError(
                f"Labels have shape {self.labels.shape} for {len(self.tags)} tags; "
                "expected (n_images, n_tags)."
            )
        if self.train_count.shape != (len(self.tags),):
            raise DataError("There must be one training count per tag.")
        if self.labels.size and not np.isin(np.unique(self.labels), (-1, 0, 1)).all():
            raise DataError("Labels must be 1 (present), 0 (absent) or -1 (not annotated).")

    @classmethod
    def build(
        cls,
        tags: Sequence[str],
        labels: NDArray[np.int8],
        is_train: NDArray[np.bool_],
        cutoffs: GroupCutoffs | None = None,
    ) -> TagTable:
        """Count the training positives and make the table; `is_train` has shape (n_images,)."""
        count = (labels[is_train] == POSITIVE).sum(axis=0, dtype=np.int64)
        return cls(tuple(tags), labels, count, cutoffs or GroupCutoffs())

    @property
    def group(self) -> NDArray[np.str_]:
        """Frequency group of each tag, shape (n_tags,)."""
        return self.cutoffs.group_of(self.train_count)
