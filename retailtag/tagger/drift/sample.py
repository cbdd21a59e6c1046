"""Images as a comparison sees them: embeddings, confidences, tags given and properties."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, xlogy

from retailtag.images.loader import Failure, Request, load_views
from retailtag.images.sources import ImageSource
from retailtag.progress import SILENT, Progress
from retailtag.statistics.exclusive import assign
from retailtag.tagger.drift.properties import (
    OF_PIXELS,
    UNKNOWN,
    FileProperties,
    PixelProperties,
    file_properties,
)

if TYPE_CHECKING:
    from retailtag.tagger.tagger import Tagger

CONFIDENCES = ("top_logit", "uncertainty", "tags_given")
LARGEST_LOGIT = 30.0  # beyond which a probability is 0 or 1 in double precision too
BATCH = 32  # images that are embedded at once
AHEAD = 2  # batches decoded before they are asked for

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Sample:
    """Images in one order, one row each."""

    embeddings: NDArray[np.float32]  # (n, dim)
    given: NDArray[np.bool_]  # (n, n_tags)
    confidences: Floats  # (n, 3), columns as in `CONFIDENCES`
    properties: Floats  # (n, n_properties), columns as in `PROPERTIES`; NaN where unknown
    kinds: NDArray[np.str_]  # (n,), file types
    group: NDArray[np.str_]  # (n,), products; the image's own name where they are unknown
    names: NDArray[np.str_]  # (n,)
    digests: NDArray[np.uint64]  # (n,), beginnings of the SHA-256 of the files; 0: unknown
    has_groups: bool  # whether products are known

    def __len__(self) -> int:
        return len(self.names)

    def take(self, rows: NDArray[np.intp]) -> Sample:
        """Some of the images."""
        arrays = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "has_groups"}
        return replace(self, **{name: array[rows] for name, array in arrays.items()})

    def one_per_group(self) -> Sample:
        """The first image of every group, each a group of its own."""
        _, first = np.unique(self.group, return_index=True)
        return replace(self.take(np.sort(first)), has_groups=False)

    @cached_property
    def codes(self) -> NDArray[np.intp]:
        """Group of each image as a number from 0, (n,)."""
        return np.unique(self.group, return_inverse=True)[1].astype(np.intp)

    @property
    def n_groups(self) -> int:
        """Groups in it."""
        return len(np.unique(self.group))


def confidences_of(logits: NDArray[np.float32], given: NDArray[np.bool_]) -> Floats:
    """`CONFIDENCES` of images (n, n_tags): largest logit, entropy of all tags in bits, tags given.

    Examples
    --------
    >>> z = np.array([[0.0, 0.0], [40.0, -40.0]], np.float32)
    >>> confidences_of(z, z > 0).round(3).tolist()
    [[0.0, 2.0, 0.0], [30.0, 0.0, 1.0]]
    """
    z = logits.astype(np.float64).clip(-LARGEST_LOGIT, LARGEST_LOGIT)
    p, q = expit(z), expit(-z)
    entropy = -(xlogy(p, p) + xlogy(q, q)).sum(axis=1) / np.log(2)
    return np.stack([z.max(axis=1), entropy, given.sum(axis=1)], axis=1)


def as_kept(figures: NDArray[np.floating]) -> Floats:
    """Figures rounded as a kept reference has them: a tie must stay one on both sides."""
    return figures.astype(np.float32).astype(np.float64)


def given_cells(tagger: Tagger, logits: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Tags that the model gives to images of these logits, (n, n_tags)."""
    return assign(logits, tagger.thresholds, tagger.tags, tagger.exclusive, tagger.assignment)


def drawn_rows(group: NDArray[np.str_], n: int, seed: int) -> NDArray[np.intp]:
    """Rows of whole groups drawn at random until there are `n`, ascending; all if there are fewer.

    The last group may exceed `n`. The order of groups depends on their names and the seed alone.
    """
    if len(group) <= n:
        return np.arange(len(group))
    names, codes, sizes = np.unique(group, return_inverse=True, return_counts=True)
    order = np.random.default_rng(seed).permutation(len(names))
    n_drawn = int(np.searchsorted(np.cumsum(sizes[order]), n)) + 1
    return np.flatnonzero(np.isin(codes, order[:n_drawn]))


