"""Split a catalogue into train, val and test, once or several times, with products kept whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from retailtag.catalog.catalog import SPLITS, Catalog
from retailtag.catalog.folds import stratified_folds
from retailtag.catalog.manifest import csv_text
from retailtag.catalog.products import NO_PRODUCTS, GroupBy, Grouping, has_products, joined
from retailtag.catalog.readers import read_catalog, read_columns, write_catalogue
from retailtag.catalog.similar import SimilarImages, similar_images
from retailtag.errors import UsageError, check_seed
from retailtag.files import write_text
from retailtag.settings import CatalogSettings


@dataclass(frozen=True, eq=False)
class SplitCatalog:
    """A catalogue under its new split."""

    catalog: Catalog
    unsatisfied: tuple[str, ...]  # a sentence for each size or tag that could not be satisfied
    seed: int
    out: Path | None = None  # the manifest that was written
    summary: tuple[str, ...] = ()  # `unsatisfied` with one sentence for all tags of a kind
    fold: int | None = None  # the fold that is the test split, from 1
    similar: SimilarImages | None = None  # what --group-by similar found

    @property
    def sizes(self) -> dict[str, int]:
        """Number of images in each split."""
        return {name: len(self.catalog.rows(name)) for name in SPLITS}

    @property
    def product_sizes(self) -> tuple[int, int]:
        """Number of products, and images of the largest one."""
        counts = np.unique(self.catalog.group, return_counts=True)[1]
        return len(counts), int(counts.max())

    def to_json(self) -> dict[str, Any]:
        """Plain dictionary for ``--json``."""
        return {
            "out": None if self.out is None else str(self.out),
            "sizes": self.sizes,
            "products": self.product_sizes[0],
            "largest_product": self.product_sizes[1],
            "unsatisfied": list(self.unsatisfied),
            "seed": self.seed,
            "fold": self.fold,
            "similar": None if self.similar is None else self.similar.to_json(),
        }


def split(
    catalog: Any,
    *,
    test: float,
    val: float = 0,
    seed: int = 0,
    settings: CatalogSettings | None = None,
    grouping: Grouping | None = None,
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
    grouping : Grouping, optional
        How the products are found; by default those of the catalogue.
    out : str or Path, optional
        CSV manifest to write.
    force : bool
        Overwrite `out`, even if it is the input itself.

    Raises
    ------
    UsageError
        If `test` or `val` is out of range, a split would be empty, or `out` is not a CSV or exists.
    DataError
        If the catalogue cannot be read; with `out`, if its images have no paths.
    """
    return splits(
        catalog,
        test=test,
        val=val,
        seeds=(seed,),
        settings=settings,
        grouping=grouping,
        out=out,
        force=force,
    )[0]


def splits(
    catalog: Any,
    *,
    test: float | None = None,
    val: float = 0,
    folds: int | None = None,
    seeds: Sequence[int] = (0,),
    settings: CatalogSettings | None = None,
    grouping: Grouping | None = None,
    out: str | Path | None = None,
    force: bool = False,
) -> tuple[SplitCatalog, ...]:
    """Split once for each seed, or into `folds` splits that each have another fold as test.

    Parameters and errors are those of `split`. With several splits, ``split.csv`` becomes
    ``split-seed0.csv`` or ``split-fold1.csv``. Nothing is written unless all can be.
    """
    for seed in seeds:
        check_seed(seed)
    if (test is None) == (folds is None) or (folds is not None and val):
        raise UsageError("Give --test (and --val if you like), or --folds alone.")
    places = _places(None if out is None else Path(out), folds, seeds)
    if not force:
        _refuse_existing(places, grouping)
    catalog, similar = _with_products(catalog, settings, grouping)
    made: list[SplitCatalog] = []
    for seed in seeds:
        if test is not None:
            made.append(_divide(catalog, test, val, seed))
        else:
            made += _fold(catalog, folds or 0, seed)
    made = [
        replace(one, out=place, similar=similar) for one, place in zip(made, places, strict=True)
    ]
    for one in made:
        if one.out is not None:
            write_catalogue(one.catalog, one.out)
            if similar is not None:
                write_text(beside(one.out, "similar.csv"), _table(one.catalog, similar))
    return tuple(made)


def beside(out: Path, ending: str) -> Path:
    """Name of a file that belongs to a manifest: ``split.csv`` has ``split.similar.csv``."""
    return out.with_name(f"{out.stem}.{ending}")


