"""From tag cells to the label matrix."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from retailtag.catalog.manifest import NO_TAGS, SEPARATOR, Cell, Problems
from retailtag.catalog.table import NEGATIVE, POSITIVE, UNKNOWN


class TagColumn(NamedTuple):
    """A column of tags."""

    name: str
    cells: Sequence[Cell]  # one a row: tags joined by |, or a tuple of them
    prefix: str = ""  # put before each tag; an empty cell then leaves the column's tags unknown


class _Laid(NamedTuple):
    """A column's (row, tag) pairs, and which rows say anything at all (n,)."""

    rows: NDArray[np.intp]
    tags: NDArray[np.intp]
    said: NDArray[np.bool_]


def encode_labels(
    columns: Sequence[TagColumn], unknown: TagColumn | None, n: int, problems: Problems
) -> tuple[tuple[str, ...], NDArray[np.int8]]:
    """Sorted tags and labels (n, n_tags) of 1, 0 and -1; `unknown` lists tags not annotated.

    A row must say something: an empty cell is more often an oversight than an image without
    tags, and that is written ``-`` (or an empty list in a list column). In an attribute column
    an empty cell means "not annotated" (-1 for the tags of that column), ``-`` "none of them".
    Rows without tags and cells that cannot be parsed are added to `problems`.
    """
    index: dict[str, int] = {}
    laid = [_lay(column, index, problems) for column in columns]
    owned = [np.unique(one.tags) for one in laid]
    unsaid = _lay(unknown, index, problems) if unknown else None
    labels = np.full((n, len(index)), NEGATIVE, np.int8)
    for column, one, own in zip(columns, laid, owned, strict=True):
        if column.prefix:
            labels[np.ix_(~one.said, own)] = UNKNOWN
    # Positives last: a tag that two columns share is known if one of them names it.
    for one in laid:
        labels[one.rows, one.tags] = POSITIVE
    names = np.array(list(index), dtype=object)
    said = np.logical_or.reduce([one.said for one in laid]) if laid else np.zeros(n, bool)
    if unsaid is not None:
        both = labels[unsaid.rows, unsaid.tags] == POSITIVE
        for row, tag in zip(unsaid.rows[both], names[unsaid.tags[both]], strict=True):
            problems.add(int(row), f"tag '{tag}' is both present and unknown")
        labels[unsaid.rows, unsaid.tags] = UNKNOWN
        said = said | unsaid.said
    for row in np.flatnonzero(~said):
        problems.add(int(row), f"has empty tags (write {NO_TAGS} for an image without any)")
    order = sorted(range(len(names)), key=names.__getitem__)
    return tuple(names[order].tolist()), np.ascontiguousarray(labels[:, order])


def _lay(column: TagColumn, index: dict[str, int], problems: Problems) -> _Laid:
    """Parse the cells, number their tags in `index`, and spread them over the rows."""
    # A catalogue has far fewer distinct tag lists than images: each is parsed once.
    distinct: dict[Cell, int] = {}
    codes = np.array([distinct.setdefault(c, len(distinct)) for c in column.cells], np.intp)
    pieces: list[list[int]] = []
    for number, cell in enumerate(distinct):
        tags, fault = _parse(cell)
        if fault:
            for row in np.flatnonzero(codes == number):
                problems.add(int(row), f"{column.name}: {fault}")
        pieces.append([index.setdefault(column.prefix + t, len(index)) for t in tags])
    # Row r gets the tags of its cell, pieces[codes[r]]: repeat r by their number, join them.
    lengths = np.array([len(piece) for piece in pieces], np.intp)
    said = np.array([cell != "" for cell in distinct], bool)
    tags_of = chain.from_iterable(pieces[code] for code in codes.tolist())
    return _Laid(
        rows=np.repeat(np.arange(len(codes)), lengths[codes]),
        tags=np.fromiter(tags_of, np.intp),
        said=said[codes],
    )


def _parse(cell: Cell) -> tuple[list[str], str]:
    """Tags of one cell, and what is wrong with it (empty: nothing)."""
    if cell in ("", NO_TAGS, (), (NO_TAGS,)):
        return [], ""
    if isinstance(cell, tuple):
        parts = [part.strip() for part in cell]
        bad = next((p for p in parts if SEPARATOR in p), None)
        if bad is not None:
            return [], f"tag '{bad}' has the separator {SEPARATOR} in it"
    else:
        parts = [part.strip() for part in cell.split(SEPARATOR)]
    if "" in parts:
        return [], "holds an empty tag"
    if NO_TAGS in parts:
        return [], f"{NO_TAGS} means no tags and cannot be combined with other tags"
    return parts, ""
