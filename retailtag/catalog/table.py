"""Tags, labels and the frequency groups they fall in."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from retailtag.errors import DataError, UsageError

POSITIVE, NEGATIVE, UNKNOWN = 1, 0, -1
GROUPS = ("tail", "common", "frequent")
TAIL_EDGES = (10, 20)  # training images at which the tail is divided for a closer look


@dataclass(frozen=True)
class GroupCutoffs:
    """Where a tag's training count puts it: tail < `tail` <= common < `frequent` <= frequent.

    Examples
    --------
    >>> GroupCutoffs().group_of(np.array([3, 49, 50, 499, 500])).tolist()
    ['tail', 'tail', 'common', 'common', 'frequent']
    """

    tail: int = 50
    frequent: int = 500

    def group_of(self, train_count: NDArray[np.int64]) -> NDArray[np.str_]:
        """Name the group of each tag; `train_count` (n_tags,) to names (n_tags,)."""
        # digitize gives 0 below `tail`, 1 below `frequent`, else 2: the index into GROUPS.
        return np.array(GROUPS)[np.digitize(train_count, [self.tail, self.frequent])]

    def tail_bins(self) -> tuple[tuple[int, int], ...]:
        """First and last training count of each range of the tail, rarest first.

        Empty if the tail is too short to divide.

        Examples
        --------
        >>> GroupCutoffs().tail_bins()
        ((0, 9), (10, 19), (20, 49))
        >>> GroupCutoffs(tail=20).tail_bins(), GroupCutoffs(tail=10).tail_bins()
        (((0, 9), (10, 19)), ())
        """
        edges = [0, *(edge for edge in TAIL_EDGES if edge < self.tail), self.tail]
        bins = tuple((low, high - 1) for low, high in pairwise(edges))
        return bins if len(bins) > 1 else ()

    def scopes(self, train_count: NDArray[np.int64]) -> dict[str, NDArray[np.bool_]]:
        """Tags of every scope that scores are averaged over, each mask of shape (n_tags,).

        ``all``, the groups, and the ranges of the tail as ``tail 0-9`` and so on.

        Examples
        --------
        >>> masks = GroupCutoffs().scopes(np.array([9, 10, 700]))
        >>> list(masks)
        ['all', 'tail', 'common', 'frequent', 'tail 0-9', 'tail 10-19', 'tail 20-49']
        >>> masks["tail 10-19"].tolist()
        [False, True, False]
        """
        group = self.group_of(train_count)
        masks = {"all": np.ones(len(train_count), bool), **{g: group == g for g in GROUPS}}
        for low, high in self.tail_bins():
            name = f"tail {low}-{high}" if low < high else f"tail {low}"
            masks[name] = (train_count >= low) & (train_count <= high)
        return masks

    @classmethod
    def parse(cls, text: str) -> GroupCutoffs:
        """Cut-offs of a published benchmark by name (see `CUTOFFS`), or as ``TAIL,FREQUENT``.

        Raises
        ------
        UsageError
            If it is neither, or the tail does not end before the frequent tags begin.

        Examples
        --------
        >>> GroupCutoffs.parse("20,200")
        GroupCutoffs(tail=20, frequent=200)
        >>> GroupCutoffs.parse("lvis").group_of(np.array([10, 11, 100, 101])).tolist()
        ['tail', 'common', 'common', 'frequent']
        """
        if text in CUTOFFS:
            return CUTOFFS[text]
        match = re.fullmatch(r"\s*([0-9]{1,9})\s*,\s*([0-9]{1,9})\s*", text)
        if match is None or not 0 < int(match[1]) < int(match[2]):
            raise UsageError(
                f"--cutoffs {text} are not two ascending numbers of training images; write for "
                f"example 50,500, or one of {', '.join(CUTOFFS)}."
            )
        return cls(int(match[1]), int(match[2]))


# lvis: rare 1-10 training images, common 11-100, frequent above (Gupta, Dollar and Girshick,
# "LVIS", CVPR 2019). coco-mlt: tail under 20, medium 20-100, head above (Wu et al.,
# "Distribution-balanced loss for multi-label classification in long-tailed datasets", ECCV 2020).
CUTOFFS = MappingProxyType(
    {
        "retailtag": GroupCutoffs(),
        "lvis": GroupCutoffs(tail=11, frequent=101),
        "coco-mlt": GroupCutoffs(tail=20, frequent=101),
    }
)


@dataclass(frozen=True, eq=False)
class TagTable:
    """Which image carries which tag, and how often each was seen in training.

    Unknown cells take no part in fitting, thresholds or scores.

    Raises
    ------
    DataError
        If shapes disagree, a tag repeats, or a label is not 1, 0 or -1.
    """

    tags: tuple[str, ...]  # distinct names; their order is the order of every tag axis
    labels: NDArray[np.int8]  # 1 present, 0 absent, -1 not annotated, (n_images, n_tags)
    train_count: NDArray[np.int64]  # positive images of each tag in the training split, (n_tags,)
    # Stored as data, so that a scorecard says which cut-offs it used
    cutoffs: GroupCutoffs = field(default_factory=GroupCutoffs)
    # Attributes with one value an image: ``gender`` is that of the tags ``gender:...``
    exclusive: tuple[str, ...] = ()

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
        # Extremes, not the distinct values, which take a sort and a copy of the matrix
        is_whole = self.labels.dtype.kind in "bi"
        extremes = (self.labels.min(initial=0), self.labels.max(initial=0))
        if not is_whole or extremes[0] < UNKNOWN or extremes[1] > POSITIVE:
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
