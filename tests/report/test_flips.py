"""What would change the recommendation, on bake-offs whose figures are known."""

import math
from dataclasses import replace

import pytest
from reference_decisions import COST, bakeoff, pair

from retailtag.report.decision import decide
from retailtag.report.flips import trade_off, what_would_flip
from retailtag.report.results import PairResult, Rule
from retailtag.scoring.findings import probe_kept
from retailtag.scoring.scorecard import TagRow

NOISE = {"all": 0.05, "tail": 0.05}


def scored(name, macro_f1, tail, *, micro_f1=0.5, ap=0.5, f1=(), **cost):
    """A pair with other scores; `f1` are those of tags with 5, 30, 80 and 150 training images."""
    made = pair(name, macro_f1, tail, **cost)
    rows = tuple(
        TagRow(f"t{n}", "tail", n, 10, 5, 5, 5, 5, 0.5, 0.5, value, 0.5, 0.0, False)
        for n, value in zip((5, 30, 80, 150), f1, strict=False)
    )
    summaries = dict(made.scorecard.summaries)
    summaries["all"] = replace(summaries["all"], macro_ap=ap)
    card = replace(made.scorecard, tags=rows, micro_f1=micro_f1, summaries=summaries)
    return replace(made, scorecard=card)


def asked(pairs, noise=NOISE, rule=None):
    result = replace(bakeoff(pairs, noise), rule=rule or Rule())
    return what_would_flip(result, decide(result))


def answers(flips):
    return {flip.question: flip.winner.removesuffix(" · probe") for flip in flips.panel}


def test_each_score_names_its_own_leader():
    pairs = [
        scored("a", 0.60, 0.20, micro_f1=0.4, ap=0.3),
        scored("b", 0.50, 0.30, micro_f1=0.5, ap=0.2),
        scored("c", 0.40, 0.10, micro_f1=0.6, ap=0.6),
    ]
    flips = asked(pairs, {"all": 0.01, "tail": 0.01})
    found = answers(flips)
    assert [found[s] for s in ("macro-F1", "tail macro-F1", "micro-F1", "macro-AP")] == list("abcc")
    by_question = {flip.question: flip for flip in flips.panel}
    assert by_question["tail macro-F1"].figures == "30.0, 20.0 for the recommended pair"
    assert not by_question["macro-F1"].changes
    assert by_question["macro-AP"].changes


def test_equal_scores_change_nothing():
    pairs = [scored("b", 0.60, 0.2), scored("a", 0.60, 0.2, train_seconds=200.0)]
    flips = asked(pairs)
    assert not any(flip.changes for flip in flips.panel if flip.question.endswith("F1"))


def test_other_cut_offs_of_the_tail_average_other_tags():
    pairs = [
        scored("a", 0.60, 0.30, f1=(0.1, 0.5, 0.5, 0.5)),
        scored("b", 0.50, 0.20, f1=(0.4, 0.3, 0.0, 0.9)),
    ]
    found = {
        flip.question.removesuffix(", on these images)"): (flip.winner[0], flip.figures)
        for flip in asked(pairs, {"all": 0.01, "tail": 0.01}).panel
        if flip.question.startswith("tail under")
    }
    # of 5; 5, 30 and 80; and all four training counts; 50 is the cut-off of the bake-off
    assert found == {
        "tail under 10 images (1 tags": ("b", "40.0, 10.0 for the recommended pair"),
        "tail under 20 images (1 tags": ("b", "40.0, 10.0 for the recommended pair"),
        "tail under 100 images (3 tags": ("a", "36.7"),
        "tail under 200 images (4 tags": ("a", "40.0"),
    }


def test_the_unfavourable_end_of_the_interval_is_looked_at():
    pairs = [scored("a", 0.60, 0.50), scored("b", 0.56, 0.20), scored("c", 0.58, 0.20)]
    by_question = {flip.question: flip for flip in asked(pairs).panel}
    overall = by_question["macro-F1, unfavourable end of the interval"]
    assert (overall.winner, overall.figures) == ("c · probe", "ahead by up to 3.0 points")
    tail = by_question["tail macro-F1, unfavourable end of the interval"]
    assert tail.figures == "every other pair stays behind, by 25.0 points or more"
    assert not tail.changes


