"""The written rule on constructed cases: each part decides once."""

import math
from dataclasses import replace

import pytest
from reference_decisions import COST, bakeoff, counted, pair, summary

from retailtag.errors import DataError
from retailtag.report.decision import decide, rule_text
from retailtag.report.results import BakeoffResult, PairResult, Rule
from retailtag.scoring.findings import probe_kept
from retailtag.scoring.intervals import Difference
from retailtag.settings import DecideSettings


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


def test_a_pair_behind_a_clearly_worse_one_is_no_rival_however_wide_its_interval():
    pairs = [pair("a", 0.60, 0.2, latency_ms_p50=99.0), pair("b", 0.58, 0.2), pair("c", 0.57, 0.2)]
    result = bakeoff(pairs, {"all": 0.01, "tail": 0.01})
    wide = [
        replace(c, difference=Difference(0.03, -0.01, 0.07, 0.02))
        if (c.a, c.b) == ("a · probe", "c · probe")
        else c
        for c in result.comparisons
    ]
    decision = decide(replace(result, comparisons=tuple(wide)))
    assert (decision.winner, decision.ties) == ("a · probe", ())
    assert "the closest, b · probe, is 2.0 points behind" in decision.reasons[1]
    assert "The interval of c · probe includes 0 too, being wider" in decision.reasons[1]
    assert decide(bakeoff(pairs, {"all": 0.05, "tail": 0.05})).ties[2] == "c · probe"


def test_a_fine_tune_that_kept_its_probe_gives_way_to_it():
    probe, other = pair("a", 0.6, 0.2), pair("b", 0.59, 0.2, latency_ms_p50=1.0)
    card = replace(probe.scorecard, findings=(probe_kept(True),))
    cost = replace(COST, latency_ms_p50=1.0)
    twin = PairResult("a", "finetune", card, cost)
    decision = decide(bakeoff([probe, twin], {"all": 0.05, "tail": 0.05}))
    assert (decision.winner, decision.decided_by) == ("a · probe", "training")
    assert decision.reasons[1] == "No other pair is another model."
    assert "a · finetune kept its probe: the same model" in decision.reasons[2]
    alone = decide(
        bakeoff([replace(twin, strategy="finetune"), other], {"all": 0.05, "tail": 0.05})
    )
    assert not any("kept its probe" in reason for reason in alone.reasons)


def test_equal_latency_leaves_it_to_training_time():
    pairs = [pair("a", 0.60, 0.21, latency_ms_p50=9.5), pair("b", 0.59, 0.20, train_seconds=5.0)]
    decision = decide(bakeoff(pairs, {"all": 0.05, "tail": 0.05}))
    assert (decision.winner, decision.decided_by) == ("b · probe", "training")


def test_latencies_that_timings_in_turn_do_not_tell_apart_are_equal():
    noisy = (10.0, 30.0, 9.0, 40.0, 8.0, 20.0, 12.0, 9.0)
    fast = {"latency_ms_p50": 10.0, "latency_ms_turns": noisy}
    slow = {"latency_ms_p50": 20.0, "latency_ms_turns": (*noisy[1:], noisy[0])}
    pairs = [pair("a", 0.60, 0.21, **fast), pair("b", 0.59, 0.20, train_seconds=5.0, **slow)]
    decision = decide(bakeoff(pairs, {"all": 0.05, "tail": 0.05}))
    assert (decision.winner, decision.decided_by) == ("b · probe", "training")
    assert "or not told apart from it" in decision.reasons[3]


def test_a_ratio_known_from_turns_tells_apart_what_intervals_do_not():
    turns = (10.0, 30.0, 9.0, 40.0, 8.0, 20.0, 12.0, 9.0)
    wide = {"latency_ms_low": 8.0, "latency_ms_high": 50.0}
    fast = replace(COST, latency_ms_p50=10.0, latency_ms_turns=turns, **wide)
    slow = replace(fast, latency_ms_p50=15.0, latency_ms_turns=tuple(1.5 * t for t in turns))
    assert not slow.is_as_fast_as(fast)
    assert not fast.slowed(1.5).is_as_fast_as(fast)
    # measured in another group: only the intervals are left
    assert slow.is_as_fast_as(replace(fast, latency_group=1))
    apart = replace(fast, latency_ms_low=9.0, latency_ms_high=11.0, latency_group=1)
    assert not replace(slow, latency_ms_low=12.0).is_as_fast_as(apart)
    # a bake-off of an earlier version has neither
    old = replace(COST, latency_ms_p50=15.0)
    assert not old.is_as_fast_as(COST)
    assert replace(COST, latency_ms_p50=10.9).is_as_fast_as(COST)


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


