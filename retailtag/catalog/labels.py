"""From tag cells to the label matrix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from retailtag.catalog.manifest import NO_TAGS, SEPARATOR, Cell, Manifest, Problems
from retailtag.catalog.table import NEGATIVE, POSITIVE, UNKNOWN
from retailtag.catalog.tag_cells import EMPTY_CELLS, parse_cell
from retailtag.errors import DataError, named
from retailtag.memory import check_fits

# The int8 matrix, and what is made of it while a catalogue is read, checked or split: masks of the
# same shape
LABEL_BYTES = 3


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

    def placed(self, place: NDArray[np.intp]) -> _Laid:
        """The pairs of the tags that are kept, by their columns in the labels."""
        tags = place[self.tags]
        return _Laid(self.rows[tags >= 0], tags[tags >= 0], self.said)


def encode_labels(
    cells: TagCells, manifest: Manifest, min_images: int = 0
) -> tuple[tuple[str, ...], NDArray[np.int8]]:
    """Sorted tags of at least `min_images` images and labels (n, n_tags) of 1, 0 and -1.

    A row must say something: an empty cell is more often an oversight than an image without
    tags, and that is written ``-`` (or an empty list in a list column). In an attribute column
    an empty cell means "not annotated" (-1 for the tags of that column), ``-`` "none of them".
    A row of indicators may be unknown as a whole.
    Rows without tags and cells that cannot be parsed are added to the problems of `manifest`, tags
    that are left out to its notes.

    Raises `DataError` if there would be too many labels for the memory.
    """
    problems = manifest.problems
    n = len(manifest)
    index: dict[str, int] = {}
    laid = [_lay(column, index, problems) for column in cells.present]
    unsaid = _lay(cells.unknown, index, problems) if cells.unknown else None
    for name in cells.indicators:
        index.setdefault(name, len(index))
    names = np.array(list(index), dtype=object)
    place = _places(cells, laid, names, manifest, min_images)
    labels = np.full((n, int(place.max(initial=-1)) + 1), NEGATIVE, np.int8)
    owned = [np.unique(one.tags) for one in laid]
    laid = [one.placed(place) for one in laid]
    for column, one, own in zip(cells.present, laid, owned, strict=True):
        if column.prefix:
            kept = place[own]
            labels[np.ix_(~one.said, kept[kept >= 0])] = UNKNOWN
    # Positives last: a tag that two columns share is known if one of them names it.
    for one in laid:
        labels[one.rows, one.tags] = POSITIVE
    for name, label in cells.indicators.items():
        if place[index[name]] >= 0:
            _join_indicator(name, label, labels[:, place[index[name]]], problems)
    tags = np.empty(labels.shape[1], object)
    tags[place[place >= 0]] = names[place >= 0]
    known = [label != UNKNOWN for label in cells.indicators.values()]
    # Without a column of tags a row of unknown indicators is no oversight: unknown is blank.
    said = np.logical_or.reduce([*known, *(one.said for one in laid)]) if laid else np.ones(n, bool)
    if unsaid is not None:
        unsaid = unsaid.placed(place)
        _mark_unknown(unsaid, tags, labels, problems)
        said = said | unsaid.said
    for row in np.flatnonzero(~said):
        problems.add(int(row), f"has empty tags or nan (write {NO_TAGS} for an image without any)")
    return tuple(tags.tolist()), labels


def _join_indicator(
    name: str, label: NDArray[np.int8], column_of: NDArray[np.int8], problems: Problems
) -> None:
    """Put the labels (n,) of an indicator into the tag's column (n,) of the labels."""
    for row in np.flatnonzero((column_of == POSITIVE) & (label == NEGATIVE)):
        problems.add(int(row), f"tag '{name}' is among the tags, and its own column denies it")
    column_of[:] = np.where(column_of == POSITIVE, POSITIVE, label)


def _mark_unknown(
    unsaid: _Laid, tags: NDArray[np.object_], labels: NDArray[np.int8], problems: Problems
) -> None:
    """Mark the cells that are not annotated; none of them may be present."""
    both = labels[unsaid.rows, unsaid.tags] == POSITIVE
    for row, tag in zip(unsaid.rows[both], tags[unsaid.tags[both]], strict=True):
        problems.add(int(row), f"tag '{tag}' is both present and unknown")
    labels[unsaid.rows, unsaid.tags] = UNKNOWN


