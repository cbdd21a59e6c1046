"""`retailtag models`: presets and their cost, downloading weights ahead, checking them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from retailtag.cli.verb import Call, command
from retailtag.errors import ArtefactError

app = typer.Typer(name="models", help="List, download and check backbones.", no_args_is_help=True)

IdArgument = Annotated[
    str,
    typer.Argument(
        metavar="ID",
        help="timm:MODEL.TAG, open_clip:MODEL/TAG, demo:NAME or a preset (cnn, dinov2, clip).",
    ),
]


@command(app, "models", "list", catalogue=False)
def list_models(call: Call) -> None:
    """Show presets and demo models with their cost, and whether their weights are downloaded."""
    from retailtag.backbones.registry import FAMILIES, PRESETS

    output = call.output
    demos = {f"demo:{model}": f"demo:{model}" for model in FAMILIES["demo"].models}
    rows = [_facts(name, backbone_id) for name, backbone_id in (PRESETS | demos).items()]
    output.print(_table(rows))
    output.result({"models": rows})


@command(app, "models", "pull", catalogue=False)
def pull(call: Call, backbone: IdArgument) -> None:
    """Download a backbone's weights to the hub cache, for work without a network."""
    from retailtag.backbones import resolve_id
    from retailtag.backbones.factory import published

    output = call.output
    parsed = resolve_id(backbone)
    place = published(parsed)
    path = place.fetch() if place else None
    output.print(f"{parsed}: {path if path else 'packaged with retailtag, nothing to download'}")
    output.result({"id": str(parsed), "path": str(path) if path else None})


@command(app, "models-verify", "verify", catalogue=False)
def verify(
    call: Call,
    backbone: IdArgument,
    weights: Annotated[
        Path | None,
        typer.Option("--weights", help="Local file or folder instead of the published weights."),
    ] = None,
    expect: Annotated[
        str | None,
        typer.Option("--expect", metavar="SHA256", help="Fail unless the weights have this hash."),
    ] = None,
) -> None:
    """Load a backbone, embed one image, and print the hash of its weights.

    The hash covers names, dtypes, shapes and values as loaded, so it does not depend on the format
    of the file; every feature store records it.
    """
    from retailtag.backbones import load_backbone
    from retailtag.compute import resolve_device

    output = call.output
    loaded = load_backbone(
        backbone,
        weights=weights,
        device=resolve_device(call.settings.compute.device),
        progress=output.progress,
    )
    if expect is not None and expect.lower() != loaded.weights_sha256:
        raise ArtefactError(
            f"The weights of {loaded.id} have SHA-256 {loaded.weights_sha256}, not {expect}; use "
            "the file that --expect was computed from."
        )
    facts = {
        "id": loaded.id,
        "weights_sha256": loaded.weights_sha256,
        "family": loaded.family,
        "dim": loaded.dim,
        "blocks": len(loaded.blocks),
        "parameters": sum(p.numel() for p in loaded.module.parameters()),
        "size": list(loaded.preprocess.size),
    }
    output.print(*(f"{name}: {value}" for name, value in facts.items()))
    output.result(facts)


def _facts(name: str, backbone_id: str) -> dict[str, Any]:
    from retailtag.backbones import resolve_id
    from retailtag.backbones.cost import cost_of
    from retailtag.backbones.factory import published

    place, cost = published(resolve_id(backbone_id)), cost_of(backbone_id)
    return {
        "name": name,
        "id": backbone_id,
        "gflops_per_image": cost.flops / 1e9,
        "parameters": cost.parameters,
        "dim": cost.dim,
        "size": list(cost.size),
        "weights_here": place is None or place.cached() is not None,
    }


def _table(rows: list[dict[str, Any]]) -> Any:
    from rich.table import Table

    table = Table("name", "id", box=None)
    for heading in ("GFLOP/image", "parameters", "dim", "size"):
        table.add_column(heading, justify="right")
    table.add_column("weights")
    for row in rows:
        table.add_row(
            row["name"],
            row["id"],
            f"{row['gflops_per_image']:.2f}",
            f"{row['parameters'] / 1e6:.1f} M",
            str(row["dim"]),
            "x".join(map(str, row["size"])),
            "available" if row["weights_here"] else "models pull",
        )
    return table
