"""Pairs of tags that a model takes for each other."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from retailtag.catalog.table import NEGATIVE, POSITIVE
from retailtag.scoring.aligned import Aligned
from retailtag.statistics.exclusive import PLAIN

MIN_IMAGES = 3  # on which a pair is confused; fewer are chance


@dataclass(frozen=True)
class ConfusedPair:
    """Images that carry one tag and were given another instead."""

    true_tag: str
    given_tag: str
    n_images: int
    n_true: int  # images that carry the tag
    expected: float  # images on which both mistakes would meet by chance
    attribute: str  # that both are values of; ``tags`` for tags without a prefix
    is_exclusive: bool  # whether an image has one value of it


def confused_pairs(
    aligned: Aligned, tags: tuple[str, ...], n_pairs: int = 15
) -> tuple[ConfusedPair, ...]:
    """Pairs of one attribute that are confused most often beyond chance, the most frequent first.

    An image counts for (true, given) if it carries the first without being given it, and was given
    the second without carrying it.
    """
    from scipy.sparse import csr_matrix

    missed = (aligned.labels == POSITIVE) & ~aligned.predicted
    alarm = (aligned.labels == NEGATIVE) & aligned.predicted
    together = (csr_matrix(missed, dtype=np.int32).T @ csr_matrix(alarm, dtype=np.int32)).tocoo()
    expected = missed.sum(axis=0)[together.row] * alarm.sum(axis=0)[together.col]
    expected = expected / max(len(aligned.rows), 1)
    excess = together.data - expected
    attribute = np.array([tag.partition(":")[0] if ":" in tag else PLAIN for tag in tags])
    alike = attribute[together.row] == attribute[together.col]
    often = np.flatnonzero(alike & (together.data >= MIN_IMAGES) & (excess > expected))
    order = often[np.lexsort((together.col[often], together.row[often], -excess[often]))]
    carried = (aligned.labels == POSITIVE).sum(axis=0)
    found = []
    for k in order[:n_pairs].tolist():
        true, given = int(together.row[k]), int(together.col[k])
        found.append(
            ConfusedPair(
                true_tag=tags[true],
                given_tag=tags[given],
                n_images=int(together.data[k]),
                n_true=int(carried[true]),
                expected=float(expected[k]),
                attribute=str(attribute[true]),
                is_exclusive=str(attribute[true]) in aligned.exclusive,
            )
        )
    return tuple(found)
