"""Pooled Platt scaling and the plug-in threshold against exact, slow versions."""

import numpy as np
import pytest
import reference_thresholds as reference
from scipy.special import expit

from retailtag.thresholds.objectives import Objective
from retailtag.thresholds.per_tag import Replicates
from retailtag.thresholds.plug_in import Histogram, plug_in_thresholds
from retailtag.thresholds.ranking import rank_tags
from retailtag.thresholds.tuning import Tuning


@pytest.fixture(scope="module")
def cells():
    """Logits and labels (6000, 4) with P = 1/(1 + exp(-(0.7 z - 1))); unknown cells among them."""
    rng = np.random.default_rng(4)
    logits = (rng.standard_normal((6000, 4)) * 2 - [1, 2, 3, 4]).astype(np.float32)
    labels = (rng.random(logits.shape) < expit(0.7 * logits - 1)).astype(np.int8)
    labels[rng.random(labels.shape) < 0.05] = -1
    return logits, labels


def test_binned_fit_is_that_of_all_cells(cells):
    logits, labels = cells
    slope, offset = Histogram.of(rank_tags(logits, labels)).platt()
    known = labels >= 0
    expected = reference.platt(logits[known].astype(np.float64), labels[known] == 1)
    np.testing.assert_allclose([slope, offset], expected, rtol=2e-3)
    np.testing.assert_allclose([slope, offset], [0.7, -1.0], rtol=0.1)


def test_histogram_holds_every_cell_once_and_keeps_the_mean(cells):
    logits, labels = cells
    histogram = Histogram.of(rank_tags(logits, labels))
    assert histogram.cells.sum(axis=1).tolist() == (labels >= 0).sum(axis=0).tolist()
    assert histogram.hits.sum(axis=1).tolist() == (labels == 1).sum(axis=0).tolist()
    assert (np.diff(histogram.score) < 0).all()
    mean = np.average(histogram.score, weights=histogram.cells.sum(axis=0))
    assert mean == pytest.approx(logits[labels >= 0].mean(dtype=np.float64))


@pytest.mark.parametrize("beta", [0.5, 1.0, 2.0])
def test_plug_in_threshold_maximises_the_expected_f(cells, beta):
    logits, labels = cells
    tags = rank_tags(logits, labels)
    slope, offset = Histogram.of(tags).platt()
    found = plug_in_thresholds(tags, Objective(beta=beta))
    for j, threshold in enumerate(found):
        z = logits[labels[:, j] >= 0, j].astype(np.float64)
        p = expit(slope * z + offset)
        best = max(reference.expected_f(t, p, z, beta) for t in np.sort(z)[::5])
        reached = reference.expected_f(threshold, p, z, beta)
        assert reached == pytest.approx(best, rel=1e-4)  # nearly all thresholds were tried


def test_separated_scores_have_a_finite_slope():
    logits = np.linspace(-1, 1, 40, dtype=np.float32)[:, None]
    slope, offset = Histogram.of(rank_tags(logits, (logits > 0.5).astype(np.int8))).platt()
    expected = reference.platt(logits[:, 0].astype(np.float64), logits[:, 0] > 0.5)
    np.testing.assert_allclose([slope, offset], expected, rtol=1e-3)


def test_scores_that_mean_the_opposite_have_no_plug_in():
    logits = np.linspace(1, -1, 40, dtype=np.float32)[:, None]
    labels = (logits < 0).astype(np.int8)
    assert np.isnan(plug_in_thresholds(rank_tags(logits, labels), Objective())).all()
    group, tag = np.array(["tail"]), rank_tags(logits, labels)[0]
    base = Tuning("group").tune(logits, labels, group).thresholds[0]  # in the plug-in's place
    expected = (20 * Replicates(40, 0).threshold(tag, Objective()) + 20 * base) / 40
    bagged = Tuning("bagged").tune(logits, labels, group).thresholds[0]
    assert bagged == pytest.approx(expected)


def test_one_wild_score_does_not_spoil_the_fit(cells):
    logits, labels = cells[0].copy(), cells[1]
    before = plug_in_thresholds(rank_tags(logits, labels), Objective())
    logits[np.flatnonzero(labels[:, 0] == 0)[0], 0] = -np.inf
    after = plug_in_thresholds(rank_tags(logits, labels), Objective())
    np.testing.assert_allclose(after, before, atol=0.05)
