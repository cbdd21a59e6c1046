"""Macro-F1 of every pair against its latency and training time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from typing import TYPE_CHECKING

import numpy as np

from retailtag.report.decision import Decision
from retailtag.report.figures.marks import clipped, empty_figure, marker
from retailtag.report.results import BakeoffResult, PairResult
from retailtag.report.tables import duration
from retailtag.report.theme import (
    INK,
    MUTED,
    WIDE,
    Layout,
    colours,
    short_backbones,
    strategy_name,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

KEY_ROW = 0.42  # inches for each pair in the key
LABEL = 7.0  # half the side of a number beside a bubble, in points


def quality_cost_figure(result: BakeoffResult, decision: Decision, layout: Layout = WIDE) -> Figure:
    """Numbered bubbles with their key: at the right, below where it is narrow."""
    key = KEY_ROW * len(result.pairs) + 0.1
    wide = layout is WIDE
    height = max(4.2, key) if wide else 3.4 + key
    figure = empty_figure(layout, height)
    axes = figure.add_axes(
        (0.07, 0.6 / height, 0.6, 1 - 0.95 / height)
        if wide
        else (0.13, (key + 0.6) / height, 0.85, 2.45 / height)
    )
    shown = draw_quality_cost(axes, result)
    where = (0.69, 1 - 0.35 / height) if wide else (0.0, key / height)
    _write_key(figure, where, shown, result, decision)
    return figure


def draw_quality_cost(axes: Axes, result: BakeoffResult) -> list[tuple[int, PairResult]]:
    """Draw the bubbles on one pair of axes; those drawn, with their place in the ranking."""
    from matplotlib.ticker import MaxNLocator

    shown = [(k, p) for k, p in enumerate(result.ranking, 1) if p.cost.latency_ms_p50 > 0]
    pairs = [pair for _, pair in shown]
    colour = colours(result)
    sizes = _bubble_sizes([p.cost.train_seconds for p in pairs])
    _draw_front(axes, pairs)
    by_size = sorted(zip(pairs, sizes, strict=True), key=lambda item: -item[1])
    for pair, size in by_size:  # the small ones last, on top
        s, x = pair.scorecard.summaries["all"], pair.cost.latency_ms_p50
        axes.vlines(
            x, 100 * s.macro_f1_low, 100 * s.macro_f1_high, colour[pair.backbone], linewidth=1.2
        )
        axes.plot(
            [x], [100 * s.best_estimate], linestyle="", **marker(pair, colour[pair.backbone], size)
        )
    axes.set_xscale("log")
    axes.margins(x=0.14, y=0.1)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    _plain_log_ticks(axes, [p.cost.latency_ms_p50 for p in pairs])
    axes.grid(visible=True)
    axes.set_axisbelow(True)
    axes.set_title("Quality against cost")
    axes.set_xlabel("latency, ms (log); bubble: training time")
    axes.set_ylabel("population macro-F1 × 100")
    _number_bubbles(axes, shown, sizes)
    return shown


def _bubble_sizes(seconds: Sequence[float]) -> list[float]:
    """Diameters (points) from 7 to 20 along the logarithm of training seconds."""
    logs = np.log([max(s, 1e-3) if not math.isnan(s) else 1e-3 for s in seconds])
    span = np.ptp(logs) if len(logs) else 0.0
    if not span:
        return [10.0] * len(seconds)
    return (7 + 13 * (logs - logs.min()) / span).tolist()


def _draw_front(axes: Axes, pairs: Sequence[PairResult]) -> None:
    """Staircase of the pairs that no other pair beats in both macro-F1 and latency."""
    front: list[tuple[float, float]] = []
    order = sorted(
        pairs, key=lambda p: (p.cost.latency_ms_p50, -p.scorecard.summaries["all"].best_estimate)
    )
    for pair in order:
        value = 100 * pair.scorecard.summaries["all"].best_estimate
        if not front or value > front[-1][1]:
            front.append((pair.cost.latency_ms_p50, value))
    if len(front) > 1:
        axes.step(*zip(*front, strict=True), where="post", color=MUTED, linewidth=1, linestyle=":")


def _plain_log_ticks(axes: Axes, values: Sequence[float]) -> None:
    from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator

    if not values:
        return
    least, most = min(values), max(values)
    if most > 2 * least:
        low, high = math.floor(math.log10(least)) - 1, math.ceil(math.log10(most)) + 1
        # few ticks over a wide range, so that their labels do not touch
        steps = (1, 3) if most > 20 * least else (1, 1.5, 2, 3, 5, 7)
        ticks = [m * 10.0**e for e in range(low, high + 1) for m in steps]
    else:  # within a factor of two no such step may lie in sight
        ticks = [tick for tick in MaxNLocator(4).tick_values(least, most) if tick > 0]
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")


def _number_bubbles(
    axes: Axes, shown: Sequence[tuple[int, PairResult]], sizes: Sequence[float]
) -> None:
    """Write each pair's place in the ranking beside its bubble, off the other bubbles."""
    if not shown:
        return
    values = [
        (p.cost.latency_ms_p50, 100 * p.scorecard.summaries["all"].best_estimate) for _, p in shown
    ]
    figure = axes.figure
    to_points = 72 / figure.dpi
    centres = axes.transData.transform(values) * to_points
    offsets = clear_places(centres.tolist(), [size / 2 for size in sizes], LABEL)
    for (place, _), at, offset in zip(shown, values, offsets, strict=True):
        axes.annotate(
            str(place), at, offset, textcoords="offset points", ha="center", va="center",
            fontweight="bold", color=INK, zorder=4,
        )  # fmt: skip