# Budgets, weights, cautions -------------------------------------------------------------------


def under(rule, pairs, noise=None):
    return decide(replace(bakeoff(pairs, noise or {"all": 0.05, "tail": 0.05}), rule=rule))


@pytest.mark.parametrize(
    ("budget", "cost"),
    [
        ({"max_latency_ms": 20.0}, {"latency_ms_p50": 30.0}),
        ({"max_train_hours": 1.0}, {"train_seconds": 3700.0}),
        ({"max_memory_gib": 1.0}, {"peak_memory_mib": 1025.0}),
        ({"max_latency_ms": 20.0}, {"latency_ms_p50": math.nan}),
    ],
)
def test_a_budget_rules_out_what_exceeds_it_before_scores_are_looked_at(budget, cost):
    pairs = [pair("a", 0.9, 0.9, **cost), pair("b", 0.6, 0.2), pair("c", 0.3, 0.1)]
    decision = under(Rule(**budget), pairs)
    assert (decision.winner, decision.over_budget) == ("b · probe", ("a · probe",))
    assert decision.reasons[0].startswith("Ruled out by the budgets: a · probe (")
    assert decision.cautions == ()
    assert decide(bakeoff(pairs, {"all": 0.05, "tail": 0.05})).winner == "a · probe"


def test_a_cost_at_the_budget_keeps_to_it():
    assert under(Rule(max_latency_ms=10.0), [pair("a", 0.5, 0.5)]).over_budget == ()


def test_one_pair_within_the_budget_wins_by_the_budget():
    pairs = [pair("a", 0.9, 0.9, latency_ms_p50=30.0), pair("b", 0.6, 0.2)]
    decision = under(Rule(max_latency_ms=20.0), pairs)
    assert (decision.winner, decision.decided_by) == ("b · probe", "budget")
    assert "a · probe (30 ms an image, over 20)" in decision.reasons[0]


def test_budgets_that_nothing_meets_rule_out_nothing_and_say_so():
    decision = under(Rule(max_latency_ms=5.0), [pair("a", 0.9, 0.9), pair("b", 0.6, 0.2)])
    assert (decision.winner, decision.over_budget) == ("a · probe", ())
    assert decision.cautions[0].startswith("No pair keeps to the budgets")


def test_the_tail_counts_by_its_weight():
    pairs = [pair("a", 0.60, 0.20), pair("b", 0.50, 0.40)]
    noise = {"all": 0.01, "tail": 0.01}
    clear = {"all": 0.001, "tail": 0.001}
    assert under(Rule(tail_weight=0.3), pairs, clear).winner == "a · probe"
    decision = under(Rule(tail_weight=0.4), pairs, noise)
    assert (decision.winner, decision.decided_by) == ("b · probe", "macro-F1")
    assert "40.0 over the tail, which counts 40 %" in decision.reasons[0]
    # 0.6 x 10 points behind and 0.4 x 20 points ahead, each within a point
    assert "is 2.0 points behind (1.0 to 3.0)" in decision.reasons[1]
    result = bakeoff(pairs, noise)
    weighted = replace(result, rule=Rule(tail_weight=0.4))
    assert [p.name for p in weighted.ranking] == [p.name for p in reversed(result.ranking)]


def test_the_interval_of_a_weighted_difference_may_make_a_tie():
    pairs = [pair("a", 0.60, 0.20), pair("b", 0.50, 0.40, latency_ms_p50=99.0)]
    decision = under(Rule(tail_weight=0.4), pairs, {"all": 0.04, "tail": 0.04})
    assert decision.ties == ("b · probe", "a · probe")


def test_without_tail_tags_a_weight_changes_nothing():
    pairs = [pair("a", 0.60, math.nan, 0), pair("b", 0.50, math.nan, 0)]
    assert under(Rule(tail_weight=0.9), pairs, {"all": 0.01}).winner == "a · probe"


