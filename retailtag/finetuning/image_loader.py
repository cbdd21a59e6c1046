"""Preprocessed pixels for training: kept in memory when they fit, decoded again when not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from torch import Tensor

from retailtag.backbones.backbone import Backbone
from retailtag.catalog.catalog import Catalog
from retailtag.errors import DataError, UnreadableImage
from retailtag.images.loader import Batch, load_batches

MEMORY_SHARE = 0.25  # of the memory free at the start


class ImageLoader:
    """Batches of preprocessed pixels of a catalogue's images, in any order asked for.

    Parameters
    ----------
    catalog : Catalog
    backbone : Backbone
        Its `preprocess` turns an image into uint8 (3, h, w).
    rows : sequence of int
        Rows of the catalogue that will be asked for again and again.
    workers : int
        Decoding threads.
    max_pixels : int
        Larger images are refused.
    allow_truncated : bool
        Accept files that end early.
    sha256 : mapping of str to str, optional
        Hash of the bytes of each image, by id, as its embedding was made; others are refused.

    Notes
    -----
    Decoded pixels are kept while they fit a quarter of the free memory; then an epoch after the
    first costs no decoding.
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
    ) -> None:
        self._catalog = catalog
        self._backbone = backbone
        self._workers = workers
        self._max_pixels = max_pixels
        self._allow_truncated = allow_truncated
        self._sha256 = sha256 or {}
        self._slot = {int(row): i for i, row in enumerate(rows)}
        shape = (len(rows), 3, *backbone.preprocess.size)
        fits = np.prod(shape, dtype=np.int64) <= MEMORY_SHARE * psutil.virtual_memory().available
        self._kept = np.empty(shape, np.uint8) if fits else None
        self._have = np.zeros(len(rows), bool)

    def batches(
        self, rows: NDArray[np.intp], batch_size: int
    ) -> Iterator[tuple[NDArray[np.intp], Tensor]]:
        """Yield (rows (n,), pixels uint8 (n, 3, h, w)) in the order of `rows`.

        Raises
        ------
        UnreadableImage
            If an image cannot be read within the limits; the message names it.
        """
        if self._kept is None or not all(int(row) in self._slot for row in rows):
            yield from self.stream(rows, batch_size)
            return
        slots = np.array([self._slot[int(row)] for row in rows], np.intp)
        missing = rows[~self._have[slots]]
        _, first = np.unique(missing, return_index=True)  # a row may be asked for twice
        coming = self.stream(missing[np.sort(first)], batch_size)
        for start in range(0, len(rows), batch_size):
            chosen = slots[start : start + batch_size]
            while not self._have[chosen].all():
                some, pixels = next(coming)
                where = [self._slot[int(row)] for row in some]
                self._kept[where] = pixels.numpy()
                self._have[where] = True
            yield rows[start : start + batch_size], torch.from_numpy(self._kept[chosen])

    def stream(
        self, rows: NDArray[np.intp], batch_size: int
    ) -> Iterator[tuple[NDArray[np.intp], Tensor]]:
        """As `batches`, of any rows of the catalogue, and nothing is kept.

        Raises
        ------
        UnreadableImage
            As there.
        DataError
            If an image is no longer the one that was extracted.
        """
        for batch in load_batches(
            self._catalog.images,
            rows.tolist(),
            self._backbone.preprocess,
            batch_size=batch_size,
            workers=self._workers,
            max_pixels=self._max_pixels,
            allow_truncated=self._allow_truncated,
        ):
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
