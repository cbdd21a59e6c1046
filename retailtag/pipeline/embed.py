"""The unit of work of an extraction: one block of images, embedded."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from retailtag.backbones.loader import Failure, PreprocessFn, load_batches
from retailtag.backbones.preprocess import with_truncated
from retailtag.catalog.catalog import ImageSource
from retailtag.catalog.decode import MAX_PIXELS
from retailtag.progress import Advance, nobody
from retailtag.store import FeatureSpec

if TYPE_CHECKING:
    import torch


class Embedder(Protocol):
    """What `extract` needs: a backbone, or an engine that computes one."""

    @property
    def id(self) -> str:
        """Resolved id."""
        ...

    @property
    def dim(self) -> int:
        """Length of one embedding."""
        ...

    @property
    def preprocess(self) -> PreprocessFn:
        """PIL image (RGB) to uint8 (3, h, w)."""
        ...

    def spec(self, *, dtype: str = ...) -> FeatureSpec:
        """Identity of the embeddings under a stored dtype; it names the engine."""
        ...

    def embed(self, pixels: torch.Tensor) -> torch.Tensor:
        """Map uint8 (n, 3, h, w) to float32 (n, dim)."""
        ...


def identity(
    backbone: Embedder, dtype: str = "float32", *, allow_truncated: bool = False
) -> FeatureSpec:
    """Identity of a backbone's embeddings; which damaged files were accepted is part of it."""
    spec = backbone.spec(dtype=dtype)
    return with_truncated(spec) if allow_truncated else spec


@dataclass(frozen=True)
class Loading:
    """How images are read; see `retailtag.backbones.loader.load_batches`."""

    batch_size: int = 64
    workers: int = 2
    max_pixels: int = MAX_PIXELS
    allow_truncated: bool = False


@dataclass(frozen=True, eq=False)
class Block:
    """Embeddings of one block of images, before they are stored.

    Parameters
    ----------
    rows : ndarray of intp, shape (n,)
        Rows of the catalogue that gave an embedding, in order.
    sha256 : list of str, length n
        SHA-256 of their bytes, hexadecimal.
    embeddings : ndarray of float32, shape (n, dim)
        One row each.
    failures : list of Failure
        The other rows of the block.
    decode_seconds : float
        Time the loading threads spent, summed over threads.
    model_seconds : float
        Wall time of the model.
    """

    rows: NDArray[np.intp]
    sha256: list[str]
    embeddings: NDArray[np.float32]
    failures: list[Failure]
    decode_seconds: float
    model_seconds: float


def embed_block(
    images: ImageSource,
    rows: Sequence[int] | NDArray[np.intp],
    backbone: Embedder,
    loading: Loading,
    advance: Advance = nobody,
) -> Block:
    """Embed one block of images: the unit of work, the same whoever calls it.

    The result depends on the images' bytes, the backbone and `loading.batch_size` alone.

    Parameters
    ----------
    images : ImageSource
        Gives the bytes of a row.
    rows : sequence of int
        Rows of the block, in order.
    backbone : Embedder
        The model.
    loading : Loading
        How to read.
    advance : callable
        Told the number of rows after each batch.

    Returns
    -------
    Block
        Embeddings of the readable images, and the failures.
    """
    all_rows, sha256, failures = [np.empty(0, np.intp)], list[str](), list[Failure]()
    embeddings = [np.empty((0, backbone.dim), np.float32)]
    decode_seconds = model_seconds = 0.0
    for batch in load_batches(
        images,
        rows,
        backbone.preprocess,
        batch_size=loading.batch_size,
        workers=loading.workers,
        max_pixels=loading.max_pixels,
        allow_truncated=loading.allow_truncated,
    ):
        start = time.perf_counter()
        if len(batch):
            embeddings.append(_embed(backbone, batch.pixels))
        model_seconds += time.perf_counter() - start
        decode_seconds += batch.seconds
        all_rows.append(batch.rows)
        sha256 += batch.sha256
        failures += batch.failures
        advance(len(batch) + len(batch.failures))
    return Block(
        np.concatenate(all_rows),
        sha256,
        np.concatenate(embeddings),
        failures,
        decode_seconds,
        model_seconds,
    )


def _embed(backbone: Embedder, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Map pixels (n, 3, h, w) to embeddings (n, dim) in main memory."""
    import torch

    return backbone.embed(torch.from_numpy(pixels)).cpu().numpy().astype(np.float32, copy=False)
