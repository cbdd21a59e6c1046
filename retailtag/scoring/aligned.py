"""Predictions and labels of one split, brought into the catalogue's order."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retailtag.catalog.catalog import Catalog
from retailtag.errors import ArtefactError, named
from retailtag.predictions import Predictions
from retailtag.scoring.bootstrap import ProductCounts, count_by_product
from retailtag.statistics.exclusive import INDEPENDENT, assign, check_assignment


@dataclass(frozen=True, eq=False)
class Aligned:
    """Predictions and labels of the scored split in the catalogue's order of images and tags."""

    rows: NDArray[np.intp]  # (n_images,), of the catalogue, ascending
    logits: NDArray[np.float32]  # (n_images, n_tags)
    predicted: NDArray[np.bool_]  # (n_images, n_tags), tags given under the assignment
    thresholds: NDArray[np.float32]  # (n_tags,)
    labels: NDArray[np.int8]  # (n_images, n_tags), 1, 0, -1
    missing: NDArray[np.str_]  # ids of the split's images that the predictions lack
    # Attributes with one value an image: the catalogue's, else those that the predictions record
    exclusive: tuple[str, ...] = ()


def align(
    predictions: Predictions,
    catalog: Catalog,
    split: str,
    *,
    allow_missing: bool = False,
    assignment: str = INDEPENDENT,
) -> Aligned:
    """Bring predictions and labels of a split into the catalogue's order.

    `assignment` is one of `retailtag.statistics.exclusive.ASSIGNMENTS`.

    Raises `ArtefactError` if the tags differ, an image of the split has no prediction (unless
    allowed), or none has; `UsageError` for a assignment that concerns no attribute.
    """
    exclusive = catalog.table.exclusive or predictions.exclusive
    check_assignment(assignment, exclusive)
    columns = _columns(predictions.tags, catalog)
    rows = catalog.rows(split)
    wanted = catalog.image_ids[rows]
    order = np.argsort(predictions.image_ids)
    sorted_ids = predictions.image_ids[order]
    # An id that sorts after all others has place n: clip it, the comparison then says it is missing
    place = np.minimum(np.searchsorted(sorted_ids, wanted), max(len(order) - 1, 0))
    present = sorted_ids[place] == wanted if len(order) else np.zeros(len(wanted), bool)
    missing = wanted[~present]
    if len(missing) and not (allow_missing and present.any()):
        raise ArtefactError(
            f"The predictions lack {len(missing):,} of the {len(wanted):,} images of the {split} "
            f"split ({named(missing.tolist())}); predict them, or score another split."
        )
    logits = predictions.logits[order[place[present]]][:, columns]
    thresholds = predictions.thresholds[columns]
    rows = rows[present]
    return Aligned(
        rows=rows,
        logits=logits,
        predicted=assign(logits, thresholds, catalog.table.tags, exclusive, assignment),
        thresholds=thresholds,
        labels=catalog.table.labels[rows],
        missing=missing,
        exclusive=exclusive,
    )


def _columns(tags: tuple[str, ...], catalog: Catalog) -> NDArray[np.intp]:
    """Column of the predictions for each tag of the catalogue."""
    expected = catalog.table.tags
    lacking = sorted(set(expected) - set(tags))
    extra = sorted(set(tags) - set(expected))
    if lacking or extra:
        differ = [f"lack {named(lacking)}"] if lacking else []
        differ += [f"have {named(extra)} that the catalogue lacks"] if extra else []
        raise ArtefactError(
            f"The predictions' tags differ from those of {catalog.path}: they "
            f"{' and '.join(differ)}; fit on this catalogue, or score with the one that they were "
            "made from."
        )
    position = {tag: j for j, tag in enumerate(tags)}
    return np.array([position[tag] for tag in expected], dtype=np.intp)


def product_counts(aligned: Aligned, catalog: Catalog) -> ProductCounts:
    """Counts per product of the scored images, for the bootstrap."""
    return count_by_product(aligned.predicted, aligned.labels, catalog.group[aligned.rows])
