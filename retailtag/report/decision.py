"""The written rule that turns a bake-off into one recommendation with its reasons."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from retailtag.errors import DataError
from retailtag.report.results import BakeoffResult, PairResult
from retailtag.scoring.compare import Comparison

SAME_LATENCY_RATIO = 1.10  # latencies within 10 % of the lowest count as equal

RULE = (
    "(1) Pairs are ranked by macro-F1 over all tags with a positive in the held-out split. "
    "(2) A pair is tied with the leader if the paired-bootstrap 95 % interval of their difference "
    "includes 0. "
    "(3) Among the tied, the best tail macro-F1 wins against every pair whose difference on the "
    "tail has an interval above 0. "
    "(4) Among those still tied, the lowest latency for one image wins (within 10 % counts as "
    "equal), then the shortest training; a fine-tune that kept its probe gives way to it."
)


@dataclass(frozen=True)
class Decision:
    """The recommended pair and the path to it."""

    winner: str  # name of the recommended pair
    decided_by: str  # ``macro-F1``, ``tail``, ``latency``, ``training`` or ``only pair``
    reasons: tuple[str, ...]  # what each step of the rule decided, in sentences with figures
    ties: tuple[str, ...]  # the leader and what the data do not tell from it, in rank order
    # By scope (``all``, ``tail``): the smallest true difference in macro-F1 from the leader that
    # this split would show with 80 % power, median over the pairs.
    smallest_difference: dict[str, float]


def decide(result: BakeoffResult) -> Decision:
    """Recommend one pair by `RULE`.

    `result` needs a comparison of every two pairs over all tags, and over the tail if it has tags.
    `DataError` if there is no pair, or a comparison with the leader is missing.
    """
    if not result.pairs:
        raise DataError("The bake-off holds no pair; run at least one backbone and strategy.")
    ranking = result.ranking
    smallest = {s: _smallest_difference(result, ranking, s) for s in ("all", "tail")}
    tied, reasons = _tied_with_leader(result, ranking)
    survivors = tied
    decided_by = "macro-F1" if len(ranking) > 1 else "only pair"
    if len(survivors) > 1:
        survivors, sentence = _best_on_tail(result, survivors)
        reasons.append(sentence)
        decided_by = "tail"
        survivors, twins = _without_twins(survivors)
        reasons += twins
        decided_by = "training" if len(survivors) == 1 and twins else decided_by
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
    )


def _points(value: float) -> str:
    return f"{100 * value:.1f}"


def _score(pair: PairResult, scope: str) -> str:
    s = pair.scorecard.summaries[scope]
    return (
        f"{_points(s.macro_f1)} (95 % interval {_points(s.macro_f1_low)} to "
        f"{_points(s.macro_f1_high)})"
    )


def _tied_with_leader(
    result: BakeoffResult, ranking: tuple[PairResult, ...]
) -> tuple[list[PairResult], list[str]]:
    leader = ranking[0]
    n_tags = leader.scorecard.summaries["all"].n_tags
    lead = f"{leader.name} leads with macro-F1 {_score(leader, 'all')} over {n_tags} tags"
    if len(ranking) == 1:
        return [leader], [f"{lead}; there is no other pair to compare it with."]
    gaps = [_gap(result, leader, other) for other in ranking[1:]]
    tied = [leader] + [p for p, gap in zip(ranking[1:], gaps, strict=True) if gap.difference.is_tie]
    difference = gaps[0].difference
    if len(tied) > 1:
        names = _listed([p.name for p in tied[1:]])
        verdict = (
            f"The data do not tell it from {names}: the interval of the difference includes 0."
        )
    else:
        verdict = (
            f"It is ahead of every other pair; the closest, {ranking[1].name}, is "
            f"{_points(difference.value)} points behind ({_points(difference.low)} to "
            f"{_points(difference.high)})."
        )
    return tied, [f"{lead}.", verdict]


def _gap(result: BakeoffResult, leader: PairResult, other: PairResult) -> Comparison:
    found = result.comparison(leader.name, other.name, "all")
    if found is None:
        raise DataError(
            f"The comparison of {leader.name} with {other.name} is missing; compare all pairs."
        )
    return found


def _best_on_tail(result: BakeoffResult, tied: list[PairResult]) -> tuple[list[PairResult], str]:
    """Pairs that the tail does not rule out, the best first, and a sentence on it."""
    summaries = {p.name: p.scorecard.summaries["tail"] for p in tied}
    if not summaries[tied[0].name].n_tags:
        return tied, "No tail tag has a positive in the held-out split: the tail decides nothing."
    best = max(tied, key=lambda p: summaries[p.name].macro_f1)
    not_beaten = [best]
    for other in (p for p in tied if p is not best):
        c = result.comparison(best.name, other.name, "tail")
        if c is None or c.difference.is_tie:
            not_beaten.append(other)
    head = f"On the tail {best.name} is best with macro-F1 {_score(best, 'tail')}"
    if len(not_beaten) == len(tied):
        return (
            not_beaten,
            f"{head}, but not clearly ahead of any of the tied: the tail decides nothing.",
        )
    beaten = _listed([p.name for p in tied if p not in not_beaten])
    return not_beaten, f"{head}, clearly ahead of {beaten}."


def _without_twins(tied: list[PairResult]) -> tuple[list[PairResult], list[str]]:
    """Pairs without fine-tunes that kept a probe among them, and sentences on those left out."""
    probed = {p.backbone for p in tied if p.strategy == "probe"}
    twins = [
        p
        for p in tied
        if p.strategy != "probe"
        and p.backbone in probed
        and any(f.code == "probe-kept" for f in p.scorecard.findings)
    ]
    said = [f"{p.name} kept its probe: the same model after more training." for p in twins]
    return [p for p in tied if p not in twins], said


def _cheapest(tied: list[PairResult]) -> tuple[PairResult, str, str]:
    """The cheapest of the tied pairs, what decided, and a sentence on it."""

    def latency(p: PairResult) -> float:
        return _or_inf(p.cost.latency_ms_p50)

    lowest = min(map(latency, tied))
    fast = [p for p in tied if latency(p) <= SAME_LATENCY_RATIO * lowest]
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
        f"{_listed([p.name for p in fast])} are equally fast ({lowest:.3g} ms an image or within "
        f"10 % of it); {winner.name} trains in {_or_inf(winner.cost.train_seconds):,.0f} s, "
        f"against {rest}.",
    )


def _or_inf(value: float) -> float:
    """The value, or infinity where it was not measured: an unknown cost never wins."""
    return math.inf if math.isnan(value) else value


def _smallest_difference(
    result: BakeoffResult, ranking: tuple[PairResult, ...], scope: str
) -> float:
    found = [result.comparison(ranking[0].name, p.name, scope) for p in ranking[1:]]
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
