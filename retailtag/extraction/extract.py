"""Fill a feature store from a catalogue: only what is new or changed is computed."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from retailtag.catalog.catalog import Catalog
from retailtag.errors import DataError, UsageError
from retailtag.extraction.costs import Cost
from retailtag.extraction.embed import Block, Embedder, Loading, embed_blocks, identity
from retailtag.extraction.forward import BATCH_SIZES, Forward, device_of
from retailtag.extraction.lanes import Lane, current, shared_work
from retailtag.extraction.shards import ALL, Part
from retailtag.extraction.writer import Writer
from retailtag.images.decode import MAX_PIXELS
from retailtag.progress import SILENT, Advance, Progress
from retailtag.store import DTYPES, FeatureStore

BLOCK_ROWS = 1024  # images per segment: what a kill can cost, against files per store
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
    cost : Cost
        Of the images computed in this run, by stage.
    """

    store: FeatureStore
    n_computed: int
    n_reused: int
    absent: dict[str, str]
    seconds: float
    seconds_total: float
    cost: Cost

    @property
    def images_per_second(self) -> float:
        """Images computed in this run by the wall time of computing them; 0 if there were none."""
        return self.n_computed / self.cost.seconds if self.n_computed else 0.0

    def to_json(self) -> dict[str, Any]:
        """Plain dictionary for ``--json``."""
        stages = {
            k: v for k, v in self.cost.to_json().items() if k not in ("n_computed", "seconds")
        }
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
            **stages,
            "shares": self.cost.shares(),
            "limit": self.cost.limit,
        }


