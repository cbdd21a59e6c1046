"""What every head offers: all tags at all its settings in one fit, and a score for each."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from retailtag.neighbours import FeatureRows
from retailtag.progress import Advance, nobody


class HeadFits(Protocol):
    """One training set, fitted at every candidate setting of a head."""

    def scores(self, X: NDArray[np.float32], choice: int | NDArray[np.intp]) -> NDArray[np.float32]:
        """Logit-like scores (n_images, n_tags) of raw embeddings X (n_images, dim).

        `choice` is the index of a candidate, one for all tags or one per tag (n_tags,). Larger
        means likelier; 0 is about even odds.
        """
        ...


class Head(Protocol):
    """One way to fit all tags, at all its candidate settings at once."""

    @property
    def name(self) -> str:
        """``logistic``, ``ridge``, ``knn`` or ``text``."""
        ...

    @property
    def candidates(self) -> tuple[str, ...]:
        """Printable settings, the most regularised first, so that ties go to it."""
        ...

    def fit(self, X: FeatureRows, Y: NDArray[np.int8], advance: Advance = nobody) -> HeadFits:
        """Fit on raw embeddings X (n_images, dim) and labels Y (n_images, n_tags) of 1, 0, -1.

        `advance` is called with the number of fits that ended, of ``len(candidates) * n_tags``.
        """
        ...
