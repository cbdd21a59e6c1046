"""Standardising features with the statistics of the images that are fitted, and of no others."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Standardiser:
    """Affine map to zero mean and unit variance per feature.

    Parameters
    ----------
    mean : ndarray of float32, shape (dim,)
        Training mean.
    scale : ndarray of float32, shape (dim,)
        Training standard deviation; 1 where a feature is constant, so that it maps to 0.
    """

    mean: NDArray[np.float32]
    scale: NDArray[np.float32]

    @classmethod
    def fit(cls, X: NDArray[np.float32]) -> Standardiser:
        """Learn from X (n_images, dim); sums run in float64."""
        mean = X.mean(axis=0, dtype=np.float64)
        variance = np.zeros_like(mean)
        for block in np.array_split(X, max(1, len(X) // 8192)):
            variance += np.square(block - mean).sum(axis=0)
        scale = np.sqrt(variance / max(len(X), 1))
        constant = scale <= 1e-7 * np.maximum(np.abs(mean), 1e-30)
        scale[constant] = 1.0
        return cls(mean.astype(np.float32), scale.astype(np.float32))

    def transform(self, X: NDArray[np.float32]) -> NDArray[np.float32]:
        """Standardise X (n_images, dim), as a new array."""
        Z = X - self.mean
        Z /= self.scale
        return Z

    def unscale(
        self, weight: NDArray[np.float32], bias: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Express a linear head on standardised features as one on raw features.

        w·(x - m)/s + b = (w/s)·x + (b - (w/s)·m).

        Parameters
        ----------
        weight : ndarray of float32, shape (n_tags, dim)
        bias : ndarray of float32, shape (n_tags,)

        Returns
        -------
        weight, bias : ndarray of float32
            Same shapes, for raw features.
        """
        raw = weight.astype(np.float64) / self.scale
        return raw.astype(np.float32), (bias - raw @ self.mean).astype(np.float32)
