"""`retailtag probe`: linear probes of every tag and C over a feature store."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from retailtag.cli.app import app
from retailtag.cli.verb import Call, command

if TYPE_CHECKING:
    from rich.table import Table

    from retailtag.probes.artefact import Probe
    from retailtag.runs.probe import ProbeRun


@command(app, "probe")
def probe(call: Call) -> None:
    """Fit a probe for every tag and C, choose C and thresholds out of fold, predict."""
    from retailtag import api

    catalogue = call.catalogue
    call.require("backbones")
    made = api.probe(catalogue, settings=call.settings, progress=call.output.progress)
    output, run = call.output, made.run
    output.print(_table(run))
    if len(run.probe.facts["heads"]) > 1:
        output.print(_heads(run.probe))
    if run.probe.facts["thresholds"]["cross_fit"]:
        output.print(_rules(run.probe.facts["thresholds"]))
    if run.n_absent:
        output.print(f"{run.n_absent:,} images of {catalogue} have no embedding and were left out.")
    for _, sentence, remedy in run.findings:
        output.print(f"Finding: {sentence} {remedy}")
    output.result(_summary(run, made.folder))


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
