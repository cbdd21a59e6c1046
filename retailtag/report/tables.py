"""Rich tables for the terminal; fractions are multiplied by 100 only when printed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from retailtag.backbones.names import short_models, shortened
from retailtag.display import printable
from retailtag.report.decision import Decision
from retailtag.report.fitting import FittingTable
from retailtag.report.grouped import SharedFinding
from retailtag.report.results import BakeoffResult
from retailtag.report.theme import short_names
from retailtag.scoring.compare import NORMAL, Comparison, Standing
from retailtag.scoring.finding import Finding
from retailtag.scoring.scorecard import GroupSummary, ScoreCard


def points(value: float) -> str:
    """Fraction as points of 100; a dash where undefined.

    Examples
    --------
    >>> points(0.4567), points(float("nan"))
    ('45.7', '–')
    """
    return "–" if math.isnan(value) else f"{100 * value:.1f}"


def duration(seconds: float) -> str:
    """Seconds in a readable unit.

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
    """Macro-F1 in the population with its interval, in points; a dash without tags."""
    if not summary.n_tags:
        return "–"
    low, high = points(summary.macro_f1_low), points(summary.macro_f1_high)
    return f"{points(summary.best_estimate)} ({low}–{high})"


# Headers of columns that a narrow terminal can do without, the first one first.
SPARE = (
    *("memory", "detectable", "sd of seeds", "seeds", "these images", "these\nimages", "macro-AP"),
    *("precision", "recall", "p"),
)


def _table(title: str, caption: str, columns: Sequence[str]) -> Table:
    """Table whose first column is text and whose others are figures."""
    table = FittingTable(
        spare=SPARE,
        title=title,
        caption=caption,
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE,
        collapse_padding=True,
        pad_edge=False,
    )
    table.add_column(columns[0], overflow="fold", min_width=12)
    for column in columns[1:]:
        table.add_column(column, justify="right", overflow="fold")
    return table


def ranking_table(result: BakeoffResult, decision: Decision) -> Table:
    """All pairs, best first: quality, cost, and which are tied or recommended."""
    table = _table(
        "Ranking of the pairs (macro-F1 in the population, 95 % interval)",
        "→ recommended; = not told apart from the leader by these images; × over a budget\n"
        "these images: macro-F1 of all tags and of the tail as counted, without the "
        "correction for few positives\n"
        "memory: peak of training, model included, libraries not",
        ("pair", "all tags", "tail", "these images", "latency", "training", "memory"),
    )
    names = short_names(result)
    for pair in result.ranking:
        mark = "→" if pair.name == decision.winner else "=" if pair.name in decision.ties else " "
        mark = "×" if pair.name in decision.over_budget else mark
        summaries, cost = pair.scorecard.summaries, pair.cost
        table.add_row(
            f"{mark} {names[pair.name]}",
            with_interval(summaries["all"]),
            with_interval(summaries["tail"]),
            " / ".join(points(summaries[scope].macro_f1) for scope in ("all", "tail")),
            f"{milliseconds(cost.latency_ms_p50)} ms",
            duration(cost.train_seconds),
            f"{milliseconds(cost.peak_memory_mib)} MiB",
            style="bold" if pair.name == decision.winner else None,
        )
    return table


def samples_text(card: ScoreCard, name: str) -> str:
    """Per-image metrics in one line."""
    s = card.samples
    at = " / ".join(points(v) for v in (s.precision_at_1, s.precision_at_3, s.precision_at_5))
    depth = "–" if math.isnan(s.coverage_error) else f"{s.coverage_error:.1f} tags"
    return (
        f"{name}, per image: sample-F1 {points(s.sample_f1)}, LRAP {points(s.lrap)}, "
        f"coverage error {depth}, precision at 1 / 3 / 5 {at}; {volume_text(card)}"
    )


def groups_table(cards: Iterable[ScoreCard], given: Mapping[str, str] | None = None) -> Table:
    """One row per model and scope: tags averaged, F1 with interval, precision, recall, AP.

    `given` are names by backbone id, here and below.
    """
    cards = list(cards)
    names = short_models([card.model for card in cards], given)
    table = _table(
        f"Scores on the {cards[0].split} split ({cards[0].n_images:,} images)",
        "\n".join(
            [
                "macro-F1 in the population with its 95 % interval, and on these images, as "
                "counted; all means are over the tags with a positive in the split",
                *(samples_text(card, names[card.model]) for card in cards),
            ]
        ),
        (
            "model",
            "scope",
            "tags",
            "population",
            "these\nimages",
            "precision",
            "recall",
            "macro-AP",
        ),
    )
    for card in cards:
        for scope, s in card.summaries.items():
            table.add_row(
                names[card.model] if scope == "all" else "",
                scope,
                str(s.n_tags),
                with_interval(s),
                points(s.macro_f1),
                points(s.macro_precision),
                points(s.macro_recall),
                points(s.macro_ap),
            )
        shares = points(card.micro_precision), points(card.micro_recall)
        table.add_row("", "micro", "", "", points(card.micro_f1), *shares, "")
        table.add_section()
    return table


