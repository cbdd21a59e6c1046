"""Images to compare, from a catalogue or from files, and what the comparison sees of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from retailtag.catalog.catalog import Catalog
from retailtag.catalog.named import NamedImage, named_images
from retailtag.catalog.readers import read_products
from retailtag.errors import DataError, named
from retailtag.images.loader import Failure
from retailtag.images.sources import MAX_BYTES, ImageSource
from retailtag.progress import SILENT, Progress
from retailtag.settings import CatalogSettings
from retailtag.tagger.drift.sample import Sample, drawn_rows, observe

if TYPE_CHECKING:
    from retailtag.tagger.tagger import Tagger


class _Named(ImageSource):
    """Images that were named one by one, by their place."""

    def __init__(self, images: Sequence[NamedImage]) -> None:
        self._images = images
        super().__init__(Path(), [image.path for image in images])

    def name(self, index: int) -> str:
        """The image as it was named."""
        return self._images[index].image_id

    def _read(self, index: int) -> bytes:
        return self._images[index].read()


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
    def of_sources(
        cls,
        sources: Sequence[Any],
        settings: CatalogSettings | None = None,
        *,
        max_bytes: int = MAX_BYTES,
        stdin: IO[bytes] | None = None,
    ) -> Pictures:
        """Images that `named_images` finds; their products are those of a manifest, if it has any.

        Raises what `named_images` raises.
        """
        named_there = named_images(sources, settings, max_bytes=max_bytes, stdin=stdin)
        images = list(named_there)
        found = read_products(sources[0], settings) if named_there.is_manifest else None
        group = None if found is None or not any(found) else np.array(found, np.str_)
        names = [image.image_id for image in images]
        notes = tuple(named_there.notes)
        if named_there.n_repeated:
            notes += (f"{named_there.n_repeated:,} images are named more than once.",)
        places = [str(s) if isinstance(s, str | Path) else type(s).__name__ for s in sources]
        return cls(
            _Named(images),
            np.arange(len(images)),
            names,
            group,
            named(list(dict.fromkeys(places))),
            notes,
        )

    def drawn(self, n: int, seed: int) -> NDArray[np.intp]:
        """About `n` of the rows, whole products drawn at random."""
        if self.group is not None:
            return self.rows[drawn_rows(self.group[self.rows], n, seed)]
        order = np.random.default_rng(seed).permutation(len(self.rows))
        return self.rows[np.sort(order[:n])]


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
