"""`retailtag audit`: labels that are likely wrong."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from retailtag.cli.app import app
from retailtag.cli.verb import Call, RunArgument, command

if TYPE_CHECKING:
    from rich.table import Table

    from retailtag.outcomes import AuditOutcome

SHOWN = 20  # rows on the terminal


@command(app, "audit", catalogue=False)
def audit(
    call: Call,
    run: RunArgument,
    top: Annotated[
        int, typer.Option("--top", metavar="N", min=1, max=10**7, help="Labels to list.")
    ] = 1000,
    out: Annotated[Path, typer.Option("--out", help="CSV to write.")] = Path("audit.csv"),
) -> None:
    """List labels of the training images that are likely wrong, most suspicious first.

    An error is a tag that the product is given and does not seem to show, a gap one that it lacks
    and seems to show, by scores of fits on other products. Of a bake-off the probe of the
    recommended backbone is taken.
    """
    from retailtag import api

    made = api.audit(run, top=top, out=out, settings=call.settings)
    call.output.print(_table(made), *made.notes)
    suspects = [asdict(suspect) for suspect in made.audit.suspects]
    call.output.result({"out": str(out), "n_images": made.audit.n_images, "suspects": suspects})


def _table(made: AuditOutcome) -> Table:
    from rich.table import Table

    shown = made.audit.suspects[:SHOWN]
    # a product of one image is called as its image: the column would say nothing and break paths
    has_products = any(s.product != s.image_id for s in shown)
    table = Table(title=f"Suspicious labels of {made.audit.n_products:,} products")
    for column in ("#", "kind", "tag", *(["product"] if has_products else [])):
        table.add_column(column, overflow="fold")
    longest = max((len(s.path) for s in shown), default=0)
    table.add_column("image", overflow="fold", min_width=min(longest, 40))
    table.add_column("suspicion", justify="right")
    for s in shown:
        products = [s.product] if has_products else []
        table.add_row(str(s.rank), s.kind, s.tag, *products, s.path, f"{s.suspicion:.1f}")
    return table
