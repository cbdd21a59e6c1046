"""Pictures of what the recommended pair gets right and wrong, tag by tag."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from retailtag.catalog.catalog import Catalog
from retailtag.catalog.table import GROUPS, NEGATIVE, POSITIVE, TagTable
from retailtag.errors import UnreadableImage
from retailtag.images.decode_pool import decode_in_subprocess
from retailtag.images.sources import ImageSource
from retailtag.scoring.aligned import Aligned
from retailtag.scoring.metrics import f1_from_counts, tag_counts

TAGS_OF_GROUP = {"tail": 6, "common": 3, "frequent": 3}
N_IMAGES = 3  # of each kind and tag
MIN_SUPPORT = 2  # positives of a tag that is shown
MAX_BYTES = 2_000_000  # of base64 on the page
SIDE = 96  # pixels


@dataclass(frozen=True)
class Picture:
    """One image, its place in the catalogue and its score; no source if it cannot be read."""

    image_id: str
    name: str  # path within the catalogue
    row: int  # of the catalogue, from 1
    margin: float  # logit above the tag's threshold
    source: str  # data URI of a JPEG


@dataclass(frozen=True)
class TagPictures:
    """Pictures of one tag, the most confident first."""

    tag: str
    column: int  # of the tag in the catalogue
    group: str
    train_count: int
    f1: float
    hits: tuple[Picture, ...]
    misses: tuple[Picture, ...]
    false_alarms: tuple[Picture, ...]


@dataclass(frozen=True)
class Gallery:
    """Some tags with pictures, the tail first."""

    tags: tuple[TagPictures, ...]
    n_left_out: int = 0  # tags chosen that the byte budget left no room for


def make_gallery(aligned: Aligned, catalog: Catalog, max_bytes: int = MAX_BYTES) -> Gallery:
    """Gallery of the scored images of one model within a number of bytes."""
    pictures = _Pictures(catalog, max_bytes)
    shown: list[TagPictures] = []
    chosen = chosen_tags(aligned, catalog.table)
    product = catalog.group[aligned.rows]
    f1 = f1_from_counts(tag_counts(aligned.predicted, aligned.labels))
    for column in chosen:
        found = {name: tuple(pictures.of(aligned, rows, column))
                 for name, rows in examples(aligned, column, product).items()}  # fmt: skip
        if pictures.is_full:
            break
        table = catalog.table
        shown.append(
            TagPictures(
                tag=table.tags[column],
                column=column,
                group=str(table.group[column]),
                train_count=int(table.train_count[column]),
                f1=float(f1[column]),
                **found,
            )
        )
    return Gallery(tuple(shown), len(chosen) - len(shown))


def chosen_tags(aligned: Aligned, table: TagTable) -> list[int]:
    """Columns of the tags to show: of each group the ends and steps of F1, the tail first."""
    counts = tag_counts(aligned.predicted, aligned.labels)
    f1 = f1_from_counts(counts)
    chosen: list[int] = []
    for group in GROUPS:
        own = np.flatnonzero((table.group == group) & (counts.positives >= MIN_SUPPORT))
        own = own[np.lexsort((own, f1[own]))]
        n = min(TAGS_OF_GROUP[group], len(own))
        if n:
            steps = np.unique(np.linspace(0, len(own) - 1, n).round().astype(np.intp))
            chosen += own[steps].tolist()
    return chosen


def examples(
    aligned: Aligned, column: int, product: NDArray[np.str_]
) -> dict[str, NDArray[np.intp]]:
    """Rows of `aligned` of the most confident hits, misses and false alarms of one tag.

    Of each product (n_images,) only one image is shown.
    """
    logit, label = aligned.logits[:, column], aligned.labels[:, column]
    given = aligned.predicted[:, column]
    # A miss is the more confident, the lower the image scores.
    cases = {
        "hits": (given & (label == POSITIVE), -logit),
        "misses": (~given & (label == POSITIVE), logit),
        "false_alarms": (given & (label == NEGATIVE), -logit),
    }
    found = {}
    for name, (inside, key) in cases.items():
        rows = np.flatnonzero(inside)
        rows = rows[np.argsort(key[rows], kind="stable")]
        _, first = np.unique(product[rows], return_index=True)
        found[name] = rows[np.sort(first)][:N_IMAGES]
    return found


class _Pictures:
    """Thumbnails by row of the catalogue, each read once, until the bytes are used up."""

    def __init__(self, catalog: Catalog, max_bytes: int) -> None:
        self._catalog = catalog
        self._left = max_bytes
        self._known: dict[int, str] = {}

    @property
    def is_full(self) -> bool:
        return self._left < 0

    def of(self, aligned: Aligned, rows: NDArray[np.intp], column: int) -> Iterator[Picture]:
        """Pictures of rows (n_rows,) of the scored images, with their margins for one tag."""
        for place in rows.tolist():
            row = int(aligned.rows[place])
            margin = float(aligned.logits[place, column] - aligned.thresholds[column])
            yield Picture(
                str(self._catalog.image_ids[row]),
                self._catalog.images.name(row),
                row + 1,
                margin,
                self._source(row),
            )

    def _source(self, row: int) -> str:
        if row not in self._known and not self.is_full:
            self._known[row] = data_uri(self._catalog.images, row, SIDE)
        source = self._known.get(row, "")
        self._left -= len(source)  # on the page every use is written out
        return source


def data_uri(images: ImageSource, row: int, side: int) -> str:
    """Image of a row as a JPEG of at most `side` pixels, for a page; empty if it is unreadable."""
    return jpeg_uri(thumbnail(partial(images.read, row), side))


def jpeg_uri(jpeg: bytes) -> str:
    """A JPEG as the source of an image on a page; empty for no bytes."""
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}" if jpeg else ""


def thumbnail(read: Callable[[], bytes], side: int) -> bytes:
    """JPEG of at most `side` pixels of the image that `read` gives; empty if it is unreadable."""

    def small(pixels: NDArray[np.uint8]) -> bytes:
        return _jpeg(pixels, side)

    try:
        jpeg: bytes = decode_in_subprocess(read(), small)
    except UnreadableImage:
        return b""
    return jpeg


def _jpeg(pixels: NDArray[np.uint8], side: int) -> bytes:
    from PIL import Image

    image = Image.fromarray(np.array(pixels))
    image.thumbnail((side, side))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return buffer.getvalue()
