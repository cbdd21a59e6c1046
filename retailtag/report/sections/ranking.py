"""The ranking: every pair with its scores and intervals, and the assignments of attributes."""

from __future__ import annotations

from dataclasses import dataclass

from retailtag.report.drawing import Drawing
from retailtag.report.figures.ranking import ranking_figure
from retailtag.report.report import Report
from retailtag.report.results import PairResult
from retailtag.scoring.scorecard import SCOPES, AssignmentRow


@dataclass(frozen=True)
class Assigned:
    """One attribute of one pair under the three assignments."""

    pair: PairResult
    attribute: str
    rows: list[AssignmentRow]


@dataclass(frozen=True)
class Ranking:
    """All pairs, the best first."""

    figure: Drawing
    pairs: tuple[PairResult, ...]
    scopes: dict[str, int]  # tags averaged in each
    assignment: str  # under which the scores count
    assigned: list[Assigned]  # empty without attributes of one value


def ranking(report: Report) -> Ranking:
    """Pairs by macro-F1 in the population."""
    result = report.result
    card = result.pairs[0].scorecard
    return Ranking(
        figure=Drawing(
            "ranking",
            "Macro-F1 of every pair with its interval",
            "Macro-F1 in the population over all tags and over the tail. Hollow: probe; filled: "
            "fine-tune. Overlapping intervals do not mean a tie: the rule compares pairs on the "
            "same images.",
            lambda layout: ranking_figure(result, report.decision, layout),
        ),
        pairs=result.ranking,
        scopes={scope: card.summaries[scope].n_tags for scope in SCOPES},
        assignment=card.assignment,
        assigned=_assigned(report),
    )


def _assigned(report: Report) -> list[Assigned]:
    """All tags of every pair; single attributes of the recommended pair."""
    found = []
    for pair in report.result.ranking:
        by_attribute: dict[str, list[AssignmentRow]] = {}
        for row in pair.scorecard.assignments:
            by_attribute.setdefault(row.attribute, []).append(row)
        found += [
            Assigned(pair, attribute or "all tags", rows)
            for attribute, rows in by_attribute.items()
            if not attribute or pair.name == report.decision.winner
        ]
    return found
