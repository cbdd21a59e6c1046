"""`retailtag finetune`: retrain the last blocks and a head that starts from the probe."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from retailtag.cli.options import (
    CUTOFFS,
    MAX_BYTES,
    MAX_PIXELS,
    AllowTruncatedOption,
    AttributesOption,
    AugmentOption,
    BackboneOption,
    BatchSizeOption,
    BlocksOption,
    CacheGbOption,
    CatalogArgument,
    CutoffsOption,
    DeviceOption,
    DtypeOption,
    EpochsOption,
    FeaturesOption,
    HeadLrOption,
    ImagesOption,
    JsonOption,
    LossOption,
    LrOption,
    MaxBytesOption,
    MaxPixelsOption,
    ObjectiveOption,
    QuietOption,
    SamplerOption,
    SeedOption,
    StoredEngineOption,
    StoredPrecisionOption,
    ValidationThresholdsOption,
    WeightsOption,
    WorkersOption,
    default_workers,
    parse_blocks,
    provenance_of,
    resolve_device,
    split_list,
    weights_by_backbone,
)
from retailtag.cli.output import Output

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rich.table import Table

    from retailtag.backbones import Backbone
    from retailtag.catalog.catalog import Catalog
    from retailtag.extraction.engines import EngineRequest
    from retailtag.finetuning.config import FinetuneConfig
    from retailtag.runs.finetune import FinetuneRun, Means

COLUMNS = {
    "macro_ap": "macro-AP",
    "tail_macro_ap": "tail AP",
    "macro_f1": "macro-F1",
    "tail_macro_f1": "tail F1",
}


def finetune(
    catalogue: CatalogArgument,
    backbone: BackboneOption,
    blocks: BlocksOption = "4",
    probe: Annotated[
        Path | None,
        typer.Option("--probe", help="Folder of the fitted probe; default: runs/BACKBONE/probe."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder; default: runs/BACKBONE/finetune.")
    ] = None,
    weights: WeightsOption = None,
    features: FeaturesOption = Path("features"),
    attributes: AttributesOption = "",
    images: ImagesOption = None,
    cutoffs: CutoffsOption = CUTOFFS,
    dtype: DtypeOption = "float32",
    engine: StoredEngineOption = "auto",
    precision: StoredPrecisionOption = None,
    epochs: EpochsOption = 5,
    batch_size: BatchSizeOption = 64,
    lr: LrOption = 3e-4,
    head_lr: HeadLrOption = 1e-3,
    layer_decay: Annotated[
        float, typer.Option("--layer-decay", help="Rate of a block over that of the next one.")
    ] = 0.75,
    weight_decay: Annotated[
        float, typer.Option("--weight-decay", help="Of AdamW, decoupled; matrices only.")
    ] = 0.05,
    loss: LossOption = "bce",
    sampler: SamplerOption = "shuffle",
    augment: AugmentOption = "light",
    mix: Annotated[
        str, typer.Option("--mix", help="none, mixup or cutmix, with settings: mixup:alpha=0.2.")
    ] = "none",
    ema: Annotated[
        float, typer.Option("--ema", help="Decay of an average of the weights, as 0.999; 0: none.")
    ] = 0.0,
    interpolate: Annotated[
        str,
        typer.Option(
            "--interpolate",
            help="Share of the trained weights, the rest is the start's (WiSE-FT); auto: chosen "
            "on the validation part.",
        ),
    ] = "auto",
    batch_norm: Annotated[
        str,
        typer.Option(
            "--batch-norm",
            help="In trained blocks: stored statistics, which stay, or those of the batch; auto: "
            "stored, and batch for --blocks scratch.",
        ),
    ] = "auto",
    choose_epoch: Annotated[
        str,
        typer.Option(
            "--choose-epoch",
            help="By macro-f1 while the tail keeps its F1, macro-f1-free or macro-ap; auto: the "
            "first, or the last for --objective precision.",
        ),
    ] = "auto",
    refit: Annotated[
        bool,
        typer.Option("--refit", help="Train again on all training images for the chosen epochs."),
    ] = False,
    search: Annotated[
        int,
        typer.Option(
            "--search", min=0, help="Try N settings of loss, sampler, rate and layer decay first."
        ),
    ] = 0,
    seeds: Annotated[
        int, typer.Option("--seeds", min=1, help="Runs that differ in their seed alone.")
    ] = 1,
    amp: Annotated[
        str,
        typer.Option("--amp", help="float32, bf16 or fp16 training; auto: as the GPU is fastest."),
    ] = "auto",
    parts: Annotated[
        int,
        typer.Option(
            "--parts", min=1, help="Forward passes a batch; doubled when memory runs out."
        ),
    ] = 1,
    recompute: Annotated[
        bool,
        typer.Option("--checkpoint-gradients", help="Compute blocks twice to save memory."),
    ] = False,
    compiled: Annotated[
        bool, typer.Option("--compile", help="Compile the trained part (minutes at the start).")
    ] = False,
    cache_gb: CacheGbOption = None,
    cache_dtype: Annotated[
        str,
        typer.Option(
            "--cache-dtype",
            help="Of kept activations: float32, float16, bfloat16; auto: float16 where embeddings "
            "agree.",
        ),
    ] = "auto",
    checkpoint_minutes: Annotated[
        float, typer.Option("--checkpoint-minutes", help="A snapshot every so often, and an epoch.")
    ] = 10.0,
    log: Annotated[
        str, typer.Option("--log", help="tensorboard, mlflow, wandb, beside log.jsonl.")
    ] = "",
    thresholds: ValidationThresholdsOption = "auto",
    objective: ObjectiveOption = "f1",
    workers: WorkersOption = None,
    max_pixels: MaxPixelsOption = MAX_PIXELS,
    max_bytes: MaxBytesOption = MAX_BYTES,
    allow_truncated: AllowTruncatedOption = False,
    device: DeviceOption = "auto",
    seed: SeedOption = 0,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Retrain the last blocks, choose epoch and thresholds on a validation part, predict."""
    from retailtag.extraction.engines import EngineRequest
    from retailtag.finetuning.config import FinetuneConfig
    from retailtag.runs.finetune import Means

    args = split_list(attributes)
    config = FinetuneConfig(
        blocks=parse_blocks(blocks),
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        head_lr=head_lr,
        weight_decay=weight_decay,
        augment=augment,
        seed=seed,
        thresholds=thresholds,
        objective=objective,
        layer_decay=layer_decay,
        loss=loss,
        sampler=sampler,
        mix=mix,
        ema=ema,
        precision=amp,
        parts=parts,
        recompute=recompute,
        interpolate=interpolate,
        batch_norm=batch_norm,
        choose=choose_epoch,
        refit=refit,
    )
    means = Means(
        default_workers(workers),
        max_pixels,
        allow_truncated,
        cache_gb,
        cache_dtype,
        checkpoint_minutes,
        compiled,
        tuple(split_list(log)),
    )
    read: dict[str, Any] = {"attributes": args, "images": images, "max_bytes": max_bytes}
    local = weights_by_backbone(weights, [backbone]).get(backbone)
    stored = EngineRequest(engine, precision)
    device = resolve_device(device)
    place = _Place(backbone, local, device, probe, out, features, dtype, stored)
    provenance = provenance_of(catalogue, args, images, cutoffs)
    _carry_out(
        Output(json, quiet),
        place,
        lambda: _read(catalogue, cutoffs, read),
        config,
        means,
        (search, seeds),
        provenance,
    )


