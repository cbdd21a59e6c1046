"""Split a catalogue into train, val and test."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from retailtag.catalog.catalog import SPLITS, Catalog
from retailtag.catalog.folds import stratified_folds
from retailtag.catalog.readers import read_catalog, write_catalogue
from retailtag.errors import UsageError, check_seed
from retailtag.settings import CatalogSettings


@dataclass(frozen=True, eq=False)
class SplitCatalog:
    """A catalogue under its new split."""

    catalog: Catalog
    unsatisfied: tuple[str, ...]  # a sentence for each size or tag that could not be satisfied
    seed: int
    out: Path | None = None  # the manifest that was written

    @property
    def sizes(self) -> dict[str, int]:
        """Number of images in each split."""
        return {name: len(self.catalog.rows(name)) for name in SPLITS}

    def to_json(self) -> dict[str, Any]:
        """Plain dictionary for ``--json``."""
        return {
            "out": None if self.out is None else str(self.out),
            "sizes": self.sizes,
            "unsatisfied": list(self.unsatisfied),
            "seed": self.seed,
        }


def split(
    catalog: Any,
    *,
    test: float,
    val: float = 0,
    seed: int = 0,
    settings: CatalogSettings | None = None,
    out: str | Path | None = None,
    force: bool = False,
) -> SplitCatalog:
    """Stratify over tags into train, val and test, with no product separated.

    Parameters
    ----------
    catalog : Catalog, or whatever `read_catalog` takes
        Its present split is ignored.
    test, val : int or float
        Images held out: a number (int), or a fraction below 1 (float). The split is as near to it
        as whole products allow.
    seed : int
        Decides between equals.
    settings : CatalogSettings, optional
        As for `read_catalog`, where `catalog` has to be read.
    out : str or Path, optional
        CSV manifest to write.
    force : bool
        Overwrite `out`, even if it is the input itself.

    Raises
    ------
    UsageError
        If `test` or `val` is out of range, nothing is left to train on, or `out` is not a CSV or
        exists.
    DataError
        If the catalogue cannot be read; with `out`, if its images have no paths.
    """
    check_seed(seed)
    out = None if out is None else Path(out)
    if out is not None and out.suffix.lower() != ".csv":
        raise UsageError(f"--out {out}: the manifest is written as CSV; end its name in .csv.")
    if out is not None and out.exists() and not force:
        raise UsageError(f"--out {out} exists; give another name, or --force to overwrite it.")
    if not isinstance(catalog, Catalog):
        catalog = read_catalog(catalog, settings, use_split=False)
    n = len(catalog)
    n_test = _n_images(test, n, "test")
    n_val = _n_images(val, n, "val")
    if n_test == 0 or n_test + n_val >= n:
        raise UsageError(
            f"{n_val} val and {n_test} test of {n} images: hold out at least one test image "
            "and leave some to train on."
        )
    wanted = {"train": n - n_val - n_test, "val": n_val, "test": n_test}
    names = [name for name in SPLITS if wanted[name]]
    found = stratified_folds(
        catalog.table.labels,
        catalog.group,
        catalog.image_ids,
        [wanted[name] for name in names],
        seed,
        tags=catalog.table.tags,
        names=names,
    )
    divided = catalog.with_split(np.array(names)[found.fold])
    if out is not None:
        write_catalogue(divided, out)
    return SplitCatalog(divided, found.unsatisfied, seed, out)


def _n_images(wanted: float, n: int, name: str) -> int:
    if wanted < 0 or (isinstance(wanted, float) and wanted >= 1):
        raise UsageError(f"--{name} {wanted}: give a number of images, or a fraction below 1.")
    return round(wanted * n) if isinstance(wanted, float) else int(wanted)
