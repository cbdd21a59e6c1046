"""Thresholds carried over to another model: as many tags of each group, and no label read."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from retailtag.thresholds.matching import match_counts

GROUP = np.array(["tail", "tail", "common"])
SCORES = st.integers(1, 12).flatmap(
    lambda n: arrays(np.float32, (2, n, 3), elements=st.integers(-999, 999), unique=True)
)
THRESHOLDS = arrays(np.float32, 3, elements=st.integers(-999, 999))


@given(SCORES, THRESHOLDS)
def test_each_group_is_given_as_often(scores, thresholds):
    reference, logits = scores
    # Margins that are all different: no two thresholds or scores are a whole number apart.
    thresholds = thresholds + np.array([0.1, 0.2, 0.3], np.float32)
    matched = match_counts(thresholds, reference, logits, GROUP)
    for name in ("tail", "common"):
        own = name == GROUP
        before = (reference[:, own] >= thresholds[own]).sum()
        assert (logits[:, own] >= matched[own]).sum() == before
        moves = matched[own] - thresholds[own]
        np.testing.assert_allclose(moves, moves[0], rtol=1e-4, atol=1e-3)


@given(SCORES, THRESHOLDS)
def test_equal_scores_keep_their_thresholds(scores, thresholds):
    matched = match_counts(thresholds, scores[0], scores[0], GROUP)
    np.testing.assert_array_equal(matched, thresholds)


@given(SCORES, THRESHOLDS, st.sampled_from([0.25, 1, 8]), st.integers(-50, 50))
def test_a_model_that_differs_in_scale_gives_the_same_tags(scores, thresholds, scale, shift):
    logits, one = scores[0][:, :1], GROUP[:1]
    matched = match_counts(thresholds[:1], logits, scale * logits + np.float32(shift), one)
    given_now = scale * logits + np.float32(shift) >= matched
    np.testing.assert_array_equal(given_now, logits >= thresholds[:1])


def test_equal_cells_at_the_cut_are_all_given():
    reference = np.array([[2.0], [1.0], [0.0], [-1.0]], np.float32)
    logits = np.array([[5.0], [3.0], [3.0], [1.0]], np.float32)
    matched = match_counts(np.array([0.5], np.float32), reference, logits, GROUP[:1])
    assert (logits >= matched).sum() == 3


def test_a_tag_that_is_never_given_stays_so_and_moves_no_other():
    reference = np.array([[1.0, 9.0], [-1.0, 9.0]], np.float32)
    thresholds = np.array([0.0, np.inf], np.float32)
    matched = match_counts(thresholds, reference, reference + 2, GROUP[:2])
    assert matched.tolist() == [2.0, np.inf]


def test_without_images_nothing_moves():
    nothing = np.zeros((0, 3), np.float32)
    thresholds = np.arange(3, dtype=np.float32)
    assert match_counts(thresholds, nothing, nothing, GROUP).tolist() == [0, 1, 2]
