"""Columns of 0 and 1 that are tags themselves: which ones they are, and what their cells say."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from fnmatch import fnmatchcase

import numpy as np
from numpy.typing import NDArray

from retailtag.catalog.manifest import (
    COLUMNS,
    COLUMNS_SHOWN,
    NO_TAGS,
    SEPARATOR,
    Cell,
    Manifest,
)
from retailtag.catalog.table import NEGATIVE, POSITIVE, UNKNOWN
from retailtag.catalog.tag_cells import EMPTY_CELLS
from retailtag.errors import DataError, UsageError, named

VALUES = "0/1, True/False or yes/no (-1 or empty: unknown)"
_LABELS = {
    **dict.fromkeys(("1", "true", "yes"), POSITIVE),
    **dict.fromkeys(("0", "false", "no"), NEGATIVE),
    "-1": UNKNOWN,
}
# Names that pandas gives to an index when it writes or reads a table
_INDEX = re.compile(r"(Unnamed: \d+(\.\d+)?|__index_level_\d+__|level_\d+|index)?")
_POINT = re.compile(r"\.0+$")


def is_index(name: str) -> bool:
    """Whether a column has the name of an index that pandas wrote.

    Examples
    --------
    >>> [is_index(name) for name in ("Unnamed: 0", "__index_level_0__", "", "red")]
    [True, True, True, False]
    """
    return _INDEX.fullmatch(name) is not None


def indicator_columns(
    manifest: Manifest, attributes: Sequence[str], one_hot: Sequence[str]
) -> tuple[dict[str, NDArray[np.int8]], list[str]]:
    """Labels (n,) of each column that is a tag itself, and the attributes that are none.

    Columns that `one_hot` names, as patterns such as ``colour_*``; attributes that hold only
    `VALUES`; and, if the manifest has neither a column ``tags`` nor any of these options, all
    other columns that hold only such values, which is noted in the manifest.

    Raises
    ------
    UsageError
        If a pattern fits no column.
    DataError
        If a column of `one_hot` holds another value, a name cannot be a tag's, or nearly all
        cells of a column are 0 or 1 and it is not said whether it is a tag.
    """
    # Under its usual name a column has been read already: `labels` is `tags` too.
    used = [manifest.columns[name] for name in COLUMNS if name in manifest.columns]
    others = [n for n, cells in manifest.columns.items() if not any(cells == u for u in used)]
    free = [name for name in others if not is_index(name)]
    asked = _asked(manifest, free, one_hot)
    _refuse_others(manifest, asked)
    names = [a for a in attributes if a in asked or _is_indicator(manifest.columns[a])]
    if "tags" not in manifest.columns and not attributes and not one_hot:
        names = [name for name in free if _is_indicator(manifest.columns[name])]
        _refuse_unclear(manifest, free, names)
        left_out = [name for name in others if name not in names]
        _note(manifest, names, left_out)
    elif names := [name for name in names if name not in asked]:
        _note(manifest, names, [])
    found = {name: _labels(manifest.columns[name]) for name in (*asked, *names)}
    for name in found:
        if not name or name == NO_TAGS or SEPARATOR in name or name in EMPTY_CELLS:
            raise DataError(
                f"{manifest.path}: column '{name}' holds 0 and 1, and its name cannot be a tag's; "
                f"rename it (without {SEPARATOR})."
            )
    return found, [name for name in attributes if name not in found]


def _asked(manifest: Manifest, free: Sequence[str], one_hot: Sequence[str]) -> list[str]:
    """Columns that the patterns of ``--one-hot`` name, in the manifest's order."""
    found: set[str] = set()
    for pattern in one_hot:
        exact = [pattern] if pattern in manifest.columns else []
        fitting = exact or [name for name in free if fnmatchcase(name, pattern)]
        if not fitting:
            raise UsageError(
                f"--one-hot {pattern}: {manifest.path} has no such column; "
                f"its columns are {named(list(manifest.columns), COLUMNS_SHOWN)}."
            )
        found |= set(fitting)
    return [name for name in manifest.columns if name in found]


def _refuse_others(manifest: Manifest, asked: Sequence[str]) -> None:
    bad = [name for name in asked if _first_other(manifest.columns[name]) is not None]
    if bad:
        told = [_told(manifest, name) for name in bad]
        raise DataError(
            f"{manifest.path}: --one-hot takes columns of {VALUES}, and {named(told, 10)}; "
            "leave them out, or fix these cells."
        )


def _refuse_unclear(manifest: Manifest, free: Sequence[str], names: Sequence[str]) -> None:
    """Stop at a column of nearly only 0 and 1: a typing error would drop a tag in silence."""
    for name in free:
        counts = Counter(manifest.columns[name])
        said = sum(n for cell, n in counts.items() if _text(cell) not in EMPTY_CELLS)
        fitting = sum(n for cell, n in counts.items() if _text(cell) in _LABELS)
        if name not in names and fitting > said / 2:
            raise DataError(
                f"{manifest.path}: most cells of column {name} are {VALUES}, but "
                f"{_told(manifest, name)}; fix it, or name the columns that are tags with "
                "--one-hot."
            )


def _told(manifest: Manifest, name: str) -> str:
    """The first cell of a column that is no label, for a message."""
    row = _first_other(manifest.columns[name]) or 0
    number = manifest.problems.row_numbers[row]
    return f"{name} holds {manifest.columns[name][row]!r} (row {number})"


def _first_other(cells: Sequence[Cell]) -> int | None:
    other = {c for c in set(cells) if _text(c) not in _LABELS and _text(c) not in EMPTY_CELLS}
    return next((row for row, cell in enumerate(cells) if cell in other), None) if other else None


def _text(cell: Cell) -> str:
    """Cell as a key of `_LABELS`; a list as what is none."""
    text = str(cell)
    return text if text in EMPTY_CELLS else _POINT.sub("", text).lower()


def _is_indicator(cells: Sequence[Cell]) -> bool:
    """Whether a column holds only labels, and at least one that is known."""
    values = {_text(cell) for cell in set(cells)} - EMPTY_CELLS
    return bool(values - {"-1"}) and values <= _LABELS.keys()


def _labels(cells: Sequence[Cell]) -> NDArray[np.int8]:
    # a matrix has millions of cells of three kinds
    label = {cell: _LABELS.get(_text(cell), UNKNOWN) for cell in set(cells)}
    return np.array([label[cell] for cell in cells], np.int8)


def _note(manifest: Manifest, names: Sequence[str], left_out: Sequence[str]) -> None:
    """Say which columns are read as tags and which are not."""
    if not names:
        return
    which = "the column" if len(names) == 1 else f"{len(names)} columns"
    line = f"{manifest.path}: {which} of {VALUES} gave tags ({named(names)})"
    if left_out:
        told = [f"{n!r} (an index of pandas)" if is_index(n) else n for n in left_out]
        line += f"; left out: {named(told, 10)}"
    manifest.notes.append(f"{line}.")
