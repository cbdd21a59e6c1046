"""Ranking and quality against cost: the whole answer in one picture, for a README."""

from __future__ import annotations

from typing import TYPE_CHECKING

from retailtag.report.decision import Decision
from retailtag.report.figures.cost import draw_quality_cost
from retailtag.report.figures.marks import empty_figure
from retailtag.report.figures.ranking import draw_ranking
from retailtag.report.results import BakeoffResult
from retailtag.report.theme import WIDE

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def summary_figure(result: BakeoffResult, decision: Decision) -> Figure:
    """Ranking at the left, bubbles numbered by it at the right."""
    height = max(4.0, 0.95 + 0.5 * len(result.pairs))
    figure = empty_figure(WIDE, height)
    grid = figure.add_gridspec(
        1, 2, width_ratios=(1.25, 1), left=0.24, right=0.99, bottom=0.55 / height,
        top=1 - 0.32 / height, wspace=0.18,
    )  # fmt: skip
    rows = grid[0].subgridspec(1, 2, wspace=0.1)
    left = figure.add_subplot(rows[0])
    right = figure.add_subplot(rows[1], sharey=left)
    right.tick_params(labelleft=False)
    draw_ranking(left, right, result, decision, numbered=True)
    draw_quality_cost(figure.add_subplot(grid[1]), result)
    return figure
