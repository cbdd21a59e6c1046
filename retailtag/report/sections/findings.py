"""Findings, those of one code together over all pairs."""

from __future__ import annotations

from retailtag.report.grouped import SharedFinding, grouped
from retailtag.report.report import Report


def findings(report: Report) -> list[SharedFinding]:
    """Findings of the bake-off, then those of its pairs, by code."""
    of_pairs = [(report.names[p.name], p.scorecard.findings) for p in report.result.ranking]
    return grouped([("", report.result.findings), *of_pairs])
