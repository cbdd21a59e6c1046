"""Curves: AP by C, validation scores by epoch, the trade-off of thresholds, reliability."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from retailtag.report.curves import Curves, LearningCurve, StrengthCurve
from retailtag.report.figures.marks import clipped, empty_figure
from retailtag.report.theme import GRID, INK, MUTED, PALETTE, PAPER, WIDE, Layout
from retailtag.scoring.scorecard import SCOPES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANEL = 2.9  # inches high
GROUP_COLOURS = dict(zip(SCOPES, (INK, *PALETTE), strict=False))


def _panels(layout: Layout, n: int, n_legend: int = 0) -> tuple[Figure, list[Axes]]:
    """Figure of n panels, side by side where it is wide; room for legend lines on top of each."""
    wide = layout is WIDE
    top, bottom, left = 0.35 + 0.22 * n_legend, 0.6, 0.62
    rows, columns = (1, n) if wide else (n, 1)
    height = top + PANEL + bottom
    figure = empty_figure(layout, height * rows)
    width = layout.inches / columns
    panels = []
    for k in range(n):
        column, row = (k, 0) if wide else (0, k)
        place = (
            (column * width + left) / layout.inches,
            ((rows - 1 - row) * height + bottom) / (height * rows),
            (width - left - 0.12) / layout.inches,
            PANEL / (height * rows),
        )
        axes = figure.add_axes(place)
        axes.grid(visible=True)
        axes.set_axisbelow(True)
        panels.append(axes)
    return figure, panels


def _legend(axes: Axes, n: int) -> None:
    axes.legend(
        loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=1, borderaxespad=0.2,
        labelspacing=0.2, fontsize=11,
    )  # fmt: skip
    axes.title.set_position((0, 1))
    axes.title.set_y(1.0 + 0.22 * n / PANEL + 0.02)


def strengths_figure(curves: Sequence[StrengthCurve], layout: Layout = WIDE) -> Figure:
    """Out-of-fold AP by C, one line per group; filled: the C taken."""
    figure, (axes,) = _panels(layout, 1, len(curves))
    for curve in curves:
        colour = GROUP_COLOURS.get(curve.group, INK)
        ap = 100 * np.array(curve.macro_ap)
        axes.plot(curve.C, ap, color=colour, linewidth=1.8, label=curve.group)
        taken = [k for k, c in enumerate(curve.C) if any(np.isclose(c, curve.chosen))]
        axes.plot([curve.C[k] for k in taken], ap[taken], "o", color=colour, markersize=7)
    axes.set_xscale("log")
    axes.minorticks_off()
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xlabel("C")
    axes.set_ylabel("mean AP × 100")
    _legend(axes, len(curves))
    return figure


def learning_figure(
    curves: Sequence[LearningCurve], names: dict[str, str], colours: dict[str, str],
    layout: Layout = WIDE,
) -> Figure:  # fmt: skip
    """Macro-F1 on the validation set by epoch; dashed: the tail, filled: the epoch kept."""
    from matplotlib.ticker import MaxNLocator

    figure, (axes,) = _panels(layout, 1, len(curves))
    for curve in curves:
        colour = colours[curve.backbone]
        name = clipped(names[curve.backbone], 34)
        f1 = 100 * np.array(curve.macro_f1)
        axes.plot(curve.epochs, f1, color=colour, linewidth=1.8, label=name)
        tail = 100 * np.array(curve.tail_macro_f1)
        axes.plot(curve.epochs, tail, color=colour, linewidth=1.2, linestyle="--")
        if curve.best_epoch in curve.epochs:
            k = curve.epochs.index(curve.best_epoch)
            axes.plot([curve.best_epoch], [f1[k]], "o", color=colour, markersize=7)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("epoch (0: the probe)")
    axes.set_ylabel("macro-F1 × 100")
    _legend(axes, len(curves))
    return figure


def trade_off_figure(curves: Curves, layout: Layout = WIDE) -> Figure:
    """Precision over recall, and macro-F1 over tags an image, as all thresholds move together."""
    figure, (left, right) = _panels(layout, 2, len(curves.points))
    x = [100 * p.recall for p in curves.trade_off]
    left.plot(x, [100 * p.precision for p in curves.trade_off], color=MUTED, linewidth=1.8)
    left.set_xlabel("recall of all cells × 100")
    left.set_ylabel("precision of all cells × 100")
    tags = [p.tags_per_image for p in curves.trade_off]
    right.plot(tags, [100 * p.macro_f1 for p in curves.trade_off], color=MUTED, linewidth=1.8)
    right.set_xlabel("tags an image")
    right.set_ylabel("macro-F1 × 100")
    for k, point in enumerate(curves.points):
        style: dict[str, Any] = {
            "color": PALETTE[k % len(PALETTE)],
            "markersize": 8,
            "linestyle": "",
        }
        left.plot([100 * point.recall], [100 * point.precision], "o", label=point.name, **style)
        right.plot([point.tags_per_image], [100 * point.macro_f1], "o", **style)
    _legend(left, len(curves.points))
    return figure


def reliability_figure(curves: Curves, layout: Layout = WIDE) -> Figure:
    """Share present against mean probability, one line per group."""
    groups = list(dict.fromkeys(b.group for b in curves.reliability))
    figure, (axes,) = _panels(layout, 1, len(groups))
    axes.plot([0, 1], [0, 1], color=GRID, linewidth=1.5)
    for group in groups:
        bins = [b for b in curves.reliability if b.group == group]
        axes.plot(
            [b.predicted for b in bins], [b.present for b in bins], marker="o", markersize=5,
            color=GROUP_COLOURS.get(group, INK), markerfacecolor=PAPER, linewidth=1.5, label=group,
        )  # fmt: skip
    axes.set_xlabel("mean probability")
    axes.set_ylabel("share present")
    _legend(axes, len(groups))
    return figure
