"""Platt scaling: the optimum, odd scores, and no scores."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retailtag.statistics.platt import fit_sigmoid


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**16), n=st.integers(3, 60), scale=st.sampled_from([1e-4, 1.0, 1e4]))
def test_platt_is_where_the_gradient_vanishes(seed, n, scale):
    rng = np.random.default_rng(seed)
    labels = rng.choice(np.array([0, 1, -1], np.int8), n)
    labels[:2] = 0, 1
    scores = scale * (rng.standard_normal(n) + labels)
    slope, offset = fit_sigmoid(scores, labels)
    known = labels >= 0
    s, y = scores[known], labels[known]
    target = np.where(y == 1, (y.sum() + 1) / (y.sum() + 2), 1 / ((y == 0).sum() + 2))
    left = 1 / (1 + np.exp(-(slope * s + offset))) - target
    assert abs(left.mean()) < 1e-4
    assert abs((left * s).mean()) < 1e-4 * np.abs(s).max()


def test_platt_does_not_stop_where_a_whole_newton_step_goes_too_far():
    labels = np.zeros(1000, np.int8)
    labels[:5] = 1
    scores = np.random.default_rng(0).standard_normal(1000) + 3 * labels
    slope, offset = fit_sigmoid(scores, labels)
    assert slope > 1
    assert offset < np.log(5 / 995)


def test_platt_of_constant_or_no_scores():
    slope, offset = fit_sigmoid(np.ones(8), np.array([1, 0, 0, 0] * 2, np.int8))
    assert slope * 1 + offset == pytest.approx(np.log(2.5 / 5.5), abs=0.3)
    assert fit_sigmoid(np.ones(2), np.full(2, -1, np.int8)) == (1.0, 0.0)
