"""The report's figures: ranking, quality against cost, the tail, probe against fine-tune."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from retailtag.catalog.table import GroupCutoffs
from retailtag.report.decision import Decision
from retailtag.report.results import BakeoffResult, PairResult
from retailtag.report.tables import duration, points
from retailtag.report.theme import (
    BAND,
    GRID,
    INK,
    MUTED,
    PAPER,
    colours,
    short_backbones,
    short_names,
    strategy_name,
)
from retailtag.scoring.scorecard import GroupSummary, TagRow

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BIN_EDGES = (0, 10, 20, 50, 100, 200, 500, 1000, 5000)
LABEL_DISTANCE = 17  # points from a bubble's centre to its label
LABEL_HEIGHT = 0.115  # share of the axis
N_GAINS_SHOWN = 8  # tags, and as many losses, in the probe-against-fine-tune figure


def _figure(width: float, height: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    return figure


def _marker(pair: PairResult, colour: str, size: float) -> dict[str, Any]:
    """Hollow for a probe, filled for anything that trains the backbone."""
    return {
        "marker": "o",
        "markersize": size,
        "markerfacecolor": PAPER if pair.strategy == "probe" else colour,
        "markeredgecolor": colour,
        "markeredgewidth": 1.8,
    }


def cutoffs(result: BakeoffResult) -> dict[str, int]:
    """Training counts that bound the groups: ``tail`` and ``frequent``."""
    return {**asdict(GroupCutoffs()), **result.catalog.get("cutoffs", {})}


def clipped(text: str, length: int = 26) -> str:
    """One line of at most `length` characters."""
    line = " ".join(text.split())
    return line if len(line) <= length else f"{line[: length - 1]}…"


# Ranking -------------------------------------------------------------------------------------


def ranking_figure(result: BakeoffResult, decision: Decision) -> Figure:
    """Macro-F1 of every pair with its interval: all tags at the left, the tail at the right."""
    height = 0.9 + 0.46 * len(result.pairs)
    figure = _figure(8.0, height)
    left, right = figure.subplots(1, 2, sharey=True)
    draw_ranking(left, right, result, decision)
    figure.subplots_adjust(
        left=0.245, right=0.985, bottom=0.55 / height, top=1 - 0.32 / height, wspace=0.12
    )
    return figure


def draw_ranking(left: Axes, right: Axes, result: BakeoffResult, decision: Decision) -> None:
    """Draw `ranking_figure` on two axes that share their rows."""
    ranking, colour = result.ranking, colours(result)
    titles = {"all": "All tags", "tail": f"Tail (under {cutoffs(result)['tail']} images)"}
    for axes, scope in ((left, "all"), (right, "tail")):
        for row, pair in enumerate(ranking):
            if pair.name == decision.winner:
                axes.axhspan(row - 0.46, row + 0.46, color=BAND, linewidth=0, zorder=0)
            _draw_interval(axes, row, pair, pair.scorecard.summaries[scope], colour[pair.backbone])
        n_tags = ranking[0].scorecard.summaries[scope].n_tags
        axes.set_title(titles[scope])
        axes.set_xlabel(f"macro-F1 × 100, {n_tags} tags")
        axes.grid(visible=True, axis="x")
        axes.spines["left"].set_visible(False)
        axes.set_axisbelow(True)
        low, high = axes.get_xlim()
        axes.set_xlim(low, high + 0.3 * (high - low))  # room for the last value
    left.set_ylim(len(ranking) - 0.5, -0.5)
    _label_rows(left, result, decision)


def _draw_interval(
    axes: Axes, row: int, pair: PairResult, summary: GroupSummary, colour: str
) -> None:
    if not summary.n_tags:
        return
    low, value, high = (
        100 * v for v in (summary.macro_f1_low, summary.macro_f1, summary.macro_f1_high)
    )
    axes.plot([low, high], [row, row], color=colour, linewidth=2.2, solid_capstyle="round")
    axes.plot([value], [row], linestyle="", **_marker(pair, colour, 7.5))
    axes.annotate(
        points(summary.macro_f1), (high, row), (6, 0), textcoords="offset points", va="center"
    )


def _label_rows(axes: Axes, result: BakeoffResult, decision: Decision) -> None:
    """Write backbone, strategy and standing to the left of the rows."""
    short = short_backbones(result)
    axes.set_yticks(range(len(result.ranking)), [""] * len(result.ranking))
    for row, pair in enumerate(result.ranking):
        best = pair.name == decision.winner
        standing = ", recommended" if best else ", tied" if pair.name in decision.ties else ""
        where: dict[str, Any] = {
            "textcoords": "offset points",
            "xycoords": ("axes fraction", "data"),
        }
        axes.annotate(
            clipped(short[pair.backbone]), (0, row), (-8, 5), ha="right", va="center", color=INK,
            fontweight="bold" if best else "normal", **where,
        )  # fmt: skip
        axes.annotate(
            strategy_name(pair) + standing, (0, row), (-8, -6), ha="right", va="center",
            color=MUTED, fontsize=7.5, **where,
        )  # fmt: skip


# Quality against cost ------------------------------------------------------------------------


def quality_cost_figure(result: BakeoffResult, decision: Decision) -> Figure:
    """Macro-F1 over latency; the larger the bubble the longer the training."""
    figure = _figure(8.0, 4.2)
    draw_quality_cost(figure.subplots(), result, decision)
    figure.tight_layout()
    return figure


def draw_quality_cost(axes: Axes, result: BakeoffResult, decision: Decision) -> None:
    """Draw `quality_cost_figure` on one pair of axes."""
    from matplotlib.ticker import MaxNLocator

    shown = [p for p in result.ranking if p.cost.latency_ms_p50 > 0]
    colour = colours(result)
    sizes = _bubble_sizes([p.cost.train_seconds for p in shown])
    _draw_front(axes, shown)
    by_size = sorted(zip(shown, sizes, strict=True), key=lambda item: -item[1])
    for pair, size in by_size:  # the small ones last, on top
        s, x = pair.scorecard.summaries["all"], pair.cost.latency_ms_p50
        axes.vlines(
            x, 100 * s.macro_f1_low, 100 * s.macro_f1_high, colour[pair.backbone], linewidth=1.2
        )
        axes.plot(
            [x], [100 * s.macro_f1], linestyle="", **_marker(pair, colour[pair.backbone], size)
        )
    axes.set_xscale("log")
    axes.margins(x=0.14, y=0.1)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    _plain_log_ticks(axes, [p.cost.latency_ms_p50 for p in shown])
    axes.grid(visible=True)
    axes.set_axisbelow(True)
    axes.set_title("Quality against cost")
    axes.set_xlabel("latency, ms (log); bubble: training time")
    axes.set_ylabel("macro-F1 × 100, all tags")
    _label_bubbles(axes, result, decision, shown, sizes)


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
        pairs, key=lambda p: (p.cost.latency_ms_p50, -p.scorecard.summaries["all"].macro_f1)
    )
    for pair in order:
        value = 100 * pair.scorecard.summaries["all"].macro_f1
        if not front or value > front[-1][1]:
            front.append((pair.cost.latency_ms_p50, value))
    if len(front) > 1:
        axes.step(*zip(*front, strict=True), where="post", color=MUTED, linewidth=1, linestyle=":")


def _plain_log_ticks(axes: Axes, values: Sequence[float]) -> None:
    from matplotlib.ticker import FixedLocator, NullLocator

    if not values:
        return
    low, high = math.floor(math.log10(min(values))) - 1, math.ceil(math.log10(max(values))) + 1
    ticks = [m * 10.0**e for e in range(low, high + 1) for m in (1, 1.5, 2, 3, 5, 7)]
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")


def _label_bubbles(
    axes: Axes,
    result: BakeoffResult,
    decision: Decision,
    pairs: Sequence[PairResult],
    sizes: Sequence[float],
) -> None:
    """Name and training time beside each bubble, without overlap between labels."""
    from matplotlib.patheffects import withStroke
    from matplotlib.transforms import ScaledTranslation

    short = short_backbones(result)
    latencies = [p.cost.latency_ms_p50 for p in pairs]
    values = [100 * p.scorecard.summaries["all"].macro_f1 for p in pairs]
    middle = math.sqrt(min(latencies) * max(latencies)) if latencies else 1.0
    low, high = axes.get_ylim()
    inch = axes.figure.dpi_scale_trans
    aside = {side: ScaledTranslation(side * LABEL_DISTANCE / 72, 0, inch) for side in (1, -1)}
    places = spread(values, LABEL_HEIGHT * (high - low))
    axes.set_ylim(
        min([low, *(y - LABEL_HEIGHT * (high - low) / 2 for y in places)]),
        max([high, *(y + LABEL_HEIGHT * (high - low) / 2 for y in places)]),
    )
    for pair, x, value, y, size in zip(pairs, latencies, values, places, sizes, strict=True):
        side = 1 if x <= middle else -1  # towards the middle, where the room is
        best = pair.name == decision.winner
        cost = f"{strategy_name(pair)}, {duration(pair.cost.train_seconds)}"
        axes.annotate(
            f"{clipped(short[pair.backbone])}\n{cost}", (x, value), xytext=(x, y),
            textcoords=axes.transData + aside[side],
            va="center", ha="left" if side == 1 else "right", fontsize=7, linespacing=1.15,
            fontweight="bold" if best else "normal", color=INK if best else MUTED, zorder=4,
            # a label may lie over another pair's bubble or interval: the halo keeps it legible
            path_effects=[withStroke(linewidth=2, foreground=PAPER)],
            arrowprops={
                "arrowstyle": "-", "color": GRID, "linewidth": 0.8, "shrinkA": 2,
                "shrinkB": size / 2,
            },
        )  # fmt: skip


# The tail ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bin:
    """Tags whose training count lies in [low, high)."""

    low: int
    high: int
    columns: tuple[int, ...]

    @property
    def label(self) -> str:
        """Range as read, and the number of tags under it."""
        top = f"{self.low:,}+" if self.high == sys.maxsize else f"{self.low:,}–{self.high - 1:,}"
        return f"{top}\n{len(self.columns)} tag" + ("" if len(self.columns) == 1 else "s")


def count_bins(rows: Sequence[TagRow], cutoffs: Sequence[int]) -> list[Bin]:
    """Non-empty bins of the tags with a positive in the scored split, by training count."""
    edges = [*sorted({*BIN_EDGES, *cutoffs}), sys.maxsize]
    bins = [
        Bin(
            low,
            high,
            tuple(j for j, r in enumerate(rows) if r.support and low <= r.train_count < high),
        )
        for low, high in pairwise(edges)
    ]
    return [b for b in bins if b.columns]


def tail_figure(result: BakeoffResult, decision: Decision) -> Figure:
    """Mean F1 of the tags in each range of training images, one line per pair."""
    figure = _figure(8.0, 4.0)
    draw_tail(figure.subplots(), result, decision)
    figure.subplots_adjust(left=0.07, right=0.985, bottom=0.155, top=0.8)
    return figure


def draw_tail(axes: Axes, result: BakeoffResult, decision: Decision) -> None:
    """Draw `tail_figure` on one pair of axes; the tail is shaded."""
    cuts = cutoffs(result)
    bins = count_bins(result.pairs[0].scorecard.tags, list(cuts.values()))
    colour, names = colours(result), short_names(result)
    n_tail = sum(b.high <= cuts["tail"] for b in bins)
    if n_tail:
        axes.axvspan(-0.5, n_tail - 0.5, color=BAND, linewidth=0, zorder=0)
        axes.annotate(
            "tail", (-0.42, 1), (0, -10), xycoords=("data", "axes fraction"),
            textcoords="offset points", color=MUTED, fontweight="bold",
        )  # fmt: skip
    for pair in result.ranking:
        values = [
            100 * float(np.mean([pair.scorecard.tags[j].f1 for j in b.columns])) for b in bins
        ]
        best = pair.name == decision.winner
        axes.plot(
            range(len(bins)), values, color=colour[pair.backbone], linewidth=2.6 if best else 1.4,
            linestyle="--" if pair.strategy == "probe" else "-", label=names[pair.name],
            **_marker(pair, colour[pair.backbone], 6 if best else 4.5),
        )  # fmt: skip
    axes.set_xlim(-0.5, len(bins) - 0.5)
    axes.set_xticks(range(len(bins)), [b.label for b in bins])
    axes.grid(visible=True, axis="y")
    axes.set_axisbelow(True)
    axes.set_title("F1 by number of training images", pad=46)
    axes.set_xlabel("training images of the tag")
    axes.set_ylabel("mean F1 × 100")
    axes.legend(
        loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=3, fontsize=7.5, borderaxespad=0.2
    )


def spread(values: Sequence[float], apart: float) -> list[float]:
    """Positions near `values`, in the same order, at least `apart` from one another.

    Examples
    --------
    >>> spread([1.0, 1.0, 5.0], 2.0)
    [2.0, 0.0, 5.0]
    """
    from sklearn.isotonic import isotonic_regression

    if not values:
        return []
    order = sorted(range(len(values)), key=lambda k: (values[k], -k))
    # y_k - k·apart must not fall from one label to the next, and the sum of squared moves be least
    steps = apart * np.arange(len(order))
    positions = isotonic_regression(np.array([values[k] for k in order]) - steps) + steps
    placed = dict(zip(order, positions.tolist(), strict=True))
    return [placed[k] for k in range(len(values))]


# Probe against fine-tune ---------------------------------------------------------------------


def rivals(result: BakeoffResult, decision: Decision) -> tuple[PairResult, PairResult] | None:
    """Probe and fine-tune of one backbone, preferably the winner's; None if none has both."""
    winner = result.pair(decision.winner).backbone
    by_backbone: dict[str, dict[str, PairResult]] = {}
    for pair in sorted(result.ranking, key=lambda p: p.backbone != winner):
        by_backbone.setdefault(pair.backbone, {})[pair.strategy] = pair
    for pairs in by_backbone.values():
        if {"probe", "finetune"} <= pairs.keys():
            return pairs["probe"], pairs["finetune"]
    return None


