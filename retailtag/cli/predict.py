"""`retailtag predict`: tags of image files, by a fitted pair."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from retailtag.cli.app import app
from retailtag.cli.output import warn
from retailtag.cli.verb import Call, command
from retailtag.errors import EXIT_BAD_DATA, UnreadableImage


@command(app, "predict", catalogue=False)
def predict(
    call: Call,
    model: Annotated[
        Path, typer.Argument(metavar="MODEL", help="Folder of a probe, fine-tune or bake-off.")
    ],
    images: Annotated[
        list[Path],
        typer.Argument(
            metavar="IMAGE...", help="Image files, folders of them, or .txt files of paths."
        ),
    ],
) -> None:
    """Tag images with a fitted pair: the tags above their thresholds, likeliest first."""
    from retailtag import api
    from retailtag.images.listing import list_images

    output = call.output
    files, notes = list_images(images)
    for note in notes:
        output.progress.say(note)
    tagger = api.load(model, settings=call.settings, progress=output.progress)
    tagged: dict[str, list[str]] = {}
    unreadable: dict[str, str] = {}
    with output.progress.task("predict", len(files)) as advance:
        for path in files:
            try:
                tagged[str(path)] = tagger.tag([path.read_bytes()])[0]
            except (UnreadableImage, OSError) as error:
                unreadable[str(path)] = str(error)
            advance(1)
    for name, tags in tagged.items():
        output.print(f"{name}: {', '.join(tags) or '-'}")
    output.result({"model": str(model), "tags": tagged, "unreadable": unreadable})
    if unreadable:
        for name, reason in unreadable.items():
            warn(f"retailtag: {name} could not be read: {reason}")
        raise typer.Exit(EXIT_BAD_DATA)
