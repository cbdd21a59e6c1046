"""The catalogue: images, their tags, and the splits they are in."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retailtag.catalog.table import TagTable
from retailtag.errors import DataError, UsageError
from retailtag.images.sources import ImageSource

SPLITS = ("train", "val", "test")


@dataclass(frozen=True, eq=False)
class Catalog:
    """Images, their labels and their splits; all per-image arrays share one row order.

    Raises
    ------
    DataError
        If the arrays differ in length, an id repeats or a split is unknown.
    """

    path: Path  # the manifest (or folder) that was read; for messages and provenance
    image_ids: NDArray[np.str_]  # unique, (n_images,)
    split: NDArray[np.str_]  # train, val or test, (n_images,)
    # Product of each image (n_images,), which a split never separates; its id where none was given
    group: NDArray[np.str_]
    title: NDArray[np.str_]  # free text, empty where none was given, (n_images,)
    table: TagTable  # labels (n_images, n_tags) and training counts
    images: ImageSource  # gives the bytes of row i
    notes: tuple[str, ...] = ()  # sentences on what was left out or assumed in reading it

    @classmethod
    def from_table(cls, table: Any, **options: Any) -> Catalog:
        """Read a table in memory, with the same columns and checks as a manifest.

        Parameters
        ----------
        table : pandas.DataFrame, pyarrow.Table, dict of columns or list of dict
            With ``path`` (relative to the working directory, or absolute) or ``image`` (bytes or
            PIL images), and ``tags``; see `retailtag.catalog.readers.read_catalog`. Other tables
            that export Arrow data, such as polars', are read too.
        **options
            Fields of `retailtag.settings.CatalogSettings`, such as ``attributes`` and ``images``.

        Raises
        ------
        BadCatalogue
            With every row that cannot be used.
        UsageError
            If `table` is no table.

        Examples
        --------
        >>> from PIL import Image
        >>> red, blue = (Image.new("RGB", (64, 64), colour) for colour in ("red", "blue"))
        >>> columns = {"image": [red, blue], "tags": [["red", "shirt"], ["blue"]]}
        >>> Catalog.from_table(columns).table.tags
        ('blue', 'red', 'shirt')
        """
        if isinstance(table, str | Path):
            raise UsageError(f"from_table takes a table; read {table} with read_catalog.")
        # The readers make catalogues: an import here would be a circle.
        readers = import_module("retailtag.catalog.readers")
        catalog: Catalog = readers.read_catalog(table, **options)
        return catalog

    def __post_init__(self) -> None:
        n = len(self.image_ids)
        if not (len(self.split) == len(self.group) == len(self.title) == n):
            raise DataError("A catalogue needs one split, group and title per image.")
        if len(self.table.labels) != n:
            raise DataError("A catalogue needs one row of labels per image.")
        if len(np.unique(self.image_ids)) != n:
            raise DataError("An image id appears twice in the catalogue.")
        if not np.isin(self.split, SPLITS).all():
            raise DataError(f"A split is not one of {', '.join(SPLITS)}.")

    def __len__(self) -> int:
        return len(self.image_ids)

    def rows(self, *splits: str) -> NDArray[np.intp]:
        """Row numbers of the images in any of `splits`, ascending."""
        return np.flatnonzero(np.isin(self.split, splits))

    def with_split(self, split: NDArray[np.str_]) -> Catalog:
        """The same catalogue under another split (n_images,), training counts included."""
        table = self.table
        recounted = TagTable.build(table.tags, table.labels, split == "train", table.cutoffs)
        return replace(self, split=split, table=replace(recounted, exclusive=table.exclusive))

    @cached_property
    def digest(self) -> str:
        """SHA-256 over ids, splits, groups, tags and labels (not image bytes), hexadecimal."""
        # Unit and record separators, which no sensible text holds, keep cells and columns apart.
        h = hashlib.sha256()
        for column in (self.image_ids, self.split, self.group, np.array(self.table.tags)):
            h.update("\x1f".join(column.tolist()).encode())
            h.update(b"\x1e")
        h.update(np.ascontiguousarray(self.table.labels).tobytes())
        return h.hexdigest()