def extract(
    catalog: Catalog,
    backbone: Embedder,
    features: Path,
    *,
    batch_size: int | None = None,
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

    `extract_together` for one backbone; parameters and exceptions are explained there.
    """
    (summary,) = extract_together(
        catalog,
        [backbone],
        features,
        batch_size=batch_size,
        workers=workers,
        dtype=dtype,
        strict=strict,
        max_pixels=max_pixels,
        allow_truncated=allow_truncated,
        recompute=recompute,
        part=part,
        progress=progress,
    )
    return summary


def extract_together(
    catalog: Catalog,
    backbones: Sequence[Embedder],
    features: Path,
    *,
    batch_size: int | None = None,
    workers: int | None = None,
    dtype: str = "float32",
    strict: bool = False,
    max_pixels: int = MAX_PIXELS,
    allow_truncated: bool = False,
    recompute: bool = False,
    part: Part = ALL,
    progress: Progress = SILENT,
) -> list[ExtractSummary]:
    """Bring the stores of several backbones under `features` up to date with a catalogue.

    An image is computed if its id is new or its bytes changed since. Every block of 1,024 images
    is committed as it is finished, so an interrupted run is continued by the same call and ends
    with the same embeddings. An image that several stores lack is read, hashed and decoded once;
    each store becomes what it would have become alone, byte for byte.

    Parameters
    ----------
    catalog : Catalog
        Images of all splits are extracted.
    backbones : sequence of Embedder
        Such as `retailtag.backbones.Backbone`, each with a store of its own.
    features : Path
        Folder of the feature stores.
    batch_size : int or None
        Images a forward pass, 1 to 1024; None: what suits the device. Halved where memory runs
        out.
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
    list of ExtractSummary
        Counts, times and the store of each backbone.

    Raises
    ------
    UsageError
        If `batch_size`, `workers` or `dtype` is none that can be used.
    DataError
        With `strict`, naming the unreadable images.
    ArtefactError
        If the store is of a newer format, or a file of it cannot be read.
    Unavailable
        If another process writes one of the stores, the disk is full or read-only, or a backbone
        does not fit into memory.

    Notes
    -----
    Images that could not be read are tried again every time, for a file may have been mended or
    a limit raised; their record is written only when it changes.
    """
    check_extraction(batch_size, workers, dtype)
    if batch_size is None:
        batch_size = min(BATCH_SIZES.get(device_of(b), BATCH_SIZES["cpu"]) for b in backbones)
    loading = Loading(batch_size, _threads(workers), max_pixels, allow_truncated)
    start = time.perf_counter()
    rows = part.rows(len(catalog), BLOCK_ROWS)
    root = features if part == ALL else Path(features) / part.folder
    lanes = _lanes(catalog, backbones, root, dtype, loading, progress)
    names = ", ".join(lane.model.backbone.id for lane in lanes)
    unit = "images" if len(lanes) == 1 else "embeddings"
    with ExitStack() as stack:
        for lane in lanes:
            for name in stack.enter_context(lane.store.repairing()):
                path = lane.store.path / name
                progress.say(f"{path} is damaged; the images it held are computed again.")
        task = progress.task(f"extract {names}", len(rows) * len(lanes), unit)
        advance = stack.enter_context(task)
        stores = [lane.store for lane in lanes]
        is_current = np.zeros((len(lanes), len(rows)), bool)
        if not recompute:
            is_current = current(catalog, rows, stores, loading.workers, advance)
        for lane, have in zip(lanes, is_current, strict=True):
            lane.plan(rows, have)
        _fill(lanes, loading, advance)
        if recompute:
            for store in stores:
                store.prune()
    ids = catalog.image_ids[rows].tolist()
    summaries = [_summary(ids, lane, time.perf_counter() - start) for lane in lanes]
    _report_unreadable(summaries, len(ids), catalog.path, strict, progress)
    return summaries


def _lanes(
    catalog: Catalog,
    backbones: Sequence[Embedder],
    root: Path,
    dtype: str,
    loading: Loading,
    progress: Progress,
) -> list[Lane]:
    """Each backbone with its store, made where it is missing."""
    specs = [identity(b, dtype, allow_truncated=loading.allow_truncated) for b in backbones]
    twice = [spec.backbone for i, spec in enumerate(specs) if spec in specs[:i]]
    if twice:
        raise UsageError(f"Backbone {twice[0]} is given twice; name each once.")
    return [
        Lane(
            catalog,
            FeatureStore.create_or_open(root, spec),
            Forward(backbone, loading.batch_size, progress.say),
            _environment(backbone, loading),
        )
        for backbone, spec in zip(backbones, specs, strict=True)
    ]


def _fill(lanes: Sequence[Lane], loading: Loading, advance: Advance) -> None:
    """Compute and store what the lanes' lists say, block by block.

    Whatever ends it, every block that was finished is stored.
    """
    by_model = {lane.model: lane for lane in lanes}
    so_far = Cost()
    failed = 0

    def watch(n_done: int, n_failed: int, cost: Cost) -> None:
        nonlocal so_far, failed
        so_far, failed = so_far + cost, failed + n_failed
        written = sum(lane.cost.write_seconds for lane in lanes)
        stalled = writer.stall_seconds
        wall = so_far.seconds + stalled
        now = replace(so_far, write_seconds=written, stall_seconds=stalled, seconds=wall)
        advance(n_done, _note(now, failed))

    images = lanes[0].catalog.images
    blocks = embed_blocks(images, shared_work(lanes, BLOCK_ROWS), loading, watch)

    def commit(done: tuple[Forward, Block]) -> Cost:
        model, block = done
        return by_model[model].commit(block)

    with Writer(commit) as writer, closing(blocks):
        for together in blocks:
            for done in together:
                writer.put(done)
    stalled = writer.stall_seconds / len(lanes)
    for lane in lanes:
        lane.cost += Cost(seconds=stalled, stall_seconds=stalled)


def _note(cost: Cost, n_unreadable: int) -> str:
    """How an extraction goes: what its time goes to, and the images that could not be read."""
    shares = cost.shares()
    note = f"model {shares['model']:.0%}, images {shares['images']:.0%}, "
    note += f"writing {shares['writing']:.0%}"
    return f"{note}; {n_unreadable:,} unreadable" if n_unreadable else note


def check_extraction(batch_size: int | None, workers: int | None, dtype: str) -> None:
    """Raise `UsageError` naming the option that `extract` could not follow."""
    if batch_size is not None and not 1 <= batch_size <= BLOCK_ROWS:
        raise UsageError(f"--batch-size {batch_size} is out of range; use 1 to {BLOCK_ROWS}.")
    if workers is not None and workers < 0:
        raise UsageError(f"--workers {workers} is out of range; use 0 or more.")
    if dtype not in DTYPES:
        raise UsageError(f"--dtype {dtype} is unknown; use {' or '.join(DTYPES)}.")


def _threads(workers: int | None) -> int:
    """`workers`, or one a core up to 16."""
    return min(os.cpu_count() or 1, MOST_WORKERS) if workers is None else workers


def _summary(ids: list[str], lane: Lane, seconds: float) -> ExtractSummary:
    """What became of one store, and which of `ids` it lacks."""
    rows, gone = lane.store.known(), lane.store.absent()
    computed = lane.cost.n_computed
    return ExtractSummary(
        store=lane.store,
        n_computed=computed,
        n_reused=sum(image_id in rows for image_id in ids) - computed,
        absent={image_id: gone[image_id].reason for image_id in ids if image_id in gone},
        seconds=seconds,
        seconds_total=lane.store.seconds,
        cost=lane.cost,
    )


def _report_unreadable(
    summaries: Sequence[ExtractSummary],
    n_images: int,
    catalogue: Path,
    strict: bool,
    progress: Progress,
) -> None:
    """Name the images that could not be read, once: every backbone reads the same files."""
    absent = {image_id: why for s in summaries for image_id, why in s.absent.items()}
    if absent and strict:
        raise DataError(f"--strict: {_unreadable(absent, n_images, catalogue)}")
    if absent:
        progress.say(_unreadable(absent, n_images, catalogue))


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
