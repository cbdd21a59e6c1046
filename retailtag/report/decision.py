"""The written rule that turns a bake-off into one recommendation with its reasons."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

import numpy as np

from retailtag.errors import DataError
from retailtag.report.cautions import cautions
from retailtag.report.results import BakeoffResult, PairResult, Rule
from retailtag.scoring.intervals import Difference

RULE = (
    "(1) Pairs are ranked by macro-F1 in the population over all tags with a positive in the "
    "held-out split. "
    "(2) A pair is tied with the leader if the paired 95 % interval of their difference includes "
    "0, and that of every pair ranked between the two. "
    "(3) Among the tied, the best tail macro-F1 wins against every pair whose difference on the "
    "tail has an interval above 0. "
    "(4) Among those still tied, the lowest latency for one image wins (within 10 %, or not told "
    "apart by timings made in turn, counts as equal), then the shortest training; a fine-tune that "
    "kept its probe gives way to it."
)


@dataclass(frozen=True)
class Decision:
    """The recommended pair and the path to it."""

    winner: str  # name of the recommended pair
    # ``macro-F1``, ``tail``, ``latency``, ``training``, ``budget`` or ``only pair``
    decided_by: str
    reasons: tuple[str, ...]  # what each step of the rule decided, in sentences with figures
    ties: tuple[str, ...]  # the leader and what the data do not tell from it, in rank order
    # By scope (``all``, ``tail``): the smallest true difference in macro-F1 from the leader that
    # this split would show with 80 % power, median over the pairs.
    smallest_difference: dict[str, float]
    cautions: tuple[str, ...] = ()  # what the scores that decided would hide, in sentences
    over_budget: tuple[str, ...] = ()  # pairs that a budget ruled out, in rank order


def rule_text(rule: Rule) -> str:
    """The rule in words, with the budgets and weights of `rule`."""
    limits = [
        f"{text} over {limit:g} {unit}"
        for text, limit, unit in (
            ("latency", rule.max_latency_ms, "ms"),
            ("training", rule.max_train_hours, "hours"),
            ("memory", rule.max_memory_gib, "GiB"),
        )
        if math.isfinite(limit)
    ]
    words = RULE
    if rule.tail_weight:
        words = words.replace(
            "macro-F1 in the population over all tags with a positive in the held-out split. ",
            f"{1 - rule.tail_weight:g} times macro-F1 in the population over all tags with a "
            f"positive in the held-out split plus {rule.tail_weight:g} times that over tail tags. ",
        )
    if limits:
        words = f"(0) Pairs with {' or '.join(limits)} are ruled out. {words}"
    return words


def decide(result: BakeoffResult) -> Decision:
    """Recommend one pair by `RULE`, within the budgets and weights of ``result.rule``.

    `result` needs a comparison of every two pairs over all tags, and over the tail if it has tags.
    Budgets that rule out every pair rule out none; a caution says so. `DataError` if there is no
    pair, or a comparison with the leader is missing.
    """
    if not result.pairs:
        raise DataError("The bake-off holds no pair; run at least one backbone and strategy.")
    ranking, reasons, warnings = _within_budget(result)
    smallest = {s: _smallest_difference(result, ranking, s) for s in ("all", "tail")}
    tied, said = _tied_with_leader(result, ranking)
    reasons += said
    survivors, twins = _without_twins(result, tied)
    reasons += twins
    decided_by = "macro-F1" if len(ranking) > 1 else "only pair"
    if len(ranking) == 1 < len(result.pairs):
        decided_by = "budget"
    if len(survivors) > 1:
        survivors, sentence = _best_on_tail(result, survivors)
        reasons.append(sentence)
        decided_by = "tail"
    elif twins:
        decided_by = "training"
    winner = survivors[0]
    if len(survivors) > 1:
        winner, decided_by, sentence = _cheapest(survivors)
        reasons.append(sentence)
    reasons += _resolution(result, smallest)
    return Decision(
        winner=winner.name,
        decided_by=decided_by,
        reasons=tuple(reasons),
        ties=tuple(p.name for p in tied) if len(tied) > 1 else (),
        smallest_difference={s: v for s, v in smallest.items() if not math.isnan(v)},
        cautions=(*warnings, *cautions(result, winner)),
        over_budget=tuple(p.name for p in result.ranking if p not in ranking),
    )


def _within_budget(
    result: BakeoffResult,
) -> tuple[tuple[PairResult, ...], list[str], list[str]]:
    """Pairs in rank order that no budget rules out, a sentence on the others, and a warning."""
    excess = {p.name: result.rule.excess(p.cost) for p in result.ranking}
    allowed = tuple(p for p in result.ranking if not excess[p.name])
    if not allowed:
        reasons = "; ".join(f"{name}: {why}" for name, why in excess.items())
        warning = f"No pair keeps to the budgets, so they rule out none ({reasons})."
        return result.ranking, [], [warning]
    out = [f"{name} ({why})" for name, why in excess.items() if why]
    return allowed, [f"Ruled out by the budgets: {_listed(out)}."] if out else [], []


def _points(value: float) -> str:
    return f"{100 * value:.1f}"


def _score(pair: PairResult, scope: str) -> str:
    s = pair.scorecard.summaries[scope]
    # cards of early versions have no estimate for the population
    counted = "" if s.best_estimate == s.macro_f1 else f"; {_points(s.macro_f1)} on these images"
    return (
        f"{_points(s.best_estimate)} (95 % interval {_points(s.macro_f1_low)} to "
        f"{_points(s.macro_f1_high)}{counted})"
    )


def _tied_with_leader(
    result: BakeoffResult, ranking: tuple[PairResult, ...]
) -> tuple[list[PairResult], list[str]]:
    leader = ranking[0]
    n_tags = leader.scorecard.summaries["all"].n_tags
    lead = (
        f"{leader.name} leads with a macro-F1 in the population of {_score(leader, 'all')} over "
        f"{n_tags} tags"
    )
    if result.rule.tail_weight:
        tail = leader.scorecard.summaries["tail"].best_estimate
        share = 100 * result.rule.tail_weight
        lead += f" and {_points(tail)} over the tail, which counts {share:.0f} %"
    if len(ranking) == 1:
        return [leader], [f"{lead}; there is no other pair to compare it with."]
    gaps = {p.name: _gap(result, leader, p) for p in ranking[1:]}
    # A pair that ranks behind one that is clearly behind the leader is no rival: its interval is
    # only the wider.
    tied = [leader, *takewhile(lambda p: gaps[p.name].is_tie, ranking[1:])]
    # a fine-tune that kept its probe is no other model; `_without_twins` has a sentence on it
    rivals = _without_twins(result, list(ranking))[0][1:]
    closest = rivals[0] if rivals else None
    if close := [p.name for p in rivals if p in tied]:
        verdict = (
            f"The data do not tell it from {_listed(close)}: the interval of the difference "
            "includes 0."
        )
    elif closest:
        gap = gaps[closest.name]
        verdict = (
            f"It is ahead of every other pair; the closest, {closest.name}, is "
            f"{_points(gap.value)} points behind ({_points(gap.low)} to {_points(gap.high)})."
        )
    else:
        verdict = "No other pair is another model."
    if wider := [p.name for p in rivals if p not in tied and gaps[p.name].is_tie]:
        verdict += (
            f" The interval of {_listed(wider)} includes 0 too, being wider, but a pair that is "
            "clearly behind ranks before."
        )
    return tied, [f"{lead}.", verdict]


def _gap(result: BakeoffResult, leader: PairResult, other: PairResult) -> Difference:
    """How far the leader is ahead in what the rule ranks by."""
    found = result.comparison(leader.name, other.name, "all")
    if found is None:
        raise DataError(
            f"The comparison of {leader.name} with {other.name} is missing; compare all pairs."
        )
    on_tail = result.comparison(leader.name, other.name, "tail")
    if on_tail is None or not result.rule.tail_weight:
        return found.difference
    # The standard error of a sum is at most the sum of the standard errors: the interval of the
    # weighted difference is at most as wide as the weighted mean of the two.
    weighted = result.rule.weighted
    a, b = found.difference, on_tail.difference
    return Difference(
        value=weighted(a.value, b.value),
        low=weighted(a.low, b.low),
        high=weighted(a.high, b.high),
        standard_error=weighted(a.standard_error, b.standard_error),
    )


def _best_on_tail(result: BakeoffResult, tied: list[PairResult]) -> tuple[list[PairResult], str]:
    """Pairs that the tail does not rule out, the best first, and a sentence on it."""
    summaries = {p.name: p.scorecard.summaries["tail"] for p in tied}
    if not summaries[tied[0].name].n_tags:
        return tied, "No tail tag has a positive in the held-out split: the tail decides nothing."
    best = max(tied, key=lambda p: summaries[p.name].best_estimate)
    not_beaten = [best]
    for other in (p for p in tied if p is not best):
        c = result.comparison(best.name, other.name, "tail")
        if c is None or c.difference.is_tie:
            not_beaten.append(other)
    head = f"On the tail {best.name} is best with {_score(best, 'tail')}"
    if len(not_beaten) == len(tied):
        return (
            not_beaten,
            f"{head}, but not clearly ahead of any of the tied: the tail decides nothing.",
        )
    beaten = _listed([p.name for p in tied if p not in not_beaten])
    return not_beaten, f"{head}, clearly ahead of {beaten}."


def _without_twins(
    result: BakeoffResult, tied: list[PairResult]
) -> tuple[list[PairResult], list[str]]:
    """Pairs without fine-tunes that kept a probe among them, and sentences on those left out."""
    probed = {p.backbone for p in tied if p.strategy == "probe"}
    twins = [p for p in tied if p not in result.distinct and p.backbone in probed]
    said = [f"{p.name} kept its probe: the same model after more training." for p in twins]
    return [p for p in tied if p not in twins], said


def _cheapest(tied: list[PairResult]) -> tuple[PairResult, str, str]:
    """The cheapest of the tied pairs, what decided, and a sentence on it."""

    def latency(p: PairResult) -> float:
        return _or_inf(p.cost.latency_ms_p50)

    fastest = min(tied, key=lambda p: (latency(p), p.name))
    lowest = latency(fastest)
    fast = [p for p in tied if p is fastest or p.cost.is_as_fast_as(fastest.cost)]
    if len(fast) == 1:
        rest = _listed([f"{p.name} ({latency(p):.3g} ms)" for p in tied if p is not fast[0]])
        return (
            fast[0],
            "latency",
            f"Of those still tied {fast[0].name} is the fastest at {lowest:.3g} ms an image, "
            f"against {rest}.",
        )
    # latency and name break ties of training time, so that the order of the pairs cannot matter
    winner = min(fast, key=lambda p: (_or_inf(p.cost.train_seconds), latency(p), p.name))
    rest = _listed(
        [f"{p.name} ({_or_inf(p.cost.train_seconds):,.0f} s)" for p in fast if p is not winner]
    )
    return (
        winner,
        "training",
        f"{_listed([p.name for p in fast])} are equally fast ({lowest:.3g} ms an image, within "
        f"10 % of it or not told apart from it); {winner.name} trains in "
        f"{_or_inf(winner.cost.train_seconds):,.0f} s, against {rest}.",
    )


def _or_inf(value: float) -> float:
    """The value, or infinity where it was not measured: an unknown cost never wins."""
    return math.inf if math.isnan(value) else value


def _smallest_difference(
    result: BakeoffResult, ranking: tuple[PairResult, ...], scope: str
) -> float:
    # a fine-tune that kept its probe differs from it by nothing that images could show
    others = [p for p in ranking[1:] if p in result.distinct]
    found = [result.comparison(ranking[0].name, p.name, scope) for p in others]
    sizes = [c.difference.detectable for c in found if c is not None]
    known = [s for s in sizes if not math.isnan(s)]
    return float(np.median(known)) if known else math.nan


def _resolution(result: BakeoffResult, smallest: dict[str, float]) -> list[str]:
    if math.isnan(smallest["all"]):
        return []
    n_images = result.pairs[0].scorecard.n_images
    sentence = (
        f"With {n_images:,} held-out images the smallest difference that would be found four times "
        f"out of five is about {_points(smallest['all'])} points over all tags"
    )
    if not math.isnan(smallest["tail"]):
        sentence += f" and {_points(smallest['tail'])} points on the tail"
    return [sentence + "; a smaller one can hide behind a tie."]


def _listed(names: Sequence[str]) -> str:
    """Names joined as in a sentence."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
