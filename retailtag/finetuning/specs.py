"""Settings written as ``name:key=value,key=value``, read into frozen dataclasses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeVar, cast

from retailtag.errors import UsageError

T = TypeVar("T")


def parse_spec(text: str, kinds: Mapping[str, type[T]], option: str) -> T:
    """Make the dataclass that ``name:key=value,...`` describes; omitted keys keep their defaults.

    `kinds` are dataclasses of numbers, by name; each checks its own values. `option`, such as
    ``--loss``, is named in messages. Raises `UsageError` if the name or a key is unknown, a key is
    given twice, or a value cannot be used.
    """
    name, _, rest = text.strip().partition(":")
    if name not in kinds:
        raise UsageError(f"{option} {text} is unknown; choose one of {', '.join(kinds)}.")
    known = {field.name: field for field in fields(cast(Any, kinds[name]))}
    given: dict[str, Any] = {}
    for setting in filter(None, rest.split(",")):
        key, equals, value = (piece.strip() for piece in setting.partition("="))
        if key not in known or not equals:
            takes = ", ".join(f"{k}={_text(f.default)}" for k, f in known.items()) or "no settings"
            raise UsageError(
                f"{option} {text} has an unknown setting {setting!r}; {name} takes {takes}."
            )
        if key in given:
            raise UsageError(f"{option} {text} gives {key} twice; give it once.")
        if value == "none" and "None" in str(known[key].type):
            given[key] = None
        else:
            given[key] = _number(value, f"{option} {text}: {key}={value}")
    return kinds[name](**given)


def check_range(value: float, low: float, high: float, name: str, option: str) -> None:
    """Raise `UsageError` unless ``low <= value <= high``; NaN is refused."""
    if not low <= value <= high:
        raise UsageError(
            f"{option} with {name}={value:g} is out of range; give {low:g} to {high:g}."
        )


def _number(value: str, place: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise UsageError(f"{place} is not a number; write a number such as 0.1.") from None


def _text(value: Any) -> str:
    return "none" if value is None else repr(value).removesuffix(".0")
