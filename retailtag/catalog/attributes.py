"""Attributes of a catalogue with one value an image: declared by the user, or found."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from retailtag.catalog.manifest import SEPARATOR, Manifest
from retailtag.catalog.table import POSITIVE, TagTable
from retailtag.errors import DataError, UsageError, named
from retailtag.statistics.exclusive import PLAIN, attribute_columns

SHOWN = 3  # rows that a message names
ONE_OF = "one_of"  # of a manifest: the same attributes, joined by |, in every row


def exclusive_attributes(
    manifest: Manifest,
    tags: tuple[str, ...],
    labels: NDArray[np.int8],
    attributes: Sequence[str],
    one_of: Sequence[str],
) -> tuple[str, ...]:
    """Names of the attributes with one value an image, sorted.

    `labels` is (n_images, n_tags). The attributes are those of `one_of`; if it is empty, those in
    the manifest's column ``one_of`` and those of `attributes` with two tags or more of which no
    image carries two.

    Raises `UsageError` or `DataError` if a declared attribute has no tag, and `DataError` if an
    image carries two of its tags or the column differs between rows.
    """
    declared = list(one_of) or _recorded(manifest)
    where = "--one-of" if one_of else f"column {ONE_OF}"
    for name in declared:
        columns = attribute_columns(tags, name)
        if not len(columns):
            raise (UsageError if one_of else DataError)(_without_tags(manifest, tags, name, where))
        present = labels[:, columns] == POSITIVE
        rows = np.flatnonzero(present.sum(axis=1) > 1).tolist()
        if rows:
            values = [[tags[j] for j in columns[present[row]]] for row in rows[:SHOWN]]
            raise DataError(_with_several(manifest, name, where, rows, values))
    found = [] if one_of else with_one_value(tags, labels, attributes)
    return tuple(sorted({*declared, *found}))


def _recorded(manifest: Manifest) -> list[str]:
    """Attributes in the column ``one_of``; the column says nothing where it is empty."""
    cells = manifest.columns.get(ONE_OF, [])
    row = next((i for i, cell in enumerate(cells) if cell != cells[0]), None)
    if row is not None:
        first, other = (manifest.problems.row_numbers[i] for i in (0, row))
        raise DataError(
            f"{manifest.path}: column {ONE_OF} differs between rows {first} and {other}; write the "
            "same attributes in every row, or name them with --one-of and remove the column."
        )
    cell = cells[0] if cells else ""
    names = cell.split(SEPARATOR) if isinstance(cell, str) else cell
    return [name.strip() for name in names if name.strip()]


def _with_several(
    manifest: Manifest, name: str, where: str, rows: Sequence[int], values: Sequence[Sequence[str]]
) -> str:
    numbers = manifest.problems.row_numbers
    shown = [f"row {numbers[r]}: {', '.join(v)}" for r, v in zip(rows, values, strict=False)]
    more = f" and {len(rows) - len(shown):,} more" if len(rows) > len(shown) else ""
    return (
        f"{where} names {name}, but {len(rows):,} of {len(manifest):,} images of {manifest.path} "
        f"have several of its values ({'; '.join(shown)}{more}); fix them, or leave {name} out."
    )


def _without_tags(manifest: Manifest, tags: Sequence[str], name: str, where: str) -> str:
    known = sorted({tag.partition(":")[0] for tag in tags if ":" in tag})
    return (
        f"{where} names {name}, but no tag of {manifest.path} begins with {name}: (the attributes "
        f"of its tags are {named(known, 20) if known else 'none'}); name one of these, or make "
        f"tags of the column with --attributes {name}."
    )


def with_one_value(
    tags: Sequence[str], labels: NDArray[np.int8], attributes: Sequence[str]
) -> list[str]:
    """Attributes with two tags or more of which no image carries two; `labels` as above."""
    # By the first part of the tags: a catalogue may have as many attributes as tags.
    inside: dict[str, list[int]] = {}
    for column, tag in enumerate(tags):
        first, colon, _ = tag.partition(":")
        inside.setdefault(first if colon else PLAIN, []).append(column)
    found = []
    for name in attributes:
        near = np.array(inside.get(name.partition(":")[0], []), np.intp)
        columns = near[attribute_columns([tags[j] for j in near.tolist()], name)]
        n_values = (labels[:, columns] == POSITIVE).sum(axis=1)
        if len(columns) > 1 and (n_values <= 1).all():
            found.append(name)
    return found


def recorded_attributes(table: TagTable) -> list[str] | None:
    """What artefacts record; None without any, as in artefacts that do not know of attributes."""
    return list(table.exclusive) or None
