"""The one-standard-error rule against the rule written out."""

import numpy as np
import reference_probes as reference
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from retailtag.probes.choice import choose_candidate
from retailtag.statistics.one_standard_error import one_standard_error

SCORES = arrays(
    np.float64,
    st.tuples(st.integers(1, 7), st.integers(1, 6)),
    elements=st.floats(0, 1, width=16),
)


@given(SCORES)
def test_choice_is_that_of_the_rule_written_out(scores):
    choice = one_standard_error(scores)
    assert choice.chosen == reference.one_standard_error(scores.tolist())
    assert choice.behind[choice.best] == 0
    assert choice.behind[choice.chosen] <= choice.error[choice.chosen] + 1e-12


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
