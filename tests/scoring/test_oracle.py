import numpy as np
import reference_scoring as reference
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from retailtag.scoring.metrics import average_precision_per_tag, f1_from_counts, tag_counts
from retailtag.scoring.oracle import ap_and_oracle

QUICK = settings(max_examples=40, deadline=None)
COLUMN = st.integers(1, 20)


def oracle_f1(scores, labels):
    return ap_and_oracle(scores[:, None], labels[:, None])[1][0]


@st.composite
def column(draw):
    """Scores with ties and labels of one tag, each (n_images,)."""
    n = draw(COLUMN)
    scores = draw(hnp.arrays(np.float32, n, elements=st.sampled_from([-2.0, -0.5, 0.0, 1.5])))
    return scores, draw(hnp.arrays(np.int8, n, elements=st.sampled_from((-1, 0, 1))))


@QUICK
@given(column())
def test_equals_the_best_of_every_threshold(drawn):
    np.testing.assert_allclose(oracle_f1(*drawn), reference.oracle_f1(*drawn))


@QUICK
@given(column(), st.randoms())
def test_order_and_repetition_change_nothing(drawn, random):
    scores, labels = drawn
    order = list(range(len(scores)))
    random.shuffle(order)
    once = oracle_f1(scores, labels)
    np.testing.assert_equal(oracle_f1(scores[order], labels[order]), once)
    np.testing.assert_allclose(oracle_f1(np.repeat(scores, 2), np.repeat(labels, 2)), once)


def test_no_threshold_beats_it(some_scores):
    logits, labels = some_scores
    bound = ap_and_oracle(logits, labels)[1]
    for threshold in np.linspace(-3, 4, 29):
        assert (f1_from_counts(tag_counts(logits >= threshold, labels)) <= bound + 1e-12).all()


def test_one_sort_gives_both(some_scores):
    logits, labels = some_scores
    labels = labels.copy()
    labels[:, 2] = 0
    ap, oracle = ap_and_oracle(logits, labels)
    np.testing.assert_array_equal(ap, average_precision_per_tag(logits, labels))
    assert np.isnan([ap[2], oracle[2]]).all()


def test_perfect_constant_and_undefined():
    labels = np.array([1, 0, 0, 1], np.int8)
    assert oracle_f1(labels.astype(float), labels) == 1
    assert oracle_f1(np.zeros(4), labels) == 2 * 2 / (4 + 2)
    assert np.isnan(oracle_f1(np.zeros(4), np.zeros(4, np.int8)))
