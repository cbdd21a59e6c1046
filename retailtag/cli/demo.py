"""`retailtag demo`: draw a retail catalogue to try everything on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from retailtag.cli.app import app
from retailtag.cli.verb import Call, command


@command(app, "demo", catalogue=False)
def demo(
    call: Call,
    out: Annotated[Path, typer.Option("--out", help="Folder to write the catalogue to.")],
    n_images: Annotated[
        int, typer.Option("--n-images", min=150, max=10**7, help="Images to draw, at least 150.")
    ] = 4000,
    workers: Annotated[
        int | None,
        typer.Option("--workers", min=1, max=1024, help="Processes; default: all cores."),
    ] = None,
) -> None:
    """Draw a synthetic retail catalogue: images, tags, products, titles and a test split."""
    from dataclasses import asdict

    from retailtag.backbones.registry import load_demo

    output, seed = call.output, call.settings.probe.seed
    with output.progress.task("draw", n_images) as advance:
        summary = load_demo()(out, n_images=n_images, seed=seed, workers=workers, progress=advance)
    facts = {k: str(v) if isinstance(v, Path) else v for k, v in asdict(summary).items()}
    output.print(*(f"{name.replace('_', ' ')}: {value}" for name, value in facts.items()))
    output.result(facts)
