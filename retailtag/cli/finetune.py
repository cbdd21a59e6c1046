"""`retailtag finetune`: retrain the last blocks and a head that starts from the probe."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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
    CatalogArgument,
    CutoffsOption,
    DeviceOption,
    DtypeOption,
    EpochsOption,
    FeaturesOption,
    HeadLrOption,
    ImagesOption,
    JsonOption,
    LrOption,
    MaxBytesOption,
    MaxPixelsOption,
    ObjectiveOption,
    QuietOption,
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
    from rich.table import Table

    from retailtag.pipeline.finetune import FinetuneRun


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
    augment: AugmentOption = True,
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
    from retailtag.backbones import load_backbone, resolve_id
    from retailtag.catalog.readers import read_catalog
    from retailtag.catalog.table import GroupCutoffs
    from retailtag.finetune.trainer import FinetuneConfig
    from retailtag.pipeline.bakeoff import pair_folder
    from retailtag.pipeline.embed import identity
    from retailtag.pipeline.engines import EngineRequest, find_store
    from retailtag.pipeline.finetune import run_finetune
    from retailtag.probes.artefact import Probe

    output, args = Output(json, quiet), split_list(attributes)
    config = FinetuneConfig(
        blocks=parse_blocks(blocks),
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        head_lr=head_lr,
        augment=augment,
        seed=seed,
        thresholds=thresholds,
        objective=objective,
    )
    device = resolve_device(device)
    resolve_id(backbone)  # refuses A+B before its probe is missed
    fitted = Probe.load(probe or pair_folder(Path("runs"), backbone, "probe"))
    catalog = read_catalog(
        catalogue,
        attributes=args,
        images=images,
        cutoffs=GroupCutoffs.parse(cutoffs),
        max_bytes=max_bytes,
    )
    local = weights_by_backbone(weights, [backbone]).get(backbone)
    model = load_backbone(backbone, weights=local, device=device)
    folder = out or pair_folder(Path("runs"), backbone, "finetune")
    store = find_store(
        features,
        identity(model, dtype, allow_truncated=allow_truncated),
        EngineRequest(engine, precision),
        fitted=fitted.facts.get("features"),
        progress=output.progress,
    )
    run = run_finetune(
        catalog,
        store,
        model,
        fitted,
        folder,
        config,
        provenance=provenance_of(catalogue, args, images, cutoffs),
        workers=default_workers(workers),
        max_pixels=max_pixels,
        allow_truncated=allow_truncated,
        progress=output.progress,
    )
    output.print(_table(run))
    output.result(_summary(run, folder))


def _table(run: FinetuneRun) -> Table:
    """One row an epoch."""
    from rich.table import Table

    table = Table(title=f"Fine-tune of {run.checkpoint.backbone}, {run.record.seconds:,.1f} s")
    for column in ("epoch", "loss", "validation macro-AP", "seconds"):
        table.add_column(column, justify="right")
    for row in run.history:
        mark = " *" if row["epoch"] == run.best_epoch else ""
        loss = "-" if row["loss"] is None else f"{row['loss']:.4f}"
        ap = f"{100 * row['criterion']:.2f}"
        table.add_row(f"{row['epoch']}{mark}", loss, ap, f"{row['seconds']:.1f}")
    return table


def _summary(run: FinetuneRun, out: Path) -> dict[str, object]:
    return {
        "out": str(out),
        "backbone": run.checkpoint.backbone,
        "best_epoch": run.best_epoch,
        "history": run.history,
        "seconds": run.record.seconds,
        "peak_memory_mib": run.record.peak_memory_mib,
    }
