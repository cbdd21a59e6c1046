"""Families by training count: who stands for one, what differs, which tags one owns."""

import json
import math
from dataclasses import asdict, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retailtag.catalog.table import GroupCutoffs
from retailtag.scoring import jackknife
from retailtag.scoring.aligned import Aligned
from retailtag.scoring.families import (
    FAMILIES,
    ONLY,
    OUT_OF_FOLD,
    SCORED,
    STRATEGIES,
    Entrant,
    FamilyComparison,
    ap_differences,
    choose_members,
    compare_families,
    count_bins,
    text_gains,
)
from retailtag.scoring.jackknife import ap_deviations
from retailtag.scoring.metrics import average_precision, average_precision_per_tag
from retailtag.scoring.score import score_predictions
from retailtag.scoring.strict_json import parsed, plain

CELLS = st.lists(
    st.tuples(st.integers(-3, 3), st.sampled_from([-1, 0, 1]), st.integers(0, 4)),
    min_size=1,
    max_size=25,
)


@pytest.mark.parametrize("exact_up_to", [50, 0])
@given(cells=CELLS)
def test_ap_without_each_product(cells, exact_up_to):
    """Exact for few positives; for more, the first order in the weights of the product's images."""
    scores, labels, row = (np.array(column) for column in zip(*cells, strict=True))
    scores, labels = scores.astype(float), labels.astype(np.int8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jackknife, "MAX_EXACT_POSITIVES", exact_up_to)
        deviations = ap_deviations(scores, labels, row, 5)
    whole = average_precision(scores, labels)
    for product in range(5):
        if exact_up_to:
            kept = row != product
            wanted = np.nan_to_num(average_precision(scores[kept], labels[kept]) - whole)
        else:
            step = 1e-6
            weight = np.where(row == product, 1 - step, 1.0)
            wanted = np.nan_to_num((weighted_ap(scores, labels, weight) - whole) / step)
        assert deviations[product] == pytest.approx(wanted, abs=1e-12 if exact_up_to else 1e-4)


def weighted_ap(scores, labels, weight):
    """Average precision of weighted images, cell by cell."""
    hits = total = 0.0
    for score, label, w in zip(scores, labels, weight, strict=True):
        if label != 1:
            continue
        above = [k for k in range(len(scores)) if scores[k] >= score and labels[k] >= 0]
        found = sum(weight[k] for k in above if labels[k] == 1)
        hits += w * found / sum(weight[k] for k in above)
        total += w
    return hits / total if total else math.nan


def entrant(name, family, predictions, strategy="probe", **provenance):
    predictions = replace(predictions, provenance=provenance)
    return Entrant(f"{name} · {strategy}", name, strategy, family, predictions)


def found_out_of_fold(value):
    return {"threshold_f1": {"all": {"cross_fit": value, "in_sample": value}}}


def test_a_family_is_stood_for_by_the_pair_that_is_best_without_the_scored_images(predictions):
    weak = entrant("a", "x", predictions, **found_out_of_fold(0.2))
    strong = entrant("b", "x", predictions, **found_out_of_fold(0.4))
    tuned = entrant("b", "x", predictions, "finetune", **found_out_of_fold(0.3))
    alone = entrant("c", "y", predictions)
    scored = {"a · probe": 0.9, "b · probe": 0.1, "b · finetune": 0.1, "c · probe": 0.5}
    first, second = choose_members([weak, strong, tuned, alone], scored)
    assert (first.pair, first.chosen_by) == ("b · finetune", OUT_OF_FOLD)
    assert first.others == ("a · probe", "b · probe")
    assert (second.pair, second.chosen_by, second.others) == ("c · probe", ONLY, ())
    kept = entrant("b", "x", predictions, "finetune", is_probe=True, **found_out_of_fold(0.4))
    assert choose_members([weak, strong, kept], scored)[0].pair == "b · probe"


def test_a_family_without_recorded_evidence_says_that_it_was_chosen_on_the_scored_images(
    predictions,
):
    pairs = [entrant("a", "x", predictions), entrant("b", "x", predictions)]
    (member,) = choose_members(pairs, {"a · probe": 0.2, "b · probe": 0.3})
    assert (member.pair, member.chosen_by) == ("b · probe", SCORED)


@pytest.fixture
def compared(catalog, predict):
    pairs = [
        entrant("good", "x", predict(catalog, 1, 5.0)),
        entrant("poor", "y", predict(catalog, 2, 0.5)),
        entrant("poor", "y", predict(catalog, 3, 2.0), "finetune"),
    ]
    return pairs, compare_families(pairs, catalog)


