"""Decoded, preprocessed images for training: cached in memory when they fit, else decoded again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from retailtag.backbones.backbone import Backbone
from retailtag.catalog.catalog import Catalog
from retailtag.errors import DataError, UnreadableImage
from retailtag.images.loader import Batch, load_batches
from retailtag.memory import free_bytes

MEMORY_SHARE = 0.25  # of the memory available at the start, of all processes together


class ImageLoader:
    """Batches of preprocessed pixels of a catalogue's images, in any order.

    `rows` of the catalogue are needed every epoch; their pixels are cached if they fit into a
    quarter of the available memory, which `processes` on this machine share, and later epochs then
    decode nothing. `sha256` are hashes by id of the images' bytes when they were embedded; images
    with others are refused. The rest is as in `load_batches`.
    """

    def __init__(
        self,
        catalog: Catalog,
        backbone: Backbone,
        rows: Sequence[int],
        *,
        workers: int,
        max_pixels: int,
        allow_truncated: bool = False,
        sha256: Mapping[str, str] | None = None,
        processes: int = 1,
    ) -> None:
        self._catalog = catalog
        self._load = partial(
            load_batches,
            catalog.images,
            preprocess=backbone.preprocess,
            workers=workers,
            max_pixels=max_pixels,
            allow_truncated=allow_truncated,
        )
        self._sha256 = sha256 or {}
        self._slot = {int(row): i for i, row in enumerate(rows)}
        shape = (len(rows), 3, *backbone.preprocess.size)
        fits = np.prod(shape, dtype=np.int64) <= MEMORY_SHARE * free_bytes() / processes
        self._cached = np.empty(shape, np.uint8) if fits else None
        self._is_cached = np.zeros(len(rows), bool)

    def batches(
        self, rows: NDArray[np.intp], batch_size: int
    ) -> Iterator[tuple[NDArray[np.intp], Tensor]]:
        """Yield (rows (n,), pixels uint8 (n, 3, h, w)) in the order of `rows`.

        Raises `UnreadableImage` for an image that cannot be read within the limits, and `DataError`
        for one that has changed since it was extracted.
        """
        if self._cached is None or not all(int(row) in self._slot for row in rows):
            yield from self.stream(rows, batch_size)
            return
        slots = np.array([self._slot[int(row)] for row in rows], np.intp)
        missing = rows[~self._is_cached[slots]]
        _, first = np.unique(missing, return_index=True)  # a sampler may repeat a row
        decoded = self.stream(missing[np.sort(first)], batch_size)
        for start in range(0, len(rows), batch_size):
            chosen = slots[start : start + batch_size]
            # `decoded` follows the order of `rows`: what is missing here comes next.
            while not self._is_cached[chosen].all():
                some, pixels = next(decoded)
                where = [self._slot[int(row)] for row in some]
                self._cached[where] = pixels.numpy()
                self._is_cached[where] = True
            yield rows[start : start + batch_size], torch.from_numpy(self._cached[chosen])

    def stream(
        self, rows: NDArray[np.intp], batch_size: int
    ) -> Iterator[tuple[NDArray[np.intp], Tensor]]:
        """As `batches`, of any rows of the catalogue, without caching."""
        for batch in self._load(rows.tolist(), batch_size=batch_size):
            if batch.failures:
                row, _, reason = batch.failures[0]
                raise UnreadableImage(
                    f"{self._catalog.images.name(row)} has an embedding but cannot be read now "
                    f"({reason}); give --max-pixels and --allow-truncated as it was extracted "
                    "with, or leave it out with `retailtag extract --recompute`."
                )
            self._check_unchanged(batch)
            yield np.asarray(batch.rows), torch.from_numpy(batch.pixels)

    def _check_unchanged(self, batch: Batch) -> None:
        for row, digest in zip(batch.rows, batch.sha256, strict=True):
            image_id = str(self._catalog.image_ids[row])
            if self._sha256.get(image_id, digest) != digest:
                raise DataError(
                    f"{self._catalog.images.name(row)} has changed since it was extracted; run "
                    "`retailtag extract` and `retailtag probe` again."
                )
