"""docs/cli.md equals what the program offers, and every command keeps its help short.

Rewrite the page after a change of options: python tests/test_manual.py
"""

import subprocess
import sys
from pathlib import Path

import pytest
import typer.main

from retailtag.cli.main import app
from retailtag.cli.verb import ADVANCED
from retailtag.settings import SECTIONS, default_of, keys, option_of

PAGE = Path(__file__).parents[1] / "docs" / "cli.md"
MAX_BASIC = 16  # options of one command that --help lists, itself included
INTRODUCTION = """\
# Commands and settings

This page is generated from the program (`python tests/test_manual.py`).

Every command takes `--help`, and `--help-all` for the options marked *advanced*. An option beats
`--set KEY=VALUE`, which beats the file of `--config`, which beats an environment variable
(`RETAILTAG_FEATURES`, `RETAILTAG_DEVICE`). `retailtag --install-completion` completes commands and
options in the shell.
"""


def _commands(command, name):
    """(name, command) of every leaf, in order."""
    for child_name, child in getattr(command, "commands", {}).items():
        yield from _commands(child, f"{name} {child_name}")
    if not hasattr(command, "commands"):
        yield name, command


def _all():
    return list(_commands(typer.main.get_command(app), "retailtag"))


def _is_advanced(parameter):
    return getattr(parameter, "rich_help_panel", None) == ADVANCED


def _options(command):
    """Options that some help lists; earlier spellings are in none."""
    options = [p for p in command.params if p.param_type_name == "option" and p.name != "help"]
    return [p for p in options if _is_advanced(p) or not p.hidden]


def _option(parameter):
    names = ", ".join(f"`{o}`" for o in [*parameter.opts, *parameter.secondary_opts])
    text = parameter.help.rstrip(".")
    shown = parameter.show_default if isinstance(parameter.show_default, str) else ""
    if not shown and parameter.default not in (None, False, "", True):
        shown = "" if callable(parameter.default) else str(parameter.default)
    default = f" Default: `{shown}`." if shown else ""
    required = " Required." if parameter.required else ""
    advanced = " *Advanced.*" if _is_advanced(parameter) else ""
    return f"- {names}: {text}.{default}{required}{advanced}"


def manual():
    """One section per command: usage, what it does, options with their defaults; then settings."""
    lines = [INTRODUCTION]
    for name, command in _all():
        arguments = [p for p in command.params if p.param_type_name == "argument"]
        usage = " ".join([name, *(p.metavar or p.name.upper() for p in arguments)])
        help_text = " ".join(command.help.split("\n\n")[0].split())
        lines += [f"## `{usage}`", "", help_text, ""]
        lines += [*map(_option, _options(command)), ""]
    lines += ["## Settings", "", "Keys of a TOML file and of `--set`.", ""]
    lines += ["| key | default | meaning |", "|---|---|---|"]
    for key in keys():
        meaning = option_of(key).help.replace("|", "\\|")
        lines.append(f"| `{key}` | `{_default(key)}` | {meaning} |")
    return "\n".join(lines) + "\n"


def _default(key):
    value = default_of(key)
    if isinstance(value, tuple):
        return ",".join(value) or "-"
    return "-" if value is None else str(value)


def test_the_page_lists_every_command_and_option_as_it_is():
    assert PAGE.read_text(encoding="utf-8") == manual(), "run: python tests/test_manual.py"


@pytest.mark.parametrize(("name", "command"), _all(), ids=[name for name, _ in _all()])
def test_the_help_of_a_command_is_short(name, command):
    basic = [p for p in command.params if p.param_type_name == "option" and not p.hidden]
    assert len(basic) <= MAX_BASIC, [p.name for p in basic]


def test_every_setting_belongs_to_a_section_of_the_file():
    assert {key.partition(".")[0] for key in keys() if "." in key} == set(SECTIONS)


@pytest.mark.parametrize("flag", ["--help", "--help-all"])
def test_help_all_adds_the_advanced_options(flag):
    command = [sys.executable, "-m", "retailtag", "probe", flag]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert ("--choose-C" in done.stdout) is (flag == "--help-all")


if __name__ == "__main__":
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(manual(), encoding="utf-8")
