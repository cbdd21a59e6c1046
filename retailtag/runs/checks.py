"""Sentences about catalogues that a run cannot use."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from retailtag.catalog.catalog import Catalog
from retailtag.catalog.table import NEGATIVE, POSITIVE
from retailtag.errors import DataError
from retailtag.images.loader import hash_images
from retailtag.memory import check_fits
from retailtag.probes.grid import parse_grid
from retailtag.probes.heads.repeated import distinct_columns
from retailtag.probes.heads.ridge import STRENGTHS
from retailtag.runs.heads import parse_heads
from retailtag.settings import ProbeSettings
from retailtag.store import EmbeddingSource
from retailtag.store.sources import changed_images

HASHING_THREADS = 2
CELL_BYTES = 100  # of a training label: logits of every head, their ranks, thresholds of every rule
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


def check_sweep_fits(
    catalog: Catalog, labels: NDArray[np.int8], dim: int, settings: ProbeSettings
) -> None:
    """Raise `DataError` if the sweep of training labels (n_images, n_tags) needs too much memory.

    `dim` is the width of the embeddings.
    """
    n_images, n_tags = labels.shape
    n_fits = len(parse_grid(settings.sweep_C))
    # Weights of every fold and candidate stay until the head is chosen. Beside them are those of
    # the fold that is being fitted, of a ridge in float64.
    candidates = (settings.folds + 1) * n_fits
    if "ridge" in parse_heads(settings.heads):
        candidates += (settings.folds + 5) * len(STRENGTHS)
    n_distinct = len(distinct_columns(labels)[0])
    n_bytes = 4 * candidates * n_distinct * dim + CELL_BYTES * n_images * n_tags
    check_fits(
        n_bytes,
        f"{catalog.path}: the fits of {n_tags:,} tags at {n_fits} strengths in {settings.folds} "
        "folds",
        "leave out rare tags with --min-images, or take fewer strengths (--sweep-C), --folds or "
        "--heads",
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