def _places(out: Path | None, folds: int | None, seeds: Sequence[int]) -> list[Path | None]:
    """Manifest of every split."""
    names = [f"-seed{seed}" if len(seeds) > 1 else "" for seed in seeds]
    if folds is not None:
        names = [f"{name}-fold{k + 1}" for name in names for k in range(folds)]
    if out is None:
        return [None] * len(names)
    if out.suffix.lower() != ".csv":
        raise UsageError(f"--out {out}: the manifest is written as CSV; end its name in .csv.")
    places = [out.with_name(f"{out.stem}{name}.csv") if name else out for name in names]
    return [*places]


def _refuse_existing(places: Sequence[Path | None], grouping: Grouping | None) -> None:
    """Raise `UsageError` if a manifest exists, or a file that would be written beside it."""
    endings = ("similar.csv", "similar.html") if grouping and grouping.by.similar else ()
    for place in filter(None, places):
        for file in (place, *(beside(place, ending) for ending in endings)):
            if file.exists():
                raise UsageError(f"{file} exists; give another --out, or --force to overwrite it.")


def _with_products(
    source: Any, settings: CatalogSettings | None, grouping: Grouping | None
) -> tuple[Catalog, SimilarImages | None]:
    """The catalogue with the products that the grouping finds, and what `similar` found."""
    is_read = isinstance(source, Catalog)
    catalog = source if is_read else read_catalog(source, settings, use_split=False)
    by = GroupBy() if grouping is None else grouping.by
    known = {"group": catalog.group.tolist(), "title": catalog.title.tolist()}
    asked = [name for name in by.columns if name not in known]
    if asked and is_read:
        raise UsageError(
            f"A catalogue that is read has no column {', '.join(asked)}; give its path or table."
        )
    groups = by.groups(catalog, known | (read_columns(source, settings, asked) if asked else {}))
    if grouping is None or not by.similar:
        return replace(catalog, group=groups), None
    similar = similar_images(grouping.look(catalog), catalog.table.labels)
    return replace(catalog, group=joined(groups, similar.cluster)), similar


def _divide(catalog: Catalog, test: float, val: float, seed: int) -> SplitCatalog:
    """Split by sizes."""
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
    made = SplitCatalog(divided, found.unsatisfied, seed, summary=found.summary)
    _refuse_empty(made, names)
    return made


def _fold(catalog: Catalog, k: int, seed: int) -> list[SplitCatalog]:
    """Split into `k` folds; each is the test split once."""
    n = len(catalog)
    n_products = len(np.unique(catalog.group))
    if not 2 <= k <= n_products:
        raise UsageError(f"--folds {k} of {n_products} products: give 2 to {n_products}.")
    found = stratified_folds(
        catalog.table.labels,
        catalog.group,
        catalog.image_ids,
        [n // k + (fold < n % k) for fold in range(k)],
        seed,
        tags=catalog.table.tags,
        names=[f"fold {fold + 1}" for fold in range(k)],
    )
    made = []
    for fold in range(k):
        divided = catalog.with_split(np.where(found.fold == fold, "test", "train"))
        one = SplitCatalog(divided, found.unsatisfied, seed, summary=found.summary, fold=fold + 1)
        _refuse_empty(one, ("train", "test"))
        made.append(one)
    return made


def _refuse_empty(made: SplitCatalog, names: Sequence[str]) -> None:
    """Raise `UsageError` if a split that was asked for has no image."""
    empty = [name for name in names if not made.sizes[name]]
    if empty:
        n_products, largest = made.product_sizes
        raise UsageError(
            f"{' and '.join(empty)} would be empty: the {len(made.catalog):,} images are "
            f"{n_products:,} products, the largest of {largest:,} images, and a split never "
            "divides one. Hold out more images, or group by something finer."
        )


def _n_images(wanted: float, n: int, name: str) -> int:
    if not (0 <= wanted < 1 if isinstance(wanted, float) else wanted >= 0):  # NaN is refused too
        raise UsageError(f"--{name} {wanted}: give a number of images, or a fraction below 1.")
    return round(wanted * n) if isinstance(wanted, float) else int(wanted)


def _table(catalog: Catalog, similar: SimilarImages) -> str:
    """CSV of the images that were found to be similar: their product and cluster, id and split."""
    rows = [
        (
            str(catalog.group[row]),
            str(catalog.image_ids[rows[0]]),
            str(catalog.image_ids[row]),
            str(catalog.split[row]),
            str(catalog.title[row]),
        )
        for rows in similar.members
        for row in rows.tolist()
    ]
    return csv_text(("group", "cluster", "image_id", "split", "title"), rows)


def without_products(catalog: Catalog) -> str:
    """Remark that no product has two images; empty if one has."""
    return "" if has_products(catalog) else NO_PRODUCTS
