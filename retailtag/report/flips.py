"""What would change the recommendation, and what the leading pairs gain and pay.

Everything is computed from scorecards, comparisons and costs of the finished bake-off; a sentence
is written only where its figures are there.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from retailtag.report.cautions import highest
from retailtag.report.decision import Decision, decide
from retailtag.report.results import BakeoffResult, PairResult, Rule
from retailtag.report.tables import duration
from retailtag.scoring.intervals import Difference

TAIL_CUTOFFS = (10, 20, 50, 100, 200)  # training images under which a tag counts as tail
WEIGHT_STEP = 0.05  # between the weights of the tail that are tried
JUST_UNDER = 0.999  # of a pair's own cost: a budget that rules it out
N_RIVALS = 5  # pairs whose smallest gain is looked for, from the top of the ranking
FACTORS = (1.02, 1.05, 1.1, 1.15, 1.2, 1.3, 1.5, 2, 3, 5, 10, 100)  # on the winner's cost


@dataclass(frozen=True)
class Flip:
    """Which pair another question would recommend or put first."""

    question: str  # what is asked, such as ``micro-F1`` or ``latency under 12 ms``
    winner: str  # name of the pair; empty if the figures do not tell
    figures: str  # what it rests on, in words
    changes: bool  # whether it is another pair than the recommended one


@dataclass(frozen=True)
class Flips:
    """The panel, the smallest changes that alter the answer, and the trade-off in paragraphs."""

    panel: tuple[Flip, ...]
    smallest: tuple[str, ...]  # sentences, one per kind of change; empty where none alters it
    trade_off: tuple[str, ...]  # at most two paragraphs


def what_would_flip(result: BakeoffResult, decision: Decision) -> Flips:
    """Ask the finished bake-off the neighbouring questions."""
    winner = result.pair(decision.winner)
    # a fine-tune that kept its probe is no other answer
    kept = {winner.name, *(p.name for p in result.distinct)}
    result = replace(result, pairs=tuple(p for p in result.pairs if p.name in kept))
    panel = [
        *_by_score(result, winner),
        *_by_cutoff(result, winner),
        *_other_end(result, winner),
        *_by_budget(result, winner),
    ]
    rival = _rival(result, decision)
    return Flips(
        panel=tuple(panel),
        smallest=tuple(_smallest(result, winner)),
        trade_off=trade_off(result, winner, rival) if rival else (),
    )


# The panel ------------------------------------------------------------------------------------


def _flip(
    question: str, values: dict[str, float], winner: PairResult, shown: Callable[[float], str]
) -> Flip:
    """Who has the highest of some values; costs are given with a minus sign."""
    best = highest(values)
    if not best:
        return Flip(question, "", "no pair has a figure", changes=False)
    figures = shown(values[best])
    own = values.get(winner.name, math.nan)
    if values[best] == own:
        return Flip(question, winner.name, figures, changes=False)
    if not math.isnan(own):
        figures += f", {shown(own)} for the recommended pair"
    return Flip(question, best, figures, changes=True)


def _by_score(result: BakeoffResult, winner: PairResult) -> list[Flip]:
    scores: dict[str, Callable[[PairResult], float]] = {
        "macro-F1": lambda p: p.scorecard.summaries["all"].best_estimate,
        "tail macro-F1": lambda p: p.scorecard.summaries["tail"].best_estimate,
        "micro-F1": lambda p: p.scorecard.micro_f1,
        "macro-AP": lambda p: p.scorecard.summaries["all"].macro_ap,
    }
    return [
        _flip(name, {p.name: score(p) for p in result.distinct}, winner, _points)
        for name, score in scores.items()
    ]


def _by_cutoff(result: BakeoffResult, winner: PairResult) -> list[Flip]:
    """Macro-F1 on these images of the tags under other cut-offs of the tail."""
    flips = []
    for cutoff in TAIL_CUTOFFS:
        if cutoff == result.cutoffs["tail"]:
            continue
        values = {p.name: _mean_f1(p, cutoff) for p in result.distinct}
        n_tags = sum(r.train_count < cutoff and r.support > 0 for r in winner.scorecard.tags)
        if n_tags:
            question = f"tail under {cutoff} images ({n_tags} tags, on these images)"
            flips.append(_flip(question, values, winner, _points))
    return flips


def _mean_f1(pair: PairResult, cutoff: int) -> float:
    """Mean F1 of the tags with a positive and under `cutoff` training images; NaN without any."""
    values = [r.f1 for r in pair.scorecard.tags if r.train_count < cutoff and r.support]
    return float(np.mean(values)) if values else math.nan


def _other_end(result: BakeoffResult, winner: PairResult) -> list[Flip]:
    """Who could be ahead of the recommended pair at the ends of the intervals."""
    flips = []
    for scope, words in (("all", "macro-F1"), ("tail", "tail macro-F1")):
        ends: dict[str, float] = {}
        for other in (p for p in result.distinct if p is not winner):
            comparison = result.comparison(other.name, winner.name, scope)
            if comparison is not None:
                ends[other.name] = comparison.difference.high
        best = highest(ends)
        if not best:
            continue
        question = f"{words}, unfavourable end of the interval"
        if ends[best] > 0:
            figures = f"ahead by up to {_points(ends[best])} points"
            flips.append(Flip(question, best, figures, changes=True))
        else:
            behind = f"every other pair stays behind, by {_points(-ends[best])} points or more"
            flips.append(Flip(question, winner.name, behind, changes=False))
    return flips


def _by_budget(result: BakeoffResult, winner: PairResult) -> list[Flip]:
    """The recommendation under tighter budgets: one row for each change of it."""
    kinds: dict[str, tuple[str, Callable[[PairResult], float], Callable[[float], str]]] = {
        "max_latency_ms": (
            "latency",
            lambda p: p.cost.latency_ms_p50,
            lambda ms: f"{ms:.3g} ms an image",
        ),
        "max_train_hours": (
            "training",
            lambda p: p.cost.train_seconds / 3600,
            lambda hours: duration(3600 * hours),
        ),
    }
    flips = []
    for field, (words, cost_of, shown) in kinds.items():
        last = winner
        while not math.isnan(cost := cost_of(last)):
            # the budget that just rules out the pair recommended so far
            budget = JUST_UNDER * cost
            tighter = replace(result, rule=replace(result.rule, **{field: budget}))
            if not any(not tighter.rule.excess(p.cost) for p in tighter.pairs):
                flips.append(Flip(f"{words} under {shown(cost)}", "", "no pair", changes=True))
                break
            last = tighter.pair(decide(tighter).winner)
            figures = f"macro-F1 {_points(last.scorecard.summaries['all'].best_estimate)}"
            figures += f", {shown(cost_of(last))}"
            question = f"{words} under {shown(cost)}"
            flips.append(Flip(question, last.name, figures, changes=last is not winner))
    return flips


# The smallest changes -------------------------------------------------------------------------


def _smallest(result: BakeoffResult, winner: PairResult) -> list[str]:
    """The smallest change of each kind after which the rule recommends another pair."""
    found = [
        _smallest_gain(result, winner),
        _smallest_cost(result, winner),
        _smallest_weight(result, winner),
    ]
    return [sentence for sentence in found if sentence]


def _smallest_gain(result: BakeoffResult, winner: PairResult) -> str:
    """Points of macro-F1 that would make the nearest rival the recommended pair."""
    needed: dict[str, float] = {}
    for other in [p for p in result.distinct if p is not winner][:N_RIVALS]:
        low, high = 0.0, 1.0
        if decide(_shifted(result, other, high)).winner != other.name:
            continue
        for _ in range(12):  # to a fortieth of a point
            middle = (low + high) / 2
            if decide(_shifted(result, other, middle)).winner == other.name:
                high = middle
            else:
                low = middle
        needed[other.name] = high
    if not needed:
        return ""
    rival = min(needed, key=lambda name: (needed[name], name))
    return (
        f"{rival} would be recommended with {_points(needed[rival])} points more macro-F1 over all "
        "tags and over the tail."
    )


def _shifted(result: BakeoffResult, pair: PairResult, gain: float) -> BakeoffResult:
    """The bake-off as it would be if one pair had `gain` more macro-F1 in every scope."""
    summaries = {
        scope: replace(s, macro_f1=s.macro_f1 + gain, macro_f1_population=s.best_estimate + gain)
        for scope, s in pair.scorecard.summaries.items()
    }
    better = replace(pair, scorecard=replace(pair.scorecard, summaries=summaries))
    return replace(
        result,
        pairs=tuple(better if p is pair else p for p in result.pairs),
        comparisons=tuple(
            replace(c, difference=_moved(c.difference, gain if c.a == pair.name else -gain))
            if pair.name in (c.a, c.b)
            else c
            for c in result.comparisons
        ),
    )


def _moved(difference: Difference, by: float) -> Difference:
    return replace(
        difference,
        value=difference.value + by,
        low=difference.low + by,
        high=difference.high + by,
    )


def _smallest_cost(result: BakeoffResult, winner: PairResult) -> str:
    """Factor on the winner's latency, or its training time, from which another pair wins."""
    for field, words in (("latency_ms_p50", "one image took"), ("train_seconds", "training took")):
        for factor in FACTORS:
            cost = winner.cost
            if field == "latency_ms_p50":
                cost = cost.slowed(factor)
            else:
                cost = replace(cost, train_seconds=factor * cost.train_seconds)
            slower = replace(winner, cost=cost)
            pairs = tuple(slower if p is winner else p for p in result.pairs)
            other = decide(replace(result, pairs=pairs)).winner
            if other != winner.name:
                return f"{other} would be recommended if {words} {factor:g} times as long."
    return ""


