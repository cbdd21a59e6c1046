"""What the trained part is fed with: pixels through the frozen part, or kept activations."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from retailtag.finetuning.augment import PRESETS, Augment
from retailtag.finetuning.image_loader import ImageLoader
from retailtag.finetuning.network import Network
from retailtag.finetuning.prefetch import prefetch

Rows = NDArray[np.intp]
Batches = Iterator[tuple[Rows, Tensor]]


@dataclass(frozen=True, eq=False)
class Views:
    """Which views of the images training sees, and how they are told apart.

    Parameters
    ----------
    augment : Augment
    seed : int
    keys : ndarray of int64, shape (n_catalogue,)
        Of each image, the same in every catalogue: `image_keys`.
    workers : int
        Threads that make views.
    """

    augment: Augment
    seed: int
    keys: NDArray[np.int64]
    workers: int = 1

    def names(self) -> list[str]:
        """What tells each view that is shown again and again from all others, view 0 first."""
        kind = f"{self.augment.preset} {PRESETS.get(self.augment.preset)} seed {self.seed}"
        return ["plain", *(f"{kind} view {v}" for v in range(1, self.augment.views))]

    def show(self, pixels: Tensor, rows: Rows, view: int, pool: Executor | None = None) -> Tensor:
        """View number `view` of uint8 pixels (n, 3, h, w) of these rows."""
        return self.augment.view(pixels, self.keys[rows], self.seed, view, pool)

    def pool(self) -> ThreadPoolExecutor:
        """Threads for `show`."""
        return ThreadPoolExecutor(max(self.workers, 1), thread_name_prefix="views")


def image_keys(image_ids: Iterable[str]) -> NDArray[np.int64]:
    """A number for each image that depends on its id alone, at least 0."""
    digests = (hashlib.sha256(i.encode(errors="surrogatepass")).digest()[:7] for i in image_ids)
    return np.array([int.from_bytes(d, "big") for d in digests], np.int64)


class BatchLoader(Protocol):
    """Batches in any order, and the way from a batch to the activations of the trained part."""

    def batches(self, rows: Rows, batch_size: int, epoch: int | None = None) -> Batches:
        """Yield (rows, batch) in the order of `rows`; augmented if an epoch is given."""
        ...

    def enter(self, batch: Tensor) -> Tensor:
        """What `Network.logits` takes, on the device."""
        ...


class PixelBatchLoader:
    """Pixels, with a forward pass through the frozen part every time.

    Parameters
    ----------
    network : Network
    pixels : ImageLoader
    views : Views
    """

    def __init__(self, network: Network, pixels: ImageLoader, views: Views) -> None:
        self._network, self._pixels, self._views = network, pixels, views

    def batches(self, rows: Rows, batch_size: int, epoch: int | None = None) -> Batches:
        """See `BatchLoader`."""
        return prefetch(self._batches(rows, batch_size, epoch))

    def _batches(self, rows: Rows, batch_size: int, epoch: int | None) -> Batches:
        view = 0 if epoch is None else self._views.augment.view_of(epoch)
        with self._views.pool() as pool:
            for some, batch in self._pixels.batches(rows, batch_size):
                shown = self._views.show(batch, some, view, pool)
                yield some, pinned(shown, self._network.device)

    def enter(self, batch: Tensor) -> Tensor:
        """See `BatchLoader`."""
        return self._network.activations(batch)


def pinned(batch: Tensor, device: torch.device) -> Tensor:
    """The batch in memory that a GPU copies from without waiting."""
    return batch.pin_memory() if device.type == "cuda" else batch
