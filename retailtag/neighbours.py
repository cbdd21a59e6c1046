"""Exact nearest neighbours by cosine, without the matrix of all similarities in memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

ROWS_AT_ONCE = 512  # queries compared at once
KEYS_AT_ONCE = 65_536  # images that they are compared with: 0.13 GB of similarities

Neighbours = tuple[NDArray[np.int64], NDArray[np.float32]]


class FeatureRows(Protocol):
    """Features (n_images, dim) read by slices: an array, a memory map, a lazy view."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(n_images, dim)."""
        ...

    def __getitem__(self, rows: slice, /) -> NDArray[Any]:
        """Features of consecutive images, (len, dim)."""
        ...


def row_blocks(n: int) -> Iterator[slice]:
    """Yield slices of `ROWS_AT_ONCE` that cover n rows."""
    for start in range(0, n, ROWS_AT_ONCE):
        yield slice(start, min(start + ROWS_AT_ONCE, n))


def mean_embedding(X: FeatureRows) -> NDArray[np.float32]:
    """Mean of the rows of X (dim,), summed in float64; 0 without rows."""
    total = np.zeros(X.shape[1])
    for rows in row_blocks(X.shape[0]):
        total += X[rows].sum(axis=0, dtype=np.float64)
    return (total / max(X.shape[0], 1)).astype(np.float32)


def directions(X: NDArray[np.float32], mean: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows of X less the mean, scaled to unit length; 0 where nothing is left."""
    # Without centring, a mean that all images share would make every cosine alike.
    with np.errstate(over="ignore"):  # what float32 cannot hold is infinitely long, and becomes 0
        centred = X - mean
        length = np.sqrt((centred * centred).sum(axis=1, dtype=np.float64, keepdims=True))
    return (centred / np.where(length > 0, length, 1)).astype(np.float32)


def fill_directions(X: FeatureRows, mean: NDArray[np.float32], out: NDArray[np.float32]) -> None:
    """Write `directions` of X into `out` (n_images, dim), which may be X itself."""
    for rows in row_blocks(X.shape[0]):
        out[rows] = directions(X[rows], mean)


def nearest(
    keys: NDArray[np.float32],
    queries: Iterable[NDArray[np.float32]],
    k: int,
    device: str = "cpu",
) -> Neighbours:
    """Indices and similarities (n_queries, min(k, n_keys)) of the most alike, best first.

    Parameters
    ----------
    keys : ndarray of float32, shape (n_keys, dim)
        Of unit length.
    queries : iterable of ndarray of float32, each of shape (n, dim)
        Of unit length, in blocks of at most `ROWS_AT_ONCE`, as `row_blocks` gives them.
    device : str
        Where they are compared: ``cpu`` or ``cuda``.
    """
    import torch

    k = min(k, len(keys))
    index = [np.empty((0, k), np.int64)]
    similarity = [np.empty((0, k), np.float32)]
    for block in queries:
        values, indices = _nearest(keys, torch.from_numpy(block).to(device), k)
        similarity.append(values.cpu().numpy())
        index.append(indices.cpu().numpy())
    return np.concatenate(index), np.concatenate(similarity)


def _nearest(keys: NDArray[np.float32], query: Tensor, k: int) -> tuple[Tensor, Tensor]:
    import torch

    # Only the best k so far survive each block of keys: memory does not grow with
    # n_queries * n_keys.
    best = torch.empty(len(query), 0, device=query.device)
    found = torch.empty(len(query), 0, dtype=torch.int64, device=query.device)
    for start in range(0, len(keys), KEYS_AT_ONCE):
        block = torch.from_numpy(keys[start : start + KEYS_AT_ONCE]).to(query.device)
        values, indices = torch.topk(query @ block.T, min(k, len(block)), dim=1)
        best = torch.cat([best, values], 1)
        found = torch.cat([found, indices + start], 1)
        best, order = torch.topk(best, min(k, best.shape[1]), dim=1)
        found = found.gather(1, order)
    return best, found
