"""Presentation of a bake-off: the decision, terminal tables, figures and one page.

Figures need matplotlib, which is imported when the first one is drawn.
"""

from retailtag.report.decision import Decision, decide
from retailtag.report.results import BakeoffResult, PairCost, PairResult, describe_catalog
from retailtag.report.write import write_report

__all__ = [
    "BakeoffResult",
    "Decision",
    "PairCost",
    "PairResult",
    "decide",
    "describe_catalog",
    "write_report",
]
