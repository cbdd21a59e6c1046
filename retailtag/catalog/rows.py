"""Tables with one row per image and tag, joined to one row per image."""

from __future__ import annotations

from dataclasses import replace

from retailtag.catalog.manifest import COLUMNS, SEPARATOR, Cell, Manifest
from retailtag.catalog.tag_cells import COMMAS, EMPTY_CELLS, as_list, better_separator, split_text
from retailtag.settings import CatalogSettings

MIN_SHARE_REPEATED = 0.5  # of the images have several rows; else a repeated row is an oversight


def join_rows(manifest: Manifest, settings: CatalogSettings) -> Manifest:
    """The manifest with one row per image and the union of its tags, if it has one row per tag.

    A table is taken for one if every row has at most one tag, at least half of the images have
    several rows, and the rows of an image agree in all columns that are read. Any other manifest
    is returned as it is, and its repeated ids, or cells that seem to hold several tags, are
    refused later. A joined row has the number of its image's first row.
    """
    columns = manifest.columns
    n = len(manifest)
    if "tags" not in columns or "path" not in columns or manifest.images or manifest.image_column:
        return manifest
    separator = settings.tag_separator or SEPARATOR
    cells = set(columns["tags"])
    if len(set(columns["path"])) == n or not all(_is_single(c, separator) for c in cells):
        return manifest
    if not settings.tag_separator and better_separator(cells, separator, among=COMMAS):
        return manifest
    same = [c for c in (*COLUMNS, *settings.attributes) if c in columns and c != "tags"]
    rows: dict[tuple[Cell, ...], list[int]] = {}
    for row, key in enumerate(zip(*(columns[c] for c in same), strict=True)):
        rows.setdefault(key, []).append(row)
    groups = list(rows.values())
    several = sum(len(group) > 1 for group in groups)
    if several < MIN_SHARE_REPEATED * len(groups) or len(set(columns["path"])) != len(groups):
        return manifest
    joined = {name: [cells[group[0]] for group in groups] for name, cells in columns.items()}
    joined["tags"] = [_union([columns["tags"][row] for row in group]) for group in groups]
    manifest.notes.append(
        f"{manifest.path}: its {n:,} rows hold one tag each; an image has the tags of all its "
        f"rows ({len(groups):,} images)."
    )
    return replace(manifest, columns=joined, problems=manifest.problems.joined(groups))


def _is_single(cell: Cell, separator: str) -> bool:
    if isinstance(cell, str):
        cell = as_list(cell)[0]
    return len(cell if isinstance(cell, tuple) else split_text(cell, separator)) < 2


def _union(cells: list[Cell]) -> Cell:
    """Tags of an image's rows; a single row keeps its cell, an empty one among others counts."""
    if len(cells) == 1:
        return cells[0]
    tags: list[str] = []
    for cell in cells:
        items = as_list(cell)[0] if isinstance(cell, str) else cell
        tags += [items] if isinstance(items, str) else items
    distinct = tuple(dict.fromkeys(tags))
    return distinct if not set(distinct) <= EMPTY_CELLS else ""
