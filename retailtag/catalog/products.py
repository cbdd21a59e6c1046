"""Which images show one product: by columns, by a pattern in ids or paths, or by their looks."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retailtag.catalog.catalog import Catalog
from retailtag.catalog.similar import (
    MAX_PHOTOS,
    Look,
    tags_name_products,
)
from retailtag.catalog.thumbnails import read_thumbnails
from retailtag.errors import DataError, UsageError, named
from retailtag.progress import SILENT, Progress

SIMILAR = "similar"
NO_PRODUCTS = (
    "Every image counts as a product of its own. If several photographs show one product, scores "
    "will be too high: name their column with --group-column, or find them with retailtag catalog "
    "split --group-by similar."
)
# Embeddings of image ids: float32 (n_found, dim), and whether each id has one (n_ids,)
ReadEmbeddings = Callable[[Sequence[str]], tuple[NDArray[np.float32], NDArray[np.bool_]]]
_VIEW = re.compile(r"[_-][^_/-]*$")  # what tells photographs of one product apart: -2, _back


@dataclass(frozen=True)
class GroupBy:
    """What keeps images together, as `parse` reads it."""

    columns: tuple[str, ...] = ()
    patterns: tuple[tuple[str, re.Pattern[str]], ...] = ()  # of ``id`` or ``path``
    similar: bool = False

    @classmethod
    def parse(cls, ways: Sequence[str]) -> GroupBy:
        """Read ``similar``, ``id:REGEX``, ``path:REGEX`` or columns joined by commas.

        Raises
        ------
        UsageError
            If a pattern is no regular expression, or nothing is named.

        Examples
        --------
        >>> by = GroupBy.parse(["brand,style", "id:^[^_]+"])
        >>> by.columns, by.patterns[0][1].pattern, by.similar
        (('brand', 'style'), '^[^_]+', False)
        """
        columns: list[str] = []
        patterns = []
        for way in ways:
            place, colon, pattern = way.partition(":")
            if colon and place in ("id", "path"):
                patterns.append((place, _compiled(way, pattern)))
            elif way.strip() != SIMILAR:
                columns += [name.strip() for name in way.split(",")]
        if not all(columns):
            raise UsageError(
                "--group-by names nothing; give columns, id:REGEX, path:REGEX or similar."
            )
        if SIMILAR in columns:
            raise UsageError(
                "--group-by similar is no column; repeat the option: --group-by a,b "
                "--group-by similar."
            )
        return cls(tuple(columns), tuple(patterns), SIMILAR in map(str.strip, ways))

    def groups(self, catalog: Catalog, columns: Mapping[str, Sequence[str]]) -> NDArray[np.str_]:
        """Product of each image (n_images,) by columns and patterns; the catalogue's without any.

        Images with equal values in all of them are one product; an image with no value in any
        column is a product of its own.

        Raises
        ------
        DataError
            If a pattern matches nothing in an id or path.
        """
        keys = [list(columns[name]) for name in self.columns]
        for place, pattern in self.patterns:
            texts = catalog.image_ids.tolist() if place == "id" else list(catalog.images.paths)
            keys.append(_matches(f"{place}:{pattern.pattern}", pattern, texts))
        if not keys:
            return catalog.group
        rows = zip(*keys, strict=True)
        ids = catalog.image_ids.tolist()
        return np.array(
            ["|".join(row) if any(row) else i for row, i in zip(rows, ids, strict=True)]
        )


def _compiled(way: str, pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise UsageError(f"--group-by {way} is not a regular expression: {error}.") from error


def _matches(way: str, pattern: re.Pattern[str], texts: Sequence[str]) -> list[str]:
    """What the pattern, or its first group if it has one, matches in each text."""
    found = [pattern.search(text) for text in texts]
    kept = [m.group(min(pattern.groups, 1)) if m else None for m in found]
    missed = [text for text, key in zip(texts, kept, strict=True) if not key]
    if missed:
        raise DataError(
            f"--group-by {way} matches nothing in {len(missed):,} of {len(texts):,} images "
            f"({named(missed)}); give a pattern that matches all."
        )
    return [str(key) for key in kept]


@dataclass(frozen=True, eq=False)
class Grouping:
    """How the products of a catalogue are found before it is split."""

    by: GroupBy
    embeddings: ReadEmbeddings | None = None  # for `similar`; None: thumbnails of the images
    workers: int | None = None  # that decode for thumbnails
    progress: Progress = SILENT

    def look(self, catalog: Catalog) -> Look:
        """What the images look like; raises `DataError` if none has an embedding."""
        if self.embeddings is None:
            read = read_thumbnails(catalog, workers=self.workers, progress=self.progress)
            return Look.of_thumbnails(*read)
        X, found = self.embeddings(catalog.image_ids.tolist())
        if not len(X):
            raise DataError(
                f"--features holds no embedding of the images of {catalog.path}; run retailtag "
                "extract first, or leave it out to compare thumbnails."
            )
        return Look.of_embeddings(X, found)


def joined(groups: NDArray[np.str_], cluster: NDArray[np.int64]) -> NDArray[np.str_]:
    """Products (n_images,) that keep both groups and clusters whole, named by a group of theirs.

    Examples
    --------
    >>> joined(np.array(list("aabcd")), np.array([0, 1, 1, 3, 4])).tolist()
    ['a', 'a', 'a', 'c', 'd']
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    names, first, code = np.unique(groups, return_index=True, return_inverse=True)
    # A bipartite graph of groups and clusters; an image is an edge.
    n = len(names) + len(groups)
    edges = coo_array((np.ones(len(groups)), (code, len(names) + cluster)), shape=(n, n))
    component = connected_components(edges, directed=False)[1][: len(names)]
    # Of the groups of a component the one whose image comes first in the catalogue names it.
    order = np.argsort(first)
    _, leading = np.unique(component[order], return_index=True)
    by_component = dict(zip(component[order][leading], names[order][leading], strict=True))
    return np.array([by_component[c] for c in component])[code]


def has_products(catalog: Catalog) -> bool:
    """Whether any product has two images."""
    return len(np.unique(catalog.group)) < len(catalog)


def missing_products(catalog: Catalog, look: Look) -> str:
    """Warning that no product has two images, with what suggests otherwise; empty if one has."""
    if has_products(catalog):
        return ""
    signs = list(_signs_of_products(catalog))
    if tags_name_products(look, catalog.table.labels):
        signs.append(("similar", "images that look alike mostly have the very same tags"))
    if not signs:
        return NO_PRODUCTS
    ways = " or ".join(f"--group-by {way}" for way, _ in reversed(signs))
    return (
        "No product is named (a column group is missing, or no value of it repeats), but several "
        f"images may show one: {'; '.join(sign for _, sign in signs)}. Photographs of one product "
        "in two splits make scores far too high; name the column of the products with "
        f"--group-column, or split with retailtag catalog split {ways}."
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
