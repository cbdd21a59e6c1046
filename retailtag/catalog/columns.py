"""Which column of a manifest holds what: by option, by its usual name, or by another known one."""

from __future__ import annotations

from retailtag.catalog.manifest import COLUMNS, Manifest
from retailtag.errors import UsageError
from retailtag.settings import CatalogSettings

PATH_NAMES = ("path", "file_name", "filename", "image")
# Names that other tools write, used only where the usual one is missing.
OTHER_NAMES = {"path": PATH_NAMES[1:], "tags": ("labels",)}
OPTIONS = {
    "path": "--path-column",
    "tags": "--tags-column",
    "image_id": "--id-column",
    "group": "--group-column",
}


def name_columns(manifest: Manifest, settings: CatalogSettings) -> None:
    """Give the columns of a manifest the names of `COLUMNS`, in place.

    A column is found by option, else by its name in any case, else by a name that other tools
    write, which is noted in the manifest.

    Raises
    ------
    UsageError
        If an option names no column, or two columns could be meant.
    """
    given = (
        settings.path_column,
        settings.tags_column,
        settings.id_column,
        settings.group_column,
    )
    there = dict(manifest.columns)
    listed = ", ".join(there) or "none"
    asked = dict(zip(OPTIONS, given, strict=True))
    renamed: set[str] = set()
    for name in COLUMNS:
        column = asked.get(name, "")
        if column and column not in there:
            raise UsageError(
                f"{OPTIONS[name]} {column}: {manifest.path} has no such column; its columns are "
                f"{listed}."
            )
        if not column:
            column = _known(manifest, name, [c for c in there if c not in settings.attributes])
        if column:
            manifest.columns[name] = there[column]
            renamed.add(column)
    for column in renamed.difference(COLUMNS, settings.attributes):
        del manifest.columns[column]


def _known(manifest: Manifest, name: str, there: list[str]) -> str:
    """The column that is `name` without being asked for; empty: none."""
    if name in manifest.columns:
        return ""
    same = [c for c in there if c.lower() == name]
    found = same or [c for c in there if c.lower() in OTHER_NAMES.get(name, ())]
    if len(found) > 1:
        remedy = f"choose with {OPTIONS[name]}" if name in OPTIONS else "rename one"
        raise UsageError(
            f"{manifest.path} has several columns that may hold {name} ({', '.join(found)}); "
            f"{remedy}."
        )
    if found and not same:
        manifest.notes.append(f"{manifest.path}: {name} is read from the column {found[0]}.")
    return found[0] if found else ""