def gaps_figure(result: BakeoffResult, decision: Decision) -> Figure | None:
    """Tags whose F1 differs most between probe and fine-tune; None if there is nothing to show."""
    both = rivals(result, decision)
    if both is None:
        return None
    gaps = widest_gaps(*both)
    if not gaps:
        return None
    figure = _figure(8.0, 1.2 + 0.26 * len(gaps))
    axes = figure.subplots()
    colour = colours(result)[both[0].backbone]
    for row, (before, after) in enumerate(gaps):
        axes.plot([100 * before.f1, 100 * after.f1], [row, row], color=GRID, linewidth=2, zorder=1)
        for pair, value in zip(both, (before.f1, after.f1), strict=True):
            axes.plot([100 * value], [row], linestyle="", **_marker(pair, colour, 6.5))
    axes.set_yticks(range(len(gaps)), [_gap_label(before) for before, _ in gaps])
    axes.tick_params(axis="y", colors=INK)
    axes.set_ylim(len(gaps) - 0.4, -0.6)
    axes.grid(visible=True, axis="x")
    axes.spines["left"].set_visible(False)
    axes.set_title(
        f"Where fine-tuning {short_backbones(result)[both[0].backbone]} helps most, "
        "and where it hurts"
    )
    axes.set_xlabel("F1 × 100; hollow: linear probe, filled: fine-tune")
    figure.tight_layout()
    return figure


