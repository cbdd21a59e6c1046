"""Verify a feature store: its checksums, and a sample of its images embedded again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retailtag.backbones import load_backbone
from retailtag.backbones.engines.names import EngineName
from retailtag.backbones.engines.parity import EXACT, FAST, HALF, Tolerance, centred_cosine
from retailtag.backbones.imported import ENGINE
from retailtag.backbones.preprocess import accepts_truncated
from retailtag.context import RunContext
from retailtag.errors import ArtefactError, DataError, Unavailable, UsageError
from retailtag.extraction.embed import Loading, embed_block
from retailtag.extraction.embedder import Embedder, identity
from retailtag.images.loader import hash_images
from retailtag.progress import SILENT, Progress
from retailtag.store import FeatureSpec, FeatureStore
from retailtag.store.segment import Segment, read_segment
from retailtag.store.sources import EXTRACT_AGAIN, changed_images, changed_sentence
from retailtag.store.spec import explain_differences

SAMPLE_IMAGES = 64
BATCH_SIZE = 32

SOUND, DAMAGED, DRIFTED, STALE, UNCHECKED = "sound", "damaged", "drifted", "stale", "unchecked"


@dataclass(frozen=True)
class Sample:
    """Images to embed again: `size` at random from those that catalogue and store share."""

    context: RunContext  # gives the images, how they are read, and the device
    size: int = SAMPLE_IMAGES
    seed: int = 0
    weights: Mapping[str, Path] = field(default_factory=dict)  # local ones, by backbone id


@dataclass(frozen=True)
class Verdict:
    """What `verify` found of one store.

    ``sound``; ``damaged``: a file is damaged; ``drifted``: the sample now has other embeddings;
    ``stale``: the backbone has another identity here; ``unchecked``: the files are sound, but the
    backbone cannot be loaded.
    """

    path: Path
    verdict: str
    problems: tuple[str, ...] = ()  # one sentence each, with the file or image and the remedy
    backbone: str | None = None  # None if the identity cannot be read
    n_segments: int = 0
    n_rows: int = 0  # of the sound segments, superseded rows included
    n_sampled: int = 0  # images embedded again and compared
    n_changed: int = 0  # images drawn whose bytes have changed or cannot be read
    smallest_cosine: float | None = None  # over the sample, after centring
    tolerance: float | None = None  # what it must reach

    def to_json(self) -> dict[str, Any]:
        """Plain dictionary for ``--json``."""
        return {**vars(self), "path": str(self.path), "problems": list(self.problems)}


def tolerance(spec: FeatureSpec) -> Tolerance:
    """How close embeddings of this identity must be to those computed again in float32."""
    if not EngineName.parse(spec.engine).exact:
        return FAST
    return HALF if spec.dtype == "float16" else EXACT


def verify(path: Path, sample: Sample | None = None, progress: Progress = SILENT) -> Verdict:
    """Check every checksum of a store, and with a `sample` embed images again and compare.

    Damage and drift are values of the verdict, not exceptions.
    """
    try:
        store = FeatureStore.identify(path)
    except (DataError, ArtefactError) as error:
        return Verdict(path, DAMAGED, (str(error),))
    files = _check_files(store, progress)
    found = Verdict(
        path,
        DAMAGED if files.problems else SOUND,
        tuple(files.problems),
        backbone=store.spec.backbone,
        n_segments=files.n_segments,
        n_rows=files.n_rows,
    )
    if sample is None or files.problems or not files.n_rows:
        return found
    changed = _changed(store, sample.context)
    found = replace(found, problems=changed)
    if store.spec.engine == ENGINE:  # imported: there is nothing to embed again with
        return found
    return _embed_again(store, sample, files.mean, found)


@dataclass
class _Files:
    """Running totals over the segments of a store."""

    n_segments: int
    n_rows: int
    problems: list[str]
    total: NDArray[np.float64]  # (dim,)

    @property
    def mean(self) -> NDArray[np.float64]:
        """Mean embedding (dim,); zero below two rows, where centring would leave nothing."""
        return self.total / self.n_rows if self.n_rows > 1 else np.zeros_like(self.total)

    def add(self, segment: Segment) -> None:
        self.n_rows += len(segment.image_ids)
        self.total += segment.embedding.sum(axis=0, dtype=np.float64)


def _check_files(store: FeatureStore, progress: Progress) -> _Files:
    """Read every segment with all checks; a damaged one is a problem, not the end."""
    paths = store.segment_paths()
    files = _Files(len(paths), 0, [], np.zeros(store.spec.dim))
    with progress.task(f"verify {store.path.name}", len(paths), unit="segments") as advance:
        for path in paths:
            try:
                files.add(read_segment(path, store.spec))
            except ArtefactError as error:
                files.problems.append(str(error))
            advance(1)
    return files


def _other_identity(store: FeatureStore, backbone: Embedder) -> str:
    """How the backbone here differs from the stored identity; empty if it does not."""
    stored = store.spec
    here = identity(backbone, stored.dtype, allow_truncated=accepts_truncated(stored))
    # The engine may differ: the sample is computed by eager float32 whatever filled the store.
    here = replace(here, engine=stored.engine)
    differences = explain_differences(stored, here, ("stored", "here"))
    if not differences:
        return ""
    return (
        f"{store.path} cannot be embedded again: {differences}. Give its --weights, or run "
        "extract, which fills a store of the identity here."
    )


def _embed_again(
    store: FeatureStore, sample: Sample, mean: NDArray[np.float64], found: Verdict
) -> Verdict:
    """Load the backbone, and compare a random sample in float32 with the stored rows."""
    local = sample.weights.get(store.spec.backbone)
    try:
        backbone = load_backbone(store.spec.backbone, weights=local, device=sample.context.device)
    except (Unavailable, UsageError, DataError) as error:
        return replace(found, verdict=UNCHECKED, problems=(*found.problems, str(error)))
    difference = _other_identity(store, backbone)
    if difference:
        return replace(found, verdict=STALE, problems=(*found.problems, difference))
    drawn = _draw(store, sample)
    names, again = _embed_unchanged(store, sample, drawn, backbone)
    limit = tolerance(store.spec)
    # Embeddings share a large mean: without centring any two images are nearly parallel, and
    # the cosine would not tell one image from another.
    cosine = centred_cosine(store.load(names).X, again, mean, limit)
    problems = _drift(store, names, cosine, limit.cosine)
    return replace(
        found,
        verdict=DRIFTED if problems else SOUND,
        problems=(*found.problems, *problems),
        n_sampled=len(names),
        n_changed=len(drawn) - len(names),
        smallest_cosine=float(cosine.min()) if len(cosine) else None,
        tolerance=limit.cosine,
    )


def _changed(store: FeatureStore, context: RunContext) -> tuple[str, ...]:
    """Sentence on the catalogue's images whose bytes are no longer those that were embedded."""
    catalog = context.catalog
    hashed = partial(hash_images, catalog.images, workers=max(context.workers, 1))
    ids = catalog.image_ids.tolist()
    found = changed_images(store, ids, range(len(ids)), catalog.images, hashed)
    return (f"{changed_sentence(found, catalog.path)} {EXTRACT_AGAIN}",) if found else ()


