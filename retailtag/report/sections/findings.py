"""Findings, those of one code together over all pairs."""

from __future__ import annotations

from dataclasses import dataclass

from retailtag.report.report import Report
from retailtag.scoring.finding import Finding


@dataclass(frozen=True)
class SharedFinding:
    """Findings of one code: one line where all pairs share it, else one line per pair."""

    code: str
    remedy: str
    lines: list[str]


def findings(report: Report) -> list[SharedFinding]:
    """Findings of the bake-off, then those of its pairs, by code."""
    by_code: dict[str, list[tuple[str, Finding]]] = {}
    for finding in report.result.findings:
        by_code.setdefault(finding.code, []).append(("", finding))
    for pair in report.result.ranking:
        for finding in pair.scorecard.findings:
            by_code.setdefault(finding.code, []).append((report.names[pair.name], finding))
    found = []
    for code, group in by_code.items():
        lines = [f"{name}: {f.sentence}" if name else f.sentence for name, f in group]
        if len({f.sentence for _, f in group}) == 1 and len(group) == len(report.result.pairs):
            lines = [group[0][1].sentence]
        found.append(SharedFinding(code, group[0][1].remedy, lines))
    return found
