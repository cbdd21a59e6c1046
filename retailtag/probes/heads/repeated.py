"""Tags that the same images carry: fitted once, and held once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retailtag.probes.heads.logistic import LogisticFits
from retailtag.probes.solver.fits import LinearFits


def distinct_columns(Y: NDArray[np.int8]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """First tag of each distinct column of labels Y (n_images, n_tags), and each tag's column.

    Of thousands of rare tags most are on one image, and many on the same. Their fits are equal.

    Examples
    --------
    >>> first, of_tag = distinct_columns(np.array([[1, 0, 1], [0, 0, 0]], np.int8))
    >>> first.tolist(), of_tag.tolist()
    ([0, 1], [0, 1, 0])
    """
    number: dict[bytes, int] = {}
    columns = np.ascontiguousarray(Y.T)
    of_tag = [number.setdefault(column.tobytes(), len(number)) for column in columns]
    index = np.array(of_tag, np.intp)
    return np.unique(index, return_index=True)[1], index


@dataclass(frozen=True, eq=False)
class RepeatedFits(LinearFits):
    """A linear head whose weights are those of distinct columns; `of_tag` (n_tags,) has each's."""

    of_tag: NDArray[np.intp]

    def linear(
        self, choice: int | NDArray[np.intp]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Weight (n_tags, dim) and bias (n_tags,) at candidate `choice`, one or per tag."""
        chosen = np.broadcast_to(choice, self.of_tag.shape)
        return self.weight[chosen, self.of_tag], self.bias[chosen, self.of_tag]


@dataclass(frozen=True, eq=False)
class FoldFits:
    """Logistic fits of the distinct columns outside one fold, as the fits of all tags."""

    distinct: LogisticFits
    of_tag: NDArray[np.intp]  # (n_tags,), into the distinct columns

    def scores(
        self, X: NDArray[np.floating], choice: int | NDArray[np.intp]
    ) -> NDArray[np.float32]:
        """Logits (n, n_tags) of raw X (n, dim) at strength index `choice`, one or per tag."""
        if np.ndim(choice) == 0:
            return self.distinct.scores(X, choice).take(self.of_tag, axis=1)
        fits = self.distinct.fits
        repeated = RepeatedFits(fits.weight, fits.bias, self.of_tag)
        return repeated.scores(self.distinct.scaler.transform(X), choice)

    def cells(self, name: str) -> NDArray[np.generic]:
        """A table of `ProbeFits` for all tags, (n_C, n_tags)."""
        table: NDArray[np.generic] = getattr(self.distinct.fits, name)
        return table.take(self.of_tag, axis=1)
