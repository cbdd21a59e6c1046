"""`retailtag models`: presets and their cost, downloading weights ahead, checking them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from retailtag.cli.verb import Call, command
from retailtag.errors import ArtefactError, Mismatch

if TYPE_CHECKING:
    from retailtag.backbones.backbone import Backbone
    from retailtag.cli.output import Output

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
    fingerprint: Annotated[
        bool,
        typer.Option("--fingerprint", help="Print what must agree between two machines."),
    ] = False,
    compare: Annotated[
        Path | None,
        typer.Option(
            "--compare",
            metavar="FILE",
            help="Say what differs from a fingerprint that was printed with --json.",
        ),
    ] = None,
) -> None:
    """Load a backbone, embed one image, and print the hash of its weights.

    The hash covers names, dtypes, shapes and values as loaded, so it does not depend on the format
    of the file; every feature store records it. A fingerprint adds the resolved preprocessing, and
    pixels and embeddings of ten test pictures.
    """
    from retailtag.backbones import load_backbone
    from retailtag.backbones.fingerprint import read_fingerprint
    from retailtag.compute import resolve_device

    output = call.output
    theirs = read_fingerprint(compare) if compare else None
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
    if fingerprint or theirs:
        _fingerprint(output, loaded, theirs)
        return
    facts = _loaded_facts(loaded)
    output.print(*(f"{name}: {value}" for name, value in facts.items()))
    output.result(facts)


def _loaded_facts(loaded: Backbone) -> dict[str, Any]:
    """What `models verify` prints of a loaded backbone."""
    return {
        "id": loaded.id,
        "weights_sha256": loaded.weights_sha256,
        "family": loaded.family,
        "dim": loaded.dim,
        "blocks": len(loaded.blocks),
        "parameters": sum(p.numel() for p in loaded.module.parameters()),
        "size": list(loaded.preprocess.size),
    }


def _fingerprint(output: Output, loaded: Backbone, theirs: dict[str, Any] | None) -> None:
    """Print the fingerprint, or how it differs from `theirs`."""
    from retailtag.backbones.fingerprint import compare, fingerprint
    from retailtag.runs.machine import describe_machine

    here = {**fingerprint(loaded), "machine": describe_machine(loaded.device.type)}
    if theirs is None:
        output.print(*_fingerprint_lines(here))
        output.result(here)
        return
    found = compare(theirs, here)
    output.print(*found.notes)
    output.result({"differences": found.differences, "notes": found.notes, "fingerprint": here})
    if found.differences:
        raise Mismatch(found.differences)
    output.print("Nothing differs.")


def _fingerprint_lines(facts: dict[str, Any]) -> list[str]:
    """One line on each fact; of a picture the start of its hashes and four projections."""
    lines = []
    for name, value in facts.items():
        if name == "pictures":
            for picture, row in value.items():
                pixels, embedding = row["pixels_sha256"][:12], row["embedding_sha256"][:12]
                shown = ", ".join(f"{p:.4g}" for p in row["embedding"][:4])
                lines.append(f"{picture}: pixels {pixels}, embedding {embedding} ({shown})")
        elif name == "texts":
            for text, row in value.items():
                shown = ", ".join(f"{p:.4g}" for p in row[:4])
                lines.append(f"{text!r}: embedding ({shown})")
        elif isinstance(value, dict):
            lines.append(f"{name}: " + ", ".join(f"{key}={v}" for key, v in value.items()))
        else:
            lines.append(f"{name}: {value}")
    return lines


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
