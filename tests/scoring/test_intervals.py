import numpy as np
import pytest
import reference_scoring as reference
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from retailtag.scoring import jackknife as room
from retailtag.scoring.bootstrap import count_by_product, macro_replicates
from retailtag.scoring.intervals import macro_interval, wilson_f1
from retailtag.scoring.jackknife import jackknife, moments


@pytest.fixture(scope="module")
def world():
    """Labels, products and given tags; tag 4 lies on one product, tag 5 on none."""
    rng = np.random.default_rng(5)
    labels = rng.choice(np.array([-1, 0, 1], np.int8), p=[0.1, 0.7, 0.2], size=(40, 6))
    labels[:, 4:] = 0
    labels[7, 4] = 1
    product = np.array([f"p{k}" for k in rng.integers(0, 25, 40)])
    return labels, product, rng.random((40, 6)) < 0.4


@pytest.fixture(scope="module")
def counts(world):
    labels, product, given_tags = world
    return count_by_product(given_tags, labels, product)


EVERY = np.ones((1, 6), bool)


def test_tag_moments_equal_those_of_the_loop(world, counts):
    labels, product, given_tags = world
    found = jackknife(counts, EVERY)
    for tag in range(5):
        whole, values = reference.leave_one_out(given_tags, labels, product, tag)
        bias, variance = reference.jackknife(whole, values)
        assert found.f1[tag] == pytest.approx(whole)
        assert found.bias[tag] == pytest.approx(bias)
        assert found.variance[tag] == pytest.approx(variance)
    assert np.isnan(found.f1[5])
    assert found.variance[5] == 0


def test_scope_moments_equal_those_of_the_loop(world, counts):
    labels, product, given_tags = world
    mask = np.array([True, True, False, False, True, True])
    found = jackknife(counts, mask[None])
    kept = [reference.leave_one_out(given_tags, labels, product, t) for t in (0, 1, 4)]
    fixed = np.mean([values for _, values in kept], axis=0).tolist()
    whole = float(np.mean([whole for whole, _ in kept]))
    assert found.scope_variance[0] == pytest.approx(reference.jackknife(whole, fixed)[1])


def test_products_behind_a_tag_are_counted(world, counts):
    labels, product, given_tags = world
    found = jackknife(counts, EVERY)
    for tag in range(6):
        present = labels[:, tag] == 1
        event = present | (given_tags[:, tag] & (labels[:, tag] == 0))
        assert found.positive_products[tag] == len(set(product[present]))
        assert found.event_products[tag] == len(set(product[event]))


def test_blocks_change_nothing(counts, monkeypatch):
    whole = jackknife(counts, EVERY)
    monkeypatch.setattr(room, "BLOCK_CELLS", 20)
    blocks = jackknife(counts, EVERY)
    np.testing.assert_allclose(blocks.variance, whole.variance)
    np.testing.assert_allclose(blocks.scope_variance, whole.scope_variance)


def test_the_jackknife_of_a_mean_is_its_standard_error():
    data = np.random.default_rng(0).gamma(2, size=30)
    deviation = (data.sum() - data) / 29 - data.mean()
    bias, variance = moments(30, np.array([[np.sum(deviation**k)] for k in (1, 2)]))
    assert bias[0] == pytest.approx(0, abs=1e-12)
    assert variance[0] == pytest.approx(data.var(ddof=1) / 30)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 8), st.integers(0, 8), st.integers(0, 8))
def test_wilson_equals_scipy_of_the_jaccard_index_and_holds_f1(tp, fp, fn):
    n = tp + fp + fn
    truth = np.array([1] * tp + [0] * fp + [1] * fn, np.int8)[:, None]
    given_tags = np.array([True] * (tp + fp) + [False] * fn)[:, None]
    if not tp + fn:
        return
    counts = count_by_product(given_tags, truth, np.arange(n).astype(str))
    low, high = wilson_f1(counts, np.array([n]))[:, 0]
    ci = scipy.stats.binomtest(tp, n).proportion_ci(method="wilson")
    assert (low, high) == pytest.approx((2 * ci.low / (1 + ci.low), 2 * ci.high / (1 + ci.high)))
    assert low <= 2 * tp / (2 * tp + fp + fn) <= high
    assert high > low


def test_photographs_of_one_product_widen_the_interval_of_a_tag():
    truth = np.ones((12, 1), np.int8)
    given_tags = np.arange(12)[:, None] % 2 == 0
    one, several = np.arange(12).astype(str), (np.arange(12) // 4).astype(str)
    widths = []
    for product in (one, several):
        counts = count_by_product(given_tags, truth, product)
        events = jackknife(counts, np.ones((1, 1), bool)).event_products
        widths.append(np.diff(wilson_f1(counts, events), axis=0).item())
    assert widths[1] > widths[0]


def test_the_headline_is_the_bias_corrected_normal_interval(counts):
    mask = np.array([True, True, True, True, False, False])
    found = jackknife(counts, mask[None])
    low, high = macro_interval(found, 0)
    centre = found.f1[mask].mean() - found.bias[mask].mean()
    half = 1.959964 * found.scope_variance[0] ** 0.5
    assert (low, high) == pytest.approx((centre - half, centre + half), abs=1e-6)


def test_a_tag_of_a_single_product_widens_the_headline_by_more_than_its_own_spread(counts):
    mask = np.array([True, True, True, True, True, False])
    found = jackknife(counts, mask[None])
    low, high = macro_interval(found, 0)
    assert high - low > 2 * 1.959964 * found.scope_variance[0] ** 0.5
    alone = np.arange(6) == 4
    low, high = macro_interval(jackknife(counts, alone[None]), 0)
    assert (low, high) != (0.0, 0.0)
    assert high - low > 0.5


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.02, 0.9), st.floats(0.0, 1.0))
def test_the_headline_holds_its_estimate_and_stays_in_range(seed, present, found_share):
    rng = np.random.default_rng(seed)
    labels = (rng.random((30, 4)) < present).astype(np.int8)
    given_tags = (rng.random((30, 4)) < found_share) & (labels == 1)
    counts = count_by_product(given_tags, labels, (np.arange(30) // 2).astype(str))
    mask = np.ones((1, 4), bool)
    found = jackknife(counts, mask)
    low, high = macro_interval(found, 0)
    if np.isnan(found.f1).all():
        assert np.isnan([low, high]).all()
    else:
        assert 0 <= low <= macro_replicates(found.f1, mask[0]) <= high <= 1


def test_the_headline_covers_the_known_truth_of_a_small_world():
    """A small world: 60 tags on about 4 of 400 images each, found with chance 0.6."""
    rng = np.random.default_rng(11)
    rate, recall, alarms = 0.01, 0.6, 0.004
    truth = 2 * rate * recall / (rate * recall + alarms * (1 - rate) + rate)
    mask, held = np.ones((1, 60), bool), []
    for _ in range(60):
        labels = (rng.random((400, 60)) < rate).astype(np.int8)
        given_tags = rng.random((400, 60)) < np.where(labels == 1, recall, alarms)
        found = jackknife(count_by_product(given_tags, labels, np.arange(400).astype(str)), mask)
        low, high = macro_interval(found, 0)
        held.append(low <= truth <= high)
    assert np.mean(held) >= 0.88
