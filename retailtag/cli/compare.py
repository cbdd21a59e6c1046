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
    from retailtag import api
    from retailtag.scoring.strict_json import plain

    made = api.compare(
        predictions,
        settings=call.settings,
        out=out,
        cutoffs=call.new_cutoffs,
    )
    contest, output = made.compared.contest, call.output
    if not (output.json or output.quiet):
        from retailtag.report.tables import comparison_table, findings_text, standings_table

        names = made.compared.names

        output.print(standings_table(contest.standings, call.settings.score.split, names))
        output.print(comparison_table(contest.comparisons, names))
        output.print(findings_text(made.findings))
        output.print(f"pairs: {out}")
    output.result(
        {
            "standings": plain([asdict(s) for s in contest.standings]),
            "comparisons": [c.to_json() for c in contest.comparisons],
            "findings": [asdict(f) for f in made.findings],
            "pairs": str(out),
        }
    )
