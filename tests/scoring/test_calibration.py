import numpy as np
import pytest
import reference_scoring as reference
import sklearn.metrics
import torch
import torchmetrics.functional.classification as tm
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from retailtag.scoring import calibration
from retailtag.scoring.calibration import N_BINS, calibration_sums, probabilities

QUICK = settings(max_examples=40, deadline=None)
LOGITS = st.floats(-6, 6, width=32)


@st.composite
def scored(draw):
    """Logits and labels of one shape (n_images, n_tags), unknown labels among them."""
    shape = draw(st.tuples(st.integers(1, 20), st.integers(1, 4)))
    logits = draw(hnp.arrays(np.float32, shape, elements=LOGITS))
    return logits, draw(hnp.arrays(np.int8, shape, elements=st.sampled_from((-1, 0, 1))))


def both(logits, labels, mask=None):
    mask = np.ones(labels.shape[1], bool) if mask is None else mask
    sums = calibration_sums(logits, labels)
    return sums.brier(mask), sums.error(mask)


@QUICK
@given(scored())
def test_sums_equal_the_cell_by_cell_reference(drawn):
    logits, labels = drawn
    expected = reference.brier(logits, labels), reference.calibration_error(logits, labels, N_BINS)
    np.testing.assert_allclose(both(logits, labels), expected, atol=1e-12)


@QUICK
@given(scored(), st.randoms())
def test_order_and_repetition_change_nothing(drawn, random):
    logits, labels = drawn
    order = list(range(len(logits)))
    random.shuffle(order)
    once = both(logits, labels)
    np.testing.assert_allclose(both(logits[order], labels[order]), once, atol=1e-12)
    twice = both(np.repeat(logits, 2, axis=0), np.repeat(labels, 2, axis=0))
    np.testing.assert_allclose(twice, once, atol=1e-12)


def test_parity_with_scikit_learn_and_torchmetrics(some_scores):
    logits, labels = some_scores
    p, y = probabilities(logits).ravel(), labels.ravel()
    brier, error = both(logits, labels)
    assert brier == pytest.approx(sklearn.metrics.brier_score_loss(y, p))
    other = tm.binary_calibration_error(torch.from_numpy(p), torch.from_numpy(y), n_bins=N_BINS)
    assert error == pytest.approx(other.item(), rel=1e-5)


def test_a_scope_pools_its_tags_alone(some_scores):
    logits, labels = some_scores
    mask = np.arange(labels.shape[1]) < 3
    alone = both(logits[:, mask], labels[:, mask])
    np.testing.assert_allclose(both(logits, labels, mask), alone)
    assert np.isnan(both(logits, labels, np.zeros(len(mask), bool))).all()


def test_certain_and_right_is_zero_and_certain_and_wrong_is_one():
    labels = np.array([[1, 0]], np.int8)
    sure = np.array([[np.inf, -np.inf]])
    assert both(sure, labels) == (0, 0)
    assert both(-sure, labels) == (1, 1)


def test_constant_scores_err_by_their_distance_from_the_prevalence(some_scores):
    labels = some_scores[1]
    assert both(np.zeros(labels.shape), labels) == pytest.approx((0.25, abs(0.5 - labels.mean())))


def test_blocks_change_nothing(some_scores, monkeypatch):
    whole = both(*some_scores)
    monkeypatch.setattr(calibration, "BLOCK_CELLS", 50)
    assert both(*some_scores) == pytest.approx(whole)
