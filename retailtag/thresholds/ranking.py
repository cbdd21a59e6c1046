"""Each tag's cells ranked once, and the cuts at which its precision and recall can be best.

All rules, all folds of a cross-fit (which drop images from the ranking and sort nothing again) and
all bootstrap replicates (weights on ranks) start from the ranked cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from retailtag.errors import DataError

Logits = NDArray[np.float32]
Labels = NDArray[np.int8]
Counts = NDArray[np.int64]

N_THREADS = 2  # sorting and indexing release the interpreter's lock
TAGS_AT_ONCE = 16  # a cache line of int8 labels holds 64, one of float32 logits 16
MANY_TAGS = 1000  # above which operations on all cells at once may be faster than a loop over tags
MAX_FLAT_CELLS = 1 << 23  # of an operation on all cells at once: 0.5 GB of its arrays
SIGN_BIT = np.uint32(1 << 31)


@dataclass(frozen=True, eq=False)
class RankedTag:
    """The known cells (n_known,) of one tag, highest score first; positives first among equals."""

    negated: NDArray[np.float32]  # scores with their sign changed, so that they ascend
    present: NDArray[np.bool_]
    image: NDArray[np.int64]  # row of each cell in the scores that were ranked

    @property
    def positives(self) -> int:
        """Cells that carry the tag."""
        return len(self.hits)

    @cached_property
    def hits(self) -> Counts:
        """Ranks of the positives, ascending from 0, (positives,)."""
        return np.flatnonzero(self.present)

    @cached_property
    def negated_hits(self) -> NDArray[np.float32]:
        """Negated scores of the positives, ascending, (positives,)."""
        return self.negated[self.hits]

    @cached_property
    def cuts(self) -> Cuts:
        """The cuts just below each distinct score of a positive, highest score first."""
        # Between two positives a lower cut adds negatives alone: k grows, TP stays, so precision
        # and every F = (1+b²)TP/(k + b²P) fall and recall stays. The best cut lies just below a
        # positive: P cuts are worth trying, however many images there are. (F ≤ (1+b²)P/(k + b²P)
        # bounds k and so the depth of the ranking; this leaves P places of it.)
        last = np.flatnonzero(np.append(self.negated_hits[1:] > self.negated_hits[:-1], True))
        score = self.negated_hits[last[: self.positives]]
        given = self.negated.searchsorted(score, side="right")
        return Cuts(last[: self.positives] + 1, given, self._below(given))

    def _below(self, given: Counts) -> NDArray[np.float32]:
        """Thresholds that the first `given` cells reach and the next one does not."""
        high = -self.negated[given - 1]
        low = -self.negated[np.minimum(given, len(self.negated) - 1)]
        return between(low, high)

    def counts_at(self, thresholds: NDArray[np.float32]) -> tuple[Counts, Counts]:
        """Positives and cells with a score of at least each threshold."""
        return (
            self.negated_hits.searchsorted(-thresholds, side="right"),
            self.negated.searchsorted(-thresholds, side="right"),
        )

    def keep(self, images: NDArray[np.bool_]) -> RankedTag:
        """The cells of some images, (n_images,) of bool, still ranked."""
        at = np.flatnonzero(images.take(self.image))  # 3 times as fast as indexing by a bool mask
        return RankedTag(self.negated.take(at), self.present.take(at), self.image.take(at))


@dataclass(frozen=True, eq=False)
class Cuts:
    """Where a tag's threshold can be best, highest first; arrays of shape (n_cuts,)."""

    tp: Counts  # positives above the cut
    given: Counts  # cells above the cut
    # Midpoint between the scores above and below the cut; the score above where none is below.
    threshold: NDArray[np.float32]


def between(low: NDArray[np.float32], high: NDArray[np.float32]) -> NDArray[np.float32]:
    """Float32 numbers t with low < t <= high: midpoints where they exist, else `high`."""
    finite = np.isfinite(low) & np.isfinite(high)
    total = np.add(low, high, where=finite, out=np.zeros(low.shape), dtype=np.float64)
    middle = (total / 2).astype(np.float32)
    return np.where(finite & (middle > low), middle, high)


