"""Macro-F1 of every pair with its interval."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from retailtag.report.decision import Decision
from retailtag.report.figures.marks import clipped, empty_figure, marker, pair_label
from retailtag.report.results import BakeoffResult, PairResult
from retailtag.report.tables import points
from retailtag.report.theme import (
    BAND,
    INK,
    MUTED,
    WIDE,
    Layout,
    colours,
    short_backbones,
    strategy_name,
)
from retailtag.scoring.scorecard import GroupSummary

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARKS = "→ recommended\n= tied"


def ranking_figure(result: BakeoffResult, decision: Decision, layout: Layout = WIDE) -> Figure:
    """All tags at the left, the tail at the right; one below the other where it is narrow."""
    return _beside(result, decision) if layout is WIDE else _stacked(result, decision, layout)


def _beside(result: BakeoffResult, decision: Decision) -> Figure:
    height = 0.95 + 0.5 * len(result.pairs)
    figure = empty_figure(WIDE, height)
    left, right = figure.subplots(1, 2, sharey=True)
    draw_ranking(left, right, result, decision)
    figure.subplots_adjust(
        left=0.27, right=0.985, bottom=0.6 / height, top=1 - 0.35 / height, wspace=0.1
    )
    return figure


def _stacked(result: BakeoffResult, decision: Decision, layout: Layout) -> Figure:
    n = len(result.pairs)
    height = 2 * (0.55 * n + 1.15)
    figure = empty_figure(layout, height)
    for axes, scope in zip(figure.subplots(2, 1), ("all", "tail"), strict=True):
        _draw_scope(axes, scope, result, decision, offset=0.2)
        axes.set_yticks([])
        names = short_backbones(result)
        axes.set_xlabel(f"{axes.get_xlabel()}\n{MARKS.replace(chr(10), ', ')}")
        for row, pair in enumerate(result.ranking):
            axes.annotate(
                _mark(pair, decision) + pair_label(names[pair.backbone], strategy_name(pair), 34),
                (0, row - 0.2), (2, 0), xycoords=("axes fraction", "data"),
                textcoords="offset points", va="center", color=INK,
                fontweight="bold" if pair.name == decision.winner else "normal",
            )  # fmt: skip
    figure.subplots_adjust(
        left=0.02, right=0.98, bottom=0.8 / height, top=1 - 0.35 / height, hspace=1.15 / 0.55 / n
    )
    return figure


def draw_ranking(
    left: Axes, right: Axes, result: BakeoffResult, decision: Decision, *, numbered: bool = False
) -> None:
    """Draw the wide figure on two axes that share their rows; places before the names or not."""
    for axes, scope in ((left, "all"), (right, "tail")):
        _draw_scope(axes, scope, result, decision)
    _label_rows(left, result, decision, numbered)


def _draw_scope(
    axes: Axes, scope: str, result: BakeoffResult, decision: Decision, offset: float = 0.0
) -> None:
    """One row per pair; the intervals lie `offset` rows below the middle of the row."""
    from matplotlib.ticker import MaxNLocator

    ranking, colour = result.ranking, colours(result)
    title = "All tags" if scope == "all" else f"Tail (under {result.cutoffs['tail']} images)"
    for row, pair in enumerate(ranking):
        if pair.name == decision.winner:
            axes.axhspan(row - 0.46, row + 0.46, color=BAND, linewidth=0, zorder=0)
        summary = pair.scorecard.summaries[scope]
        _draw_interval(axes, row + offset, pair, summary, colour[pair.backbone])
    axes.set_title(title)
    n_tags = ranking[0].scorecard.summaries[scope].n_tags
    axes.set_xlabel(f"macro-F1, {n_tags} tags")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 5, 10]))
    axes.grid(visible=True, axis="x")
    axes.spines["left"].set_visible(False)
    axes.set_axisbelow(True)
    low, high = axes.get_xlim()
    axes.set_xlim(low, high + 0.33 * (high - low))  # room for the last value
    axes.set_ylim(len(ranking) - 0.5, -0.5)


def _draw_interval(
    axes: Axes, row: float, pair: PairResult, summary: GroupSummary, colour: str
) -> None:
    if not summary.n_tags:
        return
    low, value, high = (
        100 * v for v in (summary.macro_f1_low, summary.best_estimate, summary.macro_f1_high)
    )
    axes.plot([low, high], [row, row], color=colour, linewidth=2.2, solid_capstyle="round")
    axes.plot([value], [row], linestyle="", **marker(pair, colour, 8))
    axes.annotate(
        points(summary.best_estimate), (max(high, value), row), (9, 0), textcoords="offset points",
        va="center", color=INK,
    )  # fmt: skip


def _mark(pair: PairResult, decision: Decision) -> str:
    if pair.name == decision.winner:
        return "→ "
    return "= " if pair.name in decision.ties else ""


def _label_rows(axes: Axes, result: BakeoffResult, decision: Decision, numbered: bool) -> None:
    """Write standing, backbone and strategy to the left of the rows."""
    short = short_backbones(result)
    axes.set_yticks(range(len(result.ranking)), [""] * len(result.ranking))
    for row, pair in enumerate(result.ranking):
        where: dict[str, Any] = {
            "textcoords": "offset points",
            "xycoords": ("axes fraction", "data"),
        }
        number = f"{row + 1} " if numbered else ""
        name = number + _mark(pair, decision) + short[pair.backbone]
        axes.annotate(
            clipped(name, 21 if numbered else 24), (0, row), (-8, 7), ha="right", va="center",
            color=INK, fontweight="bold" if pair.name == decision.winner else "normal", **where,
        )  # fmt: skip
        axes.annotate(
            strategy_name(pair), (0, row), (-8, -8), ha="right", va="center", color=MUTED, **where
        )
    axes.annotate(
        MARKS, (0, 0), (-8, -4), ha="right", va="top", color=MUTED, xycoords="axes fraction",
        textcoords="offset points",
    )  # fmt: skip
