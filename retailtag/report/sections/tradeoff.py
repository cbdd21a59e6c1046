"""Quality against cost, and what would change the recommendation."""

from __future__ import annotations

from dataclasses import dataclass, replace

from retailtag.report.drawing import Drawing
from retailtag.report.figures.cost import quality_cost_figure
from retailtag.report.flips import Flip, what_would_flip
from retailtag.report.report import Report


@dataclass(frozen=True)
class TradeOff:
    """Macro-F1 of every pair against what it costs."""

    figure: Drawing
    panel: list[Flip]  # under short names, as are the sentences
    smallest: list[str]
    paragraphs: list[str]


def tradeoff(report: Report) -> TradeOff:
    """Macro-F1 over latency and training time, and the answers to the neighbouring questions."""
    flips = what_would_flip(report.result, report.decision)
    return TradeOff(
        figure=Drawing(
            "cost",
            "Macro-F1 over latency",
            "Macro-F1 in the population over all tags against the latency of one image; the bubble "
            "grows with training time. Dotted steps join the pairs that no other beats in both; "
            "without steps, one pair beats all.",
            lambda layout: quality_cost_figure(report.result, report.decision, layout),
        ),
        panel=[replace(flip, winner=report.names.get(flip.winner, "–")) for flip in flips.panel],
        smallest=[report.with_short_names(sentence) for sentence in flips.smallest],
        paragraphs=[report.with_short_names(text) for text in flips.trade_off],
    )