def _places(
    cells: TagCells,
    laid: Sequence[_Laid],
    names: NDArray[np.object_],
    manifest: Manifest,
    min_images: int,
) -> NDArray[np.intp]:
    """Column of each tag in the labels, sorted by name; -1 for a tag that is left out."""
    n_tags = len(names)
    kept = np.arange(n_tags)
    if min_images:
        number = {name: k for k, name in enumerate(names.tolist())}
        pairs = [one.rows * n_tags + one.tags for one in laid]
        for name, label in cells.indicators.items():
            pairs.append(np.flatnonzero(label == POSITIVE) * n_tags + number[name])
        # A row may name a tag twice
        distinct = np.unique(np.concatenate(pairs)) if pairs else np.zeros(0, np.intp)
        counts = np.bincount(distinct % max(n_tags, 1), minlength=n_tags)
        kept = np.flatnonzero(counts >= min_images)
        _note_left_out(manifest, names[counts < min_images], len(kept), min_images)
    _check_memory(cells, laid, manifest, kept)
    place = np.full(n_tags, -1, np.intp)
    in_order = sorted(kept.tolist(), key=names.__getitem__)
    place[np.array(in_order, np.intp)] = np.arange(len(kept))
    return place


def _note_left_out(
    manifest: Manifest, left_out: NDArray[np.object_], n_kept: int, min_images: int
) -> None:
    if len(left_out) and not n_kept:
        raise DataError(
            f"{manifest.path}: none of its {len(left_out):,} tags has {min_images:,} images; lower "
            "--min-images."
        )
    if len(left_out):
        manifest.notes.append(
            f"{manifest.path}: {len(left_out):,} of {len(left_out) + n_kept:,} tags left out, each "
            f"of fewer than {min_images:,} images ({named(sorted(left_out.tolist()))})."
        )


def _check_memory(
    cells: TagCells, laid: Sequence[_Laid], manifest: Manifest, kept: NDArray[np.intp]
) -> None:
    """Refuse labels that do not fit, with the column that gives most of the tags."""
    n = len(manifest)
    what = f"{manifest.path}: the labels of {n:,} images and {len(kept):,} tags"
    columns = zip((column.name for column in cells.present), laid, strict=True)
    given = {name: len(np.intersect1d(one.tags, kept)) for name, one in columns}
    remedy = "leave out rare tags with --min-images 2 or more"
    if given:
        most = max(given, key=given.__getitem__)
        what += f" (column {most} gives {given[most]:,})"
        remedy += ", or name fewer --attributes" if most != "tags" else ""
    check_fits(n * len(kept) * LABEL_BYTES, what, remedy)


def _lay(column: TagColumn, index: dict[str, int], problems: Problems) -> _Laid:
    """Parse the cells, number their tags in `index`, and spread them over the rows."""
    # A catalogue has far fewer distinct tag lists than images: each is parsed once.
    distinct: dict[Cell, int] = {}
    codes = np.array([distinct.setdefault(c, len(distinct)) for c in column.cells], np.intp)
    pieces: list[list[int]] = []
    faults: dict[int, str] = {}
    for number, cell in enumerate(distinct):
        tags, faults[number] = parse_cell(cell, column.separator)
        pieces.append([index.setdefault(column.prefix + t, len(index)) for t in tags])
    for row, code in enumerate(codes.tolist()):
        if faults[code]:
            problems.add(row, f"{column.name}: {faults[code]}")
    # Row r gets the tags of its cell, pieces[codes[r]]: repeat r by their number, join them.
    lengths = np.array([len(piece) for piece in pieces], np.intp)
    said = np.array([cell not in EMPTY_CELLS for cell in distinct], bool)
    tags_of = chain.from_iterable(pieces[code] for code in codes.tolist())
    return _Laid(
        rows=np.repeat(np.arange(len(codes)), lengths[codes]),
        tags=np.fromiter(tags_of, np.intp),
        said=said[codes],
    )
