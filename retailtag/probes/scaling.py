"""Scaling features with the statistics of the images that are fitted, and of no others."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retailtag.errors import UsageError
from retailtag.neighbours import FeatureRows

SCALES = ("standardise", "l2", "none")
ROWS_AT_ONCE = 8192  # converted to float32 and scaled
CONSTANT = 1e-7  # standard deviation as a share of the mean below which a feature is constant

Head = tuple[NDArray[np.float32], NDArray[np.float32]]
"""Weight (n_tags, dim) and bias (n_tags,) of a linear head."""


def row_blocks(n: int) -> Iterator[slice]:
    """Yield consecutive slices of at most `ROWS_AT_ONCE` rows that cover n rows."""
    for start in range(0, n, ROWS_AT_ONCE):
        yield slice(start, min(start + ROWS_AT_ONCE, n))


def parse_scales(text: str) -> tuple[str, ...]:
    """Kinds of scaling, each known and named once, from a comma-separated list.

    Examples
    --------
    >>> parse_scales("standardise,l2")
    ('standardise', 'l2')
    """
    kinds = tuple(name.strip() for name in text.split(",") if name.strip())
    if not kinds or not set(kinds) <= set(SCALES) or len(set(kinds)) < len(kinds):
        raise UsageError(
            f"--scale {text} is not a list of scalings; name some of {', '.join(SCALES)}, each "
            "once."
        )
    return kinds


def is_unit(kind: str) -> bool:
    """Whether a kind of scaling gives every row the length 1."""
    return kind.startswith("l2")  # probes of earlier versions may say l2-standardise


def unit_rows(X: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows of X (n, dim) divided by their Euclidean norms; a row of zeros stays one."""
    norm = np.linalg.norm(X, axis=1, keepdims=True)
    unit: NDArray[np.float32] = X / np.maximum(norm, np.finfo(np.float32).tiny)
    return unit


def mean_norm(X: FeatureRows) -> float:
    """Mean Euclidean norm of the rows of X (n, dim); 1 if all are zeros."""
    total = sum(float(np.linalg.norm(X[rows], axis=1).sum()) for rows in row_blocks(X.shape[0]))
    return total / X.shape[0] if total > 0 else 1.0


@dataclass(frozen=True, eq=False)
class Standardiser:
    """Affine map to zero mean and unit variance per feature, float32 (dim,)."""

    mean: NDArray[np.float32]
    scale: NDArray[np.float32]  # standard deviation; 1 for a constant feature, which maps to 0

    @classmethod
    def fit(cls, X: FeatureRows) -> Standardiser:
        """Learn from X (n_images, dim) in blocks."""
        # Two passes and float64 sums: squares of features far from 0 would cancel in one.
        n, dim = X.shape
        total = np.zeros(dim)
        squares = np.zeros(dim)
        for rows in row_blocks(n):
            total += X[rows].sum(axis=0, dtype=np.float64)
        mean = total / max(n, 1)
        for rows in row_blocks(n):
            squares += np.square(X[rows] - mean).sum(axis=0)
        scale = np.sqrt(squares / max(n, 1))
        scale[scale <= CONSTANT * np.maximum(np.abs(mean), 1e-30)] = 1.0
        return cls(mean.astype(np.float32), scale.astype(np.float32))

    def transform(self, X: NDArray[np.float32]) -> NDArray[np.float32]:
        """Standardise X (n_images, dim), as a new array."""
        Z = X - self.mean
        Z /= self.scale
        return Z

    def unscale(self, weight: NDArray[np.floating], bias: NDArray[np.floating]) -> Head:
        """Heads (..., n_tags, dim) on standardised features as ones on raw features, float32."""
        # w·(x - m)/s + b = (w/s)·x + (b - (w/s)·m)
        raw = weight.astype(np.float64) / self.scale
        return raw.astype(np.float32), (bias - raw @ self.mean).astype(np.float32)

    def rescale(self, weight: NDArray[np.float32], bias: NDArray[np.float32]) -> Head:
        """A linear head on raw features as one on standardised features; undoes `unscale`."""
        # w·x + b = (w·s)·(x - m)/s + (b + w·m)
        raw = weight.astype(np.float64)
        return (raw * self.scale).astype(np.float32), (bias + raw @ self.mean).astype(np.float32)


@dataclass(frozen=True, eq=False)
class Scaler:
    """A kind of scaling with the statistics it learned; ``l2`` divides rows by their norms."""

    kind: str  # one of `SCALES`
    affine: Standardiser  # the identity for ``l2`` and ``none``

    @classmethod
    def fit(cls, X: FeatureRows, kind: str = "standardise") -> Scaler:
        """Learn from X (n_images, dim); `UsageError` for a kind that only earlier versions had."""
        if kind not in SCALES:
            raise UsageError(f"--scale {kind} is unknown; use one of {', '.join(SCALES)}.")
        if kind == "standardise":
            return cls(kind, Standardiser.fit(X))
        dim = X.shape[1]
        return cls(kind, Standardiser(np.zeros(dim, np.float32), np.ones(dim, np.float32)))

    def transform(self, X: NDArray[np.floating]) -> NDArray[np.float32]:
        """Scale X (n_images, dim); X itself if there is nothing to do."""
        Z = np.asarray(X, np.float32)
        if is_unit(self.kind):
            return unit_rows(Z)
        return self.affine.transform(Z) if self.kind == "standardise" else Z

    def unscale(self, weight: NDArray[np.float32], bias: NDArray[np.float32]) -> Head:
        """A head on scaled features as one on raw features, or on `unit_rows` of them.

        Division by a row's own norm is not linear, so it cannot be folded into the head.
        """
        return self.affine.unscale(weight, bias)


@dataclass(frozen=True, eq=False)
class Scaled:
    """Some rows of features, scaled as they are read: the images outside a fold without a copy."""

    X: FeatureRows  # (n_images, dim) of any float type; a memory map or another view too
    rows: NDArray[np.intp] | None = None  # (n,), in order; all by default
    scaler: Scaler | None = None  # None leaves features as they are

    @property
    def shape(self) -> tuple[int, int]:
        """(n, dim)."""
        n = self.X.shape[0] if self.rows is None else len(self.rows)
        return n, self.X.shape[1]

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, at: slice) -> NDArray[np.float32]:
        """Scaled features of consecutive rows, float32 (n, dim)."""
        wanted = at if self.rows is None else self.rows[at]
        values = np.asarray(self.X[wanted], np.float32)  # type: ignore[index]
        return values if self.scaler is None else self.scaler.transform(values)
