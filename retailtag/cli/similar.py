"""`retailtag similar`: products that look most like images, products or texts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from retailtag.cli.app import app
from retailtag.cli.verb import Call, command

if TYPE_CHECKING:
    from rich.table import Table

    from retailtag.runs.similar import Found

SHOWN = 10  # queries on the terminal; --json and the contact sheet have more


@command(app, "similar")
def similar(
    call: Call,
    queries: Annotated[
        list[str] | None,
        typer.Option(
            "--query",
            metavar="SOURCE",
            help="Image to search for, or a folder, pattern or archive of images; repeatable.",
        ),
    ] = None,
    ids: Annotated[
        list[str] | None,
        typer.Option("--id", metavar="ID", help="Image of the catalogue; repeatable."),
    ] = None,
    products: Annotated[
        list[str] | None,
        typer.Option("--product", metavar="ID", help="Product of the catalogue; repeatable."),
    ] = None,
    texts: Annotated[
        list[str] | None,
        typer.Option(
            "--text", metavar="TEXT", help="Description, for image-text backbones; repeatable."
        ),
    ] = None,
    contact_sheet: Annotated[
        Path | None,
        typer.Option("--contact-sheet", metavar="FILE", help="Also draw what was found: .html."),
    ] = None,
) -> None:
    """Search a catalogue for the products that look most like images, products or texts.

    Compares the embeddings that extract stored. The own product of --id and --product is left out.
    """
    from retailtag import api
    from retailtag.report.similar_sheet import check_ending

    catalogue, output = call.catalogue, call.output
    call.require("backbones")
    if contact_sheet is not None:
        check_ending(contact_sheet)
    made = api.similar(
        catalogue,
        queries=queries or (),
        ids=ids or (),
        products=products or (),
        texts=texts or (),
        settings=call.settings,
        progress=output.progress,
    )
    for found in made.found[:SHOWN]:
        # A title of the table would be broken at its width, and paths with it.
        output.print(f"Similar to {found.query.label}:", _table(found))
    if len(made.found) > SHOWN:
        output.print(f"and {len(made.found) - SHOWN:,} more queries, which --json has.")
    output.print(*made.notes)
    if contact_sheet is not None:
        made.write_sheet(contact_sheet)
        output.print(f"Contact sheet: {contact_sheet}")
    output.result(made.to_json())


def _table(found: Found) -> Table:
    from rich.table import Table

    table = Table()
    # a product of one image is called as its image: the column would say nothing and break paths
    has_products = any(hit.product != hit.image_id for hit in found.hits)
    has_titles = any(hit.title for hit in found.hits)
    table.add_column("#", justify="right")
    table.add_column("similarity", justify="right")
    names = (*(["product"] if has_products else []), "image", *(["title"] if has_titles else []))
    for name in names:
        table.add_column(name, overflow="fold")
    for hit in found.hits:
        image = f"{hit.image_id} (same file)" if hit.same_file else hit.image_id
        cells = {"product": hit.product, "image": image, "title": hit.title}
        table.add_row(str(hit.rank), f"{hit.similarity:.3f}", *(cells[name] for name in names))
    return table
