"""What goes into a solver and what every solver offers; heads and sweeps know no more of them."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from retailtag.neighbours import FeatureRows
from retailtag.probes.solver.fits import ProbeFits
from retailtag.progress import Advance, nobody

Start = tuple[NDArray[np.float32], NDArray[np.float32]]
"""Weights (n_tags, dim) and biases (n_tags,) to start from."""


class Solver(Protocol):
    """Fits every (C, tag) of one training set."""

    def __call__(
        self,
        X: FeatureRows,
        Y: NDArray[np.int8],
        C: NDArray[np.float64],
        advance: Advance = nobody,
        *,
        sample_weight: NDArray[np.float64] | None = None,
        start: Start | None = None,
    ) -> ProbeFits:
        """Fit on features X (n_images, dim), labels Y (n_images, n_tags), C ascending (n_C,).

        `advance` is called with the number of fits that ended, n_C * n_tags in all.
        `sample_weight` (n_images,) multiplies the loss of images. The first C starts from `start`
        if the solver can start warm.
        """
        ...
