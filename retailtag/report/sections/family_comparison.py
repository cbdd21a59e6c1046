"""How the families of backbones differ by training count: tables, and what follows from them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from retailtag.report.report import Report
from retailtag.report.tables import points
from retailtag.scoring.families import (
    FAMILIES,
    SCORED,
    STRATEGIES,
    BinDifference,
    FamilyComparison,
    OwnedTag,
    TextGain,
    in_bin,
)

MAX_OWNED = 40  # tags listed
Span = tuple[int, int]


@dataclass(frozen=True)
class Row:
    """A row of one of the tables: its name, then a cell per bin; bold where `clear`."""

    name: str
    cells: tuple[tuple[str, bool], ...]


@dataclass(frozen=True)
class FamilyView:
    """Everything that the part on families shows."""

    bins: tuple[str, ...]  # as read
    means: tuple[Row, ...]  # F1 and AP of the pair that stands for each family
    families: tuple[Row, ...]  # differences between families, F1 then AP
    strategies: tuple[Row, ...]  # fine-tune minus probe
    text: tuple[Row, ...]  # what names of tags add
    owned: tuple[OwnedTag, ...]
    n_owned: int
    chosen: str  # how the pairs were chosen
    conclusions: tuple[str, ...]


def family_comparison(report: Report) -> FamilyView | None:
    """Tables and sentences; None without two families or a second strategy."""
    found = report.result.families
    if not found.differences:
        return None
    spans = list(dict.fromkeys((d.low_count, d.high_count) for d in found.differences))
    names = {m.pair: m.family for m in found.members}
    return FamilyView(
        bins=tuple(map(span_text, spans)),
        means=tuple(_mean_rows(report, spans)) if len(found.members) > 1 else (),
        families=_difference_rows(found, FAMILIES, spans, names),
        strategies=_difference_rows(found, STRATEGIES, spans, report.names),
        text=_text_rows(report, spans),
        owned=found.owned[:MAX_OWNED],
        n_owned=len(found.owned),
        chosen=_chosen(found),
        conclusions=tuple(conclusions(report)),
    )


def span_text(span: Span) -> str:
    """Range of training counts as read.

    Examples
    --------
    >>> span_text((0, 9)), span_text((500, -1)), span_text((3, 3))
    ('0–9', '500+', '3')
    """
    low, high = span
    if high < 0:
        return f"{low:,}+"
    return f"{low:,}" if low == high else f"{low:,}–{high:,}"


def signed(value: float) -> str:
    """Fraction as points with its sign; a dash where undefined."""
    return points(value) if math.isnan(value) or value < 0 else f"+{points(value)}"


def _mean_rows(report: Report, spans: Sequence[Span]) -> list[Row]:
    rows = []
    for member in report.result.families.members:
        tags = report.result.pair(member.pair).scorecard.tags
        count = np.array([t.train_count for t in tags])
        defined = np.array([t.support > 0 for t in tags])
        cells = []
        for span in spans:
            own = [tags[k] for k in np.flatnonzero(defined & in_bin(count, *span)).tolist()]
            f1, ap = (float(np.mean([getattr(t, metric) for t in own])) for metric in ("f1", "ap"))
            cells.append((f"{points(f1)} ({points(ap)})", False))
        rows.append(Row(f"{member.family}: {report.names[member.pair]}", tuple(cells)))
    return rows


def _difference_rows(
    found: FamilyComparison, kind: str, spans: Sequence[Span], names: dict[str, str]
) -> tuple[Row, ...]:
    by_row: dict[tuple[str, str, str], dict[Span, BinDifference]] = {}
    for d in found.differences:
        if d.kind == kind:
            by_row.setdefault((d.metric, d.a, d.b), {})[d.low_count, d.high_count] = d
    rows = []
    for (metric, a, b), cells in sorted(by_row.items(), key=lambda item: item[0][0] == "AP"):
        texts = tuple(
            (f"{signed(d.value)} ({points(d.low)} to {points(d.high)})", d.is_clear)
            for d in map(cells.__getitem__, spans)
        )
        rows.append(Row(f"{metric}: {names[a]} – {names[b]}", texts))
    return tuple(rows)


def _text_rows(report: Report, spans: Sequence[Span]) -> tuple[Row, ...]:
    by_backbone: dict[str, dict[Span, TextGain]] = {}
    for gain in report.result.families.text:
        by_backbone.setdefault(gain.backbone, {})[gain.low_count, gain.high_count] = gain
    rows = []
    for backbone, gains in by_backbone.items():
        cells = []
        for span in spans:
            own = gains.get(span)
            if own is None:
                cells.append(("–", False))
                continue
            interval = f"{points(own.low)} to {points(own.high)}"
            cells.append((f"{signed(own.with_names - own.without)} ({interval})", own.low > 0))
        rows.append(Row(report.backbones[backbone], tuple(cells)))
    return tuple(rows)


def _chosen(found: FamilyComparison) -> str:
    several = [m for m in found.members if m.others]
    if not several:
        return "Every family has one pair."
    if any(m.chosen_by == SCORED for m in several):
        families = ", ".join(m.family for m in several if m.chosen_by == SCORED)
        return (
            f"The pair of {families} was chosen on these images, because no other evidence is "
            "recorded: its lead is too large by an unknown amount."
        )
    return (
        "The pair that stands for a family was chosen without these images: the backbone with the "
        "best macro-F1 out of fold, and its fine-tune unless that validated no better than the "
        "probe."
    )


def conclusions(report: Report) -> list[str]:
    """What the differences say, or that they say nothing."""
    found = report.result.families
    family = {m.pair: m.family for m in found.members}
    sentences = []
    if len(found.members) > 1:
        sentences += _clear(found, FAMILIES, family, "the families")
        counts = {f: sum(o.family == f for o in found.owned) for f in family.values()}
        owners = ", ".join(f"{f} owns {n}" for f, n in counts.items() if n) or "no family owns one"
        sentences.append(
            f"Of the {found.n_compared:,} tags on which the families' predictions differ enough to "
            f"be told apart, {owners} (F1 clearly above that of every other family)."
        )
    if any(d.kind == STRATEGIES for d in found.differences):
        sentences += _clear(found, STRATEGIES, report.names, "fine-tune and probe")
    elif found.kept:
        kept = ", ".join(report.backbones[b] for b in found.kept)
        sentences.append(
            f"The fine-tunes of {kept} kept their probes: there is nothing to compare."
        )
    helped = [g for g in found.text if g.low > 0]
    if found.text:
        where = ", ".join(
            f"{span_text((g.low_count, g.high_count))} training images "
            f"({signed(g.with_names - g.without)} points of AP)"
            for g in helped
        )
        sentences.append(
            f"The text tower helps on tags with {where}, out of fold."
            if helped
            else "The names of tags add nothing that can be told, in any range of training counts."
        )
    return sentences


def _clear(found: FamilyComparison, kind: str, names: dict[str, str], what: str) -> list[str]:
    """Sentences on the differences that remain after the adjustment for their number."""
    sentences = []
    own = [d for d in found.differences if d.kind == kind]
    for metric in ("F1", "AP"):
        by_pair: dict[tuple[str, str], list[BinDifference]] = {}
        of_metric = [d for d in own if d.metric == metric]
        for d in of_metric:
            if d.is_clear:
                pair = (d.a, d.b) if d.value > 0 else (d.b, d.a)
                by_pair.setdefault(pair, []).append(d)
        for (ahead, behind), differences in by_pair.items():
            where = ", ".join(
                f"{span_text((d.low_count, d.high_count))} training images "
                f"({points(abs(d.value))} points)"
                for d in differences
            )
            sentences.append(
                f"By {metric}, {names[ahead]} is ahead of {names[behind]} on tags with {where}."
            )
        if not by_pair:
            sentences.append(
                f"By {metric} the data do not tell {what} apart in any range of training counts: "
                f"none of {len(of_metric)} differences remains after the adjustment for their "
                "number."
            )
    return sentences
