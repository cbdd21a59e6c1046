"""Labels that are likely wrong, by scores of fits that have not seen them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from retailtag.catalog.catalog import Catalog
from retailtag.catalog.table import NEGATIVE, POSITIVE
from retailtag.errors import UsageError
from retailtag.files import write_text
from retailtag.runs.tune import Model
from retailtag.scoring.csvs import csv_text
from retailtag.thresholds.plug_in import Histogram
from retailtag.thresholds.ranking import rank_tags

ERROR, GAP = "error", "gap"
TAGS_AT_ONCE = 64  # of the products x tags of which the most suspicious are kept
COLUMNS = (
    *("rank", "kind", "tag", "suspicion", "log_odds", "group", "train_count"),
    *("product", "n_images", "image_id", "path"),
)

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Suspect:
    """A tag of a product that is likely given wrongly (`ERROR`) or missing (`GAP`)."""

    rank: int  # from 1, the most suspicious first
    kind: str
    tag: str
    suspicion: float  # log-odds that the label is wrong, less the log of the rate of such faults
    log_odds: float  # of the tag, mean over the product's images with this label
    group: str  # frequency group of the tag
    train_count: int
    product: str
    n_images: int
    image_id: str  # the product's image that is most against the label
    path: str


@dataclass(frozen=True, eq=False)
class Audit:
    """Suspicious labels, the most suspicious first."""

    suspects: tuple[Suspect, ...]
    n_images: int
    n_products: int
    is_validation: bool  # of the images of a validation set, not of all training images

    def save(self, path: Path) -> None:
        """Write a CSV, whole or not at all."""
        write_text(path, csv_text(COLUMNS, self.suspects))


@dataclass(frozen=True, eq=False)
class _Cells:
    """Suspicious (product, tag) cells of some tags."""

    suspicion: Floats  # (n,)
    product: NDArray[np.intp]
    tag: NDArray[np.intp]
    is_gap: NDArray[np.bool_]

    def top(self, n: int) -> _Cells:
        """The n most suspicious, in order; of equal ones by tag and product."""
        order = np.lexsort((self.product, self.tag, -self.suspicion))[:n]
        return _Cells(*(part[order] for part in vars(self).values()))

    def joined(self, other: _Cells) -> _Cells:
        """Both."""
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return _Cells(*(np.concatenate(pair) for pair in pairs))


def audit(model: Model, catalog: Catalog, top: int) -> Audit:
    r"""The `top` most suspicious labels of the images whose scores a model kept.

    Notes
    -----
    With z the calibrated log-odds that an annotator gives the tag, seen on the other products, and
    :math:`\pi` the share of images that carry it:

    * a missing tag is a gap with odds :math:`d\,e^{z}`, if annotators forget a share d of tags;
    * a given tag is an error with odds :math:`c\,\frac{\pi}{1-\pi} e^{-z}`, if they give a
      tag in error c times as often as rightly elsewhere: a rare tag that scores low as such, but
      much higher than images do in general, is not suspicious.

    Neither d nor c is known; both are taken to be equal for all tags, and to each other. z is
    calibrated by Platt scaling over each frequency group, since a rare tag has too few positives
    for its own, and averaged over the images of a product.
    """
    if top < 1:
        raise UsageError(f"--top {top} must be at least 1.")
    rows = model.rows(catalog)
    labels = catalog.table.labels[rows]
    z = calibrated(model.scores.logits, labels, catalog.table.group)
    products, product = np.unique(catalog.group[rows], return_inverse=True)
    n_tags = len(catalog.table.tags)
    best: _Cells | None = None
    for start in range(0, n_tags, TAGS_AT_ONCE):
        block = slice(start, start + TAGS_AT_ONCE)
        for found in _suspicious(z[:, block], labels[:, block], product, len(products), start):
            best = (best.joined(found) if best else found).top(top)
    assert best is not None
    suspects = tuple(_rows(best, z, labels, rows, product, catalog))
    return Audit(suspects, len(rows), len(products), model.scores.fold is None)


def calibrated(
    logits: NDArray[np.float32], labels: NDArray[np.int8], group: NDArray[np.str_]
) -> NDArray[np.float32]:
    """Log-odds (n_images, n_tags) by Platt scaling pooled over the tags of each group."""
    z = np.full(logits.shape, -np.inf, np.float32)  # a tag that no image carries has no score
    ranked = rank_tags(logits, labels)
    for name in np.unique(group):
        own = [k for k in np.flatnonzero(group == name).tolist() if ranked[k].positives]
        if own:
            slope, offset = Histogram.of([ranked[k] for k in own]).platt()
            z[:, own] = max(slope, 0.0) * logits[:, own] + offset
    return z


def _suspicious(
    z: NDArray[np.float32],
    labels: NDArray[np.int8],
    product: NDArray[np.intp],
    n_products: int,
    first: int,
) -> Iterator[_Cells]:
    """Cells of a block of tags that begins at column `first`: the errors, then the gaps."""
    known = (labels == POSITIVE) | (labels == NEGATIVE)
    n_known = known.sum(axis=0)
    share = (labels == POSITIVE).sum(axis=0) / np.maximum(n_known, 1)
    base = np.log(np.maximum(share, 1e-12)) - np.log1p(-np.minimum(share, 1 - 1e-12))
    for value, is_gap in ((POSITIVE, False), (NEGATIVE, True)):
        image, tag = np.nonzero(labels == value)
        shape = (n_products, labels.shape[1])
        cell = product[image] * shape[1] + tag
        n = np.bincount(cell, minlength=shape[0] * shape[1])
        scored = np.maximum(z[image, tag], -1e6)
        mean = np.bincount(cell, scored, minlength=len(n)) / np.maximum(n, 1)
        at, column = np.divmod(np.flatnonzero(n), shape[1])
        odds = mean[n > 0]
        suspicion = odds if is_gap else base[column] - odds
        # A tag that nearly every image carries or lacks says nothing; its share is no evidence.
        tells = (share[column] > 0) & (share[column] < 1)
        yield _Cells(
            suspicion[tells], at[tells], column[tells] + first, np.full(int(tells.sum()), is_gap)
        )


def _rows(
    cells: _Cells,
    z: NDArray[np.float32],
    labels: NDArray[np.int8],
    rows: NDArray[np.intp],
    product: NDArray[np.intp],
    catalog: Catalog,
) -> Iterator[Suspect]:
    order = np.argsort(product, kind="stable")
    ends = np.searchsorted(product[order], np.arange(int(product.max()) + 2))
    table, group = catalog.table, catalog.table.group
    columns = (cells.suspicion.tolist(), cells.product.tolist(), cells.tag.tolist(), cells.is_gap)
    for rank, (suspicion, p, tag, is_gap) in enumerate(zip(*columns, strict=True), start=1):
        members = order[ends[p] : ends[p + 1]]
        members = members[labels[members, tag] == (NEGATIVE if is_gap else POSITIVE)]
        own = z[members, tag]
        worst = int(rows[members[int(np.argmax(own if is_gap else -own))]])
        yield Suspect(
            rank=rank,
            kind=GAP if is_gap else ERROR,
            tag=table.tags[tag],
            suspicion=suspicion,
            log_odds=float(own.mean()) if np.isfinite(own).all() else -math.inf,
            group=str(group[tag]),
            train_count=int(table.train_count[tag]),
            product=str(catalog.group[worst]),
            n_images=len(members),
            image_id=str(catalog.image_ids[worst]),
            path=catalog.images.name(worst),
        )