def assignments_table(cards: Iterable[ScoreCard], given: Mapping[str, str] | None = None) -> Table:
    """One row per model and attribute with one value: scores of the three assignments."""
    cards = list(cards)
    names = short_models([card.model for card in cards], given)
    table = _table(
        "Attributes with one value: macro-F1 on these images (given the right value alone, %)",
        "independent: every tag by its threshold; the others: one tag of an attribute",
        ("model", "attribute", "independent", "at most one", "exactly one"),
    )
    for card in cards:
        by_attribute: dict[str, list[str]] = {}
        for row in card.assignments:
            cell = f"{points(row.macro_f1)} ({points(row.right)})"
            by_attribute.setdefault(row.attribute or "all tags", []).append(cell)
        for k, (attribute, cells) in enumerate(by_attribute.items()):
            table.add_row("" if k else names[card.model], attribute, *cells)
        table.add_section()
    return table


def comparison_table(
    comparisons: Iterable[Comparison], given: Mapping[str, str] | None = None
) -> Table:
    """Paired differences in points, the better model first, with verdicts."""
    # turned around where negative, so that every difference reads "model is ahead by"
    rows = [c if c.difference.value >= 0 else c.reversed() for c in comparisons]
    names = short_models([name for c in rows for name in (c.a, c.b)], given)
    caption = (
        "p: random swaps of the two models' images, Holm-adjusted within a scope; tie: p is 0.05 "
        "or more, or the interval includes 0. detectable: smallest true difference found with "
        "80 % power"
    )
    if any(c.test == NORMAL for c in rows):
        caption += ". Models with several seeds: images and seeds both vary; p is the normal one"
    table = _table(
        "Differences in macro-F1 in the population (paired, 95 %)",
        caption,
        ("model", "against", "scope", "difference", "interval", "detectable", "p", ""),
    )
    for c in rows:
        d = c.difference
        table.add_row(
            names[c.a],
            names[c.b],
            c.scope,
            f"+{points(d.value)}",
            f"{points(d.low)} to {points(d.high)}",
            points(d.detectable),
            p_text(c.p_holm),
            c.verdict,
        )
    return table


def p_text(p: float) -> str:
    """Write a p value to three decimals; a dash where not tested.

    Examples
    --------
    >>> [p_text(p) for p in (0.0004, 0.0321, 1.0, float("nan"))]
    ['<0.001', '0.032', '1.000', '–']
    """
    if math.isnan(p):
        return "–"
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def standings_table(
    standings: Iterable[Standing], split: str, given: Mapping[str, str] | None = None
) -> Table:
    """Models ranked within each scope, with intervals and the probability of being best."""
    standings = list(standings)
    names = short_models([s.model for s in standings], given)
    table = _table(
        f"Ranking on the {split} split (macro-F1 in the population, 95 % interval)",
        "these images: macro-F1 as counted, without the correction for few positives; P(best): "
        "share of the bootstrap replicates in which no other model is higher",
        (
            *("model", "scope", "population", "interval", "these images"),
            *("P(best)", "seeds", "sd of seeds"),
        ),
    )
    scope = ""
    for s in standings:
        if scope and s.scope != scope:
            table.add_section()
        scope = s.scope
        table.add_row(
            names[s.model],
            s.scope,
            points(s.macro_f1_population),
            f"{points(s.low)} to {points(s.high)}",
            points(s.macro_f1),
            "–" if math.isnan(s.p_best) else f"{100 * s.p_best:.0f} %",
            str(s.n_seeds),
            points(s.seed_sd),
        )
    return table


def decision_text(decision: Decision, result: BakeoffResult) -> Text:
    """Recommendation, what its scores would hide, and its reasons."""
    names = short_names(result)
    text = Text().append(printable(f"Use {names[decision.winner]}", keep=""), "bold")
    text.append(f" (decided by {decision.decided_by})")
    for caution in decision.cautions:
        text.append(f"\n  ! {printable(shortened(caution, names), keep='')}", "bold")
    for reason in decision.reasons:
        text.append(f"\n  • {printable(shortened(reason, names), keep='')}")
    card = result.pair(decision.winner).scorecard
    return text.append(f"\n  • {volume_text(card)}")


def volume_text(card: ScoreCard) -> str:
    """How many tags an image is given, and how many are right, in one line."""
    return (
        f"tags an image: {card.tags_given:.1f} given, {card.tags_true:.1f} true; micro-F1 "
        f"{points(card.micro_f1)}, micro-precision {points(card.micro_precision)}, "
        f"micro-recall {points(card.micro_recall)}"
    )


def findings_text(findings: Sequence[Finding | SharedFinding]) -> Text:
    """Numbered findings."""
    return Text("\n").join(
        Text(f"{n}. ").append(f.code, "bold").append(": " + "\n   ".join(_finding_lines(f)))
        for n, f in enumerate(findings, start=1)
    )


def _finding_lines(finding: Finding | SharedFinding) -> list[str]:
    lines = finding.lines if isinstance(finding, SharedFinding) else [finding.sentence]
    return [printable(line, keep="") for line in (*lines, finding.remedy)]
