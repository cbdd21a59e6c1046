"""`retailtag extract`: fill a feature store a backbone."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from retailtag.cli.app import app
from retailtag.cli.verb import Call, command

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table

    from retailtag.extraction.extract import ExtractSummary


_WAITING = ("model", "images", "disk")
ShardOption = Annotated[
    str | None,
    typer.Option(
        "--shard",
        metavar="I/N",
        help="Extract shard I of N equal ones, into a folder of its own; features merge joins "
        "them. auto: as Slurm, torchrun or Kubernetes number this process.",
    ),
]
RayOption = Annotated[
    str | None,
    typer.Option(
        "--ray",
        metavar="[ADDRESS]",
        help="Read and embed the images on a Ray cluster: one of this machine, or HOST:PORT or "
        "auto of one that runs.",
    ),
]


@command(app, "extract")
def extract(
    call: Call,
    strict: Annotated[
        bool, typer.Option("--strict", help="Fail, at the end, if an image cannot be read.")
    ] = False,
    recompute: Annotated[
        bool, typer.Option("--recompute", help="Compute every image again, stored or not.")
    ] = False,
    shard: ShardOption = None,
    ray: RayOption = None,
) -> None:
    """Compute the frozen embeddings of a catalogue's images, once; continues where it stopped."""
    from retailtag import api

    catalogue = call.catalogue
    call.require("backbones")
    extracted = api.extract(
        catalogue,
        settings=call.settings,
        strict=strict,
        recompute=recompute,
        shard=shard,
        ray=ray or False,
        progress=call.output.progress,
    )
    summaries = extracted.summaries
    output = call.output
    output.print(_table(summaries))
    output.print(_stages(summaries))
    for s in summaries:
        output.print(_costs(s))
    if summaries[0].store.path.parent != call.settings.compute.features:  # one shard of several
        output.print(*_how_to_join(call.settings.compute.features, summaries))
    n_images = summaries[0].n_computed + summaries[0].n_reused + len(summaries[0].absent)
    engines = zip(summaries, extracted.engines, strict=True)
    stores = [{**s.to_json(), **chosen.to_json()} for s, chosen in engines]
    output.result({"n_images": n_images, "stores": stores})


def _table(summaries: Sequence[ExtractSummary]) -> Table:
    """One row a backbone: what was computed, and what it cost."""
    from rich.table import Table

    table = Table(title="Features")
    for column in ("backbone", "dim", "computed", "reused", "absent", "images/s", "s", "MB"):
        left = column == "backbone"
        table.add_column(column, justify="left" if left else "right", overflow="fold")
    for s in summaries:
        table.add_row(
            s.store.spec.backbone,
            str(s.store.spec.dim),
            *(f"{n:,}" for n in (s.n_computed, s.n_reused, len(s.absent))),
            f"{s.images_per_second:,.1f}",
            f"{s.seconds:,.1f}",
            f"{s.store.nbytes / 1e6:,.1f}",
        )
    return table


def _stages(summaries: Sequence[ExtractSummary]) -> Table:
    """One row a backbone: its engine, which stage was the limit, and where the time went."""
    from rich.table import Table

    table = Table(title="Time in the model, and waiting for images and disk")
    for column in ("backbone", "engine", "limit", "model", "images", "disk"):
        left = column in ("backbone", "engine", "limit")
        table.add_column(column, justify="left" if left else "right", overflow="fold")
    for s in summaries:
        shares = s.cost.shares()
        parts = [f"{shares[name]:.0%}" if s.n_computed else "" for name in _WAITING]
        table.add_row(s.store.spec.backbone, s.store.spec.engine, s.cost.limit, *parts)
    return table


def _how_to_join(features: Path, summaries: Sequence[ExtractSummary]) -> list[str]:
    """Commands that merge the shards, once all are there."""
    shard = f"{features}/{summaries[0].store.path.parent.name}"
    every = re.sub(r"shard-\d+-of-", "shard-*-of-", shard)
    commands = [
        f"  retailtag features merge {features} {every}/{s.store.path.name}" for s in summaries
    ]
    return ["When every shard is here:", *commands]


def _costs(s: ExtractSummary) -> str:
    """Where the embeddings of one backbone lie, and what was done beside the model."""
    return (
        f"{s.store.path}: {s.cost.read_seconds:,.1f} s reading, {s.cost.decode_seconds:,.1f} s "
        f"decoding (all threads), {s.cost.write_seconds:,.1f} s writing, beside the model; "
        f"{s.seconds_total:,.1f} s in all runs"
    )