class _Noting(ImageSource):
    """A source that notes what the files tell while it reads them."""

    def __init__(self, inner: ImageSource, max_pixels: int) -> None:
        self.inner = inner
        self.max_pixels = max_pixels
        self.found: dict[int, FileProperties] = {}

    def read(self, index: int) -> bytes:
        """Bytes of image `index`."""
        data = self.inner.read(index)
        self.found[index] = file_properties(data, self.max_pixels)
        return data


def observe(
    tagger: Tagger,
    images: ImageSource,
    rows: NDArray[np.intp],
    group: NDArray[np.str_] | None,
    names: Sequence[str],
    *,
    workers: int = 0,
    progress: Progress = SILENT,
) -> tuple[Sample, list[Failure]]:
    """What the model makes of some rows of a source; those that cannot be read are left out.

    `group` and `names` are by row of the source; no `group` means that products are unknown.
    """
    noting = _Noting(images, tagger.max_pixels)
    steps: tuple[Any, ...] = (
        PixelProperties(),
        *(embedder.preprocess for embedder in tagger.embedders),
    )
    requests = [Request(rows[at : at + BATCH], steps) for at in range(0, len(rows), BATCH)]
    parts: list[tuple[NDArray[Any], ...]] = []
    kept: list[int] = []
    digests: list[int] = []
    failures: list[Failure] = []
    loaded = load_views(
        noting,
        requests,
        ahead=AHEAD * BATCH,
        workers=workers,
        max_pixels=tagger.max_pixels,
        allow_truncated=tagger.allow_truncated,
    )
    with progress.task("read", len(rows)) as advance:
        for found, *views in loaded:
            failures += found.failures
            if len(found):
                pixels = [list(image) for image in zip(*(v.pixels for v in views), strict=True)]
                embeddings = tagger.embeddings(pixels)
                parts.append((embeddings, tagger.head.logits(embeddings), found.pixels))
                kept += found.rows.tolist()
                digests += [int(digest[:16], 16) for digest in found.sha256]
            advance(len(found) + len(found.failures))
    sample = _sample(tagger, parts, [noting.found.get(row, UNKNOWN) for row in kept])
    chosen = np.array([names[row] for row in kept], np.str_)
    return replace(
        sample,
        group=chosen if group is None else group[kept],
        names=chosen,
        digests=np.array(digests, np.uint64),
        has_groups=group is not None,
    ), failures


def _sample(
    tagger: Tagger,
    parts: list[tuple[NDArray[Any], ...]],
    files: list[FileProperties],
) -> Sample:
    """Sample of batches of embeddings, logits and properties; names are filled in later."""
    dim = sum(backbone.dim for backbone in tagger.backbones)
    empty = tuple(np.empty((0, n), np.float32) for n in (dim, len(tagger.tags), len(OF_PIXELS)))
    embeddings, logits, of_pixels = (
        np.concatenate(arrays) for arrays in zip(empty, *parts, strict=True)
    )
    given = given_cells(tagger, logits)
    of_file = np.array([f[1:] for f in files], np.float64).reshape(len(files), 2)
    none = np.array([], np.str_)
    return Sample(
        embeddings=embeddings,
        given=given,
        confidences=as_kept(confidences_of(logits, given)),
        properties=as_kept(np.concatenate([of_pixels, of_file], axis=1)),
        kinds=np.array([f.kind for f in files], np.str_),
        group=none,
        names=none,
        digests=np.array([], np.uint64),
        has_groups=False,
    )


def group_digests(group: NDArray[np.str_]) -> NDArray[np.uint32]:
    """Numbers in place of the names of groups, which a reference file does not disclose."""
    names, codes = np.unique(group, return_inverse=True)
    numbers = np.array([zlib.crc32(str(name).encode()) for name in names], np.uint32)
    return numbers[codes]
