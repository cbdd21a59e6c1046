"""Fill a feature store from a catalogue: only what is new or changed is computed."""

from __future__ import annotations

import platform
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from retailtag.context import RunContext
from retailtag.errors import DataError, UsageError
from retailtag.extraction.cluster import Cluster
from retailtag.extraction.costs import ExtractCost
from retailtag.extraction.embed import Block, Loading, embed_blocks
from retailtag.extraction.embedder import Embedder, device_of, identity
from retailtag.extraction.forward import BATCH_SIZES, Forward
from retailtag.extraction.shards import WHOLE, Shard
from retailtag.extraction.updates import StoreUpdate, find_current, shared_blocks
from retailtag.extraction.writer import Writer
from retailtag.images.loader import hash_images
from retailtag.progress import Advance, Progress
from retailtag.settings import ExtractSettings
from retailtag.store import FeatureStore
from retailtag.store.maintenance import prune

# A block is committed whole, so its size is what a kill can cost: 1,024 images are about a minute
# of a ViT on two CPU cores. Smaller blocks would mean more files: 100 million images make 100,000
# segments already. A block of 768 float32 values per image takes 3 MB of memory and disk.
IMAGES_PER_BLOCK = 1024
MAX_NAMED_IMAGES = 20  # unreadable images listed in a message
RECORDED_VERSIONS = (
    "torch",
    "timm",
    "open_clip_torch",
    "openvino",
    "onnxruntime",
    "h5py",
    "numpy",
    "pillow",
)


@dataclass(frozen=True, eq=False)
class ExtractSummary:
    """What one extraction did in one store."""

    store: FeatureStore
    n_computed: int  # images embedded in this run
    n_reused: int  # images whose stored embedding matches their bytes
    absent: dict[str, str]  # images of the catalogue or shard without an embedding, and why
    seconds: float  # wall time of this run
    seconds_total: float  # wall time of computing everything now in the store, over all runs
    cost: ExtractCost  # of the images computed in this run, by step

    @property
    def images_per_second(self) -> float:
        """Images computed in this run by the wall time of computing them; 0 if there were none."""
        return self.n_computed / self.cost.seconds if self.n_computed else 0.0

    def to_json(self) -> dict[str, Any]:
        """Plain dictionary for ``--json``."""
        steps = self.cost.to_json()
        del steps["n_computed"], steps["seconds"]
        return {
            "backbone": self.store.spec.backbone,
            "store": str(self.store.path),
            "identity": self.store.spec.digest,
            "dim": self.store.spec.dim,
            "dtype": self.store.spec.dtype,
            "n_computed": self.n_computed,
            "n_reused": self.n_reused,
            "n_absent": len(self.absent),
            "absent": self.absent,
            "bytes": self.store.nbytes,
            "seconds": self.seconds,
            "seconds_total": self.seconds_total,
            "images_per_second": self.images_per_second,
            **steps,
            "shares": self.cost.shares(),
            "limit": self.cost.limit,
        }


def extract(
    context: RunContext,
    backbone: Embedder,
    settings: ExtractSettings | None = None,
    *,
    strict: bool = False,
    recompute: bool = False,
    shard: Shard = WHOLE,
) -> ExtractSummary:
    """Bring the backbone's store up to date with a catalogue; see `extract_together`."""
    (summary,) = extract_together(
        context, [backbone], settings, strict=strict, recompute=recompute, shard=shard
    )
    return summary


