"""Settings as TOML: the commented file of ``retailtag init``, and that of a run folder."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from retailtag.errors import UsageError
from retailtag.fields import plain
from retailtag.files import write_text
from retailtag.settings import (
    PRESETS,
    SECTIONS,
    BakeoffSettings,
    build,
    keys,
    option_of,
    section_of,
    values_of,
)

SETTINGS_FILE = "settings.toml"
MAX_BYTES = 1 << 20  # a hundred times the file of all settings with their help
HEAD = """\
# Settings of retailtag; every command takes this file with --config.
# A line that begins with # is not in force and shows the default.
"""


def read_settings(path: Path) -> dict[str, Any]:
    """Values of a TOML file by dotted key.

    Raises
    ------
    UsageError
        If the file is missing, not TOML, or holds a key that is not a setting.
    """
    try:
        with path.open("rb") as handle:
            data = handle.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise UsageError(f"--config {path} has over {MAX_BYTES:,} bytes; name a TOML file.")
        tables = tomllib.loads(data.decode())
    except OSError as error:
        raise UsageError(f"--config {path}: {error.strerror}; name a TOML file.") from None
    # tomllib lets a number of over 4,300 digits through as int's own error.
    except (ValueError, RecursionError) as error:
        why = "it is nested too deeply" if isinstance(error, RecursionError) else error
        raise UsageError(f"--config {path} is not TOML ({why}); see retailtag init.") from None
    values: dict[str, Any] = {}
    for name, value in tables.items():
        if isinstance(value, Mapping) and name in SECTIONS:
            values |= {f"{name}.{field}": v for field, v in value.items()}
        else:
            values[name] = value
    try:
        for key in values:
            section_of(key)
        build(values)  # refuses bad values now, while the file can be named
    except UsageError as error:
        raise UsageError(f"--config {path}: {error}") from None
    return values


def write_settings(path: Path, settings: BakeoffSettings, used: Iterable[str]) -> None:
    """Write the settings that a run used, all of them in force, so that ``--config`` repeats it."""
    used = set(used)
    values = {k: v for k, v in values_of(settings) if k in used and v is not None}
    write_text(path, _toml(values, set(values), comments=False))


def template(preset: str) -> str:
    """Commented TOML of all settings; what a preset changes is in force.

    Raises
    ------
    UsageError
        If there is no such preset.

    Examples
    --------
    >>> "folds = 3" in template("quick")
    True
    """
    if preset not in PRESETS:
        raise UsageError(f"--preset {preset} is unknown; use one of {', '.join(PRESETS)}.")
    values = dict(values_of(build(PRESETS[preset])))
    return HEAD + _toml(values, set(PRESETS[preset]), comments=True)


def _toml(values: Mapping[str, Any], in_force: set[str], *, comments: bool) -> str:
    lines, section = [], ""
    for key in (k for k in keys() if k in values):
        table, _, name = key.rpartition(".")
        if table != section:
            section = table
            lines += ["", f"[{section}]"]
        if comments:
            lines += ["", f"# {option_of(key).help}"]
        text = "" if values[key] is None else toml_value(values[key])
        lines.append(("" if key in in_force else "# ") + f"{name} = {text}".rstrip())
    return "\n".join(lines).lstrip("\n") + "\n"


def toml_value(value: Any) -> str:
    """A setting as TOML writes it; JSON's strings, numbers, booleans and lists are TOML's too.

    Examples
    --------
    >>> toml_value((1e-4, "a"))
    '[0.0001, "a"]'
    """
    return json.dumps(plain(value), ensure_ascii=False)
