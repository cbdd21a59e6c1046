"""The threshold rules and the heads that each pair tried, as tables of the report."""

from __future__ import annotations

from typing import Any

from retailtag.report.elements import breakable, esc, html_row, html_table
from retailtag.report.results import BakeoffResult
from retailtag.report.tables import points
from retailtag.report.theme import short_names


def rules_table(result: BakeoffResult) -> str:
    """Cross-fit macro-F of every rule, one row a pair that recorded it; empty if none did."""
    found = {}
    for name, facts in _recorded(result).items():
        thresholds = facts.get("thresholds")
        if isinstance(thresholds, dict) and thresholds.get("cross_fit"):
            cells = {
                rule: _cell(row["all"], row.get("tail"), rule == thresholds["rule"])
                for rule, row in thresholds["cross_fit"].items()
            }
            found[name] = cells
    return _table(
        found,
        "Rules for thresholds, macro-F &times; 100 of all tags and, in brackets, of the tail: "
        "tuned on all folds of the out-of-fold scores but one and counted on that one. Bold: the "
        "rule taken.",
    )


def heads_table(result: BakeoffResult) -> str:
    """Cross-fit macro-F of every head, one row a probe that tried several; empty if none did."""
    found = {}
    for name, facts in _recorded(result).items():
        heads = facts.get("heads", {})
        if len(heads) > 1 and all("macro_f" in row for row in heads.values()):
            found[name] = {
                head: _cell(row["macro_f"], row.get("tail_macro_f"), head == facts["head"])
                for head, row in heads.items()
            }
    return _table(
        found,
        "Heads, macro-F &times; 100 of all tags and, in brackets, of the tail, from out-of-fold "
        "scores with cross-fit thresholds. Bold: the head taken, in the order logistic, ridge, "
        "knn, text the first within one standard error of the best.",
    )


def _recorded(result: BakeoffResult) -> dict[str, dict[str, Any]]:
    """What the predictions behind each pair's card say of how they were made."""
    names = short_names(result)
    return {
        names[pair.name]: pair.scorecard.provenance.get("predictions", {})
        for pair in result.ranking
    }


def _table(found: dict[str, dict[str, str]], caption: str) -> str:
    if not found:
        return ""
    columns = list(dict.fromkeys(column for cells in found.values() for column in cells))
    rows = [
        html_row(breakable(name), [cells.get(column, "<td>\u2013</td>") for column in columns])
        for name, cells in found.items()
    ]
    return html_table(["Pair", *map(esc, columns)], rows, caption)


def _cell(all_tags: float, tail: float | None, taken: bool) -> str:
    text = points(all_tags) + ("" if tail is None else f" ({points(tail)})")
    return f"<td><strong>{text}</strong></td>" if taken else f"<td>{text}</td>"