def widest_gaps(probe: PairResult, tuned: PairResult) -> list[tuple[TagRow, TagRow]]:
    """Rows (probe, fine-tune) of the tags with the largest gains, then the largest losses.

    Tags of low support are left out: their F1 differs by chance.
    """
    rows = [
        (a, b)
        for a, b in zip(probe.scorecard.tags, tuned.scorecard.tags, strict=True)
        if not a.low_support
    ]
    rows.sort(key=lambda ab: ab[0].f1 - ab[1].f1)
    gains = [ab for ab in rows if ab[1].f1 > ab[0].f1][:N_GAINS_SHOWN]
    losses = [ab for ab in rows if ab[1].f1 < ab[0].f1][-N_GAINS_SHOWN:]
    return gains + losses


def _gap_label(row: TagRow) -> str:
    return f"{clipped(row.tag, 30)}  ({row.train_count:,} train, {row.support} test)"


# Summary -------------------------------------------------------------------------------------


def summary_figure(result: BakeoffResult, decision: Decision) -> Figure:
    """Ranking at the left, quality against cost at the right: the whole answer in one picture."""
    figure = _figure(8.0, 3.5)
    grid = figure.add_gridspec(
        1, 2, width_ratios=(1.3, 1), left=0.222, right=0.99, bottom=0.125, top=0.92, wspace=0.18
    )
    rows = grid[0].subgridspec(1, 2, wspace=0.1)
    left = figure.add_subplot(rows[0])
    right = figure.add_subplot(rows[1], sharey=left)
    right.tick_params(labelleft=False)
    draw_ranking(left, right, result, decision)
    draw_quality_cost(figure.add_subplot(grid[1]), result, decision)
    return figure
