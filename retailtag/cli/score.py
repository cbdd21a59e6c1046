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
from retailtag.errors import GateUnmet, UsageError

if TYPE_CHECKING:
    from retailtag.predictions import Predictions
    from retailtag.scoring.files import ReadCatalog, ScoredFiles
    from retailtag.scoring.finding import Finding
    from retailtag.scoring.gates import Gate

FOREIGN = "Another tool's scores"


@command(app, "score", catalogue=False)
def score(
    call: Call,
    predictions: RunsArgument,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Folder for the scorecards; default: beside the predictions."),
    ] = None,
    gate: Annotated[
        list[str] | None,
        typer.Option(
            "--gate",
            metavar="CONDITION",
            help='Exit with 5 unless met, e.g. "tail_macro_f1>=0.30"; repeatable.',
        ),
    ] = None,
    scores: Annotated[
        str | None,
        typer.Option("--scores", help=f"{FOREIGN}: what they are, logits or probabilities."),
    ] = None,
    thresholds: Annotated[
        Path | None,
        typer.Option("--thresholds", help=f"{FOREIGN}: CSV of tag,threshold on that scale."),
    ] = None,
    tune: Annotated[
        str | None,
        typer.Option("--tune", help=f"{FOREIGN}: rule that tunes the thresholds instead."),
    ] = None,
    tune_split: Annotated[
        str,
        typer.Option(
            "--tune-split",
            help="Split that --tune sees, not the scored one.",
            rich_help_panel=ADVANCED,
            hidden=True,
        ),
    ] = "val",
    fitted_split: Annotated[
        str,
        typer.Option(
            "--fitted-split",
            help=f"{FOREIGN}: split the model was fitted on.",
            rich_help_panel=ADVANCED,
            hidden=True,
        ),
    ] = "train",
) -> None:
    """Score predictions on held-out images: macro-F1, the tail, AP, intervals, findings.

    A RUN is a predictions file, the folder of a run or of a bake-off, or another tool's CSV,
    Parquet or NPZ of scores (with --catalogue and --scores).
    """
    from retailtag.cli.catalogs import reader
    from retailtag.scoring.files import find_predictions, score_files
    from retailtag.scoring.gates import parse_gate, unmet_gates
    from retailtag.scoring.ledger import reused_split

    gates = [parse_gate(text) for text in gate or []]
    paths = find_predictions(predictions)
    s, catalog = call.settings.score, call.settings.catalog.path
    read = reader(call.new_cutoffs)
    attributes = call.settings.catalog.attributes
    how = {"attributes": list(attributes)} if attributes else None
    declared = (scores, thresholds, tune, tune_split, fitted_split)
    scored = score_files(
        paths,
        read,
        catalog=catalog,
        catalog_args=how,
        split=s.split,
        out=out,
        n_bootstrap=s.replicates,
        seed=s.seed,
        allow_missing=s.allow_missing,
        loaded=_foreign(paths, read, catalog, how, s.split, declared),
    )
    reused = reused_split(scored.digests, s.split)
    output = call.output
    _show(output, scored, reused)
    output.result(_summary(scored, reused, gates))
    if unmet := unmet_gates(gates, scored.cards):
        raise GateUnmet(unmet)


def _foreign(
    paths: Sequence[Path],
    read: ReadCatalog,
    catalog: Path | None,
    catalog_args: dict[str, Any] | None,
    split: str,
    declared: tuple[str | None, Path | None, str | None, str, str],
) -> dict[Path, Predictions]:
    """Predictions made from the files of other tools among `paths`."""
    from retailtag.scoring.foreign import is_foreign

    found = [path for path in paths if is_foreign(path)]
    if not found:
        if any(value is not None for value in declared[:3]):
            raise UsageError(
                "--scores, --thresholds and --tune are for other tools' files, and all files named "
                "are retailtag's own; leave them out."
            )
        return {}
    if catalog is None:
        raise UsageError(f"{found[0]} does not record its catalogue; name it with --catalogue.")
    from retailtag.runs.foreign import Declared, foreign_predictions

    shop = read(catalog, **(catalog_args or {}))
    return {path: foreign_predictions(path, shop, Declared(*declared), split) for path in found}


def _show(output: Output, scored: ScoredFiles, reused: Sequence[Finding]) -> None:
    from rich.text import Text

    from retailtag.report.tables import comparison_table, findings_text, groups_table

    output.print(groups_table(scored.cards))
    if scored.comparisons:
        output.print(comparison_table(scored.comparisons))
    for card, folder in zip(scored.cards, scored.folders, strict=True):
        if card.findings:
            output.print(Text(f"\nFindings for {card.model}"))
            output.print(findings_text(card.findings))
        where = f"{card.model}: {folder / 'scorecard.json'}"
        output.print(Text(where, no_wrap=True, overflow="ignore"))
    if reused:
        output.print(Text("\nFindings for this split"))
        output.print(findings_text(reused))


def _summary(
    scored: ScoredFiles, reused: Sequence[Finding], gates: Sequence[Gate]
) -> dict[str, Any]:
    from retailtag.scoring.strict_json import plain

    cards = [
        {
            "model": card.model,
            "folder": str(folder),
            "split": card.split,
            "n_images": card.n_images,
            "micro_f1": card.micro_f1,
            "macro_f1_sklearn": card.macro_f1_sklearn,
            "summaries": {scope: asdict(s) for scope, s in card.summaries.items()},
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
        "findings": [asdict(f) for f in reused],
    }
