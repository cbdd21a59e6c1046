"""`retailtag similar`: products that look most like images, products or texts."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from retailtag.cli.app import app
from retailtag.cli.verb import Call, command
from retailtag.errors import UsageError

if TYPE_CHECKING:
    from rich.table import Table

    from retailtag.outcomes import SimilarOutcome
    from retailtag.runs.similar import Found
    from retailtag.runs.similar_evaluation import Evaluation, Score

CAPTION = (
    "In points, with 95 % intervals over products. Relevant are images of the same "
    "product, or of others by shared tags. Tail: products of at most 3 images; for tags, images "
    "with a tail tag."
)
SHOWN = 10  # queries on the terminal; --json and the contact sheet have more
QueryOption = Annotated[
    list[str] | None,
    typer.Option(
        "--query",
        metavar="SOURCE",
        help="Image to search for, or a folder, pattern or archive of images; repeatable.",
    ),
]
IdOption = Annotated[
    list[str] | None,
    typer.Option("--id", metavar="ID", help="Image of the catalogue; repeatable."),
]
ProductOption = Annotated[
    list[str] | None,
    typer.Option("--product", metavar="ID", help="Product of the catalogue; repeatable."),
]
TextOption = Annotated[
    list[str] | None,
    typer.Option(
        "--text", metavar="TEXT", help="Description, for image-text backbones; repeatable."
    ),
]
SheetOption = Annotated[
    Path | None,
    typer.Option("--contact-sheet", metavar="FILE", help="Also draw what was found: .html."),
]
EvaluateOption = Annotated[
    bool,
    typer.Option(
        "--evaluate",
        help="Measure instead how well images of --split find their product, and like tags.",
    ),
]


@command(app, "similar")
def similar(
    call: Call,
    queries: QueryOption = None,
    ids: IdOption = None,
    products: ProductOption = None,
    texts: TextOption = None,
    contact_sheet: SheetOption = None,
    evaluate: EvaluateOption = False,
) -> None:
    """Search a catalogue for the products that look most like images, products or texts.

    Compares the embeddings that extract stored. The own product of --id and --product is left out.
    """
    from retailtag import api
    from retailtag.report.similar_sheet import check_ending

    catalogue, output = call.catalogue, call.output
    call.require("backbones")
    if evaluate:
        if queries or ids or products or texts or contact_sheet or call.settings.similar.rerank:
            raise UsageError(
                "--evaluate takes its queries from the catalogue and their first order; leave out "
                "--query, --id, --product, --text, --contact-sheet and --rerank."
            )
        _evaluate(call)
        return
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
        stdin=sys.stdin.buffer,
    )
    _show(call, made)
    if contact_sheet is not None:
        made.write_sheet(contact_sheet)
        output.print(f"Contact sheet: {contact_sheet}")
    output.result(made.to_json())


def _show(call: Call, made: SimilarOutcome) -> None:
    """Tables of the first queries."""
    output = call.output
    for found in made.found[:SHOWN]:
        # A title of the table would be broken at its width, and paths with it.
        output.print(f"Similar to {found.query.label}:", _table(found))
    if len(made.found) > SHOWN:
        output.print(f"and {len(made.found) - SHOWN:,} more queries, which --json has.")
    output.print(*made.notes)


def _evaluate(call: Call) -> None:
    from retailtag import api

    output = call.output
    measured = api.evaluate_similar(
        call.catalogue, settings=call.settings, progress=output.progress
    )
    for one in measured.evaluations:
        output.print(*_evaluated(one), *one.notes)
    output.result({"evaluations": [one.to_json() for one in measured.evaluations]})


def _table(found: Found) -> Table:
    from rich.table import Table

    table = Table()
    # a product of one image is called as its image: the column would say nothing and break paths
    has_products = any(hit.product != hit.image_id for hit in found.hits)
    has_titles = any(hit.title for hit in found.hits)
    table.add_column("#", justify="right")
    table.add_column("similarity", justify="right")
    is_reranked = any(hit.reranked is not None for hit in found.hits)
    if is_reranked:
        table.add_column("re-ranked", justify="right")
    names = (*(["product"] if has_products else []), "image", *(["title"] if has_titles else []))
    for name in names:
        table.add_column(name, overflow="fold")
    for hit in found.hits:
        image = f"{hit.image_id} (same file)" if hit.same_file else hit.image_id
        cells = {"product": hit.product, "image": image, "title": hit.title}
        figures = [f"{hit.similarity:.3f}"]
        if is_reranked:
            figures.append("–" if hit.reranked is None else f"{hit.reranked:.3f}")
        table.add_row(str(hit.rank), *figures, *(cells[name] for name in names))
    return table


def _evaluated(one: Evaluation) -> tuple[str, Table]:
    """A heading, and one row per metric with its intervals, in points."""
    from rich.table import Table

    table = Table(caption=CAPTION, caption_justify="left")
    for column in ("relevant", "metric"):
        table.add_column(column)
    for column in ("all queries", "tail"):
        table.add_column(column, justify="right")
    cells = {(s.relevance, s.metric, s.scope): s for s in one.scores}
    for relevance in dict.fromkeys(score.relevance for score in one.scores):
        for metric in dict.fromkeys(s.metric for s in one.scores if s.relevance == relevance):
            row = [cells.get((relevance, metric, scope)) for scope in ("all", "tail")]
            table.add_row(relevance, metric, *(_points(score) for score in row))
        counts = (f"{s.n_queries:,} ({s.n_products:,})" if s else "–" for s in row)
        table.add_row("", "queries (products)", *counts, end_section=True)
    searched = one.searched
    heading = (
        f"{searched['backbone']}: {one.n_queries:,} images of {one.split} against "
        f"{searched['images']:,}"
    )
    return heading, table


def _points(score: Score | None) -> str:
    if score is None:
        return "–"
    return f"{100 * score.value:.1f}, {100 * score.low:.1f} to {100 * score.high:.1f}"
