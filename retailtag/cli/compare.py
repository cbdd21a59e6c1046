"""`retailtag compare`: rank models on the same images and compare every two."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from retailtag.cli.options import (
    PERMUTATIONS,
    REPLICATES,
    AllowMissingOption,
    JsonOption,
    NewCutoffsOption,
    QuietOption,
    ReplicatesOption,
    RunsArgument,
    ScoredCatalogOption,
    ScoredSplitOption,
    SeedOption,
    WithAttributesOption,
    split_list,
)
from retailtag.cli.output import Output


def compare(
    predictions: RunsArgument,
    catalog: ScoredCatalogOption = None,
    attributes: WithAttributesOption = "",
    cutoffs: NewCutoffsOption = None,
    split: ScoredSplitOption = "test",
    out: Annotated[Path, typer.Option("--out", help="CSV of the pairs.")] = Path("pairs.csv"),
    replicates: ReplicatesOption = REPLICATES,
    permutations: Annotated[
        int, typer.Option("--permutations", min=100, help="Random swaps behind each p.")
    ] = PERMUTATIONS,
    allow_missing: AllowMissingOption = False,
    seed: SeedOption = 0,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Rank models on the same images and compare every two: difference, interval, p, verdict.

    Runs that differ in their seed alone count as one model, whose seeds add to the uncertainty.
    """
    from retailtag.cli.catalogs import reader
    from retailtag.scoring.files import compare_files
    from retailtag.scoring.ledger import reused_split
    from retailtag.scoring.strict_json import plain

    compared = compare_files(
        predictions,
        reader(cutoffs),
        out=out,
        catalog=catalog,
        catalog_args={"attributes": split_list(attributes)} if attributes else None,
        split=split,
        n_bootstrap=replicates,
        n_permutations=permutations,
        seed=seed,
        allow_missing=allow_missing,
    )
    contest, reused = compared.contest, reused_split(compared.digests, split)
    output = Output(json, quiet)
    if not (json or quiet):
        from rich.text import Text

        from retailtag.report.tables import comparison_table, findings_text, standings_table

        output.print(standings_table(contest.standings, split))
        output.print(comparison_table(contest.comparisons))
        output.print(findings_text(reused))
        output.print(Text(f"pairs: {out}", no_wrap=True, overflow="ignore"))
    output.result(
        {
            "standings": plain([asdict(s) for s in contest.standings]),
            "comparisons": [c.to_json() for c in contest.comparisons],
            "findings": [asdict(f) for f in reused],
            "pairs": str(out),
        }
    )
