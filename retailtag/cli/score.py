"""`retailtag score`: a scorecard for every predictions file, and their comparison."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from retailtag.cli.app import app
from retailtag.cli.output import Output
from retailtag.cli.verb import ADVANCED, Call, RunsArgument, command
from retailtag.errors import GateUnmet

if TYPE_CHECKING:
    from retailtag.outcomes import ScoreOutcome
    from retailtag.scoring.gates import Gate

FOREIGN = "Another tool's scores"


OutOption = Annotated[
    Path | None,
    typer.Option("--out", help="Folder for the scorecards; default: beside the predictions."),
]
GateOption = Annotated[
    list[str] | None,
    typer.Option(
        "--gate",
        metavar="CONDITION",
        help='Exit with 5 unless met, e.g. "tail_macro_f1>=0.30"; repeatable.',
    ),
]
ScoresOption = Annotated[
    str | None,
    typer.Option("--scores", help=f"{FOREIGN}: what they are, logits or probabilities."),
]
ThresholdsOption = Annotated[
    Path | None,
    typer.Option("--thresholds", help=f"{FOREIGN}: CSV of tag,threshold on that scale."),
]
TuneOption = Annotated[
    str | None,
    typer.Option("--tune", help=f"{FOREIGN}: rule that tunes the thresholds instead."),
]
TuneSplitOption = Annotated[
    str,
    typer.Option(
        "--tune-split",
        help="Split that --tune sees, not the scored one.",
        rich_help_panel=ADVANCED,
        hidden=True,
    ),
]
MapIdsOption = Annotated[
    bool,
    typer.Option(
        "--map-ids",
        help=f"{FOREIGN}: match ids despite leading zeros, .0, suffix or folder.",
        rich_help_panel=ADVANCED,
        hidden=True,
    ),
]
FittedSplitOption = Annotated[
    str,
    typer.Option(
        "--fitted-split",
        help=f"{FOREIGN}: split the model was fitted on.",
        rich_help_panel=ADVANCED,
        hidden=True,
    ),
]


@command(app, "score", catalogue=False)
def score(
    call: Call,
    predictions: RunsArgument,
    out: OutOption = None,
    gate: GateOption = None,
    scores: ScoresOption = None,
    thresholds: ThresholdsOption = None,
    tune: TuneOption = None,
    tune_split: TuneSplitOption = "val",
    fitted_split: FittedSplitOption = "train",
    map_ids: MapIdsOption = False,
) -> None:
    """Score predictions on held-out images: macro-F1, the tail, AP, intervals, findings.

    A RUN is a predictions file, the folder of a run or of a bake-off, or another tool's CSV,
    Parquet or NPZ of scores (with --catalogue and --scores).
    """
    from retailtag import api
    from retailtag.scoring.gates import parse_gate, unmet_gates

    # Gates are read first: a misspelt one must not cost the scoring.
    gates = [parse_gate(text) for text in gate or []]
    made = api.score(
        predictions,
        settings=call.settings,
        out=out,
        cutoffs=call.new_cutoffs,
        scores=scores,
        thresholds=thresholds,
        tune=tune,
        tune_split=tune_split,
        fitted_split=fitted_split,
        map_ids=map_ids,
    )
    _show(call.output, made)
    call.output.result(_summary(made, gates))
    # Raised last: files are written and the result is printed whether gates are met or not.
    if unmet := unmet_gates(gates, made.scorecards):
        raise GateUnmet(unmet)


def _show(output: Output, made: ScoreOutcome) -> None:
    from retailtag.backbones.names import short_models
    from retailtag.report.grouped import grouped
    from retailtag.report.tables import (
        assignments_table,
        comparison_table,
        findings_text,
        groups_table,
    )

    scored = made.scored
    output.print(groups_table(scored.cards, scored.names))
    if any(card.assignments for card in scored.cards):
        output.print(assignments_table(scored.cards, scored.names))
    if scored.comparisons:
        output.print(comparison_table(scored.comparisons, scored.names))
    names = short_models([card.model for card in scored.cards], scored.names)
    found = grouped([("", made.findings), *((names[c.model], c.findings) for c in scored.cards)])
    if found:
        output.print("", "Findings", findings_text(found))
    output.print("")
    for card, folder in zip(scored.cards, scored.folders, strict=True):
        output.print(f"{card.model}: {folder / 'scorecard.json'}")


def _summary(made: ScoreOutcome, gates: Sequence[Gate]) -> dict[str, Any]:
    from retailtag.scoring.strict_json import plain

    scored = made.scored

    cards = [
        {
            "model": card.model,
            "folder": str(folder),
            "split": card.split,
            "n_images": card.n_images,
            "micro_f1": card.micro_f1,
            "macro_f1_sklearn": card.macro_f1_sklearn,
            "summaries": {scope: asdict(s) for scope, s in card.summaries.items()},
            "assignment": card.assignment,
            "assignments": [asdict(row) for row in card.assignments],
            "findings": [asdict(f) for f in card.findings],
            "gates": [
                {"gate": str(g), "value": g.value(card), "met": g.is_met(card)} for g in gates
            ],
        }
        for card, folder in zip(scored.cards, scored.folders, strict=True)
    ]
    return {
        "scorecards": plain(cards),
        "comparisons": [c.to_json() for c in scored.comparisons],
        "findings": [asdict(f) for f in made.findings],
    }
