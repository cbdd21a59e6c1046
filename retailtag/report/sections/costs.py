"""What every pair costs: latency, training, memory and size."""

from __future__ import annotations

from dataclasses import dataclass

from retailtag.report.report import Report
from retailtag.report.results import PairResult


@dataclass(frozen=True)
class Costs:
    """Costs as measured on this machine."""

    pairs: tuple[PairResult, ...]


def costs(report: Report) -> Costs:
    """Costs in the order of the ranking."""
    return Costs(report.result.ranking)
