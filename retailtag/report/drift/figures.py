"""Figures of a drift comparison: rates of tags with intervals, and histograms."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from retailtag.report.drawing import Drawing
from retailtag.report.drift.words import FIGURE_NAMES
from retailtag.report.figures.marks import clipped, empty_figure
from retailtag.report.theme import GRID, INK, MUTED, PALETTE, PAPER, WIDE, Layout
from retailtag.statistics.drift import DriftResult, Shift

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SHOWN_TAGS = 12
NEW = PALETTE[1]


def tags_drawing(result: DriftResult) -> Drawing:
    """Rates of the tags that moved most, in the reference and among the new images."""
    caption = (
        "Share of the images that are given a tag, with 95 % intervals: hollow in the reference, "
        "filled among the new images. The tags with the smallest p come first; a star marks those "
        "whose rate moved."
    )
    return Drawing("drift-tags", "Rates of tags", caption, partial(_tags_figure, result))


def properties_drawing(result: DriftResult) -> Drawing:
    """Histograms of properties and confidences."""
    caption = (
        "Share of the images by value: grey the reference, coloured line the new images; the bins "
        "at the ends hold what lies beyond."
    )
    return Drawing(
        "drift-properties", "Properties and confidences", caption, partial(_histograms, result)
    )


def _tags_figure(result: DriftResult, layout: Layout) -> Figure:
    shown = result.tags[:SHOWN_TAGS]
    moved = {shift.tag for shift in result.moved_tags}
    height = 0.36 * len(shown) + 0.6
    figure = empty_figure(layout, height)
    left = 0.25 if layout is WIDE else 0.42
    axes = figure.add_axes((left, 0.5 / height, 0.97 - left, 1 - 0.6 / height))
    for row, shift in enumerate(shown):
        sides = ((shift.reference, MUTED, PAPER, -0.14), (shift.new, NEW, NEW, 0.14))
        for estimate, colour, face, offset in sides:
            y = row + offset
            ends = [100 * estimate.low, 100 * estimate.high]
            axes.plot(ends, [y, y], color=colour, linewidth=1.6, clip_on=False)
            axes.plot(
                [100 * estimate.value],
                [y],
                marker="o",
                markersize=5.5,
                markerfacecolor=face,
                markeredgecolor=colour,
                linestyle="none",
                clip_on=False,  # a rate of 0
            )
    length = 24 if layout is WIDE else 18
    names = [clipped(s.tag, length) + (" *" if s.tag in moved else "") for s in shown]
    axes.set_yticks(range(len(shown)), names, color=INK)
    axes.set_ylim(len(shown) - 0.5, -0.5)
    axes.set_xlim(left=0)
    axes.set_xlabel("% of the images")
    axes.grid(axis="x")
    axes.spines["left"].set_visible(False)
    return figure


def _histograms(result: DriftResult, layout: Layout) -> Figure:
    # a figure that is the same for all images has one bin
    shown = [s for s in (*result.properties, *result.confidences) if len(s.edges) > 2]
    n_columns = 4 if layout is WIDE else 2
    n_rows = max(-(-len(shown) // n_columns), 1)
    height = 1.55 * n_rows
    figure = empty_figure(layout, height)
    for place, shift in enumerate(shown):
        row, column = divmod(place, n_columns)
        width = 1 / n_columns
        box = (
            (column + 0.06) * width,
            1 - (row + 0.78) / n_rows,
            0.86 * width,
            0.5 / n_rows,
        )
        _histogram(figure.add_axes(box), shift, 26 if layout is WIDE else 20)
    return figure


def _histogram(axes: Axes, shift: Shift, length: int) -> None:
    axes.stairs(shift.reference_bins, shift.edges, fill=True, color=GRID)
    axes.stairs(shift.new_bins, shift.edges, color=NEW, linewidth=1.6)
    name = FIGURE_NAMES.get(shift.name, shift.name).partition(",")[0]
    axes.set_title(clipped(name, length), fontsize=11, fontweight="normal")
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    first, last = shift.edges[0], shift.edges[-1]
    axes.set_xticks([first, last], [f"{first:.3g}", f"{last:.3g}"])
    left, right = axes.get_xticklabels()
    left.set_horizontalalignment("left")
    right.set_horizontalalignment("right")