def _smallest_weight(result: BakeoffResult, winner: PairResult) -> str:
    """Weight of the tail nearest to the rule's from which another pair wins."""
    steps = np.arange(0, 1 + WEIGHT_STEP / 2, WEIGHT_STEP).tolist()
    for weight in sorted(steps, key=lambda w: (abs(w - result.rule.tail_weight), w)):
        rule: Rule = replace(result.rule, tail_weight=min(weight, 1.0))
        other = decide(replace(result, rule=rule)).winner
        if other != winner.name:
            return f"{other} would be recommended if the tail counted {100 * weight:.0f} %."
    return ""


# The trade-off --------------------------------------------------------------------------------


def _rival(result: BakeoffResult, decision: Decision) -> PairResult | None:
    """What the recommended pair is weighed against: the best ranked of the others."""
    others = [p for p in result.distinct if p.name != decision.winner]
    allowed = [p for p in others if p.name not in decision.over_budget]
    return next(iter(allowed or others), None)


def trade_off(result: BakeoffResult, winner: PairResult, rival: PairResult) -> tuple[str, ...]:
    """What one gains and pays with the recommended pair instead of its rival, in two paragraphs."""
    quality = [
        _difference_in_words(result, winner, rival, "all", "macro-F1"),
        _difference_in_words(result, winner, rival, "tail", "tail macro-F1"),
        _volumes_in_words(winner, rival),
    ]
    own, other = winner.cost, rival.cost
    costs = [
        _costs_in_words("takes {} ms for one image", own.latency_ms_p50, other.latency_ms_p50),
        _costs_in_words("trains in {} s", own.train_seconds, other.train_seconds),
        _costs_in_words("needs {} MiB to train", own.peak_memory_mib, other.peak_memory_mib),
    ]
    paragraphs = []
    if any(quality):
        lead = f"Quality of {winner.name} against {rival.name}: "
        paragraphs.append(lead + "; ".join(filter(None, quality)) + ".")
    if any(costs):
        paragraphs.append(f"Cost: {winner.name} " + "; it ".join(filter(None, costs)) + ".")
    return tuple(paragraphs)


