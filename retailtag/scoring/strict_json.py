"""Dataclasses to strict JSON and back; JSON itself has no NaN and no infinity."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from retailtag.errors import ArtefactError, DataError
from retailtag.files import read_json

_Row = TypeVar("_Row")


def plain(value: Any) -> Any:
    """NaN as None and infinities as ``"inf"``, ``"-inf"``, at any depth; tuples as lists.

    Examples
    --------
    >>> plain({"f1": float("nan"), "thresholds": (0.5, float("inf"))})
    {'f1': None, 'thresholds': [0.5, 'inf']}
    """
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def number(value: Any) -> float:
    """Float that `plain` wrote; raises `TypeError` for anything else."""
    if value is None:
        return math.nan
    if type(value) not in (int, float) and value not in ("inf", "-inf"):
        raise TypeError(f"{value!r} is not a number")
    return float(value)


def parsed(kind: type[_Row], value: Any) -> _Row:
    """Dataclass `kind` from what `plain` made of it, the dataclasses inside it too.

    Raises `KeyError`, `TypeError`, `ValueError` or `OverflowError` if a field without a default is
    missing or is not of its type.
    """
    hints = get_type_hints(kind)
    found = _of(dict, value)
    # Keys that are not fields are ignored: files of earlier versions hold some.
    own = fields(kind)  # type: ignore[arg-type]
    needed = {f.name for f in own if f.default is MISSING and f.default_factory is MISSING}
    names = [f.name for f in own if f.name in found or f.name in needed]
    return kind(**{name: _value(hints[name], found[name]) for name in names})


def _value(hint: Any, value: Any) -> Any:
    if hint is float:
        return number(value)
    if hint in (str, int, bool):
        return _of(hint, value)
    if isinstance(hint, type) and is_dataclass(hint):
        return hint.from_json(value) if hasattr(hint, "from_json") else parsed(hint, value)
    if get_origin(hint) is tuple:
        return tuple(_value(get_args(hint)[0], item) for item in _of(list, value))
    if get_origin(hint) is dict:
        return {key: _value(get_args(hint)[1], item) for key, item in _of(dict, value).items()}
    return value


def _of(kind: type, value: Any) -> Any:
    if type(value) is not kind:  # a bool is an int too
        raise TypeError(f"{value!r:.60} is not of type {kind.__name__}")
    return value


def parsed_file(kind: type[_Row], value: Any, name: str, version: int, remedy: str) -> _Row:
    """Dataclass from the content of its file, which messages call `name` and `remedy` writes again.

    Raises `ArtefactError` if it was written by another format than `version`, `DataError` if it is
    something else or is damaged.
    """
    if not isinstance(value, dict) or "format" not in value:
        raise DataError(f"This is not a {name} of retailtag; {remedy}.")
    if value["format"] != version:
        raise ArtefactError(
            f"The {name} has format {value['format']}, this version reads {version}; {remedy}."
        )
    try:
        return parsed(kind, value)
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
        raise DataError(f"The {name} is damaged ({error!r}); {remedy}.") from error


def named_file(path: Path, parse: Callable[[Any], _Row]) -> _Row:
    """What `parse` makes of a JSON file, which its messages then name."""
    value = read_json(path)
    try:
        return parse(value)
    except (ArtefactError, DataError) as error:
        raise type(error)(f"{path}: {error}") from error
