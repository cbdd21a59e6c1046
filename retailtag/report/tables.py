"""Rich tables for the terminal; every figure is ×100 only here, when printed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from rich.markup import escape
from rich.table import Table
from rich.text import Text

from retailtag.report.decision import Decision
from retailtag.report.results import BakeoffResult
from retailtag.scoring.compare import Comparison
from retailtag.scoring.findings import Finding
from retailtag.scoring.scorecard import SCOPES, GroupSummary, ScoreCard


def points(value: float) -> str:
    """Fraction as points of 100; a dash where undefined.

    Examples
    --------
    >>> points(0.4567), points(float("nan"))
    ('45.7', '–')
    """
    return "–" if math.isnan(value) else f"{100 * value:.1f}"


def duration(seconds: float) -> str:
    """Seconds in the unit that a reader would choose.

    Examples
    --------
    >>> [duration(s) for s in (0.42, 42, 420, 42_000, float("nan"))]
    ['0.4 s', '42 s', '7.0 min', '11.7 h', '–']
    """
    if math.isnan(seconds):
        return "–"
    if seconds < 120:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def milliseconds(value: float) -> str:
    """Milliseconds with three figures; a dash where not measured.

    Examples
    --------
    >>> [milliseconds(v) for v in (0.1234, 12.34, 1234.5, float("nan"))]
    ['0.123', '12.3', '1,234', '–']
    """
    if math.isnan(value):
        return "–"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def with_interval(summary: GroupSummary) -> str:
    """Macro-F1 with its interval, in points; a dash for a scope without tags."""
    if not summary.n_tags:
        return "–"
    low, high = points(summary.macro_f1_low), points(summary.macro_f1_high)
    return f"{points(summary.macro_f1)} ({low}–{high})"


def _table(title: str, caption: str, columns: Sequence[str]) -> Table:
    """Table whose first column is text and whose others are figures."""
    table = Table(title=title, caption=caption, title_justify="left", caption_justify="left")
    table.add_column(columns[0], overflow="fold", min_width=12)
    for column in columns[1:]:
        table.add_column(column, justify="right")
    return table


def ranking_table(result: BakeoffResult, decision: Decision) -> Table:
    """All pairs, best first: quality, cost, and which are tied or recommended."""
    table = _table(
        "Ranking of the pairs (held-out macro-F1, 95 % interval)",
        "→ recommended; = not told apart from the leader by these images\n"
        "memory: most that training took at one time, model included, libraries not",
        ("pair", "all tags", "tail", "latency", "training", "memory"),
    )
    for pair in result.ranking:
        mark = "→" if pair.name == decision.winner else "=" if pair.name in decision.ties else " "
        summaries, cost = pair.scorecard.summaries, pair.cost
        table.add_row(
            Text(f"{mark} {pair.name}"),
            with_interval(summaries["all"]),
            with_interval(summaries["tail"]),
            f"{milliseconds(cost.latency_ms_p50)} ms",
            duration(cost.train_seconds),
            f"{milliseconds(cost.peak_memory_mib)} MiB",
            style="bold" if pair.name == decision.winner else None,
        )
    return table


def groups_table(cards: Iterable[ScoreCard]) -> Table:
    """One row per model and scope: tags averaged, F1 with interval, precision, recall, AP."""
    cards = list(cards)
    table = _table(
        f"Scores on the {cards[0].split} split ({cards[0].n_images:,} images)",
        "macro: mean over the tags with a positive in the split",
        ("model", "scope", "tags", "macro-F1", "precision", "recall", "macro-AP"),
    )
    for card in cards:
        for scope in SCOPES:
            s = card.summaries[scope]
            table.add_row(
                Text(card.model if scope == "all" else ""),
                scope,
                str(s.n_tags),
                with_interval(s),
                points(s.macro_precision),
                points(s.macro_recall),
                points(s.macro_ap),
            )
        table.add_row("", "micro-F1", "", points(card.micro_f1), "", "", "")
        table.add_section()
    return table


def comparison_table(comparisons: Iterable[Comparison]) -> Table:
    """Paired differences in points, larger first model first, ties said to be ties."""
    table = _table(
        "Differences in macro-F1 (paired bootstrap, 95 %)",
        "detectable: smallest true difference found with 80 % power",
        ("model", "against", "scope", "difference", "interval", "detectable", ""),
    )
    for c in comparisons:
        shown = c if c.difference.value >= 0 else c.reversed()
        d = shown.difference
        table.add_row(
            Text(shown.a),
            Text(shown.b),
            shown.scope,
            f"+{points(d.value)}",
            f"{points(d.low)} to {points(d.high)}",
            points(d.detectable),
            "tie" if d.is_tie else "ahead",
        )
    return table


def decision_text(decision: Decision) -> str:
    """Recommendation and its reasons as rich markup, names escaped."""
    lines = [f"[bold]Use {escape(decision.winner)}[/bold] (decided by {decision.decided_by})"]
    return "\n".join(lines + [f"  • {escape(reason)}" for reason in decision.reasons])


def findings_text(findings: Sequence[Finding]) -> str:
    """Numbered findings as rich markup, names escaped."""
    return "\n".join(
        f"{n}. [bold]{escape(f.code)}[/bold]: {escape(f.sentence)}\n   {escape(f.remedy)}"
        for n, f in enumerate(findings, start=1)
    )
