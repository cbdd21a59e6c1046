"""`retailtag predict`: tags of image files, by a fitted pair."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from retailtag.cli.options import (
    DeviceOption,
    JsonOption,
    QuietOption,
    WeightsOption,
    resolve_device,
    weights_by_backbone,
)
from retailtag.cli.output import Output
from retailtag.errors import EXIT_BAD_DATA, UnreadableImage


def predict(
    model: Annotated[
        Path, typer.Argument(metavar="MODEL", help="Folder that probe or finetune wrote.")
    ],
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Image files.")],
    weights: WeightsOption = None,
    device: DeviceOption = "auto",
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Tag image files with a fitted pair: the tags above their thresholds, likeliest first."""
    from retailtag.tagger.tagger import Tagger, backbones_of

    output = Output(json, quiet)
    ids = list(backbones_of(model))
    local = weights_by_backbone(weights if ids else None, ids)
    tagger = Tagger.load(
        model, weights=local, device=resolve_device(device), progress=output.progress
    )
    tagged: dict[str, list[str]] = {}
    unreadable: dict[str, str] = {}
    with output.progress.task("predict", len(images)) as advance:
        for path in images:
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
            sys.stderr.write(f"retailtag: {name} could not be read: {reason}\n")
        raise typer.Exit(EXIT_BAD_DATA)
