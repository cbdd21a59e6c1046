"""Whether an ONNX model gives the logits and tags of the tagger that it was made from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retailtag.errors import Mismatch
from retailtag.statistics.exclusive import assign
from retailtag.tagger.tagger import Tagger

IMAGES = 64  # compared at most
LARGEST = 1e-3  # difference of a logit between ONNX Runtime and PyTorch
BATCH_SIZE = 16

Pixels = list[NDArray[np.uint8]]  # of one image, for each backbone


@dataclass(frozen=True)
class Agreement:
    """How far two arrays of logits (n_images, n_tags) and the tags that they give differ."""

    images: int
    cells: int  # images times tags
    cells_that_differ: int  # given by one and not by the other
    largest_logit_difference: float
    mean_logit_difference: float

    def to_json(self) -> dict[str, Any]:
        """Fields as plain values."""
        return asdict(self)


def agreement(
    tagger: Tagger, expected: NDArray[np.float32], found: NDArray[np.float32]
) -> Agreement:
    """Compare logits (n_images, n_tags) under the thresholds and the assignment of a tagger."""
    first, second = given_by(tagger, expected), given_by(tagger, found)
    difference = np.abs(expected.astype(np.float64) - found)
    return Agreement(
        images=len(expected),
        cells=expected.size,
        cells_that_differ=int((first != second).sum()),
        largest_logit_difference=float(difference.max(initial=0)),
        mean_logit_difference=float(difference.mean()) if difference.size else 0.0,
    )


def given_by(tagger: Tagger, logits: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Tags that a tagger gives at these logits, (n_images, n_tags)."""
    return assign(logits, tagger.thresholds, tagger.tags, tagger.exclusive, tagger.assignment)


def check_parity(
    tagger: Tagger, expected: NDArray[np.float32], found: NDArray[np.float32], names: Sequence[str]
) -> Agreement:
    """Agreement of ONNX Runtime with PyTorch; raises `Mismatch` unless all tags are the same.

    Raises it too where a logit differs by more than `LARGEST` or is not a number. `names` are those
    of the images.
    """
    result = agreement(tagger, expected, found)
    wrong = ~(np.abs(expected.astype(np.float64) - found) <= LARGEST)
    wrong |= given_by(tagger, expected) != given_by(tagger, found)
    if not wrong.any():
        return result
    i, j = np.argwhere(wrong)[0].tolist()
    remedy = "leave --format out, or report it with the name of the backbone"
    if tagger.head.vote is not None:
        # The k-th neighbour of two that are alike may be another one; the vote then jumps.
        remedy = "fit another head, such as with retailtag probe --heads logistic,ridge"
    raise Mismatch(
        [
            f"The ONNX model of {tagger!r} differs from PyTorch in {int(wrong.sum()):,} of "
            f"{wrong.size:,} cells: {names[i]}, tag {tagger.tags[j]}, has logit {found[i, j]:.6g} "
            f"instead of {expected[i, j]:.6g} (threshold {tagger.thresholds[j]:.6g}); nothing was "
            f"written; {remedy}."
        ]
    )


def batches(pixels: Iterable[Pixels]) -> Iterator[list[Pixels]]:
    """Images in batches of at most `BATCH_SIZE`."""
    rest = iter(pixels)
    while batch := list(islice(rest, BATCH_SIZE)):
        yield batch


def logits_in_torch(tagger: Tagger, pixels: Iterable[Pixels]) -> NDArray[np.float32]:
    """Logits (n_images, n_tags) of preprocessed images by the tagger itself."""
    rows = [tagger.head.logits(tagger.embeddings(batch)) for batch in batches(pixels)]
    return np.concatenate(rows) if rows else np.empty((0, len(tagger.tags)), np.float32)