@dataclass(frozen=True)
class _Place:
    """Which backbone, and where its files are."""

    backbone: str
    weights: Path | None
    device: str
    probe: Path | None
    out: Path | None
    features: Path
    dtype: str
    stored: EngineRequest


def _read(catalogue: Path, cutoffs: str, how: dict[str, Any]) -> Catalog:
    from retailtag.catalog.readers import read_catalog
    from retailtag.catalog.table import GroupCutoffs

    return read_catalog(catalogue, cutoffs=GroupCutoffs.parse(cutoffs), **how)


def _carry_out(
    output: Output,
    place: _Place,
    read: Callable[[], Catalog],
    config: FinetuneConfig,
    means: Means,
    repeats: tuple[int, int],
    provenance: dict[str, Any],
) -> None:
    """Search, train under one seed or several, and tell; `repeats` are settings and seeds."""
    from retailtag.backbones import load_backbone, resolve_id
    from retailtag.bakeoffs.run import pair_folder
    from retailtag.extraction.embedder import identity
    from retailtag.extraction.engines import find_store
    from retailtag.probes.artefact import Probe
    from retailtag.runs.finetune import run_finetune, run_seeds
    from retailtag.runs.finetune_search import search_settings

    def load() -> Backbone:
        return load_backbone(place.backbone, weights=place.weights, device=place.device)

    resolve_id(place.backbone)  # refuses A+B before its probe is missed
    fitted = Probe.load(place.probe or pair_folder(Path("runs"), place.backbone, "probe"))
    catalog, model = read(), load()
    asked = identity(model, place.dtype, allow_truncated=means.allow_truncated)
    store = find_store(
        place.features,
        asked,
        place.stored,
        fitted=fitted.facts.get("features"),
        progress=output.progress,
    )
    folder = place.out or pair_folder(Path("runs"), place.backbone, "finetune")
    how: dict[str, Any] = {"means": means, "progress": output.progress}
    data, tried, (n_settings, n_seeds) = (catalog, store), [], repeats
    if n_settings:
        config, ranking = search_settings(*data, load, fitted, folder, config, n_settings, **how)
        tried = ranking.to_json()
    how["provenance"] = provenance
    if n_seeds > 1:
        runs = run_seeds(*data, load, fitted, folder, config, n_seeds, **how)
    else:
        runs = [run_finetune(*data, model, fitted, folder, config, **how)]
    for run in runs:
        output.print(_table(run))
    if len(runs) > 1:
        output.print(_spread_line(runs, folder))
    output.result(_summary(runs, folder) | ({"search": tried} if tried else {}))