def test_differences_are_those_of_the_scorecards(compared, catalog):
    pairs, found = compared
    assert [m.pair for m in found.members] == ["good · probe", "poor · finetune"]
    cards = {e.name: score_predictions(e.predictions, catalog) for e in pairs}
    wanted = {
        (FAMILIES, "good · probe", "poor · finetune"),
        (STRATEGIES, "poor · finetune", "poor · probe"),
    }
    assert {(d.kind, d.a, d.b) for d in found.differences} == wanted
    for d in found.differences:
        end = math.inf if d.high_count < 0 else d.high_count
        values = [
            [
                getattr(row, d.metric.lower())
                for row in cards[name].tags
                if row.support and d.low_count <= row.train_count <= end
            ]
            for name in (d.a, d.b)
        ]
        assert d.n_tags == len(values[0]) == len(values[1])
        # less a bias of about AP (1 - AP) / positives
        plain = np.mean(values[0]) - np.mean(values[1])
        assert d.value == pytest.approx(plain, abs=0.12)
        assert d.low <= d.value <= d.high
        assert d.p <= d.p_holm <= 1


def test_a_family_owns_the_tags_on_which_it_is_clearly_better(catalog, predict):
    good, poor = predict(catalog, 1, 5.0), predict(catalog, 2, 0.0)
    mixed = good.logits.copy()
    mixed[:, 2] = poor.logits[:, 2]  # the tag "common" alone is worse
    pairs = [entrant("a", "x", good), entrant("b", "y", replace(good, logits=mixed))]
    found = compare_families(pairs, catalog)
    assert [(o.tag, o.family) for o in found.owned] == [("common", "x")]
    (owned,) = found.owned
    assert owned.f1 > owned.next_f1
    assert found.n_compared == 1
    # of three families the winner must beat both others
    third = entrant("c", "z", replace(good, logits=mixed + np.float32(1e-6)))
    again = compare_families([*pairs, third], catalog)
    assert again.n_compared == 0
    assert not again.owned


def test_equal_families_differ_nowhere(catalog, predictions):
    pairs = [entrant("a", "x", predictions), entrant("b", "y", predictions)]
    found = compare_families(pairs, catalog)
    assert {(d.value, d.low, d.high, d.p) for d in found.differences} == {(0, 0, 0, 1)}
    assert not found.owned


def test_one_family_alone_is_compared_with_nothing(catalog, predictions):
    kept = entrant("a", "x", predictions, "finetune", is_probe=True)
    found = compare_families([entrant("a", "x", predictions), kept], catalog)
    assert found == FamilyComparison()


def test_the_interval_of_an_ap_difference_covers_the_known_truth():
    """Two models of known skill: about 95 of 100 intervals hold the difference of large samples."""
    rng = np.random.default_rng(0)
    skills = (1.5, 1.0)

    def world(n):
        labels = (rng.random((n, 12)) < 0.03).astype(np.int8)
        shared = rng.normal(size=labels.shape)
        noise = rng.normal(size=(2, *labels.shape))
        logits = [s * labels + 0.7 * shared + 0.7 * e for s, e in zip(skills, noise, strict=True)]
        return labels, np.array(logits, np.float32)

    labels, logits = world(60_000)
    large = [average_precision_per_tag(one, labels).mean() for one in logits]
    truth, covered = large[0] - large[1], 0
    masks = {(0, 9): np.ones(12, bool)}
    for _ in range(100):
        labels, logits = world(300)
        rows = np.arange(300)
        models = {
            name: Aligned(rows, one, one > 0, np.zeros(12), labels, np.array([]))
            for name, one in zip("ab", logits, strict=True)
        }
        span = {b: m & (labels.sum(axis=0) > 0) for b, m in masks.items()}
        (d,) = ap_differences([(FAMILIES, "a", "b")], models, span, rows.astype(str))
        covered += d.low <= truth <= d.high
    assert covered >= 89  # 1 in 200 by chance at 95 %


def test_bins_follow_the_cutoffs():
    assert count_bins(GroupCutoffs(tail=8, frequent=100)) == ((0, 7), (8, 99), (100, -1))


def test_the_gain_of_names_is_paired_by_tag():
    cutoffs = GroupCutoffs()
    counts = {"a": 3, "b": 5, "c": 20, "d": 2}
    without = {"a": 0.1, "b": 0.3, "c": 0.5, "d": math.nan}
    named = {"a": 0.3, "b": 0.4, "c": 0.4, "d": math.nan}
    (gain,) = text_gains("clip", without, named, counts, cutoffs)
    assert (gain.low_count, gain.high_count, gain.n_tags) == (0, 9, 2)
    assert gain.with_names - gain.without == pytest.approx(0.15)
    assert (gain.low + gain.high) / 2 == pytest.approx(0.15)
    assert gain.high - gain.low == pytest.approx(2 * 1.96 * 0.05, rel=1e-3)


def test_json_round_trip(compared):
    found = compared[1]
    value = json.loads(json.dumps(plain(asdict(found))))
    assert parsed(FamilyComparison, value) == found
