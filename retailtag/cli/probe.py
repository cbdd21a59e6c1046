"""`retailtag probe`: linear probes of every tag and C over a feature store."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from retailtag.cli.common import (
    AttributesOption,
    CatalogArgument,
    DeviceOption,
    FeaturesOption,
    ImagesOption,
    JsonOption,
    Output,
    QuietOption,
    SeedOption,
    WeightsOption,
    provenance_of,
    resolve_device,
    split_list,
    weights_by_backbone,
)

if TYPE_CHECKING:
    from rich.table import Table

    from retailtag.pipeline.probe import ProbeRun

GRID = "1e-5:10:13"


def probe(
    catalogue: CatalogArgument,
    backbone: Annotated[str, typer.Option("--backbone", metavar="ID", help="Backbone id.")],
    sweep_c: Annotated[
        str,
        typer.Option(
            "--sweep-C",
            metavar="START:STOP:N",
            help="Inverse L2 strengths, logarithmically spaced, or a comma-separated list.",
        ),
    ] = GRID,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder; default: runs/BACKBONE/probe.")
    ] = None,
    weights: WeightsOption = None,
    features: FeaturesOption = Path("features"),
    attributes: AttributesOption = "",
    images: ImagesOption = None,
    dtype: Annotated[
        str, typer.Option("--dtype", help="Stored dtype of the embeddings to use.")
    ] = "float32",
    folds: Annotated[int, typer.Option("--folds", help="Folds of the out-of-fold scores.")] = 5,
    choose: Annotated[
        str, typer.Option("--choose-C", help="One C per-group of tags, or global.")
    ] = "per-group",
    thresholds: Annotated[
        str, typer.Option("--thresholds", help="fixed, global, group, per-tag or shrunk.")
    ] = "shrunk",
    solver: Annotated[str, typer.Option("--solver", help="torch, cuml or sklearn.")] = "torch",
    device: DeviceOption = "auto",
    seed: SeedOption = 0,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Fit a probe for every tag and C, choose C and thresholds out of fold, predict."""
    from retailtag.backbones import load_backbone
    from retailtag.catalog.readers import read_catalog
    from retailtag.pipeline.bakeoff import pair_folder
    from retailtag.pipeline.probe import ProbeSettings, run_probe
    from retailtag.store import FeatureStore

    output, args = Output(json, quiet), split_list(attributes)
    settings = ProbeSettings(sweep_c, folds, choose, thresholds, solver, seed)
    device = resolve_device(device)
    catalog = read_catalog(catalogue, attributes=args, images=images)
    local = weights_by_backbone(weights, [backbone]).get(backbone)
    spec = load_backbone(backbone, weights=local, device=device).spec(dtype=dtype)
    run = run_probe(
        catalog,
        FeatureStore.find(features, spec),
        out or pair_folder(Path("runs"), backbone, "probe"),
        settings,
        provenance=provenance_of(catalogue, args, images),
        device=device,
        progress=output.progress,
    )
    output.print(_table(run))
    for _, sentence, remedy in run.findings:
        output.print(f"Finding: {sentence} {remedy}")
    output.result(_summary(run, out or pair_folder(Path("runs"), backbone, "probe")))


def _table(run: ProbeRun) -> Table:
    """One row a group of tags: chosen C and out-of-fold macro-AP."""
    from rich.table import Table

    table = Table(title=f"Probe of {run.probe.facts['backbone']}, {run.record.seconds:,.1f} s")
    table.add_column("tags")
    table.add_column("C", justify="right")
    table.add_column("out-of-fold macro-AP", justify="right")
    for name, row in run.probe.facts["out_of_fold"].items():
        ap = "-" if row["macro_ap"] is None else f"{100 * row['macro_ap']:.2f}"
        table.add_row(name, ", ".join(f"{c:.3g}" for c in row["C"]), ap)
    return table


def _summary(run: ProbeRun, out: Path) -> dict[str, object]:
    return {
        "out": str(out),
        "backbone": run.probe.facts["backbone"],
        "out_of_fold": run.probe.facts["out_of_fold"],
        "n_fits": run.record.facts["n_fits"],
        "n_absent": run.n_absent,
        "seconds": run.record.seconds,
        "peak_memory_mib": run.record.peak_memory_mib,
        "findings": [
            dict(zip(("code", "sentence", "remedy"), f, strict=True)) for f in run.findings
        ],
    }
