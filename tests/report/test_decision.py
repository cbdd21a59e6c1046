"""The written rule on constructed cases: each part decides once."""

import math
from dataclasses import replace
from itertools import combinations

import pytest

from retailtag.errors import DataError
from retailtag.report.decision import decide
from retailtag.report.results import BakeoffResult, PairCost, PairResult
from retailtag.scoring.bootstrap import Difference
from retailtag.scoring.compare import Comparison
from retailtag.scoring.findings import probe_kept
from retailtag.scoring.scorecard import GroupSummary, ScoreCard

COST = PairCost(0.0, 100.0, 500.0, 10.0, 12.0, 100.0, 1_000_000, 4.0)


def summary(scope, value, n_tags=10):
    return GroupSummary(scope, n_tags, 0, value, value - 0.02, value + 0.02, value, value, value)


def pair(name, macro_f1, tail, n_tail=10, **cost):
    summaries = {"all": summary("all", macro_f1), "tail": summary("tail", tail, n_tail)}
    card = ScoreCard(name, "test", 1000, 900, (), summaries, macro_f1, macro_f1)
    return PairResult(name, "probe", card, replace(COST, **cost))


def bakeoff(pairs, noise):
    """Comparisons whose intervals are the difference plus or minus noise[scope]."""
    comparisons = []
    for a, b in combinations(pairs, 2):
        for scope, width in noise.items():
            value = a.scorecard.summaries[scope].macro_f1 - b.scorecard.summaries[scope].macro_f1
            gap = Difference(value, value - width, value + width, width / 2)
            comparisons.append(Comparison(a.name, b.name, scope, gap))
    return BakeoffResult({}, tuple(pairs), tuple(comparisons), {}, "retailtag bakeoff", 0)


def test_a_clear_lead_wins_whatever_it_costs():
    pairs = [pair("a", 0.5, 0.9), pair("b", 0.6, 0.1, latency_ms_p50=99.0)]
    decision = decide(bakeoff(pairs, {"all": 0.05, "tail": 0.05}))
    assert (decision.winner, decision.decided_by) == ("b · probe", "macro-F1")
    assert decision.ties == ()
    assert "10.0 points behind (5.0 to 15.0)" in decision.reasons[1]


def test_a_tie_is_broken_by_the_tail():
    pairs = [pair("a", 0.60, 0.2), pair("b", 0.59, 0.4, latency_ms_p50=99.0), pair("c", 0.3, 0.9)]
    decision = decide(bakeoff(pairs, {"all": 0.05, "tail": 0.05}))
    assert (decision.winner, decision.decided_by) == ("b · probe", "tail")
    assert decision.ties == ("a · probe", "b · probe")
    assert "clearly ahead of a · probe" in decision.reasons[2]


def test_a_tie_on_the_tail_too_is_broken_by_latency():
    pairs = [pair("a", 0.60, 0.21, latency_ms_p50=30.0), pair("b", 0.59, 0.20)]
    decision = decide(bakeoff(pairs, {"all": 0.05, "tail": 0.05}))
    assert (decision.winner, decision.decided_by) == ("b · probe", "latency")
    assert "10 ms an image, against a · probe (30 ms)" in decision.reasons[3]


def test_a_fine_tune_that_kept_its_probe_gives_way_to_it():
    probe, other = pair("a", 0.6, 0.2), pair("b", 0.59, 0.2, latency_ms_p50=1.0)
    card = replace(probe.scorecard, findings=(probe_kept(True),))
    cost = replace(COST, latency_ms_p50=1.0)
    twin = PairResult("a", "finetune", card, cost)
    decision = decide(bakeoff([probe, twin], {"all": 0.05, "tail": 0.05}))
    assert (decision.winner, decision.decided_by) == ("a · probe", "training")
    assert "a · finetune kept its probe: the same model" in decision.reasons[3]
    alone = decide(
        bakeoff([replace(twin, strategy="finetune"), other], {"all": 0.05, "tail": 0.05})
    )
    assert not any("kept its probe" in reason for reason in alone.reasons)


def test_equal_latency_leaves_it_to_training_time():
    pairs = [pair("a", 0.60, 0.21, latency_ms_p50=9.5), pair("b", 0.59, 0.20, train_seconds=5.0)]
    decision = decide(bakeoff(pairs, {"all": 0.05, "tail": 0.05}))
    assert (decision.winner, decision.decided_by) == ("b · probe", "training")


def test_the_tail_rules_out_a_cheap_pair_before_cost_is_looked_at():
    pairs = [
        pair("a", 0.60, 0.30),
        pair("b", 0.60, 0.29, latency_ms_p50=5.0),
        pair("c", 0.60, 0.10, latency_ms_p50=1.0),
    ]
    decision = decide(bakeoff(pairs, {"all": 0.05, "tail": 0.05}))
    assert (decision.winner, decision.decided_by) == ("b · probe", "latency")


def test_unmeasured_cost_never_wins():
    pairs = [pair("a", 0.60, 0.2), pair("b", 0.61, 0.2, latency_ms_p50=math.nan)]
    assert decide(bakeoff(pairs, {"all": 0.05, "tail": 0.05})).winner == "a · probe"


def test_without_tail_tags_cost_decides_and_the_reasons_say_so():
    pairs = [pair("a", 0.60, math.nan, 0, latency_ms_p50=30.0), pair("b", 0.59, math.nan, 0)]
    decision = decide(bakeoff(pairs, {"all": 0.05}))
    assert (decision.winner, decision.decided_by) == ("b · probe", "latency")
    assert any("No tail tag" in reason for reason in decision.reasons)
    assert list(decision.smallest_difference) == ["all"]


def test_the_smallest_detectable_difference_is_told():
    pairs = [pair("a", 0.7, 0.5), pair("b", 0.5, 0.3)]
    decision = decide(bakeoff(pairs, {"all": 0.02, "tail": 0.1}))
    assert decision.smallest_difference == pytest.approx({"all": 0.02802, "tail": 0.1401})
    assert "2.8 points over all tags and 14.0 points on the tail" in decision.reasons[-1]


def test_one_pair_is_recommended_as_the_only_one():
    decision = decide(bakeoff([pair("a", 0.5, 0.2)], {"all": 0.05}))
    assert (decision.winner, decision.decided_by) == ("a · probe", "only pair")
    assert decision.ties == ()


def test_what_cannot_be_decided_is_refused():
    with pytest.raises(DataError, match="no pair"):
        decide(bakeoff([], {}))
    with pytest.raises(DataError, match="comparison of b · probe with a · probe is missing"):
        decide(bakeoff([pair("a", 0.5, 0.2), pair("b", 0.6, 0.2)], {}))
