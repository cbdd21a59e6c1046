"""Batches for the trained part of a network, and the views of images that they show."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
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
    """The views of the images that training sees."""

    augment: Augment
    seed: int
    keys: NDArray[np.int64]  # (n_catalogue,), see `image_keys`
    workers: int = 1  # threads that compute views

    def names(self) -> list[str]:
        """An identity of each view that is shown repeatedly, view 0 (the image itself) first."""
        kind = f"{self.augment.preset} {PRESETS.get(self.augment.preset)} seed {self.seed}"
        return ["plain", *(f"{kind} view {v}" for v in range(1, self.augment.views))]

    def show(self, images: Batches, view: int) -> Batches:
        """View number `view` of batches of uint8 pixels (n, 3, h, w)."""
        with ThreadPoolExecutor(max(self.workers, 1), thread_name_prefix="views") as pool:
            for rows, pixels in images:
                yield rows, self.augment.view(pixels, self.keys[rows], self.seed, view, pool)


def image_keys(image_ids: Iterable[str]) -> NDArray[np.int64]:
    """A number of at least 0 for each image, which depends on its id alone."""
    # Seven bytes of the digest fit int64; rows of a catalogue would change with the catalogue.
    digests = (hashlib.sha256(i.encode(errors="surrogatepass")).digest()[:7] for i in image_ids)
    return np.array([int.from_bytes(d, "big") for d in digests], np.int64)


class BatchLoader:
    """Batches of pixels, which pass through the frozen part every time."""

    def __init__(self, network: Network, images: ImageLoader, views: Views) -> None:
        self._network = network
        self._images = images
        self._views = views

    def batches(self, rows: Rows, batch_size: int, epoch: int | None = None) -> Batches:
        """Yield (rows, batch) in the order of `rows`; augmented if an epoch is given."""
        view = 0 if epoch is None else self._views.augment.view_of(epoch)
        return prefetch(self._pinned(self._batches(rows, batch_size, view)))

    def activations(self, batch: Tensor) -> Tensor:
        """Input of `Network.logits` for a batch or a slice of it, on the device."""
        return self._network.activations(batch)

    def _batches(self, rows: Rows, batch_size: int, view: int) -> Batches:
        return self._views.show(self._images.batches(rows, batch_size), view)

    def _pinned(self, batches: Batches) -> Batches:
        """Batches in page-locked memory if a GPU will copy them, in the background."""
        is_cuda = self._network.device.type == "cuda"
        for some, batch in batches:
            yield some, batch.pin_memory() if is_cuda else batch
