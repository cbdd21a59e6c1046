"""`retailtag extract`: fill a feature store a backbone."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from retailtag.cli.options import (
    MAX_BYTES,
    MAX_PIXELS,
    AllowTruncatedOption,
    AttributesOption,
    AutoBatchSizeOption,
    CatalogArgument,
    DeviceOption,
    DtypeOption,
    EngineOption,
    FeaturesOption,
    ImagesOption,
    JsonOption,
    MaxBytesOption,
    MaxPixelsOption,
    PrecisionOption,
    QuietOption,
    WeightsOption,
    WorkersOption,
    default_workers,
    resolve_device,
    split_list,
    weights_by_backbone,
)
from retailtag.cli.output import Output
from retailtag.errors import UsageError

if TYPE_CHECKING:
    from rich.table import Table

    from retailtag.extraction.extract import ExtractSummary


_WAITING = ("model", "images", "disk")


def extract(
    catalogue: CatalogArgument,
    backbone: Annotated[
        list[str] | None,
        typer.Option("--backbone", metavar="ID", help="Backbone id; repeatable."),
    ] = None,
    backbones: Annotated[
        str,
        typer.Option(
            "--backbones",
            metavar="ID,ID...",
            help="Several, comma-separated: each image is decoded once for all of them.",
        ),
    ] = "",
    weights: WeightsOption = None,
    features: FeaturesOption = Path("features"),
    attributes: AttributesOption = "",
    images: ImagesOption = None,
    batch_size: AutoBatchSizeOption = None,
    workers: WorkersOption = None,
    dtype: DtypeOption = "float32",
    device: DeviceOption = "auto",
    engine: EngineOption = "auto",
    precision: PrecisionOption = "exact",
    strict: Annotated[
        bool, typer.Option("--strict", help="Fail, at the end, if an image cannot be read.")
    ] = False,
    recompute: Annotated[
        bool, typer.Option("--recompute", help="Compute every image again, stored or not.")
    ] = False,
    shard: Annotated[
        str | None,
        typer.Option(
            "--shard",
            metavar="I/N",
            help="Extract shard I of N, in a folder shard-I-of-N; features merge joins the shards.",
        ),
    ] = None,
    max_pixels: MaxPixelsOption = MAX_PIXELS,
    max_bytes: MaxBytesOption = MAX_BYTES,
    allow_truncated: AllowTruncatedOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Compute the frozen embeddings of a catalogue's images, once; continues where it stopped."""
    from retailtag.backbones import load_backbone
    from retailtag.catalog.readers import read_catalog
    from retailtag.extraction.embed import Loading
    from retailtag.extraction.engines import EngineRequest, choose_engine
    from retailtag.extraction.extract import extract_together
    from retailtag.extraction.shards import WHOLE, Shard

    output = Output(json, quiet)
    request = EngineRequest(engine, precision)
    ids = list(dict.fromkeys([*(backbone or []), *split_list(backbones)]))
    if not ids:
        raise UsageError("--backbone is missing; name at least one, such as demo:cnn.")
    share = WHOLE if shard is None else Shard.parse(shard)
    local = weights_by_backbone(weights, ids)
    catalog = read_catalog(
        catalogue, attributes=split_list(attributes), images=images, max_bytes=max_bytes
    )
    device = resolve_device(device)
    at_once = batch_size or Loading.batch_size
    loading = Loading(at_once, default_workers(workers), max_pixels, allow_truncated)
    engines = [
        choose_engine(
            catalog,
            load_backbone(i, weights=local.get(i), device=device),
            features,
            request,
            dtype=dtype,
            loading=loading,
            shard=share,
            progress=output.progress,
        )
        for i in ids
    ]
    summaries = extract_together(
        catalog,
        [chosen.embedder for chosen in engines],
        features,
        batch_size=batch_size,
        workers=workers,
        dtype=dtype,
        strict=strict,
        max_pixels=max_pixels,
        allow_truncated=allow_truncated,
        recompute=recompute,
        shard=share,
        progress=output.progress,
    )
    output.print(_table(summaries))
    output.print(_stages(summaries))
    for s in summaries:
        output.print(Text(_costs(s)))
    if share != WHOLE:
        output.print(_how_to_join(features, summaries))
    stores = [
        {**s.to_json(), **chosen.to_json()} for s, chosen in zip(summaries, engines, strict=True)
    ]
    output.result({"n_images": len(catalog), "stores": stores})


def _table(summaries: list[ExtractSummary]) -> Table:
    """One row a backbone: what was computed, and what it cost."""
    from rich.table import Table

    table = Table(title="Features")
    for column in ("backbone", "dim", "computed", "reused", "absent", "images/s", "s", "MB"):
        left = column == "backbone"
        table.add_column(column, justify="left" if left else "right", overflow="fold")
    for s in summaries:
        table.add_row(
            Text(s.store.spec.backbone),
            str(s.store.spec.dim),
            *(f"{n:,}" for n in (s.n_computed, s.n_reused, len(s.absent))),
            f"{s.images_per_second:,.1f}",
            f"{s.seconds:,.1f}",
            f"{s.store.nbytes / 1e6:,.1f}",
        )
    return table


def _stages(summaries: list[ExtractSummary]) -> Table:
    """One row a backbone: its engine, which stage was the limit, and where the time went."""
    from rich.table import Table

    table = Table(title="Time in the model, and waiting for images and disk")
    for column in ("backbone", "engine", "limit", "model", "images", "disk"):
        left = column in ("backbone", "engine", "limit")
        table.add_column(column, justify="left" if left else "right", overflow="fold")
    for s in summaries:
        shares = s.cost.shares()
        parts = [f"{shares[name]:.0%}" if s.n_computed else "" for name in _WAITING]
        table.add_row(Text(s.store.spec.backbone), s.store.spec.engine, s.cost.limit, *parts)
    return table


def _how_to_join(features: Path, summaries: list[ExtractSummary]) -> Text:
    """Commands that merge the shards, once all are there."""
    shard = f"{features}/{summaries[0].store.path.parent.name}"
    every = re.sub(r"shard-\d+-of-", "shard-*-of-", shard)
    commands = [
        f"  retailtag features merge {features} {every}/{s.store.path.name}" for s in summaries
    ]
    return Text("\n".join(["When every shard is here:", *commands]))


def _costs(s: ExtractSummary) -> str:
    """Where the embeddings of one backbone lie, and what was done beside the model."""
    return (
        f"{s.store.path}: {s.cost.read_seconds:,.1f} s reading, {s.cost.decode_seconds:,.1f} s "
        f"decoding (all threads), {s.cost.write_seconds:,.1f} s writing, beside the model; "
        f"{s.seconds_total:,.1f} s in all runs"
    )
