"""Sentences about catalogues that a run cannot use."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from retailtag.catalog.catalog import Catalog
from retailtag.catalog.table import NEGATIVE, POSITIVE
from retailtag.errors import DataError
from retailtag.images.loader import hash_images
from retailtag.store import EmbeddingSource
from retailtag.store.sources import changed_images

HASHING_THREADS = 2
MAX_NAMED_IMAGES = 3  # unreadable images listed in the sentence


def check_fittable(catalog: Catalog) -> None:
    """Raise `DataError` unless there are training images and a tag that tells them apart."""
    train = catalog.table.labels[catalog.rows("train")]
    if not len(train):
        raise DataError(
            f"{catalog.path} has no train images; give it a split column, or make one with "
            "retailtag catalog split."
        )
    if not (catalog.table.labels == POSITIVE).any():
        raise DataError(f"{catalog.path} has no image with a tag; give it a column of tags.")
    if not ((train == POSITIVE).any(axis=0) & (train == NEGATIVE).any(axis=0)).any():
        raise DataError(
            f"{catalog.path} has no tag that some of its {len(train):,} train images carry and "
            "others do not, so there is nothing to fit; add images, or make new splits with "
            "retailtag catalog split."
        )


def changed_since_extract(
    catalog: Catalog, source: EmbeddingSource, rows: Sequence[int]
) -> list[str]:
    """Ids of those of `rows` whose bytes are not those that were embedded; see `changed_images`."""
    hashed = partial(hash_images, catalog.images, workers=HASHING_THREADS)
    return changed_images(source, catalog.image_ids.tolist(), rows, catalog.images, hashed)


def none_readable(catalog: Catalog, split: str, reasons: list[tuple[str, str]]) -> str:
    """Sentence for a split without a single readable image, with the first reasons."""
    some = "; ".join(f"{image_id} {reason}" for image_id, reason in reasons[:MAX_NAMED_IMAGES])
    more = (
        f"; and {len(reasons) - MAX_NAMED_IMAGES:,} more" if len(reasons) > MAX_NAMED_IMAGES else ""
    )
    return (
        f"None of the {len(reasons):,} {split} images of {catalog.path} could be read "
        f"({some}{more}); repair them, or raise the limit that they exceed."
    )
