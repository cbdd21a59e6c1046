import dataclasses

import numpy as np
import pytest
import reference_scoring as reference
import sklearn.metrics
import torch
import torchmetrics.functional.classification as tm
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from retailtag.errors import DataError
from retailtag.scoring import ranking
from retailtag.scoring.ranking import sample_f1, sample_scores

QUICK = settings(max_examples=40, deadline=None)


@st.composite
def scored(draw, labels=(-1, 0, 1)):
    """Logits with many ties, and labels, of one shape (n_images, n_tags)."""
    shape = draw(st.tuples(st.integers(1, 8), st.integers(1, 5)))
    logits = draw(hnp.arrays(np.float32, shape, elements=st.sampled_from([-2.0, -0.5, 0.0, 1.5])))
    return logits, draw(hnp.arrays(np.int8, shape, elements=st.sampled_from(labels)))


def measured(logits, labels):
    return dataclasses.astuple(sample_scores(logits, logits >= 0, labels))


@QUICK
@given(scored())
def test_every_metric_equals_its_reference(drawn):
    logits, labels = drawn
    slow = [
        reference.sample_f1(logits >= 0, labels),
        reference.label_ranking(logits, labels),
        reference.coverage(logits, labels),
        *(reference.precision_at(logits, labels, k) for k in (1, 3, 5)),
    ]
    tagged = int((labels == 1).any(axis=1).sum())
    expected = [tagged, len(labels) - tagged, *map(reference.mean_of, slow)]
    np.testing.assert_allclose(measured(logits, labels), expected)


@QUICK
@given(scored(), st.randoms())
def test_order_and_repetition_change_nothing(drawn, random):
    logits, labels = drawn
    rows, tags = list(range(len(logits))), list(range(logits.shape[1]))
    random.shuffle(rows)
    random.shuffle(tags)
    moved = measured(logits[rows][:, tags], labels[rows][:, tags])
    np.testing.assert_allclose(moved, measured(logits, labels))
    twice = measured(np.repeat(logits, 2, axis=0), np.repeat(labels, 2, axis=0))
    np.testing.assert_allclose(twice[2:], measured(logits, labels)[2:])
    assert twice[0] == 2 * measured(logits, labels)[0]


@QUICK
@given(scored(labels=(0, 1)))
def test_perfect_and_constant_scores(drawn):
    labels = drawn[1]
    own = labels.sum(axis=1)
    tagged = own > 0
    if not tagged.any():
        return
    perfect = sample_scores(labels - 0.5, labels == 1, labels)
    assert (perfect.sample_f1, perfect.lrap, perfect.precision_at_1) == (1, 1, 1)
    assert perfect.coverage_error == pytest.approx(own[tagged].mean())
    flat = sample_scores(np.zeros(labels.shape), labels == 1, labels)
    share = (own[tagged] / labels.shape[1]).mean()
    assert (flat.lrap, flat.precision_at_1) == pytest.approx((share, share))
    assert flat.coverage_error == labels.shape[1]


def test_parity_with_scikit_learn_and_torchmetrics(some_scores):
    logits, labels = some_scores
    tagged = labels.any(axis=1)
    logits, labels = logits[tagged], labels[tagged]
    scores = sample_scores(logits, logits >= 0.5, labels)
    assert scores.n_images == len(labels)
    assert scores.sample_f1 == pytest.approx(
        sklearn.metrics.f1_score(labels, logits >= 0.5, average="samples", zero_division=0)
    )
    lrap = sklearn.metrics.label_ranking_average_precision_score(labels, logits)
    assert scores.lrap == pytest.approx(lrap)
    depth = sklearn.metrics.coverage_error(labels, logits)
    assert scores.coverage_error == pytest.approx(depth)
    probability, truth = torch.from_numpy(logits).sigmoid(), torch.from_numpy(labels).long()
    n_tags = labels.shape[1]
    assert scores.lrap == pytest.approx(
        tm.multilabel_ranking_average_precision(probability, truth, n_tags).item(), rel=1e-5
    )
    assert scores.coverage_error == pytest.approx(
        tm.multilabel_coverage_error(probability, truth, n_tags).item(), rel=1e-5
    )


def test_images_without_a_known_tag_are_left_out_and_counted():
    labels = np.array([[1, 0], [0, 0], [-1, 0]], np.int8)
    scores = sample_scores(np.ones((3, 2)), np.ones((3, 2), bool), labels)
    assert (scores.n_images, scores.n_without_tag) == (1, 2)
    assert np.isnan(scores.precision_at_3)
    none = sample_scores(np.ones((2, 2)), np.ones((2, 2), bool), labels[1:])
    assert np.isnan(dataclasses.astuple(none)[2:]).all()


def test_a_given_tag_of_unknown_truth_is_no_false_alarm():
    labels = np.array([[1, -1]], np.int8)
    assert sample_f1(np.array([[True, True]]), labels).tolist() == [1.0]


def test_infinite_scores_rank_and_unknown_ones_do_not():
    logits = np.array([[-np.inf, np.inf, 0.0]])
    scores = sample_scores(logits, logits > 0, np.array([[1, -1, 0]], np.int8))
    assert (scores.lrap, scores.coverage_error, scores.precision_at_1) == (0.5, 2.0, 0.0)


def test_blocks_change_nothing(some_scores, monkeypatch):
    whole = measured(*some_scores)
    monkeypatch.setattr(ranking, "BLOCK_CELLS", 50)
    assert measured(*some_scores) == whole


def test_nan_scores_and_unlike_shapes_are_refused():
    labels = np.zeros((2, 1), np.int8)
    with pytest.raises(DataError, match="NaN"):
        sample_scores(np.full((2, 1), np.nan), labels == 1, labels)
    with pytest.raises(DataError, match="align"):
        sample_scores(np.zeros((2, 2)), labels == 1, labels)
