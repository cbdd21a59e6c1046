"""From tag cells to the label matrix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from retailtag.catalog.manifest import NO_TAGS, SEPARATOR, Cell, Problems
from retailtag.catalog.table import NEGATIVE, POSITIVE, UNKNOWN
from retailtag.catalog.tag_cells import EMPTY_CELLS, parse_cell


class TagColumn(NamedTuple):
    """A column of tags."""

    name: str
    cells: Sequence[Cell]  # one a row: joined tags, a list as text, or a tuple of them
    prefix: str = ""  # put before each tag; an empty cell then leaves the column's tags unknown
    separator: str = SEPARATOR


class TagCells(NamedTuple):
    """All columns of a manifest that hold tags."""

    present: Sequence[TagColumn]
    unknown: TagColumn | None  # tags that are not annotated
    indicators: Mapping[str, NDArray[np.int8]]  # labels (n,) of columns that are a tag themselves


class _Laid(NamedTuple):
    """A column's (row, tag) pairs, and which rows say anything at all (n,)."""

    rows: NDArray[np.intp]
    tags: NDArray[np.intp]
    said: NDArray[np.bool_]


def encode_labels(
    cells: TagCells, n: int, problems: Problems
) -> tuple[tuple[str, ...], NDArray[np.int8]]:
    """Sorted tags and labels (n, n_tags) of 1, 0 and -1.

    A row must say something: an empty cell is more often an oversight than an image without
    tags, and that is written ``-`` (or an empty list in a list column). In an attribute column
    an empty cell means "not annotated" (-1 for the tags of that column), ``-`` "none of them".
    A row of indicators may be unknown as a whole.
    Rows without tags and cells that cannot be parsed are added to `problems`.
    """
    index: dict[str, int] = {}
    laid = [_lay(column, index, problems) for column in cells.present]
    owned = [np.unique(one.tags) for one in laid]
    unsaid = _lay(cells.unknown, index, problems) if cells.unknown else None
    for name in cells.indicators:
        index.setdefault(name, len(index))
    labels = np.full((n, len(index)), NEGATIVE, np.int8)
    for column, one, own in zip(cells.present, laid, owned, strict=True):
        if column.prefix:
            labels[np.ix_(~one.said, own)] = UNKNOWN
    # Positives last: a tag that two columns share is known if one of them names it.
    for one in laid:
        labels[one.rows, one.tags] = POSITIVE
    for name, label in cells.indicators.items():
        column_of = labels[:, index[name]]
        for row in np.flatnonzero((column_of == POSITIVE) & (label == NEGATIVE)):
            problems.add(int(row), f"tag '{name}' is among the tags, and its own column denies it")
        column_of[:] = np.where(column_of == POSITIVE, POSITIVE, label)
    names = np.array(list(index), dtype=object)
    known = [label != UNKNOWN for label in cells.indicators.values()]
    # Without a column of tags a row of unknown indicators is no oversight: unknown is blank.
    said = np.logical_or.reduce([*known, *(one.said for one in laid)]) if laid else np.ones(n, bool)
    if unsaid is not None:
        both = labels[unsaid.rows, unsaid.tags] == POSITIVE
        for row, tag in zip(unsaid.rows[both], names[unsaid.tags[both]], strict=True):
            problems.add(int(row), f"tag '{tag}' is both present and unknown")
        labels[unsaid.rows, unsaid.tags] = UNKNOWN
        said = said | unsaid.said
    for row in np.flatnonzero(~said):
        problems.add(int(row), f"has empty tags or nan (write {NO_TAGS} for an image without any)")
    order = sorted(range(len(names)), key=names.__getitem__)
    return tuple(names[order].tolist()), np.ascontiguousarray(labels[:, order])


def _lay(column: TagColumn, index: dict[str, int], problems: Problems) -> _Laid:
    """Parse the cells, number their tags in `index`, and spread them over the rows."""
    # A catalogue has far fewer distinct tag lists than images: each is parsed once.
    distinct: dict[Cell, int] = {}
    codes = np.array([distinct.setdefault(c, len(distinct)) for c in column.cells], np.intp)
    pieces: list[list[int]] = []
    for number, cell in enumerate(distinct):
        tags, fault = parse_cell(cell, column.separator)
        if fault:
            for row in np.flatnonzero(codes == number):
                problems.add(int(row), f"{column.name}: {fault}")
        pieces.append([index.setdefault(column.prefix + t, len(index)) for t in tags])
    # Row r gets the tags of its cell, pieces[codes[r]]: repeat r by their number, join them.
    lengths = np.array([len(piece) for piece in pieces], np.intp)
    said = np.array([cell not in EMPTY_CELLS for cell in distinct], bool)
    tags_of = chain.from_iterable(pieces[code] for code in codes.tolist())
    return _Laid(
        rows=np.repeat(np.arange(len(codes)), lengths[codes]),
        tags=np.fromiter(tags_of, np.intp),
        said=said[codes],
    )
