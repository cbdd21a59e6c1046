"""Fill a feature store from a catalogue: only what is new or changed is computed."""

from __future__ import annotations

import os
import platform
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from retailtag.backbones.loader import hash_images
from retailtag.catalog.catalog import Catalog
from retailtag.catalog.decode import MAX_PIXELS
from retailtag.errors import DataError, UsageError
from retailtag.pipeline.embed import Embedder, Loading, embed_block, identity
from retailtag.pipeline.parts import ALL, Part
from retailtag.progress import SILENT, Advance, Progress
from retailtag.store import DTYPES, Absent, FeatureStore

BLOCK_ROWS = 1024  # images per shard: what a kill can cost, against files per store
NAMED = 20  # unreadable images spelled out in a message
MOST_WORKERS = 16
RECORDED = (
    *("torch", "timm", "open_clip_torch", "openvino", "onnxruntime"),
    *("h5py", "numpy", "pillow"),
)


@dataclass(frozen=True, eq=False)
class ExtractSummary:
    """What one extraction did.

    Parameters
    ----------
    store : FeatureStore
        Where the embeddings are.
    n_computed, n_reused : int
        Images embedded in this run, and images whose stored embedding still fits their bytes.
    absent : dict of str to str
        Images of this catalogue (of the part of it) without an embedding, and why.
    seconds : float
        Wall time of this run.
    seconds_total : float
        Wall time of computing everything now in the store, over all runs.
    images_per_second : float
        Images computed in this run by the wall time of computing them; 0 if there were none.
    decode_seconds, model_seconds, write_seconds : float
        Loading (summed over threads), model and writing in this run.
    """

    store: FeatureStore
    n_computed: int
    n_reused: int
    absent: dict[str, str]
    seconds: float
    seconds_total: float
    images_per_second: float
    decode_seconds: float
    model_seconds: float
    write_seconds: float

    def to_json(self) -> dict[str, Any]:
        """Plain dictionary for ``--json``."""
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
            "decode_seconds": self.decode_seconds,
            "model_seconds": self.model_seconds,
            "write_seconds": self.write_seconds,
        }


def extract(
    catalog: Catalog,
    backbone: Embedder,
    features: Path,
    *,
    batch_size: int = 64,
    workers: int | None = None,
    dtype: str = "float32",
    strict: bool = False,
    max_pixels: int = MAX_PIXELS,
    allow_truncated: bool = False,
    recompute: bool = False,
    part: Part = ALL,
    progress: Progress = SILENT,
) -> ExtractSummary:
    """Bring the backbone's store under `features` up to date with a catalogue.

    An image is computed if its id is new or its bytes changed since. Every block of 1,024 images
    is committed as it is finished, so an interrupted run is continued by the same call and ends
    with the same embeddings.

    Parameters
    ----------
    catalog : Catalog
        Images of all splits are extracted.
    backbone : Embedder
        A `retailtag.backbones.Backbone`.
    features : Path
        Folder of the feature stores.
    batch_size : int
        Images a forward pass, 1 to 1024.
    workers : int or None
        Loading threads, each with a process that decodes; None: one a core, at most 16. 0: load
        in the calling thread.
    dtype : str
        Stored dtype, ``float32`` or ``float16``; part of the identity.
    strict : bool
        Raise at the end if an image could not be read; everything readable is stored first.
    max_pixels : int
        Larger images count as unreadable.
    allow_truncated : bool
        Accept JPEG files that end early; part of the identity, so a store of its own.
    recompute : bool
        Compute every image again and drop what that supersedes.
    part : Part
        Which part of the catalogue to do. One of several goes to a store of its own, in the
        folder ``part-I-of-N`` below `features`; `retailtag.store.maintenance.merge` joins them.
    progress : Progress
        Told of every batch.

    Returns
    -------
    ExtractSummary
        Counts, times and the store.

    Raises
    ------
    UsageError
        If `batch_size`, `workers` or `dtype` is none that can be used.
    DataError
        With `strict`, naming the unreadable images.
    ArtefactError
        If the store is of a newer format, or a file of it cannot be read.
    Unavailable
        If another process writes this store, or the disk is full or read-only.

    Notes
    -----
    Images that could not be read are tried again every time, for a file may have been mended or
    a limit raised; their record is written only when it changes.
    """
    check_extraction(batch_size, workers, dtype)
    loading = Loading(batch_size, _threads(workers), max_pixels, allow_truncated)
    start = time.perf_counter()
    rows = part.rows(len(catalog), BLOCK_ROWS)
    root = features if part == ALL else Path(features) / part.folder
    store = FeatureStore.create_or_open(
        root, identity(backbone, dtype, allow_truncated=allow_truncated)
    )
    task = progress.task(f"extract {backbone.id}", len(rows))
    with store.mending() as damaged, task as advance:
        for name in damaged:
            progress.say(f"{store.path / name} is damaged; the images it held are computed again.")
        todo = rows
        if not recompute:
            todo = _new_or_changed(catalog, rows, store, loading.workers, advance)
        block_rows = BLOCK_ROWS // batch_size * batch_size
        environment = _environment(backbone, loading)
        run = _Run(catalog, backbone, store, loading, store.absent(), environment, advance)
        blocks = [
            run.extract_block(todo[at : at + block_rows]) for at in range(0, len(todo), block_rows)
        ]
        if recompute:
            store.prune()
    ids = catalog.image_ids[rows].tolist()
    summary = _summary(ids, store, blocks, time.perf_counter() - start)
    if summary.absent and strict:
        raise DataError(f"--strict: {_unreadable(summary.absent, len(ids), catalog.path)}")
    if summary.absent:
        progress.say(_unreadable(summary.absent, len(ids), catalog.path))
    return summary