def _difference_in_words(
    result: BakeoffResult, winner: PairResult, rival: PairResult, scope: str, score: str
) -> str:
    comparison = result.comparison(winner.name, rival.name, scope)
    if comparison is None or math.isnan(comparison.difference.value):
        return ""
    d = comparison.difference
    interval = f"{_points(d.low)} to {_points(d.high)}"
    if d.is_tie:
        return f"{score} is not told apart ({_signed(d.value)} points, interval {interval})"
    return f"{score} is {_signed(d.value)} points (interval {interval})"


def _volumes_in_words(winner: PairResult, rival: PairResult) -> str:
    a, b = winner.scorecard, rival.scorecard
    if not (a.tags_given and b.tags_given):
        return ""
    return (
        f"it gives {a.tags_given:.1f} tags an image, {_percent(a.micro_precision)} of them right, "
        f"against {b.tags_given:.1f} and {_percent(b.micro_precision)}"
    )


def _costs_in_words(words: str, own: float, other: float) -> str:
    if not (own > 0 and other > 0):  # not measured
        return ""
    return f"{words.format(_figure(own))} against {_figure(other)} ({own / other:.2g} times)"


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _points(value: float) -> str:
    return f"{100 * value:.1f}"


def _signed(value: float) -> str:
    return f"{100 * value:+.1f}"


def _percent(value: float) -> str:
    return f"{100 * value:.0f} %"
