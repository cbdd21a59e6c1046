"""`retailtag score`: a scorecard for every predictions file, and their comparison."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from retailtag.catalog.catalog import Catalog
from retailtag.cli.options import JsonOption, QuietOption, ReplicatesOption, SeedOption, split_list
from retailtag.cli.output import Output
from retailtag.scoring.files import ScoredFiles, score_files
from retailtag.scoring.strict_json import plain


def score(
    predictions: Annotated[
        list[Path],
        typer.Argument(metavar="PREDICTIONS...", help="Files that probe or finetune wrote."),
    ],
    catalog: Annotated[
        Path | None,
        typer.Option("--catalog", help="Catalogue; default: the one the predictions record."),
    ] = None,
    attributes: Annotated[
        str, typer.Option("--attributes", help="With --catalog: columns that become tags.")
    ] = "",
    split: Annotated[str, typer.Option("--split", help="Split to score.")] = "test",
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Folder for the scorecards; default: beside the predictions."),
    ] = None,
    replicates: ReplicatesOption = 1000,
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Score without images that lack predictions.")
    ] = False,
    seed: SeedOption = 0,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Score predictions on held-out images: macro-F1, the tail, AP, intervals, findings."""
    scored = score_files(
        predictions,
        _read,
        catalog=catalog,
        catalog_args={"attributes": split_list(attributes)} if attributes else None,
        split=split,
        out=out,
        n_bootstrap=replicates,
        seed=seed,
        allow_missing=allow_missing,
    )
    output = Output(json, quiet)
    _show(output, scored)
    output.result(_summary(scored))


def _read(path: Path, *, attributes: Sequence[str] = (), images: str | None = None) -> Catalog:
    """Catalogue as predictions record it: paths are text there."""
    from retailtag.catalog.readers import read_catalog

    return read_catalog(path, attributes=attributes, images=Path(images) if images else None)


def _show(output: Output, scored: ScoredFiles) -> None:
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


def _summary(scored: ScoredFiles) -> dict[str, Any]:
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
        }
        for card, folder in zip(scored.cards, scored.folders, strict=True)
    ]
    comparisons = [c.to_json() for c in scored.comparisons]
    return {"scorecards": plain(cards), "comparisons": comparisons}
