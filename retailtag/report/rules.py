"""The threshold rules that each pair tried, as a table of the report."""

from __future__ import annotations

from typing import Any

from retailtag.report.elements import breakable, esc, html_row, html_table
from retailtag.report.results import BakeoffResult
from retailtag.report.tables import points
from retailtag.report.theme import short_names


def rules_table(result: BakeoffResult) -> str:
    """Cross-fit macro-F of every rule, one row a pair that recorded it; empty if none did."""
    names = short_names(result)
    recorded = {pair.name: _recorded(pair.scorecard.provenance) for pair in result.ranking}
    shown = {name: facts for name, facts in recorded.items() if facts.get("cross_fit")}
    rules = list(dict.fromkeys(rule for facts in shown.values() for rule in facts["cross_fit"]))
    if not shown:
        return ""
    rows = [
        html_row(breakable(names[name]), [_cell(rule, facts) for rule in rules])
        for name, facts in shown.items()
    ]
    return html_table(
        ["Pair", *(esc(rule) for rule in rules)],
        rows,
        "Rules for thresholds, macro-F &times; 100 of all tags and, in brackets, of the tail: "
        "tuned on all folds of the out-of-fold scores but one and counted on that one. Bold: the "
        "rule taken.",
    )


def _recorded(provenance: dict[str, Any]) -> dict[str, Any]:
    """What the predictions behind a card say of their thresholds, if they do."""
    facts = provenance.get("predictions", {}).get("thresholds")
    return facts if isinstance(facts, dict) else {}


def _cell(rule: str, facts: dict[str, Any]) -> str:
    scores = facts["cross_fit"].get(rule)
    if scores is None:
        return "<td>\u2013</td>"
    tail = f" ({points(scores['tail'])})" if "tail" in scores else ""
    text = points(scores["all"]) + tail
    return f"<td><strong>{text}</strong></td>" if rule == facts.get("rule") else f"<td>{text}</td>"
