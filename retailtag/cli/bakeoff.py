"""`retailtag bakeoff`: every backbone and strategy, one scorer, one recommendation."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from retailtag.cli.options import (
    CUTOFFS,
    GRID,
    HEADS,
    MAX_BYTES,
    MAX_PIXELS,
    REPLICATES,
    AllowTruncatedOption,
    AttributesOption,
    AugmentOption,
    BlocksOption,
    CacheGbOption,
    CatalogArgument,
    ChooseOption,
    CutoffsOption,
    DeviceOption,
    DtypeOption,
    EngineOption,
    EpochsOption,
    FeaturesOption,
    FoldsOption,
    HeadLrOption,
    HeadsOption,
    ImagesOption,
    JsonOption,
    LossOption,
    LrOption,
    MaxBytesOption,
    MaxPixelsOption,
    ObjectiveOption,
    PrecisionOption,
    QuietOption,
    ReplicatesOption,
    SamplerOption,
    ScaleOption,
    SeedOption,
    SolverOption,
    SweepOption,
    ThresholdsOption,
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

    from retailtag.bakeoffs.plan import PlannedStage
    from retailtag.bakeoffs.run import BakeoffRun


def bakeoff(
    catalogue: CatalogArgument,
    backbones: Annotated[
        str,
        typer.Option("--backbones", help="Comma-separated ids or presets, or A+B: side by side."),
    ] = "cnn,dinov2,clip",
    strategies: Annotated[
        str, typer.Option("--strategies", help="probe, finetune or both.")
    ] = "probe,finetune",
    out: Annotated[Path, typer.Option("--out", help="Folder of the run.")] = Path("runs/bakeoff"),
    plan: Annotated[
        bool, typer.Option("--plan", help="Print what would run, with estimates; run nothing.")
    ] = False,
    weights: WeightsOption = None,
    features: FeaturesOption = Path("features"),
    attributes: AttributesOption = "",
    images: ImagesOption = None,
    cutoffs: CutoffsOption = CUTOFFS,
    sweep_c: SweepOption = GRID,
    folds: FoldsOption = 5,
    choose: ChooseOption = "per-group",
    scale: ScaleOption = "standardise",
    heads: HeadsOption = HEADS,
    thresholds: ThresholdsOption = "auto",
    objective: ObjectiveOption = "f1",
    solver: SolverOption = "torch",
    blocks: BlocksOption = "4",
    epochs: EpochsOption = 5,
    batch_size: Annotated[
        int | None,
        typer.Option(
            "--batch-size",
            help="Images a forward pass; default: 64 in a fine-tune, else what suits the device.",
        ),
    ] = None,
    lr: LrOption = 3e-4,
    head_lr: HeadLrOption = 1e-3,
    augment: AugmentOption = "light",
    loss: LossOption = "bce",
    sampler: SamplerOption = "shuffle",
    cache_gb: CacheGbOption = None,
    dtype: DtypeOption = "float32",
    engine: EngineOption = "auto",
    precision: PrecisionOption = "exact",
    workers: WorkersOption = None,
    max_pixels: MaxPixelsOption = MAX_PIXELS,
    max_bytes: MaxBytesOption = MAX_BYTES,
    allow_truncated: AllowTruncatedOption = False,
    replicates: ReplicatesOption = REPLICATES,
    device: DeviceOption = "auto",
    seed: SeedOption = 0,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Extract, probe, fine-tune, measure, score, decide and report; a second run resumes."""
    from retailtag.bakeoffs.plan import plan_bakeoff
    from retailtag.bakeoffs.run import BakeoffSettings, run_bakeoff
    from retailtag.catalog.readers import read_catalog
    from retailtag.catalog.table import GroupCutoffs
    from retailtag.extraction.engines import EngineRequest
    from retailtag.finetuning.config import FinetuneConfig
    from retailtag.runs.probe import ProbeSettings

    output, args, ids = Output(json, quiet), split_list(attributes), split_list(backbones)
    settings = BakeoffSettings(
        backbones=tuple(ids),
        strategies=tuple(split_list(strategies)),
        out=out,
        features=features,
        weights=weights_by_backbone(weights, ids),
        probe=ProbeSettings(
            sweep_c, folds, choose, thresholds, solver, seed, objective, scale, heads
        ),
        finetune=FinetuneConfig(
            blocks=parse_blocks(blocks),
            epochs=epochs,
            batch_size=batch_size or FinetuneConfig.batch_size,
            lr=lr,
            head_lr=head_lr,
            augment=augment,
            loss=loss,
            sampler=sampler,
            seed=seed,
            objective=objective,
        ),
        cache_gb=cache_gb,
        device=resolve_device(device),
        dtype=dtype,
        engine=EngineRequest(engine, precision),
        batch_size=batch_size,
        workers=default_workers(workers),
        max_pixels=max_pixels,
        allow_truncated=allow_truncated,
        n_bootstrap=replicates,
        seed=seed,
    )
    catalog = read_catalog(
        catalogue,
        attributes=args,
        images=images,
        cutoffs=GroupCutoffs.parse(cutoffs),
        max_bytes=max_bytes,
    )
    if plan:
        _show_plan(output, plan_bakeoff(catalog, settings))
        return
    run = run_bakeoff(
        catalog,
        settings,
        provenance=provenance_of(catalogue, args, images, cutoffs),
        command=shlex.join(["retailtag", *sys.argv[1:]]),
        progress=output.progress,
    )
    _show(output, run)
    output.result(_summary(run))


def _show_plan(output: Output, stages: list[PlannedStage]) -> None:
    output.print(_plan_table(stages))
    output.result(
        {
            "stages": [s.to_json() for s in stages],
            "seconds": sum(s.seconds for s in stages),
            "disk_bytes": sum(s.disk_bytes for s in stages),
        }
    )


def _show(output: Output, run: BakeoffRun) -> None:
    from retailtag.report.tables import decision_text, ranking_table

    output.print(ranking_table(run.result, run.decision))
    output.print(decision_text(run.decision))
    output.print(f"\n{len(run.ran)} stages ran, {len(run.reused)} stood from before.")
    output.print(f"Report: {run.report}")


def _summary(run: BakeoffRun) -> dict[str, Any]:
    from dataclasses import asdict

    from retailtag.scoring.strict_json import plain

    pairs = [
        {
            "pair": p.name,
            "backbone": p.backbone,
            "strategy": p.strategy,
            "summaries": {k: asdict(s) for k, s in p.scorecard.summaries.items()},
            "micro_f1": p.scorecard.micro_f1,
            "cost": asdict(p.cost),
        }
        for p in run.result.ranking
    ]
    summary: dict[str, Any] = plain(
        {
            "decision": asdict(run.decision),
            "pairs": pairs,
            "report": str(run.report),
            "ran": run.ran,
            "reused": run.reused,
        }
    )
    return summary


def _plan_table(stages: list[PlannedStage]) -> Table:
    """One row a stage, and the sum."""
    from rich.table import Table

    table = Table(title="Plan (estimates within a factor of three)", show_footer=True)
    table.add_column("stage", footer="all")
    table.add_column("why")
    table.add_column("time", justify="right", footer=_minutes(sum(s.seconds for s in stages)))
    disk = sum(s.disk_bytes for s in stages)
    table.add_column("disk", justify="right", footer=f"{disk / 1e6:,.0f} MB")
    for s in stages:
        table.add_row(
            s.name,
            s.why or "stands from before",
            _minutes(s.seconds),
            f"{s.disk_bytes / 1e6:,.1f} MB",
        )
    return table


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:,.1f} min" if seconds >= 60 else f"{seconds:,.0f} s"