def extract_together(
    context: RunContext,
    backbones: Sequence[Embedder],
    settings: ExtractSettings | None = None,
    *,
    strict: bool = False,
    recompute: bool = False,
    shard: Shard = WHOLE,
    cluster: Cluster | None = None,
) -> list[ExtractSummary]:
    """Bring the stores of several backbones up to date with a catalogue.

    An image is computed if its id is new or its bytes have changed. Every block of 1,024 images
    is committed when it is finished, so the same call continues an interrupted run and ends with
    the same embeddings. An image that several stores lack is read, hashed and decoded once; each
    store has the bytes that it would have if it were extracted alone.

    The `backbones` decide what computes the embeddings, whatever engine the settings name.
    `strict` raises at the end if an image could not be read; everything readable is stored first.
    `recompute` computes every image again and drops what that supersedes. `shard` is the share of
    the catalogue to extract: one of several has stores of its own, in the folder ``shard-I-of-N``
    of the features; `retailtag.store.maintenance.merge` joins them. A `cluster` of the same
    backbones reads and embeds the images in place of this process; see
    `retailtag.extraction.cluster`.

    Raises
    ------
    UsageError
        If a backbone is given twice, or the shard has a folder of the former name.
    DataError
        With `strict`, naming the unreadable images.
    ArtefactError
        If the store is of a newer format, or a file of it cannot be read.
    Unavailable
        If another process writes one of the stores, the disk is full or read-only, or a backbone
        does not fit into memory.
    """
    settings = settings or ExtractSettings()
    catalog, progress = context.catalog, context.progress
    devices = [cluster.device] if cluster else [device_of(b) for b in backbones]
    loading = Loading(_batch_size(settings, devices), context.workers, **context.limits)
    hashes = cluster.hash_images if cluster else partial(hash_images, workers=loading.workers)
    root = shard.root(context.compute.features)
    start = time.perf_counter()
    rows = shard.rows(len(catalog), IMAGES_PER_BLOCK)
    updates = _updates(context, backbones, root, settings.dtype, loading)
    if cluster:
        for update in updates:
            update.environment |= {"device": cluster.device, "ray_actors": cluster.n_actors}
    stores = [update.store for update in updates]
    names = ", ".join(update.model.backbone.id for update in updates)
    unit = "images" if len(updates) == 1 else "embeddings"
    with ExitStack() as stack:
        for store in stores:
            for name in stack.enter_context(store.repairing()):
                progress.say(
                    f"{store.path / name} is damaged; the images it held are computed again."
                )
        task = progress.task(f"extract {names}", len(rows) * len(updates), unit)
        advance = stack.enter_context(task)
        is_current = np.zeros((len(updates), len(rows)), bool)
        if not recompute:
            is_current = find_current(catalog, rows, stores, hashes, advance)
        # Images that could not be read are tried again every time: a file may have been repaired,
        # or a limit raised.
        for update, current_rows in zip(updates, is_current, strict=True):
            update.plan(rows, current_rows)
        _fill(updates, loading, advance, cluster)
        if recompute:
            for store in stores:
                prune(store)
    ids = catalog.image_ids[rows].tolist()
    summaries = [_summary(ids, update, time.perf_counter() - start) for update in updates]
    _report_unreadable(summaries, len(ids), catalog.path, strict, progress)
    return summaries


def _batch_size(settings: ExtractSettings, devices: Sequence[str]) -> int:
    """Images a forward pass: the backbones share the batches, so the smallest that suits one."""
    default = min(BATCH_SIZES.get(device, BATCH_SIZES["cpu"]) for device in devices)
    return settings.batch_size or default


def _updates(
    context: RunContext, backbones: Sequence[Embedder], root: Path, dtype: str, loading: Loading
) -> list[StoreUpdate]:
    """Each backbone with its store, which is created if it is missing."""
    specs = [identity(b, dtype, allow_truncated=loading.allow_truncated) for b in backbones]
    twice = [spec.backbone for i, spec in enumerate(specs) if spec in specs[:i]]
    if twice:
        raise UsageError(f"Backbone {twice[0]} is given twice; name each once.")
    return [
        StoreUpdate(
            context.catalog,
            FeatureStore.create_or_open(root, spec),
            Forward(backbone, loading.batch_size, context.progress.say),
            _environment(backbone, loading),
        )
        for backbone, spec in zip(backbones, specs, strict=True)
    ]


