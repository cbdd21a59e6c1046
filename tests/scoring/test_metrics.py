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
from retailtag.scoring import metrics
from retailtag.scoring.metrics import (
    average_precision,
    average_precision_per_tag,
    f1_from_counts,
    macro,
    micro_f1,
    precision_from_counts,
    recall_from_counts,
    tag_counts,
)

QUICK = settings(max_examples=30, deadline=None)
SHAPE = st.tuples(st.integers(1, 25), st.integers(1, 4))


@st.composite
def scored(draw, labels=(-1, 0, 1)):
    """Logits with many ties, and labels, of one shape (n_images, n_tags)."""
    shape = draw(SHAPE)
    logits = draw(hnp.arrays(np.float32, shape, elements=st.sampled_from([-2.0, -0.5, 0.0, 1.5])))
    return logits, draw(hnp.arrays(np.int8, shape, elements=st.sampled_from(labels)))


@QUICK
@given(scored())
def test_counts_and_f1_equal_the_cell_by_cell_reference(drawn):
    logits, labels = drawn
    counts = tag_counts(logits >= 0, labels)
    expected = reference.tag_counts(logits >= 0, labels)
    assert np.array_equal([counts.tp, counts.fp, counts.fn, counts.tn], expected)
    slow = [reference.f1(*expected[:3, j]) for j in range(labels.shape[1])]
    np.testing.assert_allclose(f1_from_counts(counts), slow)


@QUICK
@given(scored())
def test_average_precision_equals_the_step_sum(drawn):
    logits, labels = drawn
    slow = [
        reference.average_precision(*columns) for columns in zip(logits.T, labels.T, strict=True)
    ]
    np.testing.assert_allclose(average_precision_per_tag(logits, labels), slow)


@QUICK
@given(scored(), st.randoms())
def test_row_order_does_not_matter(drawn, random):
    logits, labels = drawn
    order = list(range(len(logits)))
    random.shuffle(order)
    np.testing.assert_array_equal(
        average_precision_per_tag(logits[order], labels[order]),
        average_precision_per_tag(logits, labels),
    )
    moved = tag_counts(logits[order] >= 0, labels[order])
    assert np.array_equal(moved.tp, tag_counts(logits >= 0, labels).tp)


@QUICK
@given(scored())
def test_doubling_every_image_changes_no_metric(drawn):
    logits, labels = drawn
    twice, labels_twice = np.repeat(logits, 2, axis=0), np.repeat(labels, 2, axis=0)
    np.testing.assert_allclose(
        average_precision_per_tag(twice, labels_twice), average_precision_per_tag(logits, labels)
    )
    np.testing.assert_allclose(
        f1_from_counts(tag_counts(twice >= 0, labels_twice)),
        f1_from_counts(tag_counts(logits >= 0, labels)),
    )


@QUICK
@given(scored())
def test_unknown_labels_are_as_if_the_cell_were_not_there(drawn):
    logits, labels = drawn
    for j in range(labels.shape[1]):
        known = labels[:, j] != -1
        np.testing.assert_equal(
            average_precision(logits[:, j], labels[:, j]),
            average_precision(logits[known, j], labels[known, j]),
        )


@QUICK
@given(scored(labels=(0, 1)))
def test_perfect_scores_give_one_and_constant_scores_the_prevalence(drawn):
    _, labels = drawn
    present = (labels == 1).any(axis=0)
    perfect = average_precision_per_tag(labels.astype(np.float32), labels)
    constant = average_precision_per_tag(np.zeros(labels.shape, np.float32), labels)
    assert (perfect[present] == 1).all()
    assert np.isnan(perfect[~present]).all()
    np.testing.assert_allclose(constant[present], (labels == 1).mean(axis=0)[present])


@pytest.fixture(scope="module")
def drawn():
    rng = np.random.default_rng(3)
    labels = (rng.random((300, 12)) < np.linspace(0.02, 0.6, 12)).astype(np.int8)
    logits = np.round(rng.normal(size=labels.shape) + labels, 1).astype(np.float32)
    return logits, labels


def test_parity_with_scikit_learn(drawn):
    logits, labels = drawn
    given_tags = logits >= 0.5
    counts = tag_counts(given_tags, labels)
    precision, recall, f1, support = sklearn.metrics.precision_recall_fscore_support(
        labels, given_tags, average=None, zero_division=0
    )
    np.testing.assert_allclose(f1_from_counts(counts), f1)
    np.testing.assert_allclose(precision_from_counts(counts), precision)
    np.testing.assert_allclose(recall_from_counts(counts), recall)
    assert np.array_equal(counts.positives, support)
    assert micro_f1(counts) == pytest.approx(
        sklearn.metrics.f1_score(labels, given_tags, average="micro")
    )
    assert macro(average_precision_per_tag(logits, labels)) == pytest.approx(
        sklearn.metrics.average_precision_score(labels, logits, average="macro")
    )


def test_parity_with_torchmetrics(drawn):
    logits, labels = drawn
    probability, truth = torch.from_numpy(logits).sigmoid(), torch.from_numpy(labels).long()
    ap = tm.multilabel_average_precision(probability, truth, labels.shape[1], average=None)
    np.testing.assert_allclose(average_precision_per_tag(logits, labels), ap, rtol=1e-5)
    given_tags = torch.from_numpy(logits >= 0.5).int()
    f1 = tm.multilabel_f1_score(given_tags, truth, labels.shape[1], average=None)
    np.testing.assert_allclose(f1_from_counts(tag_counts(logits >= 0.5, labels)), f1, rtol=1e-5)


def test_undefined_stays_undefined():
    nothing = tag_counts(np.zeros((2, 1), bool), np.zeros((2, 1), np.int8))
    assert np.isnan(f1_from_counts(nothing)).all()
    assert np.isnan(micro_f1(nothing))
    assert np.isnan(macro(np.array([np.nan])))


def test_infinite_scores_are_scores():
    labels = np.array([1, 0, 1], np.int8)
    assert average_precision(np.array([np.inf, 0.0, -np.inf]), labels) == pytest.approx(5 / 6)


def test_nan_scores_and_unlike_shapes_are_refused():
    with pytest.raises(DataError, match="NaN"):
        average_precision_per_tag(np.full((2, 1), np.nan), np.zeros((2, 1), np.int8))
    with pytest.raises(DataError, match="align"):
        average_precision_per_tag(np.zeros((2, 1)), np.zeros((2, 2), np.int8))


@QUICK
@given(scored())
def test_counting_and_sorting_retrieve_the_same(drawn):
    logits, labels = drawn
    counted = average_precision_per_tag(logits, labels)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "MAX_POSITIVES_TO_COUNT", 0)
        np.testing.assert_array_equal(average_precision_per_tag(logits, labels), counted)
