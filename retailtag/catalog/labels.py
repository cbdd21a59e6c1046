"""From tag cells to the label matrix.

Cells repeat (a catalogue has far fewer distinct tag lists than images), so each distinct cell is
parsed once and its tags are laid out over the rows by index arithmetic.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retailtag.catalog.manifest import NO_TAGS, SEPARATOR, Cell, Problems
from retailtag.catalog.table import NEGATIVE, POSITIVE, UNKNOWN


@dataclass(frozen=True)
class TagColumn:
    """A column of tags.

    Parameters
    ----------
    name : str
        Its name, for messages.
    cells : sequence of (str or tuple of str)
        One a row: tags joined by ``|``, or a tuple of them.
    prefix : str
        Put before each tag, e.g. ``gender:``; then an empty cell leaves the column's tags
        unknown in that row.
    """

    name: str
    cells: Sequence[Cell]
    prefix: str = ""


@dataclass(frozen=True)
class _Laid:
    """A column's (row, tag) pairs, and which rows say anything at all (n,)."""

    rows: NDArray[np.intp]
    tags: NDArray[np.intp]
    said: NDArray[np.bool_]


def encode_labels(
    columns: Sequence[TagColumn], unknown: TagColumn | None, n: int, problems: Problems
) -> tuple[tuple[str, ...], NDArray[np.int8]]:
    """Sorted tags and labels (n, n_tags) of 1, 0 and -1.

    Parameters
    ----------
    columns : sequence of TagColumn
        Where the tags are.
    unknown : TagColumn, optional
        Tags that nobody annotated in a row.
    n : int
        Number of rows.
    problems : Problems
        Receives rows without tags and cells that cannot be parsed.

    Notes
    -----
    A row must say something: an empty cell is more often an oversight than an image without
    tags, and that is written ``-`` (or an empty list in a list column). In an attribute column
    an empty cell means "not annotated" (-1 for the tags of that column), ``-`` "none of them".
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
    """Parse each distinct cell once, number its tags in `index`, and spread them over the rows."""
    distinct: dict[Cell, int] = {}
    codes = np.array([distinct.setdefault(c, len(distinct)) for c in column.cells], np.intp)
    pieces: list[list[int]] = []
    for number, cell in enumerate(distinct):
        tags, fault = _parse(cell)
        if fault:
            for row in np.flatnonzero(codes == number):
                problems.add(int(row), f"{column.name}: {fault}")
        pieces.append([index.setdefault(column.prefix + t, len(index)) for t in tags])
    # Row r gets the tags flat[starts[c] : starts[c] + lengths[c]] of its cell c = codes[r].
    # `rows` repeats each row number by its count of tags; `within` counts 0, 1, ... in each row.
    lengths = np.array([len(p) for p in pieces], np.intp)
    flat = np.array([t for p in pieces for t in p], np.intp)
    starts = np.cumsum(lengths) - lengths
    per_row = lengths[codes] if pieces else np.zeros(0, np.intp)
    rows = np.repeat(np.arange(len(codes)), per_row)
    within = np.arange(len(rows)) - np.repeat(np.cumsum(per_row) - per_row, per_row)
    tags_of = flat[np.repeat(starts[codes], per_row) + within] if len(rows) else flat[:0]
    empty = np.array([c == "" for c in distinct], bool)
    return _Laid(rows, tags_of, ~empty[codes] if pieces else np.zeros(0, bool))


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
