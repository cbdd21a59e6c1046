"""Images to compare, from a catalogue or from files, and what the comparison sees of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from retailtag.catalog.catalog import Catalog
from retailtag.errors import DataError
from retailtag.images.loader import Failure
from retailtag.images.sources import MAX_BYTES, FolderImages, ImageSource
from retailtag.progress import SILENT, Progress
from retailtag.tagger.drift.sample import Sample, drawn_rows, observe

if TYPE_CHECKING:
    from retailtag.tagger.tagger import Tagger

HELD_OUT = ("test", "val")  # splits to compare with, the best first


@dataclass(frozen=True, eq=False)
class Pictures:
    """Rows of an image source."""

    images: ImageSource
    rows: NDArray[np.intp]
    names: Sequence[str]  # by row of the source
    group: NDArray[np.str_] | None  # products by row of the source; None: unknown
    described: str
    notes: tuple[str, ...] = ()

    @classmethod
    def of_split(cls, catalog: Catalog, split: str | None = None) -> Pictures:
        """Images of one split, held-out ones by default: scores on training images are too high.

        Raises
        ------
        DataError
            If the split is empty.
        """
        present = [name for name in (*HELD_OUT, "train") if len(catalog.rows(name))]
        chosen = split or next(iter(present), "train")
        rows = catalog.rows(chosen)
        if not len(rows):
            raise DataError(f"{catalog.path} has no image in the split {chosen}; name another.")
        notes: tuple[str, ...] = ()
        if chosen == "train":
            notes = (
                "The reference is the train split. If the model was fitted on these images, its "
                "scores on them are too confident, and new images will seem to have drifted; "
                "compare with held-out images.",
            )
        return cls._of(catalog, rows, f"{chosen} split of {catalog.path.name}", notes)

    @classmethod
    def of_catalog(cls, catalog: Catalog) -> Pictures:
        """All images of a catalogue."""
        return cls._of(catalog, np.arange(len(catalog)), catalog.path.name)

    @classmethod
    def _of(
        cls, catalog: Catalog, rows: NDArray[np.intp], described: str, notes: tuple[str, ...] = ()
    ) -> Pictures:
        known = bool((catalog.group != catalog.image_ids).any())
        group = catalog.group if known else None
        return cls(catalog.images, rows, catalog.image_ids.tolist(), group, described, notes)

    @classmethod
    def of_files(
        cls, paths: Sequence[Path], described: str, max_bytes: int = MAX_BYTES
    ) -> Pictures:
        """Image files, whose products are unknown."""
        # Named one by one, not by a manifest: they may lie anywhere.
        absolute = [str(path.absolute()) for path in paths]
        images = FolderImages(Path("/"), absolute)
        images.max_bytes = max_bytes
        return cls(images, np.arange(len(paths)), list(map(str, paths)), None, described)

    def drawn(self, n: int, seed: int) -> NDArray[np.intp]:
        """About `n` of the rows, whole products drawn at random."""
        names = np.array([self.names[row] for row in self.rows], np.str_)
        group = names if self.group is None else self.group[self.rows]
        return self.rows[drawn_rows(group, n, seed)]


def read_sample(
    tagger: Tagger,
    pictures: Pictures,
    n: int,
    seed: int,
    *,
    workers: int = 0,
    progress: Progress = SILENT,
) -> tuple[Sample, list[Failure], NDArray[np.intp]]:
    """About `n` images as a model sees them, those that failed, and the rows that were drawn.

    Raises
    ------
    DataError
        If none can be read.
    """
    rows = pictures.drawn(n, seed)
    sample, failures = observe(
        tagger,
        pictures.images,
        rows,
        pictures.group,
        pictures.names,
        workers=workers,
        progress=progress,
    )
    if not len(sample):
        first = failures[0]
        raise DataError(
            f"None of the {len(failures):,} images of {pictures.described} could be read; "
            f"{pictures.names[first.row]} {first.reason}."
        )
    return sample, failures, rows