def rank_tags(logits: Logits, labels: Labels) -> tuple[RankedTag, ...]:
    """Rank the known cells of every tag.

    `logits`, float32 (n_images, n_tags), may be infinite; `labels`, int8 of the same shape, are 1
    present, 0 absent, -1 unknown (left out).

    Raises
    ------
    DataError
        If the shapes differ or a logit is NaN.
    """
    if logits.shape != labels.shape:
        raise DataError(f"Logits have shape {logits.shape} and labels {labels.shape}; align them.")
    if np.isnan(logits).any():
        raise DataError("Logits hold NaN; the model that made them diverged.")

    def block(start: int) -> list[RankedTag]:
        # Columns are copied several at a time: a row-major matrix is fetched by whole lines.
        scores = np.ascontiguousarray(logits[:, start : start + TAGS_AT_ONCE].T)
        truth = np.ascontiguousarray(labels[:, start : start + TAGS_AT_ONCE].T)
        return [_rank(z, y) for z, y in zip(scores, truth, strict=True)]

    with ThreadPoolExecutor(N_THREADS) as pool:
        return tuple(chain.from_iterable(pool.map(block, range(0, logits.shape[1], TAGS_AT_ONCE))))


def _rank(scores: Logits, labels: Labels) -> RankedTag:
    rows = np.flatnonzero(labels >= 0)
    negated = 0 - scores[rows].astype(np.float32)  # 0 - z, not -z: -0 and 0 become the same bits
    # One sort of 64-bit keys: 32 bits of score, one of absence, 31 of the row. Integers sort with
    # vector instructions, and ties are settled by the label, not by the order of the images.
    # Floats order as integers once negative ones have all bits and the others the sign flipped.
    bits = negated.view(np.uint32)
    ascending = np.where(bits & SIGN_BIT, ~bits, bits | SIGN_BIT).astype(np.uint64)
    absent = (labels[rows] == 0).astype(np.uint64)
    key = ascending << np.uint64(32) | absent << np.uint64(31) | np.arange(len(rows), dtype="u8")
    key.sort()
    order = (key & np.uint64((1 << 31) - 1)).astype(np.int64)
    present = (key >> np.uint64(31) & np.uint64(1)) == 0
    return RankedTag(negated[order], present, rows[order])


def keep_images(tags: Sequence[RankedTag], images: NDArray[np.bool_]) -> tuple[RankedTag, ...]:
    """Every tag's ranking of some images only, (n_images,) of bool."""

    def block(start: int) -> list[RankedTag]:
        return [tag.keep(images) for tag in tags[start : start + TAGS_AT_ONCE]]

    with ThreadPoolExecutor(N_THREADS) as pool:
        return tuple(chain.from_iterable(pool.map(block, range(0, len(tags), TAGS_AT_ONCE))))


def just_below_only(tags: Sequence[RankedTag]) -> NDArray[np.float32]:
    """Threshold of the one cut of each tag, (n_tags,); the tags have one positive each."""
    given = [tag.negated.searchsorted(tag.negated_hits[0], side="right") for tag in tags]
    pairs = list(zip(tags, given, strict=True))
    high = np.array([tag.negated[k - 1] for tag, k in pairs], np.float32)
    low = np.array([tag.negated[min(k, len(tag.negated) - 1)] for tag, k in pairs], np.float32)
    return between(-low, -high)


@dataclass(frozen=True, eq=False)
class Flat:
    """The cells of many tags in one array each, tag after tag, highest score first; (n_cells,)."""

    negated: NDArray[np.float32]
    present: NDArray[np.bool_]
    tag: NDArray[np.intp]  # number of the tag of each cell

    @classmethod
    def of(cls, tags: Sequence[RankedTag]) -> Flat:
        """Join the cells; there is a tag."""
        lengths = [len(tag.negated) for tag in tags]
        return cls(
            np.concatenate([tag.negated for tag in tags]),
            np.concatenate([tag.present for tag in tags]),
            np.repeat(np.arange(len(tags)), lengths),
        )


def are_many(tags: Sequence[RankedTag]) -> bool:
    """Whether there are so many tags of so few cells that operations on `Flat` pay."""
    n_cells = sum(len(tag.negated) for tag in tags)
    return len(tags) > MANY_TAGS and n_cells <= min(len(tags) ** 2, MAX_FLAT_CELLS)
