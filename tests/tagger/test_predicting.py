"""Which tags are given: by thresholds, the likeliest, the probable ones, one of an attribute."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retailtag.backbones.factory import load_backbone
from retailtag.errors import UsageError
from retailtag.probes.artefact import Probe
from retailtag.tagger.predicting import Choice
from retailtag.tagger.tagger import Tagger

TAGS = ("gender:Boys", "gender:Men", "gender:Women", "red", "striped")
THRESHOLDS = np.array([-1.0, 0.0, 0.5, 0.0, np.inf], np.float32)


@pytest.fixture(scope="module")
def plain():
    backbone = load_backbone("demo:cnn", random_weights=True)
    weight, zeros = np.zeros((5, backbone.dim), np.float32), np.zeros(5, np.float32)
    head = Probe(TAGS, weight, zeros, THRESHOLDS, np.ones(5), facts={})
    return Tagger((backbone,), head, "probe")


def tags(tagger, choice, logits):
    return [one.tags for one in choice.given(tagger, np.array(logits, np.float32))]


LOGITS = [[-0.5, 2.0, 1.0, 3.0, 4.0]]


def test_thresholds_decide_unless_told_otherwise(plain):
    (found,) = Choice().given(plain, np.array(LOGITS, np.float32))
    assert found.tags == ("red", "gender:Men", "gender:Women", "gender:Boys")
    assert found.probabilities == tuple(sorted(found.probabilities, reverse=True))
    assert found.probabilities[0] == pytest.approx(1 / (1 + math.exp(-3)))


def test_top_k_takes_the_likeliest_whatever_their_thresholds(plain):
    assert tags(plain, Choice(top_k=2), LOGITS) == [("striped", "red")]
    assert len(tags(plain, Choice(top_k=99), LOGITS)[0]) == 5


def test_a_least_probability_replaces_the_thresholds(plain):
    assert tags(plain, Choice(min_probability=0.95), LOGITS) == [("striped", "red")]
    assert tags(plain, Choice(top_k=1, min_probability=0.95), LOGITS) == [("striped",)]
    assert tags(plain, Choice(min_probability=1.0), LOGITS) == [()]


def test_an_exclusive_attribute_has_one_tag_under_every_choice(plain):
    one = plain.assigning("at-most-one", ["gender"])
    # less three quarters of their thresholds: 0.25, 2.0 and 0.625
    assert tags(one, Choice(), LOGITS) == [("red", "gender:Men")]
    assert tags(one, Choice(top_k=5), LOGITS) == [("striped", "red", "gender:Men")]
    assert tags(one, Choice(min_probability=0.9), LOGITS) == [("striped", "red")]
    exactly = plain.assigning("exactly-one", ["gender"])
    found = tags(exactly, Choice(min_probability=0.9), LOGITS)
    assert found == [("striped", "red", "gender:Men")]


def test_uncertain_tags_lie_within_a_factor_of_the_odds_of_their_decision(plain):
    near = math.log(1.5) - 0.01
    logits = [[-1 - near, near - 0.1, 0.5 + near + 0.03, -5.0, 50.0]]
    (found,) = Choice().given(plain, np.array(logits, np.float32))
    assert found.uncertain == ("gender:Men", "gender:Boys")
    odds = [math.exp(near - 0.1), math.exp(-1 - near)]
    assert found.doubts == pytest.approx([one / (1 + one) for one in odds])
    (found,) = Choice(min_probability=0.5).given(plain, np.array(logits, np.float32))
    assert found.uncertain == ("gender:Men",)


@pytest.mark.parametrize("wrong", [{"top_k": 0}, {"min_probability": 1.5}])
def test_impossible_choices_are_refused(wrong):
    with pytest.raises(UsageError, match="is out of range; use"):
        Choice(**wrong)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.lists(st.floats(-60, 60, width=32), min_size=5, max_size=5), max_size=4),
    st.integers(1, 6),
    st.floats(0, 1),
    st.sampled_from(["independent", "at-most-one", "exactly-one"]),
)
def test_every_choice_keeps_what_it_promises(plain, logits, k, least, how):
    tagger = plain if how == "independent" else plain.assigning(how, ["gender"])
    values = np.array(logits, np.float32).reshape(-1, 5)
    for one in Choice(k, least).given(tagger, values):
        assert len(one.tags) <= k
        assert len(set(one.tags)) == len(one.tags) == len(one.probabilities)
        genders = [t for t in one.tags if t.startswith("gender:")]
        assert how == "independent" or len(genders) <= 1
        if how != "exactly-one":
            assert all(p >= least for p in one.probabilities)
    by_thresholds = [one.tags for one in Choice().given(tagger, values)]
    assert [set(t) for t in by_thresholds] == [set(t) for t in tagger.given(values)]
