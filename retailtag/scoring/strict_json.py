"""Dataclasses to strict JSON and back; JSON itself has no NaN and no infinity."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any, TypeVar

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


def row_from(kind: type[_Row], value: dict[str, Any]) -> _Row:
    """Dataclass `kind` from its dictionary, its ``float`` fields read by `number`.

    Raises
    ------
    KeyError, TypeError, ValueError
        If a field is missing or is not a number.
    """
    # Keys that are not fields are ignored: files of earlier versions hold some.
    return kind(
        **{
            # annotations are strings in modules with `from __future__ import annotations`
            f.name: number(value[f.name]) if f.type == "float" else value[f.name]
            for f in fields(kind)  # type: ignore[arg-type]
        }
    )