def check_extraction(batch_size: int, workers: int | None, dtype: str) -> None:
    """Raise `UsageError` naming the option that `extract` could not follow."""
    if not 1 <= batch_size <= BLOCK_ROWS:
        raise UsageError(f"--batch-size {batch_size} is out of range; use 1 to {BLOCK_ROWS}.")
    if workers is not None and workers < 0:
        raise UsageError(f"--workers {workers} is out of range; use 0 or more.")
    if dtype not in DTYPES:
        raise UsageError(f"--dtype {dtype} is unknown; use {' or '.join(DTYPES)}.")


def _threads(workers: int | None) -> int:
    """`workers`, or one a core up to 16."""
    return min(os.cpu_count() or 1, MOST_WORKERS) if workers is None else workers


def _new_or_changed(
    catalog: Catalog, rows: NDArray[np.intp], store: FeatureStore, workers: int, advance: Advance
) -> NDArray[np.intp]:
    """Those of `rows` whose embedding is missing or was made from other bytes.

    In order, those that could not be read the last time at the end: so a run that continues a
    killed one forms the blocks that a single run would have formed.
    """
    known = store.known()
    stored = [known.get(image_id) for image_id in catalog.image_ids[rows].tolist()]
    held = [i for i, sha256 in enumerate(stored) if sha256 is not None]
    todo = np.ones(len(rows), bool)
    hashes = hash_images(catalog.images, rows[held], workers=workers)
    for i, sha256 in zip(held, hashes, strict=True):
        if sha256 == stored[i]:
            todo[i] = False
            advance(1)
    gone = store.absent()
    again = np.array([i in gone for i in catalog.image_ids[rows].tolist()], bool)
    return np.concatenate([rows[todo & ~again], rows[todo & again]])


class _BlockCost(NamedTuple):
    """Images computed in one block, and wall seconds (decoding: summed over threads)."""

    n_computed: int
    seconds: float
    decode_seconds: float
    model_seconds: float
    write_seconds: float


@dataclass(frozen=True)
class _Run:
    """What stays the same over the blocks of one extraction."""

    catalog: Catalog
    backbone: Embedder
    store: FeatureStore
    loading: Loading
    recorded: dict[str, Absent]  # unreadable images as the store knew them at the start
    environment: dict[str, Any]
    advance: Advance

    def extract_block(self, rows: NDArray[np.intp]) -> _BlockCost:
        """Embed `rows` and commit them as one shard, unless there is nothing new to say of them."""
        start = time.perf_counter()
        block = embed_block(self.catalog.images, rows, self.backbone, self.loading, self.advance)
        write_start = time.perf_counter()
        ids = self.catalog.image_ids
        absent = [Absent(str(ids[f.row]), f.sha256, f.reason) for f in block.failures]
        absent = [entry for entry in absent if self.recorded.get(entry.image_id) != entry]
        name = None
        if len(block.rows) or absent:
            embeddings = block.embeddings
            name = self.store.append(ids[block.rows].tolist(), block.sha256, embeddings, absent)
        end = time.perf_counter()
        cost = _BlockCost(
            n_computed=len(block.rows),
            seconds=end - start,
            decode_seconds=block.decode_seconds,
            model_seconds=block.model_seconds,
            write_seconds=end - write_start,
        )
        if name is not None:
            self.store.journal.append(
                {"kind": "shard", "shard": name, **cost._asdict(), "run": self.environment}
            )
        return cost


def _summary(
    ids: list[str], store: FeatureStore, blocks: list[_BlockCost], seconds: float
) -> ExtractSummary:
    """Add up the blocks of this run and look up which of `ids` the store lacks."""
    rows, gone = store.known(), store.absent()
    computed = sum(cost.n_computed for cost in blocks)
    computing = sum(cost.seconds for cost in blocks)
    return ExtractSummary(
        store=store,
        n_computed=computed,
        n_reused=sum(image_id in rows for image_id in ids) - computed,
        absent={image_id: gone[image_id].reason for image_id in ids if image_id in gone},
        seconds=seconds,
        seconds_total=store.seconds,
        images_per_second=computed / computing if computed else 0.0,
        decode_seconds=sum(cost.decode_seconds for cost in blocks),
        model_seconds=sum(cost.model_seconds for cost in blocks),
        write_seconds=sum(cost.write_seconds for cost in blocks),
    )


def _unreadable(absent: dict[str, str], n_images: int, catalogue: Path) -> str:
    """Name the images that gave no embedding, the first twenty with their reasons."""
    named = [f"{image_id}: {reason}" for image_id, reason in list(absent.items())[:NAMED]]
    if len(absent) > NAMED:
        named.append(f"and {len(absent) - NAMED} more")
    head = (
        f"{len(absent)} of {n_images} images of {catalogue} could not be read and have no "
        "embedding; later stages work without them:"
    )
    return "\n  ".join([head, *named])


def _environment(backbone: Embedder, loading: Loading) -> dict[str, Any]:
    """Facts about a run that do not change what an embedding means: recorded, not hashed."""
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": str(getattr(backbone, "device", "cpu")),
        **asdict(loading),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "versions": {name: _version(name) for name in RECORDED},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
