"""Quality against cost, and what would change the recommendation."""

from __future__ import annotations

from dataclasses import dataclass

from retailtag.report.drawing import Drawing
from retailtag.report.figures.cost import quality_cost_figure
from retailtag.report.report import Report


@dataclass(frozen=True)
class TradeOff:
    """Macro-F1 of every pair against what it costs."""

    figure: Drawing


def tradeoff(report: Report) -> TradeOff:
    """Macro-F1 over latency and training time."""
    return TradeOff(
        Drawing(
            "cost",
            "Macro-F1 over latency",
            "Macro-F1 in the population over all tags against the latency of one image; the bubble "
            "grows with training time. Dotted steps join the pairs that no other beats in both; "
            "without steps, one pair beats all.",
            lambda layout: quality_cost_figure(report.result, report.decision, layout),
        )
    )
