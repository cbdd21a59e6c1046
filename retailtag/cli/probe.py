"""`retailtag probe`: linear probes of every tag and C over a feature store."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from retailtag.cli.options import (
    CUTOFFS,
    GRID,
    HEADS,
    AllowTruncatedOption,
    AttributesOption,
    BackbonesOption,
    CatalogArgument,
    ChooseOption,
    CutoffsOption,
    DeviceOption,
    DtypeOption,
    FeaturesOption,
    FoldsOption,
    HeadsOption,
    ImagesOption,
    JsonOption,
    ObjectiveOption,
    QuietOption,
    ScaleOption,
    SeedOption,
    SolverOption,
    StoredEngineOption,
    StoredPrecisionOption,
    SweepOption,
    ThresholdsOption,
    WeightsOption,
    provenance_of,
    resolve_device,
    split_list,
    weights_by_backbone,
)
from retailtag.cli.output import Output

if TYPE_CHECKING:
    from rich.table import Table

    from retailtag.probes.artefact import Probe
    from retailtag.runs.probe import ProbeRun


def probe(
    catalogue: CatalogArgument,
    backbone: BackbonesOption,
    sweep_c: SweepOption = GRID,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder; default: runs/BACKBONE/probe.")
    ] = None,
    weights: WeightsOption = None,
    features: FeaturesOption = Path("features"),
    attributes: AttributesOption = "",
    images: ImagesOption = None,
    cutoffs: CutoffsOption = CUTOFFS,
    dtype: DtypeOption = "float32",
    engine: StoredEngineOption = "auto",
    precision: StoredPrecisionOption = None,
    folds: FoldsOption = 5,
    choose: ChooseOption = "per-group",
    scale: ScaleOption = "standardise",
    heads: HeadsOption = HEADS,
    thresholds: ThresholdsOption = "auto",
    objective: ObjectiveOption = "f1",
    solver: SolverOption = "torch",
    allow_truncated: AllowTruncatedOption = False,
    device: DeviceOption = "auto",
    seed: SeedOption = 0,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Fit a probe for every tag and C, choose C and thresholds out of fold, predict."""
    from retailtag.bakeoffs.run import pair_folder
    from retailtag.catalog.readers import read_catalog
    from retailtag.catalog.table import GroupCutoffs
    from retailtag.extraction.engines import EngineRequest
    from retailtag.runs.embeddings import find_embeddings, find_texts
    from retailtag.runs.probe import ProbeSettings, run_probe

    output, args = Output(json, quiet), split_list(attributes)
    settings = ProbeSettings(
        sweep_c, folds, choose, thresholds, solver, seed, objective, scale, heads
    )
    device = resolve_device(device)
    catalog = read_catalog(
        catalogue, attributes=args, images=images, cutoffs=GroupCutoffs.parse(cutoffs)
    )
    folder = out or pair_folder(Path("runs"), backbone, "probe")
    local = weights_by_backbone(weights, [backbone])
    texts = find_texts(heads, backbone, catalog.table.tags, weights=local, device=device)
    run = run_probe(
        catalog,
        find_embeddings(
            features,
            backbone,
            weights=local,
            device=device,
            dtype=dtype,
            allow_truncated=allow_truncated,
            request=EngineRequest(engine, precision),
            progress=output.progress,
        ),
        folder,
        settings,
        texts=texts,
        provenance=provenance_of(catalogue, args, images, cutoffs),
        device=device,
        progress=output.progress,
    )
    output.print(_table(run))
    if len(run.probe.facts["heads"]) > 1:
        output.print(_heads(run.probe))
    if run.probe.facts["thresholds"]["cross_fit"]:
        output.print(_rules(run.probe.facts["thresholds"]))
    for _, sentence, remedy in run.findings:
        output.print(f"Finding: {sentence} {remedy}")
    output.result(_summary(run, folder))


def _table(run: ProbeRun) -> Table:
    """One row a group of tags: chosen C and out-of-fold macro-AP."""
    from rich.table import Table

    name, scale = run.probe.facts["backbone"], run.probe.scale
    table = Table(title=f"Probe of {name}, scale {scale}, {run.record.seconds:,.1f} s")
    table.add_column("tags")
    table.add_column(run.probe.head, justify="right")
    table.add_column("out-of-fold macro-AP", justify="right")
    for name, row in run.probe.facts["out_of_fold"].items():
        table.add_row(name, ", ".join(row["setting"]), _points(row["macro_ap"]))
    return table


def _heads(probe: Probe) -> Table:
    """One row a head that competed: what it earns out of fold."""
    from rich.table import Table

    table = Table(title=f"Heads, out of fold; {probe.head} taken")
    table.add_column("head")
    for column in ("macro-AP", "macro-F, cross-fit", "tail", "behind the best (standard error)"):
        table.add_column(column, justify="right")
    for name, row in probe.facts["heads"].items():
        shown = [_points(row.get(column)) for column in ("macro_ap", "macro_f", "tail_macro_f")]
        table.add_row(name, *shown, f"{_points(row.get('behind'))} ({_points(row.get('se'))})")
    return table


def _points(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f}"


CHOSEN = ("out_of_fold", "scale", "scales", "head", "heads", "unconverged", "thresholds")


def _rules(thresholds: dict[str, Any]) -> Table:
    """One row a threshold rule, the chosen one marked: cross-fit macro-F."""
    from rich.table import Table

    table = Table(title=f"Threshold rules, cross-fit macro-{thresholds['objective']}")
    table.add_column("rule")
    for column in ("all", "tail", "behind the best (standard error)"):
        table.add_column(column, justify="right")
    for name, row in thresholds["cross_fit"].items():
        mark = " *" if name == thresholds["rule"] else ""
        behind = f"{_points(row['behind'])} ({_points(row['se'])})"
        table.add_row(f"{name}{mark}", _points(row["all"]), _points(row.get("tail")), behind)
    return table


def _summary(run: ProbeRun, out: Path) -> dict[str, object]:
    return {
        "out": str(out),
        "backbone": run.probe.facts["backbone"],
        **{name: run.probe.facts[name] for name in CHOSEN},
        "n_fits": run.record.facts["n_fits"],
        "n_absent": run.n_absent,
        "seconds": run.record.seconds,
        "peak_memory_mib": run.record.peak_memory_mib,
        "findings": [
            dict(zip(("code", "sentence", "remedy"), f, strict=True)) for f in run.findings
        ],
    }
