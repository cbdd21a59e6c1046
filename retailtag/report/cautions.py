"""What stands beside the recommendation so that nobody is misled by it."""

from __future__ import annotations

import math
from collections.abc import Mapping

from retailtag.report.results import BakeoffResult, PairResult

# Tags given over true ones; outside this range users see a tagger that is not the annotators'.
MAX_GIVEN_RATIO = 1.5


def cautions(result: BakeoffResult, winner: PairResult) -> tuple[str, ...]:
    """Sentences on what macro-F1 alone would hide; empty where there is nothing to say."""
    found = [volume_caution(winner), other_leaders(result, winner)]
    return tuple(sentence for sentence in found if sentence)


def volume_caution(pair: PairResult) -> str:
    """Sentence if a pair gives far more or far fewer tags than annotators did, else empty."""
    card = pair.scorecard
    given, true = card.tags_given, card.tags_true
    if not true or 1 / MAX_GIVEN_RATIO <= given / true <= MAX_GIVEN_RATIO:
        return ""
    times = given / true
    ratio = f"{times:.1f} times as many" if times >= 1 else f"{100 * times:.0f} % of these"
    sentence = (
        f"{pair.name} gives {given:.1f} tags an image where annotators gave {true:.1f}, {ratio}: "
        f"{_percent(card.micro_precision)} of the tags that it gives are right, and it finds "
        f"{_percent(card.micro_recall)} of the true ones."
    )
    if times >= 1:
        sentence += " Where wrong tags cost more, tune for precision (--objective precision:0.8)."
    return sentence


def other_leaders(result: BakeoffResult, winner: PairResult) -> str:
    """Sentence naming who leads by macro-F1, by its tail and by micro-F1 where they disagree."""
    leaders: dict[str, list[str]] = {}
    for score, values in {
        "macro-F1": {p.name: p.scorecard.summaries["all"].best_estimate for p in result.distinct},
        "tail macro-F1": {
            p.name: p.scorecard.summaries["tail"].best_estimate for p in result.distinct
        },
        "micro-F1": {p.name: p.scorecard.micro_f1 for p in result.distinct},
    }.items():
        best = highest(values)
        if best:
            against = values.get(winner.name, math.nan)
            rest = "" if best == winner.name else f" against {100 * against:.1f}"
            leaders.setdefault(best, []).append(f"{score} ({100 * values[best]:.1f}{rest})")
    if len(leaders) < 2:
        return ""
    parts = [f"{pair} leads by {' and '.join(scores)}" for pair, scores in leaders.items()]
    return f"The scores disagree: {'; '.join(parts)}."


def highest(values: Mapping[str, float]) -> str:
    """Name of the highest value, the first of equals; empty where all are NaN."""
    known = [name for name, value in values.items() if not math.isnan(value)]
    return max(known, key=lambda name: values[name], default="")


def _percent(value: float) -> str:
    return "–" if math.isnan(value) else f"{100 * value:.1f} %"
