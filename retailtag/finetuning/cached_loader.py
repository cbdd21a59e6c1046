"""Training from cached activations: the frozen part runs once per image and view, not every epoch.

The frozen blocks are in evaluation mode and do not change, so the input of the first trained block
is a function of the image's pixels alone. `cached_batch_loader` computes it once, stores it in an
`ActivationCache` for each view, and serves batches from there.

Activations that come in half precision (under autocast) are stored in that dtype. Float32 ones are
stored in float16 if that moves no embedding of a sample of the images by more than `TOLERANCE` of
its distance from the mean embedding, otherwise in float32, bit for bit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from retailtag.errors import DamagedFile, Unavailable
from retailtag.finetuning.activation_cache import ActivationCache, ActivationSpec, make_room
from retailtag.finetuning.batch_loader import Batches, BatchLoader, Rows, Views
from retailtag.finetuning.image_loader import ImageLoader
from retailtag.finetuning.network import Network
from retailtag.finetuning.prefetch import prefetch
from retailtag.progress import SILENT, Progress
from retailtag.settings import AUTO
from retailtag.store.spec import FeatureSpec

# Scores after an epoch from the cache and from pixels then differ by at most 0.35 % of their
# standard deviation (results/finetune_step.csv).
TOLERANCE = 2e-3
_FILL_BATCH = 32  # images; fixed, so that what is stored does not depend on the training's batches
_SAMPLE_IMAGES = 32


@dataclass(frozen=True, eq=False)
class CachedImages:
    """The images whose activations are cached."""

    ids: Sequence[str]  # of the whole catalogue
    sha256: Mapping[str, str]  # hash of each image's bytes, as extracted
    train: Rows  # all views of these are cached
    val: Rows  # and only view 0 of these


class _OutOfRange(Exception):
    """An activation beyond the range of the stored dtype."""


class CachedBatchLoader(BatchLoader):
    """Batches of cached activations; a damaged row is computed again when it is read.

    `caches` are that of view 0, then those of the other views. `dtype` is that in which activations
    enter the trained part. The rest is as in `cached_batch_loader`.
    """

    def __init__(
        self,
        network: Network,
        loader: ImageLoader,
        images: CachedImages,
        views: Views,
        caches: list[ActivationCache],
        dtype: torch.dtype,
    ) -> None:
        super().__init__(network, loader, views)
        self.caches = caches
        self._cached_images = images
        self._dtype = dtype

    @property
    def dtype(self) -> str:
        """Stored dtype."""
        return self.caches[0].spec.dtype

    def _batches(self, rows: Rows, batch_size: int, view: int) -> Batches:
        for start in range(0, len(rows), batch_size):
            some = rows[start : start + batch_size]
            yield some, from_bytes(self._read(some, view), self.caches[view].spec)

    def activations(self, batch: Tensor) -> Tensor:
        """See `BatchLoader`."""
        return batch.to(self._network.device, non_blocking=True).to(self._dtype)

    def _read(self, rows: Rows, view: int) -> NDArray[np.uint8]:
        ids = [self._cached_images.ids[row] for row in rows]
        try:
            return self.caches[view].read(ids)
        except DamagedFile:
            self.fill()
            return self.caches[view].read(ids)

    def missing(self) -> list[Rows]:
        """Rows that each cache lacks."""
        images = self._cached_images
        found = []
        for view, cache in enumerate(self.caches):
            wanted = images.train if view else np.concatenate([images.train, images.val])
            row_of = {images.ids[row]: row for row in np.sort(wanted).tolist()}
            absent = cache.missing({i: images.sha256[i] for i in row_of})
            found.append(np.array([row_of[i] for i in absent], np.intp))
        return found

    def fill(self, progress: Progress = SILENT) -> None:
        """Compute what is missing."""
        for view, rows in enumerate(self.missing()):
            if len(rows):
                self._fill_view(view, rows, progress)

    def _fill_view(self, view: int, rows: Rows, progress: Progress) -> None:
        cache = self.caches[view]
        name = f"activations of {cache.spec.boundary}" + (f", view {view}" if view else "")
        with cache.writer() as writer, progress.task(name, len(rows)) as advance:
            shown = self._views.show(self._images.stream(rows, _FILL_BATCH), view)
            for some, pixels in prefetch(shown):
                stored = to_bytes(self._network.activations(pixels), cache.spec)
                ids = [self._cached_images.ids[row] for row in some]
                writer.add(ids, [self._cached_images.sha256[i] for i in ids], stored)
                advance(len(some))

    def close(self) -> None:
        """Close the files of the caches."""
        for cache in self.caches:
            cache.close()


def cached_batch_loader(
    network: Network,
    loader: ImageLoader,
    images: CachedImages,
    identity: FeatureSpec,
    root: Path,
    budget: int,
    views: Views,
    *,
    dtype: str = AUTO,
    progress: Progress = SILENT,
) -> CachedBatchLoader | None:
    """Cached activations of all images, computed now where missing; None if they do not fit.

    None where the budget or the disk is too small, another process is writing, or the model cannot
    be cut; `progress` is told which. `identity`, of the backbone's embeddings, names architecture
    and preprocessing of the frozen part. All caches lie in `root` and may take `budget` bytes
    together. `dtype` is ``auto``, ``float32``, ``float16`` or ``bfloat16``; see the module. Of
    several processes the first computes and writes, and the others read.

    Raises `UnreadableImage` or `DataError` if an image cannot be read or has changed, and
    `Unavailable` if a process cannot read what the first one wrote.
    """
    if network.frozen_part is None:
        progress.say(
            f"{network.backbone.id} cannot be cut before its last blocks: every epoch runs it whole"
        )
        return None
    if budget == 0 or not len(images.train):
        return None
    made: list[CachedBatchLoader | None] = []

    def make() -> tuple[list[ActivationSpec], torch.dtype] | None:
        cached = _first_that_fits(
            network, loader, images, identity, root, budget, views, dtype, progress
        )
        made.append(cached)
        return ([cache.spec for cache in cached.caches], cached._dtype) if cached else None

    specs_and_dtype = network.ranks.from_first(make)
    if made or specs_and_dtype is None:
        return made[0] if made else None
    specs, entering = specs_and_dtype
    caches = [ActivationCache(root, s) for s in specs]
    cached = CachedBatchLoader(network, loader, images, views, caches, entering)
    if any(map(len, cached.missing())):
        raise Unavailable(
            f"{root} lacks activations that the first process has cached there; give --features in "
            "a folder that all machines share, or --cache-gb 0."
        )
    return cached


def _first_that_fits(
    network: Network,
    loader: ImageLoader,
    images: CachedImages,
    identity: FeatureSpec,
    root: Path,
    budget: int,
    views: Views,
    dtype: str,
    progress: Progress,
) -> CachedBatchLoader | None:
    """Cached activations in the first dtype that can hold them; see `cached_batch_loader`."""
    network.eval()
    sample = _sample(network, loader, images)
    stored = storage_dtype(network, sample) if dtype == AUTO else dtype
    # A later image may exceed float16 where the sample does not: then all are stored in float32.
    for name in dict.fromkeys((stored, "float32")):
        spec = spec_of(network, identity, sample, name)
        specs = [spec, *(replace(spec, view=view) for view in views.names()[1:])]
        caches = [ActivationCache(root, s) for s in specs]
        cached = CachedBatchLoader(network, loader, images, views, caches, sample.dtype)
        try:
            return _filled(cached, root, budget, progress)
        except _OutOfRange:
            cached.close()
    return None


def _filled(
    cached: CachedBatchLoader, root: Path, budget: int, progress: Progress
) -> CachedBatchLoader | None:
    """The loader with all its rows; None, with the reason told, where they cannot be stored."""
    caches = cached.caches
    n_missing = sum(map(len, cached.missing()))
    size = caches[0].spec.row_bytes
    if not make_room(root, budget, [cache.path for cache in caches], n_missing * size):
        need = size * (n_missing + sum(map(len, caches))) / 1e9
        progress.say(
            f"activations are not cached: {need:,.1f} GB do not fit --cache-gb {budget / 1e9:,.1f};"
            " every epoch runs the whole model"
        )
        return None
    try:
        cached.fill(progress)
    except (OSError, Unavailable) as error:
        reason = getattr(error, "strerror", None) or error
        progress.say(f"activations are not cached ({reason}); every epoch runs the whole model")
        return None
    progress.say(
        f"activations of {sum(map(len, caches)):,} images and views are cached as {cached.dtype} "
        f"in {root}; an epoch runs the model from {caches[0].spec.boundary} on"
    )
    return cached


def _sample(network: Network, loader: ImageLoader, images: CachedImages) -> Tensor:
    """Activations of some images, spread over the training images."""
    step = max(1, len(images.train) // _SAMPLE_IMAGES)
    rows = np.sort(images.train[::step][:_SAMPLE_IMAGES])
    return torch.cat([network.activations(b) for _, b in loader.stream(rows, _FILL_BATCH)])


def spec_of(network: Network, identity: FeatureSpec, sample: Tensor, dtype: str) -> ActivationSpec:
    """Identity of the activations of which `sample` (n, ...) is an example."""
    channels_last = sample.ndim == 4 and sample.is_contiguous(memory_format=torch.channels_last)
    if channels_last and not sample.is_contiguous():
        # Convolutions sum in another order for another memory layout, so the layout is restored
        # on reading, and it is part of the identity.
        shape = sample.permute(0, 2, 3, 1).shape[1:]
        order = "channels-last"
    else:
        shape = sample.shape[1:]
        order = "contiguous"
    blocks = network.backbone.blocks
    k = network.config.trained_blocks
    assert isinstance(k, int)
    return ActivationSpec(
        backbone=identity.backbone,
        weights_sha256=network.backbone.weights_sha256,
        architecture=identity.architecture,
        preprocessing=identity.preprocessing,
        engine=network.precision.engine,
        boundary=blocks[len(blocks) - k].name,
        shape=tuple(shape),
        order=order,
        dtype=dtype,
    )


@torch.no_grad()
def storage_dtype(network: Network, sample: Tensor) -> str:
    """The smallest dtype that preserves the embeddings of `sample` (n, ...); see the module."""
    if sample.dtype != torch.float32:
        return str(sample.dtype).removeprefix("torch.")
    exact = network.embedding(sample).double()
    rounded = network.embedding(sample.half().float()).double()
    # Distances from the mean embedding, not lengths: what all images share tells none apart.
    spread = (exact - exact.mean(0)).norm(dim=1) if len(exact) > 1 else exact.norm(dim=1)
    moved = (rounded - exact).norm(dim=1)
    agrees = bool((moved <= TOLERANCE * spread).all())  # False where a value is not finite
    return "float16" if agrees else "float32"


def to_bytes(activations: Tensor, spec: ActivationSpec) -> NDArray[np.uint8]:
    """Activations (n, ...) as stored bytes (n, row_bytes); `_OutOfRange` if they do not fit."""
    if spec.order == "channels-last":
        activations = activations.permute(0, 2, 3, 1)
    stored = activations.to(getattr(torch, spec.dtype))
    if spec.dtype != "float32" and not bool(torch.isfinite(stored).all()):
        raise _OutOfRange
    flat = stored.cpu().contiguous().view(len(stored), -1)
    as_bytes: NDArray[np.uint8] = flat.view(torch.uint8).numpy()
    return as_bytes


def from_bytes(rows: NDArray[np.uint8], spec: ActivationSpec) -> Tensor:
    """Stored bytes (n, row_bytes) as activations (n, ...) in the stored dtype."""
    dtype = getattr(torch, spec.dtype)
    values = torch.from_numpy(rows).view(dtype).view(len(rows), *spec.shape)
    return values.permute(0, 3, 1, 2) if spec.order == "channels-last" else values