def _fill(
    updates: Sequence[StoreUpdate], loading: Loading, advance: Advance, cluster: Cluster | None
) -> None:
    """Compute and store the rows that the updates lack, block by block.

    However it ends, every finished block is stored.
    """
    by_model = {update.model: update for update in updates}
    so_far = ExtractCost()
    n_unreadable = 0

    def on_batch(n_embedded: int, n_failed: int, cost: ExtractCost) -> None:
        nonlocal so_far, n_unreadable
        so_far += cost
        n_unreadable += n_failed
        written = sum(update.cost.write_seconds for update in updates)
        stalled = writer.stall_seconds
        wall = so_far.seconds + stalled
        now = replace(so_far, write_seconds=written, stall_seconds=stalled, seconds=wall)
        advance(n_embedded, _note(now, n_unreadable))

    def commit(block_of_model: tuple[Forward, Block]) -> None:
        model, block = block_of_model
        by_model[model].commit(block)

    images = updates[0].catalog.images
    requests = shared_blocks(updates, IMAGES_PER_BLOCK)
    if cluster:
        models = {update.model: update.store.spec for update in updates}
        blocks = cluster.embed_blocks(images, requests, models, loading, on_batch)
    else:
        blocks = embed_blocks(images, requests, loading, on_batch)
    with Writer(commit) as writer, closing(blocks):
        for of_request in blocks:
            for block_of_model in of_request:
                writer.put(block_of_model)
    # One queue serves all stores: each backbone bears an equal share of the waiting.
    stalled = writer.stall_seconds / len(updates)
    for update in updates:
        update.cost += ExtractCost(seconds=stalled, stall_seconds=stalled)


def _note(cost: ExtractCost, n_unreadable: int) -> str:
    """What the time goes to, and how many images could not be read."""
    shares = cost.shares()
    note = f"model {shares['model']:.0%}, images {shares['images']:.0%}, "
    note += f"writing {shares['writing']:.0%}"
    return f"{note}; {n_unreadable:,} unreadable" if n_unreadable else note


def _summary(ids: list[str], update: StoreUpdate, seconds: float) -> ExtractSummary:
    """What was done in one store, and which of `ids` have no embedding."""
    store = update.store
    known, absent = store.known(), store.absent()
    n_computed = update.cost.n_computed
    return ExtractSummary(
        store=store,
        n_computed=n_computed,
        n_reused=sum(image_id in known for image_id in ids) - n_computed,
        absent={image_id: absent[image_id].reason for image_id in ids if image_id in absent},
        seconds=seconds,
        seconds_total=store.seconds,
        cost=update.cost,
    )


def _report_unreadable(
    summaries: Sequence[ExtractSummary],
    n_images: int,
    catalogue: Path,
    strict: bool,
    progress: Progress,
) -> None:
    """List the images that could not be read, once: every backbone reads the same files."""
    absent = {image_id: why for s in summaries for image_id, why in s.absent.items()}
    if not absent:
        return
    lines = [
        f"{len(absent)} of {n_images} images of {catalogue} could not be read and have no "
        "embedding; later stages work without them:"
    ]
    lines += [f"{image_id}: {why}" for image_id, why in list(absent.items())[:MAX_NAMED_IMAGES]]
    if len(absent) > MAX_NAMED_IMAGES:
        lines.append(f"and {len(absent) - MAX_NAMED_IMAGES} more")
    message = "\n  ".join(lines)
    if strict:
        raise DataError(f"--strict: {message}")
    progress.say(message)


def _environment(backbone: Embedder, loading: Loading) -> dict[str, Any]:
    """Facts about a run that are recorded in the journal but not part of the identity."""
    import torch

    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": str(getattr(backbone, "device", "cpu")),
        "threads": torch.get_num_threads(),
        **asdict(loading),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "versions": {name: _version(name) for name in RECORDED_VERSIONS},
    }


def _version(package: str) -> str | None:
    """Installed version; None for an engine that is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