def test_the_rule_is_told_with_its_numbers():
    assert rule_text(Rule()).startswith("(1) Pairs are ranked by macro-F1 in the population over")
    text = rule_text(Rule(max_latency_ms=20.0, max_memory_gib=4.0, tail_weight=0.25))
    assert text.startswith(
        "(0) Pairs with latency over 20 ms or memory over 4 GiB are ruled out. (1) Pairs are "
        "ranked by 0.75 times macro-F1 in the population"
    )
    assert "plus 0.25 times that over tail tags" in text


def test_a_price_decides_nothing():
    pairs = [pair("a", 0.60, 0.21, latency_ms_p50=30.0), pair("b", 0.59, 0.20)]
    assert under(Rule(), pairs) == under(Rule(price_per_hour=3.0), pairs)


def test_a_rule_survives_its_file_and_is_made_of_settings():
    settings = DecideSettings(max_latency_ms="20", tail_weight=0.25)
    rule = Rule.of(settings)
    assert rule.max_latency_ms == 20
    assert rule.max_train_hours == math.inf
    result = replace(bakeoff([pair("a", 0.5, 0.2)], {}), rule=rule, names=(("a", "short"),))
    card = result.pairs[0].scorecard
    scopes = {
        **card.summaries,
        "common": summary("common", 0.5),
        "frequent": summary("frequent", 1),
    }
    whole = replace(
        result, pairs=(replace(result.pairs[0], scorecard=replace(card, summaries=scopes)),)
    )
    read = BakeoffResult.from_json(whole.to_json())
    assert (read.rule.max_latency_ms, read.rule.tail_weight, read.names) == (20, 0.25, whole.names)
    early = {k: v for k, v in whole.to_json().items() if k not in ("rule", "names")}
    assert BakeoffResult.from_json(early).rule.max_latency_ms == math.inf
    broken = whole.to_json()
    broken["rule"]["tail_weight"] = 2
    with pytest.raises(DataError, match="tail_weight=2"):
        BakeoffResult.from_json(broken)


def test_a_pair_that_gives_far_more_tags_than_annotators_is_told_in_the_headline():
    many = counted(pair("a", 0.6, 0.2), tp=8, fp=24, fn=2)
    (caution,) = decide(bakeoff([many], {})).cautions
    assert "gives 3.2 tags an image where annotators gave 1.0, 3.2 times as many" in caution
    assert "25.0 % of the tags that it gives are right, and it finds 80.0 %" in caution
    few = counted(pair("a", 0.6, 0.2), tp=4, fp=0, fn=6)
    (caution,) = decide(bakeoff([few], {})).cautions
    assert "gives 0.4 tags an image where annotators gave 1.0, 40 % of these" in caution
    as_many = counted(pair("a", 0.6, 0.2), tp=8, fp=7, fn=2)
    assert decide(bakeoff([as_many], {})).cautions == ()


def test_scores_that_disagree_on_the_leader_are_told():
    a = counted(pair("a", 0.6, 0.2), 8, 2, 2, micro_f1=0.5)
    b = counted(pair("b", 0.5, 0.3), 8, 2, 2, micro_f1=0.7)
    (caution,) = decide(bakeoff([a, b], {"all": 0.01, "tail": 0.01})).cautions
    assert caution == (
        "The scores disagree: a · probe leads by macro-F1 (60.0); b · probe leads by tail macro-F1 "
        "(30.0 against 20.0) and micro-F1 (70.0 against 50.0)."
    )


def test_a_kept_probe_hides_no_difference_and_disagrees_with_nobody():
    probe = counted(pair("a", 0.6, 0.2), 8, 2, 2)
    card = replace(probe.scorecard, findings=(probe_kept(True),), micro_f1=0.5001)
    twin = PairResult("a", "finetune", card, COST)
    other = counted(pair("b", 0.5, 0.1), 8, 2, 2, micro_f1=0.4)
    result = bakeoff([probe, twin, other], {"all": 0.02, "tail": 0.02})
    same = [
        replace(c, difference=Difference(0, 0, 0, 0))
        if {c.a, c.b} == {probe.name, twin.name}
        else c
        for c in result.comparisons
    ]
    decision = decide(replace(result, comparisons=tuple(same)))
    assert decision.winner == "a · probe"
    assert decision.cautions == ()
    assert decision.smallest_difference["all"] == pytest.approx(2.802 * 0.01)
