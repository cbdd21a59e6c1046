"""Dataclasses to strict JSON and back; JSON itself has no NaN and no infinity."""

from __future__ import annotations

import math
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from retailtag.errors import ArtefactError, DataError

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


def number(value: float | str | None) -> float:
    """Float that `plain` wrote."""
    return math.nan if value is None else float(value)


def parsed(kind: type[_Row], value: dict[str, Any]) -> _Row:
    """Dataclass `kind` from what `plain` made of it, the dataclasses inside it too.

    Raises `KeyError`, `TypeError` or `ValueError` if a field without a default is missing, or a
    number is not one.
    """
    hints = get_type_hints(kind)
    # Keys that are not fields are ignored: files of earlier versions hold some.
    names = [f.name for f in fields(kind) if f.name in value or f.default is MISSING]  # type: ignore[arg-type]
    return kind(**{name: _value(hints[name], value[name]) for name in names})


def _value(hint: Any, value: Any) -> Any:
    if hint is float:
        return number(value)
    if isinstance(hint, type) and is_dataclass(hint):
        return hint.from_json(value) if hasattr(hint, "from_json") else parsed(hint, value)
    if get_origin(hint) is tuple:
        return tuple(_value(get_args(hint)[0], item) for item in value)
    if get_origin(hint) is dict:
        return {key: _value(get_args(hint)[1], item) for key, item in value.items()}
    return value


def parsed_file(
    kind: type[_Row], value: dict[str, Any], name: str, version: int, remedy: str
) -> _Row:
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
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise DataError(f"The {name} is damaged ({error!r}); {remedy}.") from error
