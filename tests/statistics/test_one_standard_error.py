"""The one-standard-error rule against the rule written out."""

import numpy as np
import pytest
import reference_probes as reference
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from retailtag.probes.choice import choose_candidate
from retailtag.statistics.one_standard_error import RESOLUTION, one_standard_error

SCORES = arrays(
    np.float64,
    st.tuples(st.integers(1, 7), st.integers(1, 6)),
    elements=st.floats(0, 1, width=16),
)


@given(SCORES)
def test_choice_is_that_of_the_rule_written_out(scores):
    choice = one_standard_error(scores)
    assert choice.chosen == reference.one_standard_error(scores.tolist())
    assert choice.behind[choice.best] <= RESOLUTION
    assert choice.behind[choice.chosen] <= choice.error[choice.chosen] + RESOLUTION


@given(SCORES)
def test_one_group_chooses_as_all_its_tags_together(scores):
    group = np.full(scores.shape[1], "tail")
    expected = [one_standard_error(scores).chosen] * scores.shape[1]
    assert choose_candidate(scores, group).tolist() == expected
    assert choose_candidate(scores, group, "global").tolist() == expected


def test_tags_without_a_score_are_left_out_and_no_score_is_no_choice():
    scores = np.array([[0.1, np.nan], [0.5, np.nan]])
    assert one_standard_error(scores).chosen == 1
    assert one_standard_error(scores[:, 1:]) is None


def _curve(means, n_tags=40, seed=0):
    """Scores (len(means), n_tags) around the means, scattered alike for every candidate."""
    tags = np.random.default_rng(seed).uniform(0.2, 0.6, n_tags)
    return np.array(means)[:, None] + tags


@pytest.mark.parametrize("seed", range(5))
def test_on_a_flat_curve_noise_does_not_choose(seed):
    """Steady gains of 2e-5 a step, and noise of that size, are no reason to go on."""
    rising = _curve([0, 0.1, *(0.2 + 2e-5 * np.arange(12))])
    noise = np.random.default_rng(seed).normal(0, 1e-4, rising.shape)
    for scores in (rising, rising + noise):
        choice = one_standard_error(scores)
        assert (choice.best, choice.chosen) == (2, 2)


@pytest.mark.parametrize("seed", range(5))
def test_a_clear_optimum_is_found_in_noise(seed):
    peak = _curve([0, 0.05, 0.1, 0.12, 0.11, 0.05])
    noise = np.random.default_rng(seed).normal(0, 1e-3, peak.shape)
    assert one_standard_error(peak + noise).chosen == 3
    assert one_standard_error((peak + noise)[:4]).chosen == 3  # at the end of a shorter grid too
