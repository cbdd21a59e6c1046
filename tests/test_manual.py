"""The README's list of commands equals what the program offers.

Rewrite the list after a change of options: python tests/test_manual.py
"""

from pathlib import Path

import typer.main

from retailtag.cli.main import app

README = Path(__file__).parents[1] / "README.md"
BEGIN, END = "<!-- commands: begin -->\n", "<!-- commands: end -->\n"


def _commands(command, name):
    """(name, command) of every leaf, in order."""
    for child_name, child in getattr(command, "commands", {}).items():
        yield from _commands(child, f"{name} {child_name}")
    if not hasattr(command, "commands"):
        yield name, command


def _option(parameter):
    names = ", ".join(f"`{o}`" for o in [*parameter.opts, *parameter.secondary_opts])
    text = parameter.help.rstrip(".")
    if parameter.required:
        return f"{names} {text} (required)"
    shown = parameter.default not in (None, False, "", True) and not callable(parameter.default)
    return f"{names} {text}" + (f" ({parameter.default})" if shown else "")


def manual():
    """One paragraph a command: usage, what it does, options with their defaults."""
    lines = []
    for name, command in _commands(typer.main.get_command(app), "retailtag"):
        arguments = [p for p in command.params if p.param_type_name == "argument"]
        options = [p for p in command.params if p.param_type_name == "option"]
        usage = " ".join([name, *(p.metavar or p.name.upper() for p in arguments)])
        lines += [f"**`{usage}`**: {command.help.strip()}", ""]
        lines += [f"- {_option(p)}" for p in options if p.name != "help"]
        lines.append("")
    return "\n".join(lines)


def _parts():
    head, rest = README.read_text(encoding="utf-8").split(BEGIN)
    inside, tail = rest.split(END)
    return head, inside, tail


def test_readme_lists_every_command_and_option_as_it_is():
    assert _parts()[1] == manual(), "run: python tests/test_manual.py"


if __name__ == "__main__":
    head, _, tail = _parts()
    README.write_text(head + BEGIN + manual() + END + tail, encoding="utf-8")
