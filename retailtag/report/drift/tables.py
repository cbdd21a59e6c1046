"""What `retailtag drift` prints, at 80 columns."""

from __future__ import annotations

from collections.abc import Iterator

from rich import box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from retailtag.display import printable
from retailtag.report.drift.words import (
    ACTIONS,
    FAMILY_NAMES,
    FIGURE_NAMES,
    effect,
    p_text,
    percent,
    verdict,
)
from retailtag.statistics.drift import DriftResult

SHOWN_TAGS = 10


def drift_tables(result: DriftResult) -> Iterator[RenderableType]:
    """Tables and sentences of a comparison, the verdict first."""
    yield Text(
        f"{verdict(result)} (p = {p_text(result.p)}, alarm at {result.alpha:g}; "
        f"{result.n_new:,} new images against {result.n_reference:,}: "
        f"{printable(result.reference, keep='')})"
    )
    yield _families(result)
    if result.moved_tags:
        yield _tags(result)
    if result.moved_properties:
        yield _properties(result)
    for number, remedy in enumerate(result.remedies, start=1):
        sentences = f"{number}. {ACTIONS[remedy.action]}. {remedy.because} {remedy.do}"
        yield Text(printable(sentences, keep=""))
    for note in result.notes:
        yield Text(printable(note, keep=""), style="dim")


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _families(result: DriftResult) -> Table:
    table = _table("Tests (p adjusted for all of them)", "", "p", "effect, 95 % interval")
    for family in result.families:
        name = ("→ " if family.has_drifted else "  ") + FAMILY_NAMES[family.name]
        table.add_row(name, p_text(family.p_adjusted), effect(result, family.name))
    return table


def _tags(result: DriftResult) -> Table:
    moved = result.moved_tags
    more = f", the first {SHOWN_TAGS} of {len(moved):,}" if len(moved) > SHOWN_TAGS else ""
    table = _table(f"Tags whose rate moved (% of the images{more})", "tag", "reference", "new", "p")
    for shift in moved[:SHOWN_TAGS]:
        table.add_row(
            shift.tag, percent(shift.reference), percent(shift.new), p_text(shift.p_adjusted)
        )
    return table


def _properties(result: DriftResult) -> Table:
    table = _table("Properties that moved (median, and 10 to 90 %)", "", "reference", "new", "p")
    for shift in result.moved_properties:
        sides = [
            f"{middle:.3g} ({low:.3g} to {high:.3g})"
            for low, middle, high in (shift.reference, shift.new)
        ]
        table.add_row(FIGURE_NAMES[shift.name], *sides, p_text(shift.p_adjusted))
    return table
