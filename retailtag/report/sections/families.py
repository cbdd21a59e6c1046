"""The tail: F1 by number of training images, families and strategies, heads and rules tried."""

from __future__ import annotations

from dataclasses import dataclass

from retailtag.report.drawing import Drawing
from retailtag.report.figures.tail import gaps_figure, rivals, tail_figure, widest_gaps
from retailtag.report.report import Report
from retailtag.report.rules import Tried, heads_tried, rules_tried
from retailtag.report.sections.family_comparison import FamilyView, family_comparison


@dataclass(frozen=True)
class Families:
    """What decides on rare tags."""

    smallest_difference: float | None  # that shows on the tail, as a fraction
    by_count: Drawing
    gaps: Drawing | None  # without both strategies of a backbone, or equal in all tags
    comparison: FamilyView | None
    heads: Tried
    rules: Tried


def families(report: Report) -> Families:
    """F1 on the tail by pair."""
    result, decision = report.result, report.decision
    return Families(
        smallest_difference=decision.smallest_difference.get("tail"),
        by_count=Drawing(
            "tail",
            "Mean F1 by number of training images",
            "Tags grouped by their training images; shaded: the tail, under "
            f"{result.cutoffs['tail']}. Dashed and hollow: probe; solid: fine-tune.",
            lambda layout: tail_figure(result, decision, layout),
        ),
        gaps=_gaps(report),
        comparison=family_comparison(report),
        heads=heads_tried(result),
        rules=rules_tried(result),
    )


def _gaps(report: Report) -> Drawing | None:
    both = rivals(report.result, report.decision)
    if both is None or not widest_gaps(*both):
        return None
    return Drawing(
        "gaps",
        "Tags whose F1 differs most between probe and fine-tune",
        "Tags with at least 10 held-out positives; the widest gains of fine-tuning first, then "
        "the widest losses. Single tags differ by chance too: read the pattern, not one row.",
        lambda layout: gaps_figure(report.result, both, layout),
    )
