"""`retailtag compare`: rank models on the same images and compare every two."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from retailtag.cli.app import app
from retailtag.cli.verb import Call, RunsArgument, command


@command(app, "compare", catalogue=False)
def compare(
    call: Call,
    predictions: RunsArgument,
    out: Annotated[Path, typer.Option("--out", help="CSV of the pairs.")] = Path("pairs.csv"),
) -> None:
    """Rank models on the same images and compare every two: difference, interval, p, verdict.

    Runs that differ in their seed alone count as one model, whose seeds add to the uncertainty.
    """
    from retailtag.cli.catalogs import reader
    from retailtag.scoring.files import compare_files
    from retailtag.scoring.ledger import reused_split
    from retailtag.scoring.strict_json import plain

    s, attributes = call.settings.score, call.settings.catalog.attributes
    compared = compare_files(
        predictions,
        reader(call.new_cutoffs),
        out=out,
        catalog=call.settings.catalog.path,
        catalog_args={"attributes": list(attributes)} if attributes else None,
        split=s.split,
        n_bootstrap=s.replicates,
        n_permutations=s.permutations,
        seed=s.seed,
        allow_missing=s.allow_missing,
    )
    contest, reused = compared.contest, reused_split(compared.digests, s.split)
    output = call.output
    if not (output.json or output.quiet):
        from rich.text import Text

        from retailtag.report.tables import comparison_table, findings_text, standings_table

        output.print(standings_table(contest.standings, s.split))
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
