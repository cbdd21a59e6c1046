"""F1 by number of training images, and the tags on which probe and fine-tune differ most."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from retailtag.report.decision import Decision
from retailtag.report.figures.marks import clipped, empty_figure, marker, pair_label
from retailtag.report.results import BakeoffResult, PairResult
from retailtag.report.theme import (
    BAND,
    GRID,
    INK,
    MUTED,
    WIDE,
    Layout,
    colours,
    short_backbones,
    strategy_name,
)
from retailtag.scoring.scorecard import TagRow

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BIN_EDGES = (0, 10, 20, 50, 100, 200, 500, 1000, 5000)
N_GAINS_SHOWN = 8  # tags, and as many losses, in the probe-against-fine-tune figure


@dataclass(frozen=True)
class Bin:
    """Tags whose training count lies in [low, high)."""

    low: int
    high: int
    columns: tuple[int, ...]

    @property
    def label(self) -> str:
        """Range as read."""
        if self.high == sys.maxsize:
            return f"{self.low:,}+"
        return f"{self.low:,}" if self.high == self.low + 1 else f"{self.low:,}–{self.high - 1:,}"


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


def tail_figure(result: BakeoffResult, decision: Decision, layout: Layout = WIDE) -> Figure:
    """Mean F1 of the tags in each range of training images, one line per pair."""
    n_columns = 2 if layout is WIDE else 1
    legend = 0.22 * -(-len(result.pairs) // n_columns)
    below = 0.8 if layout is WIDE else 1.6
    height = 3.1 + legend + below
    figure = empty_figure(layout, height)
    left = 0.55 / layout.inches
    axes = figure.add_axes((left, below / height, 0.99 - left, 2.7 / height))
    draw_tail(axes, result, decision)
    axes.set_title("F1 by number of training images", pad=72 * legend + 10)
    axes.legend(
        loc="lower left", bbox_to_anchor=(-left / (0.99 - left), 1.0), ncols=n_columns,
        borderaxespad=0.2,
        labelspacing=0.2, fontsize=11, columnspacing=1.2,
    )  # fmt: skip
    if layout is not WIDE:
        texts = [label.get_text().replace("\n", " ") for label in axes.get_xticklabels()]
        axes.set_xticks(axes.get_xticks(), texts, rotation=90)
    return figure


def draw_tail(axes: Axes, result: BakeoffResult, decision: Decision) -> None:
    """Draw the lines on one pair of axes; the tail is shaded."""
    cuts = result.cutoffs
    bins = count_bins(result.pairs[0].scorecard.tags, list(cuts.values()))
    colour, names = colours(result), short_backbones(result)
    n_tail = sum(b.high <= cuts["tail"] for b in bins)
    if n_tail:
        axes.axvspan(-0.5, n_tail - 0.5, color=BAND, linewidth=0, zorder=0)
        axes.annotate(
            "tail", (-0.42, 1), (0, -12), xycoords=("data", "axes fraction"),
            textcoords="offset points", color=MUTED, fontweight="bold",
        )  # fmt: skip
    for pair in result.ranking:
        values = [
            100 * float(np.mean([pair.scorecard.tags[j].f1 for j in b.columns])) for b in bins
        ]
        best = pair.name == decision.winner
        axes.plot(
            range(len(bins)), values, color=colour[pair.backbone], linewidth=2.6 if best else 1.4,
            linestyle="--" if pair.strategy == "probe" else "-",
            label=pair_label(names[pair.backbone], strategy_name(pair), 34),
            **marker(pair, colour[pair.backbone], 6 if best else 4.5),
        )  # fmt: skip
    axes.set_xlim(-0.5, len(bins) - 0.5)
    axes.set_xticks(range(len(bins)), [f"{b.label}\n({len(b.columns)})" for b in bins])
    axes.grid(visible=True, axis="y")
    axes.set_axisbelow(True)
    axes.set_xlabel("training images of the tag (number of tags)")
    axes.set_ylabel("mean F1 × 100")


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


def gaps_figure(
    result: BakeoffResult, both: tuple[PairResult, PairResult], layout: Layout = WIDE
) -> Figure:
    """Tags whose F1 differs most between a probe and a fine-tune of one backbone."""
    gaps = widest_gaps(*both)
    wide = layout is WIDE
    height = 1.2 + (0.28 if wide else 0.46) * len(gaps)
    figure = empty_figure(layout, height)
    left = 0.37 if wide else 0.04
    axes = figure.add_axes((left, 0.6 / height, 0.96 - left, 1 - 1 / height))
    colour = colours(result)[both[0].backbone]
    offset = 0.0 if wide else 0.22
    for row, (before, after) in enumerate(gaps):
        ends = [100 * before.f1, 100 * after.f1]
        axes.plot(ends, [row + offset] * 2, color=GRID, linewidth=2, zorder=1)
        for pair, value in zip(both, ends, strict=True):
            axes.plot([value], [row + offset], linestyle="", **marker(pair, colour, 7))
        axes.annotate(
            _gap_label(before), (0, row - offset), (-8 if wide else 2, 0), color=INK, va="center",
            ha="right" if wide else "left", xycoords=("axes fraction", "data"),
            textcoords="offset points",
        )  # fmt: skip
    axes.set_yticks([])
    axes.set_ylim(len(gaps) - 0.4, -0.6)
    axes.grid(visible=True, axis="x")
    axes.spines["left"].set_visible(False)
    name = clipped(short_backbones(result)[both[0].backbone], 20)
    axes.set_title(f"Fine-tuning {name}" + (" helps and hurts" if wide else ""))
    axes.set_xlabel("F1 × 100; hollow: probe, filled: tuned")
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
    counts = f" ({row.train_count:,} train, {row.support:,} test)"
    return clipped(row.tag, 38 - len(counts)) + counts
