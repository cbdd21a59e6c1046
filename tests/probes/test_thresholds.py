import numpy as np
import pytest
import reference_probes as reference
from hypothesis import given, settings
from hypothesis import strategies as st

from retailtag.errors import UsageError
from retailtag.probes.thresholds import RULES, best_f1_threshold, tune_thresholds


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(-4, 4), st.sampled_from([0, 0, 0, 1, -1])), min_size=2, max_size=40
    )
)
def test_own_threshold_is_the_best_of_all(cells):
    logits = np.array([z for z, _ in cells], np.float32) / 3
    labels = np.array([y for _, y in cells], np.int8)
    threshold = best_f1_threshold(logits, labels)
    if not (labels == 1).any():
        assert threshold == np.inf
    else:
        reached = reference.f1_at(np.float32(threshold), logits, labels)
        assert reached == pytest.approx(reference.best_f1(logits, labels))


def test_neighbouring_floats_are_still_told_apart():
    low = np.float32(1.0)
    logits = np.array([np.nextafter(low, np.float32(2)), low])
    threshold = best_f1_threshold(logits, np.array([1, 0], np.int8))
    assert (logits >= np.float32(threshold)).tolist() == [True, False]


@pytest.fixture
def scores():
    rng = np.random.default_rng(3)
    labels = (rng.random((500, 6)) < [0.5, 0.3, 0.1, 0.02, 0.004, 0]).astype(np.int8)
    logits = (2 * labels + rng.standard_normal((500, 6)) - 2).astype(np.float32)
    labels[::50] = -1
    group = np.array(["frequent", "frequent", "common", "tail", "tail", "tail"])
    return logits, labels, group


def test_rules_order_as_their_freedom_does(scores):
    """In sample, per-tag beats group, group beats global: each contains the one before."""
    logits, labels, group = scores

    def mean_f1(rule):
        t = tune_thresholds(logits, labels, group, rule)
        return np.mean([reference.f1_at(t[j], logits[:, j], labels[:, j]) for j in range(5)])

    assert mean_f1("per-tag") >= mean_f1("group") >= mean_f1("global") - 0.01
    assert mean_f1("global") > mean_f1("fixed")


def test_shrunk_lies_between_own_and_group_and_nearer_own_with_more_positives(scores):
    own, group, shrunk = (tune_thresholds(*scores, rule) for rule in ("per-tag", "group", "shrunk"))
    assert (np.minimum(own, group) - 1e-6 <= shrunk).all()
    assert (shrunk <= np.maximum(own, group) + 1e-6).all()
    positives = (scores[1] == 1).sum(axis=0)
    np.testing.assert_allclose(
        shrunk, (positives * own + 20 * group) / (positives + 20), rtol=1e-4, atol=1e-5
    )


def test_tag_without_positives_takes_its_groups_threshold(scores):
    for rule in ("per-tag", "shrunk"):
        t = tune_thresholds(*scores, rule)
        assert t[5] == pytest.approx(tune_thresholds(*scores, "group")[5])


def test_unknown_labels_take_no_part(scores):
    logits, labels, group = scores
    wild = logits.copy()
    wild[labels == -1] = 50.0
    for rule in RULES:
        np.testing.assert_array_equal(
            tune_thresholds(logits, labels, group, rule), tune_thresholds(wild, labels, group, rule)
        )


def test_unknown_rule_names_the_menu(scores):
    with pytest.raises(UsageError, match="shrunk"):
        tune_thresholds(*scores, "best")
