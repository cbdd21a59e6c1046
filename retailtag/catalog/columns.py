"""Which column of a manifest holds what: by option, by its usual name, or by another known one."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from retailtag.catalog.attributes import ONE_OF
from retailtag.catalog.manifest import COLUMNS, COLUMNS_SHOWN, Manifest, Wanted, is_clean
from retailtag.errors import DataError, UsageError, named
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


def used_columns(
    names: Sequence[str], settings: CatalogSettings, more: Sequence[str] = ()
) -> Wanted:
    """Those of the columns `names` that have a meaning, by name or by option, and those of `more`.

    If none holds tags, any other column may be one of 0 and 1.
    """
    # Metadata beside images name them in file_name, whatever else there is.
    used = {ONE_OF, "file_name", *settings.attributes, *more} & set(names)
    used |= {n for n in names for p in settings.one_hot if n == p or fnmatchcase(n, p)}
    holds_tags = bool(settings.attributes or settings.one_hot)
    for role, asked in _asked(settings).items():
        found = {asked} if asked else set(_candidates(role, names))
        used |= found & set(names)
        holds_tags = holds_tags or (role == "tags" and bool(found))
    return Wanted(used, or_plain=not holds_tags)


def name_columns(manifest: Manifest, settings: CatalogSettings) -> None:
    """Give the columns of a manifest the names of `COLUMNS`, in place.

    A column is found by option, else by its name in any case, else by a name that other tools
    write, which is noted in the manifest.

    Raises
    ------
    DataError
        If the name of a column is no text: it may be one of these.
    UsageError
        If an option names no column, or two columns could be meant.
    """
    if odd := next((name for name in manifest.columns if not is_clean(name)), ""):
        raise DataError(
            f"{manifest.path}: the column name {odd!r} is no UTF-8 text or holds a NUL; fix it, or "
            "save the file as UTF-8."
        )
    there = dict(manifest.columns)
    listed = named(list(there), COLUMNS_SHOWN) or "none"
    renamed: set[str] = set()
    for name, asked in _asked(settings).items():
        if asked and asked not in there:
            raise UsageError(
                f"{OPTIONS[name]} {asked}: {manifest.path} has no such column; its columns are "
                f"{listed}."
            )
        free = [c for c in there if c not in settings.attributes]
        column = asked or _known(manifest, name, free)
        if column:
            manifest.columns[name] = there[column]
            renamed.add(column)
    for column in renamed.difference(COLUMNS, settings.attributes):
        del manifest.columns[column]


def _known(manifest: Manifest, name: str, there: list[str]) -> str:
    """The column that is `name` without being asked for; empty: none."""
    if name in manifest.columns and name not in there:  # an attribute
        return ""
    found = _candidates(name, there)
    if len(found) > 1:
        remedy = f"choose with {OPTIONS[name]}" if name in OPTIONS else "rename one"
        raise UsageError(
            f"{manifest.path} has several columns that may hold {name} ({', '.join(found)}); "
            f"{remedy}."
        )
    if found and found[0].lower() != name:
        manifest.notes.append(f"{manifest.path}: {name} is read from the column {found[0]}.")
    return found[0] if found and found[0] != name else ""


def _asked(settings: CatalogSettings) -> dict[str, str]:
    """The column that an option names for each of `COLUMNS`; empty: none."""
    given = (
        settings.path_column,
        settings.tags_column,
        settings.id_column,
        settings.group_column,
    )
    return dict.fromkeys(COLUMNS, "") | dict(zip(OPTIONS, given, strict=True))


def _candidates(role: str, names: Sequence[str]) -> list[str]:
    """Columns that are one of `COLUMNS` by their usual name in any case, else by another one."""
    same = [name for name in names if name.lower() == role]
    return same or [name for name in names if name.lower() in OTHER_NAMES.get(role, ())]