def clear_places(
    centres: Sequence[Sequence[float]], radii: Sequence[float], label: float
) -> list[tuple[float, float]]:
    """Offset of each disc's label that covers least of the discs and of the labels before it.

    Labels are discs of radius `label` beside their own, at one of twelve angles and two distances.

    Examples
    --------
    >>> clear_places([[0, 0], [20, 0]], [5, 5], 5)
    [(10.392305, 6.0), (10.392305, 6.0)]
    """
    angles = np.deg2rad([30, 150, 330, 210, 0, 180, 60, 120, 300, 240, 90, 270])
    bubbles = [(x, y, radius) for (x, y), radius in zip(centres, radii, strict=True)]
    discs = [*bubbles]
    placed: list[tuple[float, float]] = []
    for k, (x, y, radius) in enumerate(bubbles):
        best, least = (0.0, 0.0), math.inf
        for further, angle in product((2.0, 12.0), angles):
            reach = radius + label + further
            at = (round(reach * math.cos(angle), 6), round(reach * math.sin(angle), 6))
            others = [disc for j, disc in enumerate(discs) if j != k]
            covered = 0.02 * further + sum(
                max(0.0, label + r - math.hypot(x + at[0] - u, y + at[1] - v)) for u, v, r in others
            )
            if covered < least - 1e-9:
                best, least = at, covered
        placed.append(best)
        discs.append((x + best[0], y + best[1], label))
    return placed


def _write_key(
    figure: Figure,
    where: tuple[float, float],
    shown: Sequence[tuple[int, PairResult]],
    result: BakeoffResult,
    decision: Decision,
) -> None:
    """Number, marker, name and training time of every bubble, downwards from `where`."""
    from matplotlib.lines import Line2D

    names, colour = short_backbones(result), colours(result)
    width, height = figure.get_size_inches()
    for row, (place, pair) in enumerate(shown):
        middle = where[1] - KEY_ROW * (row + 0.5) / height
        weight = "bold" if pair.name == decision.winner else "normal"
        x = [where[0] + inches / width for inches in (0.05, 0.32, 0.5)]
        figure.text(x[0], middle, str(place), va="center", fontweight="bold")
        figure.add_artist(
            Line2D([x[1]], [middle], linestyle="", transform=figure.transFigure,
                   **marker(pair, colour[pair.backbone], 8))
        )  # fmt: skip
        name = clipped(names[pair.backbone], 26)
        figure.text(x[2], middle + 0.09 / height, name, va="center", fontweight=weight)
        cost = f"{strategy_name(pair)}, {duration(pair.cost.train_seconds)}"
        figure.text(x[2], middle - 0.09 / height, cost, va="center", color=MUTED)