def test_tighter_budgets_are_followed_until_nothing_is_left():
    pairs = [
        scored("a", 0.60, 0.20, latency_ms_p50=30.0, train_seconds=3600.0),
        scored("b", 0.40, 0.10, latency_ms_p50=20.0, train_seconds=7200.0),
        scored("c", 0.20, 0.05, latency_ms_p50=10.0, train_seconds=1800.0),
    ]
    flips = [
        (flip.question, flip.winner[:1], flip.figures)
        for flip in asked(pairs, {"all": 0.01, "tail": 0.01}).panel
        if "under" in flip.question and "tail" not in flip.question
    ]
    assert flips == [
        ("latency under 30 ms an image", "b", "macro-F1 40.0, 20 ms an image"),
        ("latency under 20 ms an image", "c", "macro-F1 20.0, 10 ms an image"),
        ("latency under 10 ms an image", "", "no pair"),
        ("training under 60.0 min", "c", "macro-F1 20.0, 30.0 min"),
        ("training under 30.0 min", "", "no pair"),
    ]


def test_the_smallest_gain_of_a_rival_is_what_the_rule_needs():
    pairs = [scored("a", 0.60, 0.20), scored("b", 0.50, 0.20), scored("c", 0.55, 0.20)]
    sentence = asked(pairs, {"all": 0.01, "tail": 0.5}).smallest[0]
    # at 5 points behind and an interval of 1, c must lead by 1: 6 points
    assert sentence.startswith("c · probe would be recommended with 6.0 points more macro-F1")


def test_the_smallest_change_of_cost_is_one_that_changes_the_rule():
    slower = scored("b", 0.59, 0.20, latency_ms_p50=12.0)
    flips = asked([scored("a", 0.60, 0.20, latency_ms_p50=10.0), slower])
    # 12 ms or 10 % more count as equal then, and the faster of equals that train as long wins
    assert "b · probe would be recommended if one image took 1.3 times as long." in flips.smallest
    clear = asked([scored("a", 0.9, 0.9), scored("b", 0.5, 0.2)], {"all": 0.01, "tail": 0.01})
    assert not any("times as long" in sentence for sentence in clear.smallest)


def test_the_weight_of_the_tail_that_changes_the_answer_is_told():
    pairs = [scored("a", 0.60, 0.20), scored("b", 0.50, 0.40)]
    smallest = asked(pairs, {"all": 0.001, "tail": 0.001}).smallest
    # ahead from a third on: 0.10 (1 - w) < 0.20 w
    assert "b · probe would be recommended if the tail counted 35 %." in smallest


def test_the_trade_off_says_what_the_figures_carry_and_no_more():
    a = scored("a", 0.60, 0.50, train_seconds=200.0, latency_ms_p50=30.0)
    b = scored("b", 0.58, 0.20, peak_memory_mib=math.nan, latency_ms_p50=10.0)
    flips = asked([a, b])
    quality, cost = flips.trade_off
    assert quality == (
        "Quality of a · probe against b · probe: macro-F1 is not told apart (+2.0 points, interval "
        "-3.0 to 7.0); tail macro-F1 is +30.0 points (interval 25.0 to 35.0)."
    )
    assert cost == (
        "Cost: a · probe takes 30 ms for one image against 10 (3 times); it trains in 200 s "
        "against 100 (2 times)."
    )
    nothing = dict.fromkeys(("latency_ms_p50", "train_seconds", "peak_memory_mib"), math.nan)
    bare = replace(bakeoff([pair("a", 0.6, 0.5, **nothing), pair("b", 0.5, 0.2)], {}))
    assert trade_off(bare, *bare.pairs) == ()


def test_volumes_are_told_where_tags_were_counted():
    a, b = scored("a", 0.6, 0.5, f1=(0.5,)), scored("b", 0.5, 0.2, f1=(0.5,))
    quality = asked([a, b], {"all": 0.01, "tail": 0.01}).trade_off[0]
    assert "it gives 0.0 tags an image, 50 % of them right, against 0.0 and 50 %" in quality


def test_one_pair_alone_has_no_rival():
    flips = asked([scored("a", 0.6, 0.5)])
    assert flips.trade_off == flips.smallest == ()
    assert not any(flip.changes and flip.winner for flip in flips.panel)


def test_a_kept_probe_is_no_other_answer():
    probe = scored("a", 0.6, 0.2)
    card = replace(probe.scorecard, findings=(probe_kept(True),), micro_f1=0.9)
    twin = PairResult("a", "finetune", card, replace(COST, latency_ms_p50=1.0))
    flips = asked([probe, twin, scored("b", 0.3, 0.1)])
    assert "a · finetune" not in {flip.winner for flip in flips.panel}
    assert not any("a · finetune" in text for text in (*flips.smallest, *flips.trade_off))


@pytest.mark.parametrize("n_tail", [0, 10])
def test_a_missing_score_is_no_answer(n_tail):
    tail = math.nan if n_tail == 0 else 0.2
    pairs = [pair("a", 0.6, tail, n_tail), pair("b", 0.5, tail, n_tail)]
    by_question = {flip.question: flip for flip in asked(pairs, {"all": 0.05}).panel}
    assert by_question["tail macro-F1"].winner == ("" if n_tail == 0 else "a · probe")
