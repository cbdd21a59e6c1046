"""Settings written as ``name:key=value,key=value`` read into frozen dataclasses and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any, TypeVar, cast

from retailtag.errors import UsageError

T = TypeVar("T")


def parse_spec(text: str, menu: Mapping[str, type[T]], option: str) -> T:
    """Make the dataclass that ``name:key=value,...`` stands for; keys left out keep defaults.

    Parameters
    ----------
    text : str
    menu : mapping of str to type
        Dataclasses of numbers, by name; each checks its own values.
    option : str
        Named in messages, such as ``--loss``.

    Raises
    ------
    UsageError
        If the name or a key is unknown, a key comes twice, or a value is no number.
    """
    name, _, rest = text.strip().partition(":")
    if name not in menu:
        raise UsageError(f"{option} {text} is unknown; choose one of {', '.join(menu)}.")
    kind = menu[name]
    defaults = _defaults(kind)
    optional = {f.name for f in fields(cast(Any, kind)) if "None" in str(f.type)}
    given: dict[str, Any] = {}
    for part in filter(None, rest.split(",")):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if key not in defaults or not equals:
            takes = ", ".join(f"{k}={_text(v)}" for k, v in defaults.items()) or "no settings"
            raise UsageError(f"{option} {text} has an unknown part {part!r}; {name} takes {takes}.")
        if key in given:
            raise UsageError(f"{option} {text} gives {key} twice; give it once.")
        place = f"{option} {text}: {key}={value}"
        given[key] = None if value == "none" and key in optional else _number(value, place)
    return kind(**given)


def spec_text(setting: Any, menu: Mapping[str, type[Any]]) -> str:
    """Shortest text that `parse_spec` reads back to an equal `setting`."""
    name = next(name for name, kind in menu.items() if kind is type(setting))
    changed = [
        f"{key}={_text(getattr(setting, key))}"
        for key, default in _defaults(type(setting)).items()
        if getattr(setting, key) != default
    ]
    return f"{name}:{','.join(changed)}" if changed else name


def check_range(value: float, low: float, high: float, name: str, option: str) -> None:
    """Raise `UsageError` unless ``low <= value <= high``; NaN is refused."""
    if not low <= value <= high:
        raise UsageError(
            f"{option} with {name}={value:g} is out of range; give {low:g} to {high:g}."
        )


def _defaults(kind: type[Any]) -> dict[str, Any]:
    """Default of every field, in the order in which they are declared."""
    return {f.name: f.default for f in fields(cast(Any, kind)) if f.default is not MISSING}


def _number(value: str, place: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise UsageError(f"{place} is not a number; write a number such as 0.1.") from None


def _text(value: float | None) -> str:
    return "none" if value is None else repr(value).removesuffix(".0")