def _draw(store: FeatureStore, sample: Sample) -> NDArray[np.intp]:
    """Rows of the catalogue with a stored embedding, drawn without replacement, ascending."""
    known = store.known()
    held = np.flatnonzero(
        [image_id in known for image_id in sample.context.catalog.image_ids.tolist()]
    )
    rng = np.random.default_rng(sample.seed)
    return np.sort(rng.choice(held, min(sample.size, len(held)), replace=False))


def _embed_unchanged(
    store: FeatureStore, sample: Sample, drawn: NDArray[np.intp], backbone: Embedder
) -> tuple[NDArray[np.str_], NDArray[np.float32]]:
    """Ids (n,) and embeddings (n, dim) of the drawn images whose bytes have not changed."""
    context, catalog = sample.context, sample.context.catalog
    # Truncated files are accepted as they were when the store was filled, whatever is asked now.
    is_lenient = accepts_truncated(store.spec)
    loading = Loading(BATCH_SIZE, context.workers, context.reading.max_pixels, is_lenient)
    block = embed_block(catalog.images, drawn, backbone, loading)
    names, known = catalog.image_ids[block.rows], store.known()
    hashes = zip(names.tolist(), block.sha256, strict=True)
    same = np.array([known[image_id] == sha256 for image_id, sha256 in hashes], bool)
    return names[same], block.embeddings[same]


def _drift(
    store: FeatureStore, names: NDArray[np.str_], cosine: NDArray[np.float64], limit: float
) -> tuple[str, ...]:
    """Sentence on the rows below the limit, if there are any."""
    low = np.flatnonzero(cosine < limit)
    if not len(low):
        return ()
    worst = low[np.argmin(cosine[low])]
    return (
        f"{store.path} has drifted: {len(low)} of {len(cosine)} images have other embeddings now, "
        f"{names[worst]} with a centred cosine of {cosine[worst]:.6f}, below {limit}; run "
        "extract --recompute with the settings of the store.",
    )
