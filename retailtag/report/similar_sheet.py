"""Queries with the products found, as pictures on one HTML page that needs nothing but itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from retailtag.catalog.catalog import Catalog
from retailtag.display import printable
from retailtag.errors import UsageError
from retailtag.report.gallery import data_uri, jpeg_uri, thumbnail
from retailtag.report.prediction_sheet import HTML, MAX_BYTES, SIDE
from retailtag.report.templates import environment

MAX_SHELVES = 60  # queries on a page; as many as a person looks through


@dataclass(frozen=True)
class Shelf:
    """A query, and the images found for it."""

    name: str  # of the query
    read: Callable[[], bytes] | None  # bytes of its picture, if it has one
    rows: Sequence[int]  # of the catalogue, the most alike first
    captions: Sequence[tuple[str, ...]]  # lines below each of them


def check_ending(path: Path) -> None:
    """Raise `UsageError` unless a path ends as a page does."""
    if path.suffix.lower() not in HTML:
        raise UsageError(f"--contact-sheet {path} must end in .html.")


def similar_sheet(catalog: Catalog, shelves: Sequence[Shelf], title: str) -> str:
    """HTML of the first queries with what was found, within `MAX_BYTES` of pictures."""
    shown: list[dict[str, Any]] = []
    left = MAX_BYTES
    for shelf in shelves[:MAX_SHELVES]:
        cards = _cards(catalog, shelf)
        left -= sum(len(card["source"]) for card in cards)
        if left < 0 and shown:
            break
        shown.append({"name": printable(shelf.name, keep=""), "cards": cards})
    n, n_all = len(shown), len(shelves)
    counted = f"{n:,}" if n == n_all else f"The first {n:,} of {n_all:,}"
    css = (resources.files("retailtag.report") / "assets" / "report.css").read_text("utf-8")
    template = environment().get_template("similar.html.jinja")
    return template.render(
        title=title,
        headline=f"{counted} queries, each with the products most alike to it, the closest first.",
        shelves=shown,
        css=css,
    )


def _cards(catalog: Catalog, shelf: Shelf) -> list[dict[str, Any]]:
    """Pictures of a query and of what was found for it, with their lines."""
    cards: list[dict[str, Any]] = []
    if shelf.read is not None:
        source = jpeg_uri(thumbnail(shelf.read, SIDE))
        cards.append({"source": source, "lines": ["query"], "is_query": True})
    for row, lines in zip(shelf.rows, shelf.captions, strict=True):
        source = data_uri(catalog.images, row, SIDE)
        printed = [printable(line, keep="") for line in lines]
        cards.append({"source": source, "lines": printed, "is_query": False})
    return cards
