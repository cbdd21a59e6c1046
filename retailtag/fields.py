"""Fields of the settings: what each one says about itself, and how a value is converted."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

from retailtag.errors import UsageError
from retailtag.remote import RemotePath, as_path


@dataclass(frozen=True)
class Option:
    """What a field says about itself beside its type and default.

    Parameters
    ----------
    help : str
        One line, shown by ``--help``, in TOML files and in the documentation.
    flag : str
        Spelling on the command line; empty: the field's name with dashes.
    metavar : str
        What the value looks like, where the type does not tell.
    choices : tuple of str
        The values allowed; empty: any.
    at_least, at_most : float
        Closed range of a number.
    above, below : float
        Open range of a number.
    advanced : bool
        Listed by ``--help-all`` only.
    recorded : bool
        Whether results depend on it, so that a changed value makes a finished run stale.
    aliases : tuple of str
        Earlier spellings, accepted for one release and listed nowhere.
    environment : str
        Environment variable that gives the value where nothing else does.
    remote : bool
        Whether a path may be a URL, which is only read.
    """

    help: str
    flag: str = ""
    metavar: str = ""
    choices: tuple[str, ...] = ()
    at_least: float = -math.inf
    at_most: float = math.inf
    above: float = -math.inf
    below: float = math.inf
    advanced: bool = False
    recorded: bool = True
    aliases: tuple[str, ...] = ()
    environment: str = ""
    remote: bool = False


def setting(default: Any, help: str, **more: Any) -> Any:
    """Dataclass field with an `Option`; keywords as in `Option`."""
    return field(default=default, metadata={"option": Option(help, **more)})


class Section:
    """Base of the groups of settings: converts and checks every field when it is made."""

    def __post_init__(self) -> None:
        # frozen: the converted value goes in past the dataclass's own __setattr__
        for name, option in options_of(type(self)).items():
            value = convert(
                getattr(self, name), types_of(type(self), name), option, flag(name, option)
            )
            object.__setattr__(self, name, value)

    def recorded(self) -> dict[str, Any]:
        """Values that results depend on, JSON-able, by field name."""
        options = options_of(type(self))
        return {n: plain(getattr(self, n)) for n, option in options.items() if option.recorded}


def options_of(kind: type[Section]) -> dict[str, Option]:
    """Options of a section by field name; fields that are sections themselves are left out."""
    fields = dataclasses.fields(kind)  # type: ignore[arg-type]
    return {f.name: f.metadata["option"] for f in fields if "option" in f.metadata}


def flag(name: str, option: Option) -> str:
    """Spelling of a field on the command line, such as ``--layer-decay``."""
    return option.flag or f"--{name.replace('_', '-')}"


def types_of(kind: type[Section], name: str) -> tuple[Any, ...]:
    """Types that a field takes: those of its union, or its only one."""
    hint = _hints(typing.cast(Any, kind))[name]
    is_union = typing.get_origin(hint) in (types.UnionType, typing.Union)
    return typing.get_args(hint) if is_union else (hint,)


@cache
def _hints(kind: Any) -> dict[str, Any]:
    """Evaluated annotations of a section, once: they are strings until then."""
    return typing.get_type_hints(kind)


def convert(value: Any, allowed: tuple[Any, ...], option: Option, name: str) -> Any:
    """Bring a value from a command line, a TOML file or a caller to a field's type, checked.

    Parameters
    ----------
    value : object
    allowed : tuple of types
        Types of the field; the first that takes the value wins.
    option : Option
        Choices and range.
    name : str
        What to call the field in a message.

    Raises
    ------
    UsageError
        If it is of another type, out of range or not one of the choices.
    """
    if value is None and type(None) in allowed:
        return None
    # in the order of the annotation: "int | Literal['all']" tries the number first
    converted = (_CONVERT[typing.get_origin(kind) or kind](value, kind) for kind in allowed)
    result = next((c for c in converted if c is not None), None)
    if result is None:
        raise UsageError(f"{name} {value!r} is not {_described(allowed)}.")
    if isinstance(result, RemotePath) and not option.remote:
        raise UsageError(f"{name} {result} is a URL; give a local path.")
    if option.choices and result not in option.choices:
        raise UsageError(f"{name} {result} is unknown; use one of {', '.join(option.choices)}.")
    # written so that NaN, which every comparison denies, is out of range as well
    if _is_number(result) and not (
        option.at_least <= result <= option.at_most and option.above < result < option.below
    ):
        raise UsageError(f"{name} {result} is out of range; use {_range(option)}.")
    return result


def _is_number(value: Any) -> bool:
    # bool is a subclass of int, and True images per batch is a mistake
    return isinstance(value, int | float) and not isinstance(value, bool)


def _tuple(value: Any, kind: Any) -> tuple[Any, ...] | None:
    """Comma-separated text, a list of texts, or a mapping as texts ``KEY=VALUE``.

    Of paths: one path, whose commas are its own, or a list of paths.
    """
    if typing.get_args(kind)[0] is Path:
        paths = value if isinstance(value, list | tuple) else [value]
        named = all(isinstance(p, str | Path) and str(p) for p in paths)
        return tuple(map(as_path, paths)) if named else None
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    if isinstance(value, Mapping):
        return tuple(f"{k}={v}" for k, v in value.items())
    if isinstance(value, list | tuple) and all(isinstance(v, str | Path) for v in value):
        return tuple(map(str, value))
    return None


def _literal(value: Any, kind: Any) -> Any:
    return value if value in typing.get_args(kind) else None


def _bool(value: Any, kind: Any) -> bool | None:
    return {"true": True, "false": False}.get(str(value).lower())


def _int(value: Any, kind: Any) -> int | None:
    number = _float(value, kind)
    return int(number) if number is not None and number.is_integer() else None


def _float(value: Any, kind: Any) -> float | None:
    if not (_is_number(value) or isinstance(value, str)):
        return None
    try:
        return float(value)
    except (ValueError, OverflowError):  # a whole number of TOML may have any number of digits
        return None


def _path(value: Any, kind: Any) -> Path | None:
    return as_path(value) if isinstance(value, str | Path) else None


def _str(value: Any, kind: Any) -> str | None:
    is_text = isinstance(value, str) or (_is_number(value) and abs(value) < math.inf)
    return str(value) if is_text else None


_CONVERT: dict[Any, Callable[[Any, Any], Any]] = {
    tuple: _tuple,
    Literal: _literal,
    bool: _bool,
    int: _int,
    float: _float,
    Path: _path,
    str: _str,
    type(None): lambda value, kind: None,
}
_WORDS = {bool: "true or false", int: "a whole number", float: "a number", Path: "a path"}


def _described(allowed: tuple[Any, ...]) -> str:
    """Types in words, for a message."""
    words = []
    for kind in allowed:
        if typing.get_origin(kind) is Literal:
            words += [str(v) for v in typing.get_args(kind)]
        elif kind is not type(None):
            words.append(_WORDS.get(kind, "a list" if typing.get_origin(kind) is tuple else "text"))
    return " or ".join(words)


def _range(option: Option) -> str:
    """Range of a number in words, for a message."""
    bounds = (
        ("at least", option.at_least),
        ("more than", option.above),
        ("at most", option.at_most),
        ("less than", option.below),
    )
    words = [f"{word} {bound:.10g}" for word, bound in bounds if math.isfinite(bound)]
    return " and ".join(words) or "a finite number"


def plain(value: Any) -> Any:
    """A value as TOML and JSON have it."""
    if isinstance(value, Path):
        return str(value)
    return [plain(v) for v in value] if isinstance(value, tuple) else value
