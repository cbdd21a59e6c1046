"""The columns of a manifest that hold tags, each in its own notation."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from retailtag.catalog.indicators import indicator_columns
from retailtag.catalog.labels import TagCells, TagColumn
from retailtag.catalog.manifest import COLUMNS_SHOWN, SEPARATOR, Cell, Manifest
from retailtag.catalog.tag_cells import (
    COMMAS,
    SEPARATORS,
    as_list,
    better_separator,
    holds_vectors,
    parse_cell,
)
from retailtag.errors import DataError, named
from retailtag.settings import CatalogSettings


def tag_columns(manifest: Manifest, settings: CatalogSettings) -> TagCells:
    """Find the columns that hold tags: ``tags``, attributes and columns of 0 and 1.

    Raises
    ------
    DataError
        If there is none, if its lists are rows of an indicator matrix, or if another separator
        than the one in force seems to be used.
    UsageError
        If a pattern of ``--one-hot`` fits no column.
    """
    columns = manifest.columns
    indicators, attributes = indicator_columns(manifest, settings.attributes, settings.one_hot)
    if "tags" not in columns and not attributes and not indicators:
        raise DataError(
            f"{manifest.path} has no column tags; name it with --tags-column, columns of one "
            f"attribute each with --attributes, or columns of 0 and 1 with --one-hot (its columns "
            f"are {named(list(columns), COLUMNS_SHOWN)})."
        )
    separator = settings.tag_separator or SEPARATOR
    prefixes = {"tags": ""} if "tags" in columns else {}
    prefixes |= {name: f"{name}:" for name in attributes}
    present = [
        TagColumn(name, _with_lists(columns[name]), prefix, separator)
        for name, prefix in prefixes.items()
    ]
    for column in present:
        _check_notation(manifest, column, settings, COMMAS if column.prefix else SEPARATORS)
    unknown = None
    if cells := columns.get("tags_unknown"):
        unknown = TagColumn("tags_unknown", _with_lists(cells), "", separator)
        _check_notation(manifest, unknown, settings, SEPARATORS, _names(present))
    return TagCells(present, unknown, indicators)


def _with_lists(cells: Sequence[Cell]) -> list[Cell]:
    """Cells whose lists as text have become lists; broken ones are reported by row later."""
    read = {cell: as_list(cell)[0] if isinstance(cell, str) else cell for cell in set(cells)}
    return [read[cell] for cell in cells]


def _names(columns: Sequence[TagColumn]) -> set[str]:
    cells = {(cell, column.separator) for column in columns for cell in set(column.cells)}
    return {tag for cell, separator in cells for tag in parse_cell(cell, separator)[0]}


def _check_notation(
    manifest: Manifest,
    column: TagColumn,
    settings: CatalogSettings,
    among: Sequence[str],
    known: Collection[str] = (),
) -> None:
    """Stop where the cells would be read as other tags than they seem to hold."""
    if holds_vectors(column.cells):
        raise DataError(
            f"{manifest.path}: column {column.name} holds lists of 0 and 1 instead of tags; write "
            "the names of those that are 1, or one column per tag."
        )
    if settings.tag_separator == SEPARATOR:
        return  # said by the user: commas belong to the tags
    own = column.separator
    among = [s for s in among if s != own]
    if better := better_separator(column.cells, own, among=among, known=known):
        raise DataError(
            f"{manifest.path}: no cell of column {column.name} holds the separator '{own}'; did "
            f"you mean --tag-separator '{better.separator}': {better.n_tags:,} tags instead of "
            f"{better.n_whole:,}? Give --tag-separator '{SEPARATOR}' to keep each cell as one tag."
        )