def _table(run: FinetuneRun) -> Table:
    """One row an epoch."""
    from rich.table import Table

    facts = run.checkpoint.facts
    factor = facts["interpolation"]["factor"]
    title = f"Fine-tune of {run.checkpoint.backbone}, {run.record.seconds:,.1f} s"
    title += f", seed {facts['settings']['seed']}"
    title += "" if factor == 1 else f"; kept: {factor:g} of the way from the start"
    table = Table(title=title)
    for column in ("epoch", "loss", *COLUMNS.values(), "per s", "seconds"):
        table.add_column(column, justify="right")
    for row in run.history:
        mark = " *" if row["epoch"] == run.best_epoch else "" if row["kept_tail"] else " -"
        loss = "-" if row["loss"] is None else f"{row['loss']:.4f}"
        shown = ["-" if row[k] is None else f"{100 * row[k]:.2f}" for k in COLUMNS]
        speed = f"{row['images_per_second']:,.0f}" if row["images_per_second"] else "-"
        table.add_row(f"{row['epoch']}{mark}", loss, *shown, speed, f"{row['seconds']:.1f}")
    table.caption = "validation part, %; *: kept, -: loses the tail; images per s"
    return table


def _spread(runs: Sequence[FinetuneRun]) -> dict[str, Any]:
    """Mean and standard deviation over seeds of the kept epochs' figures."""
    import statistics

    spread = {}
    for name in COLUMNS:
        values = [run.history[run.best_epoch][name] for run in runs]
        known = [value for value in values if value is not None]
        if len(known) == len(runs):
            spread[name] = {"mean": statistics.mean(known), "sd": statistics.stdev(known)}
    return spread


def _spread_line(runs: Sequence[FinetuneRun], out: Path) -> str:
    said = [
        f"{COLUMNS[name]} {100 * v['mean']:.2f} ± {100 * v['sd']:.2f}"
        for name, v in _spread(runs).items()
    ]
    return (
        f"{len(runs)} seeds, validation part, mean ± standard deviation: {', '.join(said)}. On the "
        f"test split: retailtag compare {out} and another model."
    )


def _summary(runs: Sequence[FinetuneRun], out: Path) -> dict[str, Any]:
    first = runs[0]
    summary: dict[str, Any] = {
        "out": str(out),
        "backbone": first.checkpoint.backbone,
        "best_epoch": first.best_epoch,
        "factor": first.checkpoint.facts["interpolation"]["factor"],
        "history": first.history,
        "seconds": sum(run.record.seconds for run in runs),
        "peak_memory_mib": max(run.record.peak_memory_mib for run in runs),
    }
    if len(runs) > 1:
        summary["seeds"] = [{"best_epoch": run.best_epoch, "history": run.history} for run in runs]
        summary["spread"] = _spread(runs)
    return summary
