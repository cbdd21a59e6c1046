"""The report's figures for other programs: ``ranking.csv``, ``per_tag.csv``, ``summary.md``."""

from __future__ import annotations

from dataclasses import asdict, fields
from types import SimpleNamespace
from typing import Any

from retailtag.report.report import Report
from retailtag.report.results import PairResult
from retailtag.scoring.csvs import csv_text
from retailtag.scoring.scorecard import SCOPES, TagRow

SUMMARY_COLUMNS = (
    "pair", "macro-F1 in the population (95 %)", "tail (95 %)", "macro-F1 on these images", "tail",
    "macro-AP", "micro-F1", "training, s", "one image, ms", "peak memory, MiB",
)  # fmt: skip


def ranking_csv(report: Report) -> str:
    """One row per pair, best first: standing, scores as fractions, costs."""
    rows = [_ranked(report, k, pair) for k, pair in enumerate(report.result.ranking, start=1)]
    return csv_text(list(rows[0]), (SimpleNamespace(**row) for row in rows))


def _ranked(report: Report, place: int, pair: PairResult) -> dict[str, Any]:
    decision, card = report.decision, pair.scorecard
    scores: dict[str, float] = {}
    for scope in SCOPES:
        summary = card.summaries[scope]
        scores |= {
            f"macro_f1_population_{scope}": summary.macro_f1_population,
            f"macro_f1_{scope}_low": summary.macro_f1_low,
            f"macro_f1_{scope}_high": summary.macro_f1_high,
            f"macro_f1_{scope}": summary.macro_f1,
            f"macro_ap_{scope}": summary.macro_ap,
        }
    return {
        "place": place,
        "name": report.names[pair.name],
        "backbone": pair.backbone,
        "strategy": pair.strategy,
        "recommended": pair.name == decision.winner,
        "tied": pair.name in decision.ties,
        "over_budget": pair.name in decision.over_budget,
        **scores,
        "micro_f1": card.micro_f1,
        "micro_precision": card.micro_precision,
        "micro_recall": card.micro_recall,
        "tags_given": card.tags_given,
        "tags_true": card.tags_true,
        **pair.cost.flat(),
    }


def per_tag_csv(report: Report) -> str:
    """One row per pair and tag, with everything that the scorecards say of it."""
    columns = [field.name for field in fields(TagRow)]
    rows = (
        SimpleNamespace(name=report.names[pair.name], **asdict(row))
        for pair in report.winner_first
        for row in pair.scorecard.tags
    )
    return csv_text(["name", *columns], rows)


def summary_md(report: Report) -> str:
    """The answer as Markdown: catalogue, command, machine, ranking, recommendation, reasons."""
    result, decision = report.result, report.decision
    catalog, images = result.catalog, result.catalog.get("images", {})
    n_tail = catalog.get("tags_by_group", {}).get("tail", 0)
    lines = [
        f"{images.get('train', 0):,} training and {result.pairs[0].scorecard.n_images:,} held-out "
        f"images, {catalog.get('tags', 0):,} tags ({n_tail:,} in the tail).",
        "",
        "```sh",
        result.command,
        "```",
        "",
        ", ".join(f"{name}: {value}" for name, value in result.machine.items()),
        "",
        f"| {' | '.join(SUMMARY_COLUMNS)} |",
        "|" + "---|" * len(SUMMARY_COLUMNS),
        *(_summary_row(report, pair) for pair in result.ranking),
        "",
        f"Recommended: **{report.names[decision.winner]}**, decided by {decision.decided_by}.",
        "",
        *(f"- **{report.with_short_names(caution)}**" for caution in decision.cautions),
        *(f"- {report.with_short_names(reason)}" for reason in decision.reasons),
        "",
    ]
    return "\n".join(lines)


def _summary_row(report: Report, pair: PairResult) -> str:
    card, cost = pair.scorecard, pair.cost
    scores = [
        f"{100 * s.best_estimate:.1f} ({100 * s.macro_f1_low:.1f} to {100 * s.macro_f1_high:.1f})"
        for s in (card.summaries["all"], card.summaries["tail"])
    ]
    counted = [f"{100 * card.summaries[scope].macro_f1:.2f}" for scope in ("all", "tail")]
    cells = [
        report.names[pair.name].replace("|", r"\|"),
        *scores,
        *counted,
        f"{100 * card.summaries['all'].macro_ap:.2f}",
        f"{100 * card.micro_f1:.2f}",
        f"{cost.train_seconds:,.0f}",
        f"{cost.latency_ms_p50:.1f}",
        f"{cost.peak_memory_mib:,.0f}",
    ]
    return f"| {' | '.join(cells)} |"
