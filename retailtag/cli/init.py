"""`retailtag init`: a commented file of all settings."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from retailtag.cli.app import app
from retailtag.cli.verb import Call, command
from retailtag.errors import UsageError
from retailtag.settings import PRESETS

OUT = Path("retailtag.toml")


@command(app, "init", catalogue=False)
def init(
    call: Call,
    out: Annotated[Path, typer.Argument(metavar="[TOML]", help="File to write.")] = OUT,
    preset: Annotated[
        str,
        typer.Option("--preset", metavar="|".join(PRESETS), help="Values to start from."),
    ] = "default",
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file.")] = False,
) -> None:
    """Write a commented TOML file of all settings, for --config."""
    from retailtag.files import write_text
    from retailtag.settings_file import template

    text = template(preset)
    if out.exists() and not force:
        raise UsageError(f"{out} exists; give another name, or --force to overwrite it.")
    write_text(out, text)
    call.output.print(f"{out}: edit it, then retailtag bakeoff --config {out}")
    call.output.result({"out": str(out), "preset": preset})
