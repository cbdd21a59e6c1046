import numpy as np
import pytest

from retailtag.errors import UsageError
from retailtag.probes.choice import (
    EVERY_TAG,
    choose_candidate,
    deciding_choices,
    informative,
    shared_choices,
)

TAIL2 = np.array(["tail", "tail"])


def test_a_group_chooses_by_its_own_tags_and_a_tag_without_score_with_its_group():
    ap = np.array([[0.1, 0.9, np.nan], [0.5, 0.9, np.nan], [0.5, 0.2, np.nan]])
    group = np.array(["tail", "frequent", "tail"])
    assert choose_candidate(ap, group).tolist() == [1, 0, 1]
    unscored = np.array(["tail", "frequent", "common"])
    everyone = shared_choices(ap, unscored)[EVERY_TAG].chosen
    assert choose_candidate(ap, unscored).tolist() == [1, 0, everyone]


def test_a_consistent_gain_is_taken_and_a_scattered_one_is_not():
    """Both gain 0.05 on average over the smaller C."""
    steady = np.array([[0.2, 0.6, 0.4], [0.25, 0.64, 0.46]])
    scattered = np.array([[0.2, 0.6, 0.4], [0.35, 0.6, 0.4]])
    group = np.full(3, "tail")
    assert choose_candidate(steady, group).tolist() == [1, 1, 1]
    assert choose_candidate(scattered, group).tolist() == [0, 0, 0]


def test_rare_tags_follow_their_group_and_common_ones_their_own_curve():
    ap = np.array([[0.2, 0.2, 0.9], [0.8, 0.8, 0.5], [0.3, 0.3, 0.1]])
    group = np.full(3, "tail")
    follows = choose_candidate(ap, group, "per-tag", np.array([1, 1, 1]))
    own = choose_candidate(ap, group, "per-tag", np.array([1, 1, 10_000]))
    assert follows.tolist() == [choose_candidate(ap, group)[0]] * 3
    assert own.tolist() == [*follows[:2].tolist(), 0]


def test_without_positives_per_tag_is_per_group():
    rng = np.random.default_rng(0)
    ap, group = rng.random((9, 30)), np.repeat(["tail", "common"], 15)
    none = np.zeros(30, int)
    np.testing.assert_array_equal(
        choose_candidate(ap, group, "per-tag", none), choose_candidate(ap, group)
    )


def test_no_score_at_all_is_the_first_candidate():
    assert choose_candidate(np.full((3, 2), np.nan), TAIL2).tolist() == [0, 0]


def test_an_unknown_rule_is_refused_with_the_known_ones():
    with pytest.raises(UsageError, match="per-group, per-tag, global"):
        choose_candidate(np.ones((2, 2)), TAIL2, "best")


def test_a_common_tag_takes_its_own_best_though_its_group_is_undecided():
    """The group's tolerance, wide because its tags disagree, shrinks with a tag's positives."""
    ap = np.array([[0.2, 0.6, 0.50], [0.4, 0.5, 0.51]])
    group = np.full(3, "tail")
    assert choose_candidate(ap, group).tolist() == [0, 0, 0]
    own = choose_candidate(ap, group, "per-tag", np.array([0, 0, 1_000_000]))
    assert own.tolist() == [0, 0, 1]


def test_a_tag_in_one_fold_does_not_choose():
    labels = np.array([[1, 1, 0, 1], [1, 0, 0, 1], [0, 1, 0, 1], [0, 0, 0, -1]], np.int8)
    fold = np.array([0, 0, 1, 1])
    # positives in one fold; in both; none; no negative
    assert informative(labels, fold).tolist() == [False, True, False, False]
    assert informative(labels[:, [0, 2]], fold).tolist() == [True, True]  # better than no choice


def test_all_tags_decide_only_where_some_tag_takes_their_choice():
    ap = np.array([[0.1, 0.9, 0.3], [0.5, 0.2, 0.3]])
    group = np.array(["tail", "common", "frequent"])
    assert set(deciding_choices(ap, group)) == {"tail", "common", "frequent"}
    assert set(deciding_choices(ap, group, "global")) == {EVERY_TAG}
    ap[:, 2] = np.nan
    assert set(deciding_choices(ap, group)) == {"tail", "common", EVERY_TAG}
