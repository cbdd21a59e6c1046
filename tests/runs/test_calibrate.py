"""Calibration: right on scores whose truth is known, monotone, and sane for rare tags."""

from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit, logit

from retailtag.runs.calibrate import errors_on
from retailtag.statistics.platt import fit_sigmoid
from retailtag.thresholds.platt import SMALLEST_SLOPE, shrunken_curves
from retailtag.thresholds.ranking import rank_tags
from retailtag.thresholds.rules import EQUAL_WEIGHT


def curves_of(logits, labels, group):
    return shrunken_curves(rank_tags(logits, labels), np.array(group))


def world(n_images, prevalences, seed=0):
    """True log-odds (n_images, n_tags), and labels drawn from them."""
    rng = np.random.default_rng(seed)
    truth = logit(np.array(prevalences)) + 1.5 * rng.standard_normal((n_images, len(prevalences)))
    labels = (rng.random(truth.shape) < expit(truth)).astype(np.int8)
    return truth, labels


def test_scores_that_are_off_become_the_true_log_odds():
    truth, labels = world(20_000, [0.2, 0.3])
    # one tag is twice as certain as it should be, the other is shifted
    logits = np.stack([2 * truth[:, 0], truth[:, 1] - 3], axis=1).astype(np.float32)
    curves = curves_of(logits, labels, ["frequent", "frequent"])
    np.testing.assert_allclose(curves.slope, [0.5, 1], atol=0.04)
    np.testing.assert_allclose(curves.offset, [0, 3], atol=0.15)
    fresh, seen = world(20_000, [0.2, 0.3], seed=1)
    again = np.stack([2 * fresh[:, 0], fresh[:, 1] - 3], axis=1).astype(np.float32)
    errors = errors_on(curves, again, seen, np.array(["frequent"] * 2))["all"]
    assert errors["after"]["calibration_error"] < 0.01 < errors["before"]["calibration_error"] / 5
    assert errors["after"]["brier"] < errors["before"]["brier"]


def test_the_curve_is_the_tag_s_own_and_its_group_s_by_its_positives():
    truth, labels = world(500, [0.3, 0.02, 0.02])
    labels[3:7, 1] = -1
    curves = curves_of(truth.astype(np.float32), labels, ["frequent", "tail", "tail"])
    own, shared = fit_sigmoid(truth[:, 1], labels[:, 1]), fit_sigmoid(truth[:, 1:], labels[:, 1:])
    positives = (labels[:, 1] == 1).sum()
    share = positives / (positives + EQUAL_WEIGHT)
    expected = share * np.array(own) + (1 - share) * np.array(shared)
    np.testing.assert_allclose([curves.slope[1], curves.offset[1]], expected, rtol=0.02)


def test_a_tag_without_positives_has_the_curve_of_its_group():
    truth, labels = world(400, [0.1, 0.1])
    labels[:, 1] = 0
    curves = curves_of(truth.astype(np.float32), labels, ["tail", "tail"])
    shared = fit_sigmoid(truth, labels)
    np.testing.assert_allclose([curves.slope[1], curves.offset[1]], shared, rtol=0.02, atol=0.02)
    # a group without any, and a tag that is known nowhere, keep the logistic
    labels[:] = [0, -1]
    curves = curves_of(truth.astype(np.float32), labels, ["tail", "common"])
    assert (curves.slope.tolist(), curves.offset.tolist()) == ([1, 1], [0, 0])


@given(st.integers(0, 10_000), st.integers(1, 30))
def test_slopes_are_positive_whatever_the_scores(seed, n_images):
    rng = np.random.default_rng(seed)
    logits = (rng.standard_normal((n_images, 4)) * 10.0 ** rng.integers(-3, 4)).astype(np.float32)
    labels = rng.integers(-1, 2, logits.shape).astype(np.int8)
    labels[:, 0] = (logits[:, 0] < 0).astype(np.int8)  # the wrong way round
    curves = curves_of(logits, labels, ["tail", "tail", "common", "frequent"])
    assert (curves.slope >= np.float32(SMALLEST_SLOPE)).all()
    assert np.isfinite(curves.offset).all()
    p = curves.probabilities(np.sort(logits, axis=0))
    assert (np.diff(p, axis=0) >= 0).all()
    assert ((p >= 0) & (p <= 1)).all()


def test_errors_of_a_scope_without_a_known_label_are_left_out():
    curves = curves_of(np.zeros((2, 1), np.float32), np.array([[1], [0]], np.int8), ["tail"])
    unknown = np.full((1, 1), -1, np.int8)
    assert errors_on(curves, np.zeros((1, 1), np.float32), unknown, np.array(["tail"])) == {}


def test_the_benchmark_finds_what_was_simulated(monkeypatch, tmp_path):
    """Of two tags whose scores are off in opposite ways only the own curve helps both."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    import calibration

    truth, labels = world(3000, [0.3, 0.3])
    z = np.stack([2 * truth[:, 0], 0.5 * truth[:, 1] + 2], axis=1).astype(np.float32)
    group = np.array(["frequent", "frequent"])
    loss = {}
    for name, fit in calibration.ways(group).items():
        fresh = fit(z[:1500], labels[:1500])(z[1500:])
        loss[name] = calibration.measures("m", fresh, labels[1500:], np.ones(2, bool))["m_log_loss"]
    assert max(loss["platt, tag"], loss["platt, shrunk"]) < loss["isotonic, tag"] < loss["none"]
    assert loss["platt, shrunk"] < loss["platt, group"] == loss["platt, all tags"]
    assert loss["isotonic, group"] == loss["isotonic, all tags"]
