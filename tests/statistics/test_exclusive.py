"""One value an attribute: against a plain loop, and where numbers are infinite."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retailtag.errors import UsageError
from retailtag.statistics.exclusive import ASSIGNMENTS, assign, check_assignment

TAGS = ("b:2", "new", "a:1", "b:1", "a:2", "b:3")
LEVELS = [-np.inf, -2.0, -1.0, 0.0, 0.5, 3.0, np.inf]


def plainly(logits, thresholds, assignment):
    """Tags of one image, written out."""
    given = {t for t, z, c in zip(TAGS, logits, thresholds, strict=True) if z >= c}
    for name in ("a", "b"):
        own = sorted(t for t in TAGS if t.startswith(f"{name}:"))
        at = [TAGS.index(t) for t in own]
        never = all(thresholds[j] == np.inf for j in at)
        excess = {
            t: logits[j]
            if never
            else 0.0
            if np.isinf(logits[j]) and logits[j] == thresholds[j]
            else logits[j] - 0.75 * thresholds[j]
            for t, j in zip(own, at, strict=True)
        }
        best = max(own, key=lambda t: excess[t])
        kept = {best} if assignment == "exactly-one" or best in given else set()
        given = (given - set(own)) | kept
    return given


@settings(max_examples=60, deadline=None)
@given(
    logits=st.lists(st.sampled_from(LEVELS), min_size=6, max_size=6),
    thresholds=st.lists(st.sampled_from(LEVELS), min_size=6, max_size=6),
)
@pytest.mark.parametrize("assignment", ASSIGNMENTS[1:])
def test_the_tag_with_the_largest_logit_less_three_quarters_of_its_threshold_wins(
    assignment, logits, thresholds
):
    cuts = np.array(thresholds, np.float32)
    made = assign(np.array([logits, logits], np.float32), cuts, TAGS, ("a", "b", "c"), assignment)
    assert (made[0] == made[1]).all()
    assert {t for t, g in zip(TAGS, made[0], strict=True) if g} == plainly(logits, cuts, assignment)


def test_without_attributes_every_tag_passes_by_itself():
    logits = np.array([[1.0, -1.0]], np.float32)
    cuts = np.zeros(2, np.float32)
    for assignment in ASSIGNMENTS:
        assert assign(logits, cuts, ("a:1", "a:2"), (), assignment).tolist() == [[True, False]]


def test_a_decision_that_concerns_nothing_is_refused():
    check_assignment("independent", ())
    check_assignment("at-most-one", ("gender",))
    with pytest.raises(UsageError, match="--one-of"):
        check_assignment("exactly-one", ())
