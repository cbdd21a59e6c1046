"""Every tag with its support and its F1 under every pair."""

from __future__ import annotations

from dataclasses import dataclass

from retailtag.report.report import Report
from retailtag.report.results import PairResult
from retailtag.scoring.scorecard import TagRow


@dataclass(frozen=True)
class TagLine:
    """One tag: its row under the recommended pair, and the F1 of every pair."""

    row: TagRow
    f1: list[float]


@dataclass(frozen=True)
class Tags:
    """The table of all tags."""

    pairs: list[PairResult]  # columns of F1, the recommended pair first
    lines: list[TagLine]


def tags(report: Report) -> Tags:
    """Tags in the order of the catalogue."""
    pairs = report.winner_first
    by_tag = zip(*(pair.scorecard.tags for pair in pairs), strict=True)
    return Tags(pairs, [TagLine(rows[0], [row.f1 for row in rows]) for rows in by_tag])
