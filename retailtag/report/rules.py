"""The threshold rules and the heads that each pair tried, for the tables of the report."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from retailtag.report.results import BakeoffResult
from retailtag.report.tables import points
from retailtag.report.theme import short_names


@dataclass(frozen=True)
class Cell:
    """Cross-fit macro-F of all tags and, in brackets, of the tail; whether this one was taken."""

    text: str
    taken: bool

    @classmethod
    def of(cls, all_tags: float, tail: float | None, taken: bool) -> Cell:
        """Cell from two fractions; without brackets where the tail has none."""
        return cls(points(all_tags) + ("" if tail is None else f" ({points(tail)})"), taken)


Tried = dict[str, dict[str, Cell]]
"""Cells by pair and by rule or head; empty where no pair recorded any."""


def rules_tried(result: BakeoffResult) -> Tried:
    """Cross-fit macro-F of every threshold rule of the pairs that recorded it."""
    tried: Tried = {}
    for name, facts in _recorded(result).items():
        thresholds = facts.get("thresholds")
        if isinstance(thresholds, dict) and thresholds.get("cross_fit"):
            tried[name] = {
                rule: Cell.of(row["all"], row.get("tail"), rule == thresholds["rule"])
                for rule, row in thresholds["cross_fit"].items()
            }
    return tried


def heads_tried(result: BakeoffResult) -> Tried:
    """Cross-fit macro-F of every head of the probes that tried several."""
    tried: Tried = {}
    for name, facts in _recorded(result).items():
        heads = facts.get("heads", {})
        if len(heads) > 1 and all("macro_f" in row for row in heads.values()):
            tried[name] = {
                head: Cell.of(row["macro_f"], row.get("tail_macro_f"), head == facts["head"])
                for head, row in heads.items()
            }
    return tried


def _recorded(result: BakeoffResult) -> dict[str, dict[str, Any]]:
    """What the predictions behind each pair's card say of how they were made."""
    names = short_names(result)
    return {
        names[pair.name]: pair.scorecard.provenance.get("predictions", {})
        for pair in result.ranking
    }
