"""The answer: the recommended pair, its figures, and why it is recommended."""

from __future__ import annotations

from dataclasses import dataclass

from retailtag.report.decision import rule_text
from retailtag.report.report import Report
from retailtag.report.results import PairCost, PairResult
from retailtag.report.tables import duration, milliseconds, points
from retailtag.report.theme import strategy_name

SCOPES_OF_CARDS = {
    "all": "Macro-F1 in the population, all tags",
    "tail": "Macro-F1 in the population, tail tags",
}


@dataclass(frozen=True)
class Card:
    """One figure of the answer."""

    label: str
    value: str
    note: str


@dataclass(frozen=True)
class Headline:
    """The answer in one screen."""

    about: list[str]  # what was compared on what, in a few words each
    backbone: str
    strategy: str
    cards: list[Card]
    cautions: list[str]
    reasons: list[str]
    rule: str


def headline(report: Report) -> Headline:
    """The recommended pair with its figures and reasons."""
    result, winner = report.result, report.winner
    images = result.catalog.get("images", {})
    return Headline(
        about=[
            str(result.catalog.get("name", "catalogue")),
            f"{result.catalog.get('tags', 0):,} tags",
            f"{images.get('train', 0):,} training images",
            f"{result.pairs[0].scorecard.n_images:,} held-out images",
            f"{len(result.pairs)} pairs",
        ],
        backbone=report.backbones[winner.backbone],
        strategy=strategy_name(winner),
        cards=[
            *(_score(winner, scope, label) for scope, label in SCOPES_OF_CARDS.items()),
            _volume(winner),
            *_costs(winner.cost),
        ],
        cautions=[report.with_short_names(caution) for caution in report.decision.cautions],
        reasons=[report.with_short_names(reason) for reason in report.decision.reasons],
        rule=rule_text(result.rule),
    )


def _score(winner: PairResult, scope: str, label: str) -> Card:
    s = winner.scorecard.summaries[scope]
    if not s.n_tags:
        return Card(label, points(s.macro_f1), "no tag with a held-out positive")
    interval = f"95 %: {points(s.macro_f1_low)} to {points(s.macro_f1_high)}, {s.n_tags} tags"
    return Card(
        label, points(s.best_estimate), f"{interval}; on these images: {points(s.macro_f1)}"
    )


def _volume(winner: PairResult) -> Card:
    card = winner.scorecard
    note = (
        f"annotators gave {card.tags_true:.1f}; {points(card.micro_precision)} % of those given "
        f"are right, {points(card.micro_recall)} % of the true ones are found"
    )
    return Card("Tags given to an image", f"{card.tags_given:.1f}", note)


def _costs(cost: PairCost) -> list[Card]:
    within = f"95 % of images within {milliseconds(cost.latency_ms_p95)} ms"
    memory = f"peak memory {milliseconds(cost.peak_memory_mib)} MiB"
    return [
        Card("Latency of one image", f"{milliseconds(cost.latency_ms_p50)} ms", within),
        Card("Training", duration(cost.train_seconds), memory),
    ]
