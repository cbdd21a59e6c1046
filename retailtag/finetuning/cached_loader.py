"""Training from kept activations: the frozen part runs once an image (and view), not every epoch.

The frozen blocks stand in evaluation mode and do not change, so what enters the first trained block
is a function of the image's pixels alone. `cached_batch_loader` computes it once, keeps it in a
`ActivationCache` for each view, and serves batches from there.

Storage is in the dtype in which the activations come where that is a half one (under autocast);
otherwise in float16 if, on a sample of the images, no embedding moves by more than 0.2 % of its
distance from the mean embedding (`TOLERANCE`), and in float32, bit for bit what it was, if one
does. ``float32`` can be asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from retailtag.errors import DamagedFile, Unavailable, UsageError
from retailtag.finetuning.activation_cache import ActivationCache, ActivationSpec, make_room
from retailtag.finetuning.batch_loader import Batches, Rows, Views, pinned
from retailtag.finetuning.image_loader import ImageLoader
from retailtag.finetuning.network import Network
from retailtag.finetuning.prefetch import prefetch
from retailtag.progress import SILENT, Progress
from retailtag.settings import AUTO
from retailtag.store.spec import FeatureSpec

TOLERANCE = 2e-3
DTYPES = (AUTO, "float32", "float16", "bfloat16")
_FILL_BATCH = 32  # fixed, so that what is kept does not depend on the training's batches
_SAMPLE = 32


@dataclass(frozen=True, eq=False)
class CachedImages:
    """The images whose activations are wanted.

    Parameters
    ----------
    ids : sequence of str
        Of the whole catalogue.
    sha256 : mapping of str to str
        Hash of each image's bytes, as extracted.
    fit, val : ndarray of int
        Rows that are trained on, and rows that are only looked at.
    """

    ids: Sequence[str]
    sha256: Mapping[str, str]
    fit: Rows
    val: Rows


class _DoesNotFit(Exception):
    """An activation beyond the range of the stored dtype."""


class CachedBatchLoader:
    """Batches of kept activations; a damaged row is computed again when it is met.

    Parameters
    ----------
    network : Network
    pixels : ImageLoader
    images : CachedImages
    views : Views
    caches : list of ActivationCache
        Images as they are, then one for each view.
    dtype : torch.dtype
        In which activations enter the trained part.
    """

    def __init__(
        self,
        network: Network,
        pixels: ImageLoader,
        images: CachedImages,
        views: Views,
        caches: list[ActivationCache],
        dtype: torch.dtype,
    ) -> None:
        self._network, self._pixels, self._images = network, pixels, images
        self._views, self._caches, self._dtype = views, caches, dtype

    @property
    def dtype(self) -> str:
        """Stored dtype."""
        return self._caches[0].spec.dtype

    def batches(self, rows: Rows, batch_size: int, epoch: int | None = None) -> Batches:
        """See `BatchLoader`."""
        return prefetch(self._batches(rows, batch_size, epoch))

    def _batches(self, rows: Rows, batch_size: int, epoch: int | None) -> Batches:
        view = 0 if epoch is None else self._views.augment.view_of(epoch)
        for start in range(0, len(rows), batch_size):
            some = rows[start : start + batch_size]
            batch = from_bytes(self._read(some, view), self._caches[view].spec)
            yield some, pinned(batch, self._network.device)

    def enter(self, batch: Tensor) -> Tensor:
        """See `BatchLoader`."""
        there = batch.to(self._network.device, non_blocking=True)
        return there.to(self._dtype)

    def _read(self, rows: Rows, view: int) -> NDArray[np.uint8]:
        ids = [self._images.ids[row] for row in rows]
        try:
            return self._caches[view].read(ids)
        except DamagedFile:
            self.fill()
            return self._caches[view].read(ids)

    def needed(self) -> list[Rows]:
        """Rows that each cache lacks."""
        every = np.concatenate([self._images.fit, self._images.val])
        wanted = [every] + [self._images.fit] * (len(self._caches) - 1)
        return [
            self._missing(cache, rows) for cache, rows in zip(self._caches, wanted, strict=True)
        ]

    def _missing(self, cache: ActivationCache, rows: Rows) -> Rows:
        row_of = {self._images.ids[row]: row for row in np.sort(rows).tolist()}
        absent = cache.missing({i: self._images.sha256[i] for i in row_of})
        return np.array([row_of[i] for i in absent], np.intp)

    def fill(self, progress: Progress = SILENT) -> None:
        """Compute what is missing."""
        for view, rows in enumerate(self.needed()):
            if len(rows):
                self._fill_view(view, rows, progress)

    def _fill_view(self, view: int, rows: Rows, progress: Progress) -> None:
        cache, ids = self._caches[view], self._images.ids
        name = f"activations of {cache.spec.boundary}" + (f", view {view}" if view else "")
        with cache.writer() as writer, progress.task(name, len(rows)) as advance:
            for some, pixels in prefetch(self._shown(view, rows)):
                kept = to_bytes(self._network.activations(pixels), cache.spec)
                names = [ids[row] for row in some]
                writer.add(names, [self._images.sha256[i] for i in names], kept)
                advance(len(some))

    def _shown(self, view: int, rows: Rows) -> Batches:
        with self._views.pool() as pool:
            for some, pixels in self._pixels.stream(rows, _FILL_BATCH):
                yield some, self._views.show(pixels, some, view, pool)

    def close(self) -> None:
        """Close the files of the caches."""
        for cache in self._caches:
            cache.close()


def cached_batch_loader(
    network: Network,
    pixels: ImageLoader,
    images: CachedImages,
    identity: FeatureSpec,
    root: Path,
    budget: int,
    views: Views,
    *,
    dtype: str = AUTO,
    progress: Progress = SILENT,
) -> CachedBatchLoader | None:
    """Kept activations of all images, computed now where they are missing; None if they don't fit.

    Parameters
    ----------
    network : Network
        With a trunk; its frozen part is as `identity` says.
    pixels : ImageLoader
    images : CachedImages
    identity : FeatureSpec
        Of the backbone's embeddings: names architecture and preprocessing.
    root : Path
        Folder of all caches.
    budget : int
        Bytes that all caches may take together.
    views : Views
        Fixed ones.
    dtype : str
        ``auto``, ``float32``, ``float16`` or ``bfloat16``; see the module.
    progress : Progress

    Returns
    -------
    CachedBatchLoader or None
        None where the budget or the disk is too small, another process is writing, or the model
        cannot be cut; `progress` is told which.

    Raises
    ------
    UsageError
        If the dtype is unknown.
    UnreadableImage, DataError
        If an image cannot be read or has changed.
    """
    if dtype not in DTYPES:
        raise UsageError(f"--cache-dtype {dtype} is unknown; use one of {', '.join(DTYPES)}.")
    if network.trunk is None:
        progress.say(
            f"{network.backbone.id} cannot be cut before its last blocks: every epoch runs it whole"
        )
        return None
    if budget == 0 or not len(images.fit):
        return None
    network.eval()
    sample = _sample(network, pixels, images)
    stored = storage_dtype(network, sample) if dtype == AUTO else dtype
    for name in dict.fromkeys((stored, "float32")):
        spec = spec_of(network, identity, sample, name)
        feed = _open(network, pixels, images, root, spec, views, sample.dtype)
        try:
            return _filled(feed, root, budget, progress)
        except _DoesNotFit:
            feed.close()
    return None


def _open(
    network: Network,
    pixels: ImageLoader,
    images: CachedImages,
    root: Path,
    spec: ActivationSpec,
    views: Views,
    dtype: torch.dtype,
) -> CachedBatchLoader:
    specs = [spec, *(replace(spec, view=name) for name in views.names()[1:])]
    caches = [ActivationCache(root, s) for s in specs]
    return CachedBatchLoader(network, pixels, images, views, caches, dtype)


def _filled(
    feed: CachedBatchLoader, root: Path, budget: int, progress: Progress
) -> CachedBatchLoader | None:
    """The feed with all its rows; None, and why, where they cannot be kept."""
    caches = feed._caches
    n_missing = sum(map(len, feed.needed()))
    size = caches[0].spec.row_bytes
    if not make_room(root, budget, [cache.path for cache in caches], n_missing * size):
        need = size * (n_missing + sum(map(len, caches))) / 1e9
        progress.say(
            f"activations are not kept: {need:,.1f} GB do not fit --cache-gb {budget / 1e9:,.1f}; "
            "every epoch runs the whole model"
        )
        return None
    try:
        feed.fill(progress)
    except (OSError, Unavailable) as error:
        reason = getattr(error, "strerror", None) or error
        progress.say(f"activations are not kept ({reason}); every epoch runs the whole model")
        return None
    progress.say(
        f"activations of {sum(map(len, caches)):,} images and views are kept as {feed.dtype} in "
        f"{root}; an epoch runs the model from {caches[0].spec.boundary} on"
    )
    return feed


def _sample(network: Network, pixels: ImageLoader, images: CachedImages) -> Tensor:
    """Activations of some images, spread over those that are fitted."""
    rows = images.fit[:: max(1, len(images.fit) // _SAMPLE)][:_SAMPLE]
    parts = [network.activations(batch) for _, batch in pixels.stream(np.sort(rows), _FILL_BATCH)]
    return torch.cat(parts)


def spec_of(network: Network, identity: FeatureSpec, sample: Tensor, dtype: str) -> ActivationSpec:
    """Identity of what the trunk gives, of which `sample` (n, ...) is an example."""
    channels_last = sample.ndim == 4 and sample.is_contiguous(memory_format=torch.channels_last)
    if channels_last and not sample.is_contiguous():
        shape, order = sample.permute(0, 2, 3, 1).shape[1:], "channels-last"
    else:
        shape, order = sample.shape[1:], "contiguous"
    blocks, k = network.backbone.blocks, network.config.trained_blocks
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
    """The smallest dtype that keeps the embeddings of `sample` (n, ...); see the module."""
    if sample.dtype != torch.float32:
        return str(sample.dtype).removeprefix("torch.")
    exact = network.embedding(sample).double()
    rounded = network.embedding(sample.half().float()).double()
    spread = (exact - exact.mean(0)).norm(dim=1) if len(exact) > 1 else exact.norm(dim=1)
    moved = (rounded - exact).norm(dim=1)
    agrees = bool((moved <= TOLERANCE * spread).all())  # False for what is not finite
    return "float16" if agrees else "float32"


def to_bytes(activations: Tensor, spec: ActivationSpec) -> NDArray[np.uint8]:
    """Activations (n, ...) as stored bytes (n, row_bytes).

    Raises
    ------
    _DoesNotFit
        If one is beyond the range of the stored dtype.
    """
    if spec.order == "channels-last":
        activations = activations.permute(0, 2, 3, 1)
    stored = activations.to(getattr(torch, spec.dtype))
    if spec.dtype != "float32" and not bool(torch.isfinite(stored).all()):
        raise _DoesNotFit
    flat = stored.cpu().contiguous().view(len(stored), -1)
    kept: NDArray[np.uint8] = flat.view(torch.uint8).numpy()
    return kept


def from_bytes(rows: NDArray[np.uint8], spec: ActivationSpec) -> Tensor:
    """Stored bytes (n, row_bytes) as activations (n, ...) in the stored dtype."""
    dtype = getattr(torch, spec.dtype)
    values = torch.from_numpy(rows).view(dtype).view(len(rows), *spec.shape)
    return values.permute(0, 3, 1, 2) if spec.order == "channels-last" else values
