"""Scaling features with the statistics of the images that are fitted, and of no others."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retailtag.errors import UsageError
from retailtag.probes.solver.interface import FeatureRows

SCALES = ("standardise", "l2", "l2-standardise", "none")
BLOCK = 8192  # rows converted at a time


def blocks_of(n: int) -> Iterator[slice]:
    """Yield consecutive slices of at most `BLOCK` rows that cover n rows."""
    for start in range(0, n, BLOCK):
        yield slice(start, min(start + BLOCK, n))


def parse_scales(text: str) -> tuple[str, ...]:
    """Kinds of scaling from a comma-separated list.

    Raises
    ------
    UsageError
        If one is unknown or named twice, or there is none.

    Examples
    --------
    >>> parse_scales("standardise,l2")
    ('standardise', 'l2')
    """
    kinds = tuple(part.strip() for part in text.split(",") if part.strip())
    if not kinds or not set(kinds) <= set(SCALES) or len(set(kinds)) < len(kinds):
        raise UsageError(
            f"--scale {text} is no list of scalings; name some of {', '.join(SCALES)}, each once."
        )
    return kinds


def is_unit(kind: str) -> bool:
    """Whether a kind of scaling starts by giving every row the length 1."""
    return kind.startswith("l2")


def unit_rows(X: NDArray[np.float32]) -> NDArray[np.float32]:
    """FeatureRows of X (n, dim) divided by their Euclidean norms; a row of zeros stays one."""
    norm = np.linalg.norm(X, axis=1, keepdims=True)
    unit: NDArray[np.float32] = X / np.maximum(norm, np.finfo(np.float32).tiny)
    return unit


def mean_norm(X: FeatureRows) -> float:
    """Mean Euclidean norm of the rows of X (n, dim); 1 if there is none but zeros."""
    total = sum(float(np.linalg.norm(X[rows], axis=1).sum()) for rows in blocks_of(X.shape[0]))
    return total / X.shape[0] if total > 0 else 1.0


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
    def fit(cls, X: FeatureRows) -> Standardiser:
        """Learn from X (n_images, dim) in blocks; sums run in float64."""
        n, dim = X.shape
        total, squares = np.zeros(dim), np.zeros(dim)
        for rows in blocks_of(n):
            total += X[rows].sum(axis=0, dtype=np.float64)
        mean = total / max(n, 1)
        for rows in blocks_of(n):
            squares += np.square(X[rows] - mean).sum(axis=0)
        scale = np.sqrt(squares / max(n, 1))
        constant = scale <= 1e-7 * np.maximum(np.abs(mean), 1e-30)
        scale[constant] = 1.0
        return cls(mean.astype(np.float32), scale.astype(np.float32))

    @classmethod
    def identity(cls, dim: int) -> Standardiser:
        """Leave features as they are."""
        return cls(np.zeros(dim, np.float32), np.ones(dim, np.float32))

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

    def rescale(
        self, weight: NDArray[np.float32], bias: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Express a linear head on raw features as one on standardised features.

        The inverse of `unscale`: w·x + b = (w·s)·(x - m)/s + (b + w·m). Shapes as there.
        """
        raw = weight.astype(np.float64)
        return (raw * self.scale).astype(np.float32), (bias + raw @ self.mean).astype(np.float32)


@dataclass(frozen=True, eq=False)
class Scaler:
    """A kind of scaling with the statistics it learned.

    Parameters
    ----------
    kind : {"standardise", "l2", "l2-standardise", "none"}
        ``l2`` divides every row by its Euclidean norm; ``l2-standardise`` does so first.
    affine : Standardiser
        What follows the norm; the identity for ``l2`` and ``none``.
    """

    kind: str
    affine: Standardiser

    @classmethod
    def fit(cls, X: FeatureRows, kind: str = "standardise") -> Scaler:
        """Learn from rows X (n_images, dim)."""
        if not kind.endswith("standardise"):
            return cls(kind, Standardiser.identity(X.shape[1]))
        unit = cls("l2", Standardiser.identity(X.shape[1]))
        return cls(kind, Standardiser.fit(Scaled(X, scaler=unit) if is_unit(kind) else X))

    def transform(self, X: NDArray[np.floating]) -> NDArray[np.float32]:
        """Scale X (n_images, dim); X itself if there is nothing to do."""
        Z = np.asarray(X, np.float32)
        Z = unit_rows(Z) if is_unit(self.kind) else Z
        return self.affine.transform(Z) if self.kind.endswith("standardise") else Z

    def unscale(
        self, weight: NDArray[np.float32], bias: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Express a head on scaled features as one on raw features, or on unit rows of them.

        See `Standardiser.unscale`. Division by a row's own norm is no linear map: where the kind
        has it, the head returned wants `unit_rows`.
        """
        return self.affine.unscale(weight, bias)


@dataclass(frozen=True, eq=False)
class Scaled:
    """Some rows of features, scaled as they are read: a fold's training part without a copy.

    Parameters
    ----------
    X : array of shape (n_images, dim)
        Of any float type; a memory map or another view too.
    rows : ndarray of int, shape (n,), optional
        Rows taken, in order; all by default.
    scaler : Scaler, optional
        None leaves features as they are.
    """

    X: FeatureRows
    rows: NDArray[np.intp] | None = None
    scaler: Scaler | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(n, dim)."""
        n = self.X.shape[0] if self.rows is None else len(self.rows)
        return n, self.X.shape[1]

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, part: slice) -> NDArray[np.float32]:
        """Scaled features of consecutive rows, float32 (n, dim)."""
        wanted = part if self.rows is None else self.rows[part]
        values = np.asarray(self.X[wanted], np.float32)  # type: ignore[index]
        return values if self.scaler is None else self.scaler.transform(values)
