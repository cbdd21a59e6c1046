"""Decode every image once and report what a catalogue holds and what is odd about it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from retailtag.catalog.attributes import with_one_value
from retailtag.catalog.catalog import SPLITS, Catalog
from retailtag.catalog.products import missing_products
from retailtag.catalog.similar import Look, near_pairs
from retailtag.catalog.table import GROUPS, POSITIVE, UNKNOWN
from retailtag.catalog.tag_cells import made_of_tags
from retailtag.catalog.thumbnails import IMAGES_AHEAD, SIDE, thumbnail
from retailtag.errors import DataError, UnreadableImage
from retailtag.images.decode import MAX_PIXELS
from retailtag.images.decode_pool import decode_in_subprocess
from retailtag.images.loader import map_in_order
from retailtag.progress import SILENT, Progress
from retailtag.statistics.exclusive import PLAIN

MAYBE_EMPTY = ("none", "na", "n/a", "unknown", "undefined")
MIN_SIDE = 32  # pixels
MAX_ASPECT_RATIO = 8.0


@dataclass(frozen=True)
class TagRow:
    """One tag: its frequency group, positive images in each split, cells not annotated."""

    tag: str
    group: str
    positives: dict[str, int]
    unknown: int


@dataclass(frozen=True)
class ImageFinding:
    """One image, where it lies, and what is wrong or odd about it."""

    image_id: str
    place: str
    reason: str


@dataclass(frozen=True)
class Duplicate:
    """Images of equal or nearly equal pixels, their splits, and whether their labels agree."""

    image_ids: tuple[str, ...]
    splits: tuple[str, ...]
    same_labels: bool


@dataclass(frozen=True)
class CatalogReport:
    """What `check_catalog` found."""

    path: str
    splits: dict[str, int]  # images in each split that has any
    tags: tuple[TagRow, ...]
    groups: dict[str, int]  # number of tail, common and frequent tags
    tags_per_image: dict[str, float]  # min, median, mean, max
    products: int
    unreadable: tuple[ImageFinding, ...]
    duplicates_across: tuple[Duplicate, ...]  # in more than one split: they leak
    duplicates_within: int  # images that repeat another of the same split
    near_across: tuple[Duplicate, ...]  # pairs of near-duplicates in two splits
    near_within: int  # pairs of near-duplicates of the same split
    missing_products: str  # a warning if no product has two images
    without_positive: dict[str, tuple[str, ...]]  # tags without a positive image, by split
    suspicious: tuple[ImageFinding, ...]
    tag_notes: tuple[str, ...]
    exclusive: tuple[str, ...] = ()  # attributes recorded to have one value an image
    notes: tuple[str, ...] = ()  # what was left out or assumed in reading the catalogue

    @property
    def n_images(self) -> int:
        """Images in all splits."""
        return sum(self.splits.values())

    def to_json(self) -> dict[str, Any]:
        """Plain dictionary of everything above."""
        return {"images": self.n_images, **asdict(self)}


class _Inspection(NamedTuple):
    """What one image showed: digest of its pixels, oddity, and the reason if it did not decode."""

    thumbnail: NDArray[np.uint8] | None = None
    digest: bytes = b""
    oddity: str = ""
    error: str = ""


def check_catalog(
    catalog: Catalog,
    *,
    workers: int | None = None,
    progress: Progress = SILENT,
    max_pixels: int = MAX_PIXELS,
) -> CatalogReport:
    """Decode every image, and report counts, duplicates and oddities of a catalogue.

    Duplicates are images of equal size and equal pixels after decoding, so that another container
    or other metadata does not hide one. Near-duplicates are other images whose thumbnails are
    nearly equal, such as copies of another size or compression; see `retailtag.catalog.similar`.
    Images of over `max_pixels` count as unreadable.
    """
    inspections = _inspect_all(catalog, workers or os.cpu_count() or 1, progress, max_pixels)
    labels = catalog.table.labels
    per_image = (labels == POSITIVE).sum(axis=1)
    here = [s for s in SPLITS if (catalog.split == s).any()]
    positives = {s: (labels[catalog.split == s] == POSITIVE).sum(axis=0) for s in here}
    across, n_within = _duplicates(catalog, inspections)
    look = _look(inspections)
    near_across, n_near = _near_duplicates(catalog, inspections, look)
    group = catalog.table.group
    return CatalogReport(
        path=str(catalog.path),
        splits={s: int((catalog.split == s).sum()) for s in here},
        tags=_tag_rows(catalog, positives),
        groups={name: int((group == name).sum()) for name in GROUPS},
        tags_per_image=_summary(per_image),
        products=len(np.unique(catalog.group)),
        unreadable=tuple(
            _finding(catalog, i, x.error) for i, x in enumerate(inspections) if x.error
        ),
        duplicates_across=across,
        duplicates_within=n_within,
        near_across=near_across,
        near_within=n_near,
        missing_products=missing_products(catalog, look),
        without_positive={
            s: tuple(np.array(catalog.table.tags)[count == 0].tolist())
            for s, count in positives.items()
        },
        suspicious=tuple(_suspicious(catalog, inspections, per_image)),
        tag_notes=tuple(_tag_notes(catalog)),
        exclusive=catalog.table.exclusive,
        notes=catalog.notes,
    )


def _inspect_all(
    catalog: Catalog, workers: int, progress: Progress, max_pixels: int
) -> list[_Inspection]:
    """Inspect every image, in row order."""

    def inspect(row: int) -> _Inspection:
        try:
            data = catalog.images.read(row)
            found: _Inspection = decode_in_subprocess(data, _inspect, max_pixels=max_pixels)
        except UnreadableImage as error:
            return _Inspection(error=str(error))
        return found

    inspections = []
    with progress.task("decode", len(catalog)) as advance:
        for inspection in map_in_order(inspect, range(len(catalog)), workers, IMAGES_AHEAD):
            inspections.append(inspection)
            advance(1)
    return inspections


def _inspect(pixels: NDArray[np.uint8]) -> _Inspection:
    # The shape too: a 2 x 8 and a 4 x 4 image can have the same bytes.
    digest = hashlib.sha256(str(pixels.shape).encode() + pixels.tobytes()).digest()
    return _Inspection(thumbnail(pixels), digest, _oddity(pixels))


def _oddity(pixels: NDArray[np.uint8]) -> str:
    """What is odd about an image as such; empty where nothing is."""
    height, width = pixels.shape[:2]
    if min(height, width) < MIN_SIDE:
        return f"is tiny ({width} x {height} pixels)"
    if max(height, width) > MAX_ASPECT_RATIO * min(height, width):
        return f"is very long ({width} x {height} pixels)"
    if (pixels == pixels[0, 0]).all():
        return "is blank (every pixel has one colour)"
    return ""


def _summary(values: NDArray[np.int64]) -> dict[str, float]:
    return {
        "min": float(values.min()),
        "median": float(np.median(values)),
        "mean": float(values.mean()),
        "max": float(values.max()),
    }


def _tag_rows(catalog: Catalog, positives: dict[str, NDArray[np.int64]]) -> tuple[TagRow, ...]:
    table = catalog.table
    unknown = (table.labels == UNKNOWN).sum(axis=0)
    group = table.group
    return tuple(
        TagRow(tag, str(group[t]), {s: int(c[t]) for s, c in positives.items()}, int(unknown[t]))
        for t, tag in enumerate(table.tags)
    )


def _repeats(inspections: Sequence[_Inspection]) -> Iterator[list[int]]:
    """Rows of identical pixels, two or more together."""
    seen: dict[bytes, list[int]] = {}
    for row, one in enumerate(inspections):
        if one.digest:
            seen.setdefault(one.digest, []).append(row)
    return (rows for rows in seen.values() if len(rows) > 1)


def _duplicates(
    catalog: Catalog, inspections: Sequence[_Inspection]
) -> tuple[tuple[Duplicate, ...], int]:
    """Duplicates that cross splits, and the number of repeats inside one."""
    across, within = [], 0
    for rows in _repeats(inspections):
        splits = catalog.split[rows]
        within += len(rows) - len(np.unique(splits))
        if len(np.unique(splits)) > 1:
            ids = tuple(catalog.image_ids[rows].tolist())
            across.append(Duplicate(ids, tuple(splits.tolist()), _same_labels(catalog, rows)))
    return tuple(across), within


def _look(inspections: Sequence[_Inspection]) -> Look:
    """The thumbnails of all images that could be decoded."""
    none = np.zeros((SIDE, SIDE, 3), np.uint8)
    pixels = np.stack([none if x.thumbnail is None else x.thumbnail for x in inspections])
    return Look.of_thumbnails(pixels, np.array([x.thumbnail is not None for x in inspections]))


def _near_duplicates(
    catalog: Catalog, inspections: Sequence[_Inspection], look: Look
) -> tuple[tuple[Duplicate, ...], int]:
    """Pairs of near-duplicates that cross splits, and the number of pairs inside one."""
    rows = np.flatnonzero(look.seen)
    try:
        pairs = near_pairs(look, rows)
    except DataError:  # nearly all pictures are alike, which the oddities say
        return (), 0
    across, within = [], 0
    for i, j in pairs.tolist():
        if inspections[i].digest == inspections[j].digest:
            continue
        if catalog.split[i] == catalog.split[j]:
            within += 1
            continue
        ids = (str(catalog.image_ids[i]), str(catalog.image_ids[j]))
        splits = (str(catalog.split[i]), str(catalog.split[j]))
        across.append(Duplicate(ids, splits, _same_labels(catalog, (i, j))))
    return tuple(across), within


def _same_labels(catalog: Catalog, rows: Sequence[int]) -> bool:
    labels = catalog.table.labels[list(rows)]
    return bool((labels == labels[0]).all())


def _finding(catalog: Catalog, row: int, reason: str) -> ImageFinding:
    return ImageFinding(str(catalog.image_ids[row]), catalog.images.name(row), reason)


def _suspicious(
    catalog: Catalog, inspections: Sequence[_Inspection], per_image: NDArray[np.int64]
) -> Iterator[ImageFinding]:
    median = float(np.median(per_image))
    for row in np.flatnonzero(per_image == 0).tolist():
        yield _finding(catalog, row, "has no tags")
    for row in np.flatnonzero(per_image > max(10.0, 4 * median)).tolist():
        yield _finding(catalog, row, f"has {per_image[row]} tags; the median image has {median:g}")
    for row, splits in _divided_products(catalog):
        reason = f"belongs to product '{catalog.group[row]}', which is in {' and '.join(splits)}"
        yield _finding(catalog, row, reason)
    for row, one in enumerate(inspections):
        if one.oddity:
            yield _finding(catalog, row, one.oddity)
    for rows in _repeats(inspections):
        if not _same_labels(catalog, rows):
            others = ", ".join(catalog.image_ids[rows[1:]].tolist())
            yield _finding(catalog, rows[0], f"has the pixels but not the tags of {others}")


def _divided_products(catalog: Catalog) -> Iterator[tuple[int, list[str]]]:
    """First row and splits of each product that a split separates."""
    _, first, code = np.unique(catalog.group, return_index=True, return_inverse=True)
    # inside[s, p]: images of product p in split s; more than one positive row: divided.
    inside = np.stack([np.bincount(code[catalog.split == s], minlength=len(first)) for s in SPLITS])
    for product in np.flatnonzero((inside > 0).sum(axis=0) > 1).tolist():
        yield int(first[product]), np.array(SPLITS)[inside[:, product] > 0].tolist()


def _tag_notes(catalog: Catalog) -> Iterator[str]:
    alike: dict[str, list[str]] = {}
    for tag in catalog.table.tags:
        alike.setdefault("".join(tag.casefold().split()), []).append(tag)
    for tags in alike.values():
        if len(tags) > 1:
            yield f"tags {', '.join(tags)} differ only in case or spacing"
    for tag in catalog.table.tags:
        if tag.rpartition(":")[2].casefold() in MAYBE_EMPTY:
            yield f"tag {tag} may stand for an empty cell: if so, leave the cell empty"
    for tag in made_of_tags(catalog.table.tags):
        yield f"tag {tag} consists of other tags: if it is a list, separate them like the others"
    always = (catalog.table.labels == POSITIVE).all(axis=0) & (len(catalog) > 0)
    for t in np.flatnonzero(always).tolist():
        yield f"tag {catalog.table.tags[t]} is on every image, so there is nothing to learn"
    names = {tag.partition(":")[0] for tag in catalog.table.tags if ":" in tag}
    maybe = sorted({*names, PLAIN} - set(catalog.table.exclusive))
    if single := with_one_value(catalog.table.tags, catalog.table.labels, maybe):
        yield (
            f"no image has two values of {', '.join(single)}: if these have one value an image, "
            f"record it with --one-of {','.join(single)}"
        )
