"""The part of a catalogue that all peers work on: images copied, tags as every tool reads them."""

from __future__ import annotations

import csv
import hashlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from retailtag.catalog.catalog import Catalog
from retailtag.catalog.manifest import SEPARATOR
from retailtag.catalog.table import POSITIVE, UNKNOWN
from retailtag.files import make_folder

NAME = "catalogue.csv"


def draw(catalog: Catalog, split: str, wanted: int | None) -> NDArray[np.intp]:
    """Rows of a split, whole products until `wanted` images are reached; None: all rows.

    Products come in the order of the SHA-256 of their names. The draw needs no seed, does not
    depend on the order of the rows, and a larger one contains a smaller one.
    """
    rows = catalog.rows(split)
    if wanted is None:
        return rows
    if wanted > len(rows):
        raise SystemExit(
            f"{catalog.path} has {len(rows):,} images in its {split} split; ask for at most these."
        )
    products, member = np.unique(catalog.group[rows], return_inverse=True)
    order = np.argsort([hashlib.sha256(name.encode()).hexdigest() for name in products.tolist()])
    sizes = np.bincount(member)[order]
    before = np.cumsum(sizes) - sizes  # images drawn before each product's turn
    return rows[np.isin(member, order[before < wanted])]


def write_part(
    catalog: Catalog, folder: Path, images: int | None, test: int | None, least: int
) -> Path:
    """Write the part as a folder with ``catalogue.csv`` and ``images``; return the manifest.

    Tags with fewer than `least` drawn training images are left out, and so are images without
    any other tag, because some tools skip them. Cells that nobody annotated are refused: the other
    tools would take them for absent tags.
    """
    train, rows = draw(catalog, "train", images), draw(catalog, "test", test)
    labels = catalog.table.labels
    kept = np.flatnonzero((labels[train] == POSITIVE).sum(axis=0) >= least)
    names = np.array(catalog.table.tags, dtype=object)[kept]
    if not len(kept):
        raise SystemExit(f"No tag has {least} training images; draw more, or lower --least.")
    if any(SEPARATOR in name for name in names):
        raise SystemExit(f"A tag of {catalog.path} holds {SEPARATOR}, which separates tags.")
    rows = np.concatenate([train, rows])
    rows = rows[(labels[np.ix_(rows, kept)] == POSITIVE).any(axis=1)]
    if (labels[np.ix_(rows, kept)] == UNKNOWN).any():
        raise SystemExit(f"{catalog.path} has cells that nobody annotated; peers cannot use it.")
    make_folder(folder / "images")
    with (folder / NAME).open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["image_id", "path", "tags", "split", "group"])
        for row in rows:
            path = f"images/{row:07d}{Path(catalog.images.paths[row]).suffix.lower()}"
            (folder / path).write_bytes(catalog.images.read(int(row)))
            tags = SEPARATOR.join(names[labels[row, kept] == POSITIVE])
            writer.writerow(
                [catalog.image_ids[row], path, tags, catalog.split[row], catalog.group[row]]
            )
    return folder / NAME
