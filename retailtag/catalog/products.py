"""Which images show one product: by columns, by a pattern in ids or paths, or by their looks."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from retailtag.catalog.catalog import Catalog
from retailtag.catalog.similar import MAX_PHOTOS, Look, tags_name_products

_VIEW = re.compile(r"[_-][^_/-]*$")  # what tells photographs of one product apart: -2, _back


def has_products(catalog: Catalog) -> bool:
    """Whether any product has two images."""
    return len(np.unique(catalog.group)) < len(catalog)


def missing_products(catalog: Catalog, look: Look) -> str:
    """Warning that images may show one product though none is named; empty if nothing says so."""
    if has_products(catalog):
        return ""
    signs = list(_signs_of_products(catalog))
    if tags_name_products(look, catalog.table.labels):
        signs.append(("similar", "images that look alike mostly have the very same tags"))
    if not signs:
        return ""
    ways = ", ".join(f"--group-by {way}" for way, _ in reversed(signs))
    return (
        "No product is named (a column group is missing, or no value of it repeats), but several "
        f"images may show one: {'; '.join(sign for _, sign in signs)}. Photographs of one product "
        "in two splits make scores far too high; name the column of the products with "
        f"--group-column, or keep them together with retailtag catalog split {ways}."
    )


def _signs_of_products(catalog: Catalog) -> Iterator[tuple[str, str]]:
    """A value of ``--group-by``, and what suggests it, from the rows alone."""
    titles = catalog.title[catalog.title != ""]
    if len(titles) > len(catalog) / 2 and _repeats(titles):
        yield "title", f"{len(titles):,} images have {len(np.unique(titles)):,} titles"
    names = np.array([_VIEW.sub("", i) for i in catalog.image_ids.tolist()])
    if _repeats(names):
        yield (
            r"'id:(.+)[_-]'",
            f"{len(names):,} ids have {len(np.unique(names)):,} beginnings before the last - or _",
        )


def _repeats(names: NDArray[np.str_]) -> bool:
    """Whether the middle image shares its name with another, and with few enough to be photos."""
    _, code, count = np.unique(names, return_inverse=True, return_counts=True)
    return bool(2 <= np.median(count[code]) <= MAX_PHOTOS)
