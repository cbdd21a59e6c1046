import numpy as np
import pytest
import reference_scoring as reference
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from retailtag.scoring import jackknife as room
from retailtag.scoring.bootstrap import count_by_product
from retailtag.scoring.intervals import (
    macro_difference,
    macro_estimate,
    population_f1,
    wilson_f1,
)
from retailtag.scoring.jackknife import jackknife, variance_of


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


def test_the_bias_of_a_tag_equals_that_of_the_loop(world, counts):
    labels, product, given_tags = world
    found = jackknife(counts, EVERY)
    for tag in range(5):
        whole, values = reference.leave_one_out(given_tags, labels, product, tag)
        assert found.f1[tag] == pytest.approx(whole)
        assert found.bias[tag] == pytest.approx(reference.jackknife(whole, values)[0])
    assert np.isnan(found.f1[5])
    assert found.bias[5] == 0


def test_the_variance_of_an_average_equals_that_of_the_loop(world, counts):
    labels, product, given_tags = world
    mask = np.array([True, True, False, False, True, True])
    found = jackknife(counts, mask[None])
    kept = [reference.leave_one_out(given_tags, labels, product, t)[1] for t in (0, 1)]
    third = np.sum(kept, axis=0) / 3  # of the three averaged tags, number 4 is on one product
    assert variance_of(found.deviations[0]) == pytest.approx(
        reference.jackknife(third.mean(), third.tolist())[1]
    )


def test_products_behind_a_tag_are_counted(world, counts):
    labels, product, given_tags = world
    found = jackknife(counts, EVERY)
    for tag in range(6):
        present = labels[:, tag] == 1
        event = present | (given_tags[:, tag] & (labels[:, tag] == 0))
        assert found.single[tag] == (len(set(product[present])) == 1)
        assert found.event_products[tag] == len(set(product[event]))


def test_blocks_change_nothing(counts, monkeypatch):
    whole = jackknife(counts, EVERY)
    monkeypatch.setattr(room, "BLOCK_CELLS", 20)
    blocks = jackknife(counts, EVERY)
    np.testing.assert_allclose(blocks.bias, whole.bias)
    np.testing.assert_allclose(blocks.deviations, whole.deviations)


def test_the_jackknife_of_a_mean_is_its_standard_error():
    data = np.random.default_rng(0).gamma(2, size=30)
    deviation = (data.sum() - data) / 29 - data.mean()
    assert variance_of(deviation) == pytest.approx(data.var(ddof=1) / 30)


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


def test_the_estimate_is_bias_corrected_with_a_normal_interval(counts):
    mask = np.array([True, True, True, True, False, False])
    found = jackknife(counts, mask[None])
    estimate = macro_estimate([found])
    centre = found.f1[mask].mean() - found.bias[mask].mean()
    half = 1.959964 * variance_of(found.deviations[0]) ** 0.5
    assert estimate.value == population_f1(found, 0) == pytest.approx(centre)
    assert (estimate.low, estimate.high) == pytest.approx((centre - half, centre + half), abs=1e-6)


def test_a_tag_of_a_single_product_widens_the_interval_by_more_than_its_own_spread(counts):
    mask = np.array([True, True, True, True, True, False])
    found = jackknife(counts, mask[None])
    estimate = macro_estimate([found])
    assert estimate.high - estimate.low > 2 * 1.959964 * variance_of(found.deviations[0]) ** 0.5
    alone = np.arange(6) == 4
    estimate = macro_estimate([jackknife(counts, alone[None])])
    assert estimate.high - estimate.low > 0.5


def test_runs_of_one_model_are_averaged_and_their_spread_widens_the_interval(world):
    labels, product, _ = world
    rng = np.random.default_rng(2)
    runs = [
        jackknife(count_by_product(rng.random((40, 6)) < share, labels, product), EVERY)
        for share in (0.3, 0.5, 0.7)
    ]
    values = [population_f1(run, 0) for run in runs]
    together = macro_estimate(runs)
    assert together.value == pytest.approx(np.mean(values))
    images = variance_of(np.mean([run.deviations[0] for run in runs], axis=0))
    single = np.append(np.mean([run.f1[4:5] for run in runs], axis=0), (0, 1)).var(ddof=1) / 25
    half = 1.959964 * (images + single + np.var(values, ddof=1) / 3) ** 0.5
    assert together.high == pytest.approx(min(1, together.value + half), abs=1e-6)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.02, 0.9), st.floats(0.0, 1.0))
def test_the_interval_holds_its_estimate_and_stays_in_range(seed, present, found_share):
    rng = np.random.default_rng(seed)
    labels = (rng.random((30, 4)) < present).astype(np.int8)
    given_tags = (rng.random((30, 4)) < found_share) & (labels == 1)
    counts = count_by_product(given_tags, labels, (np.arange(30) // 2).astype(str))
    found = jackknife(counts, np.ones((1, 4), bool))
    estimate = macro_estimate([found])
    if np.isnan(found.f1).all():
        assert np.isnan([estimate.value, estimate.low, estimate.high]).all()
    else:
        assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1


def test_a_model_does_not_differ_from_itself(counts):
    found = jackknife(counts, EVERY)
    same = macro_difference([found], [found])
    assert (same.value, same.low, same.high, same.standard_error) == (0, 0, 0, 0)
    assert same.is_tie
    nothing = jackknife(counts, np.zeros((1, 6), bool))
    assert macro_difference([nothing], [nothing]).is_tie


def test_a_difference_changes_sign_with_the_order_and_carries_its_formula(world, counts):
    labels, product, given_tags = world
    other = count_by_product(~given_tags, labels, product)
    a, b = (jackknife(c, EVERY) for c in (counts, other))
    there, back = macro_difference([a], [b]), macro_difference([b], [a])
    assert there.value == pytest.approx(population_f1(a, 0) - population_f1(b, 0))
    assert (there.low, there.high) == pytest.approx((-back.high, -back.low))
    # tag 4 is on one product: its whole difference counts as noise, of five tags
    variance = variance_of(a.deviations[0] - b.deviations[0]) + (a.f1[4] - b.f1[4]) ** 2 / 25
    assert there.standard_error == pytest.approx(variance**0.5)
    assert there.detectable == pytest.approx(2.802 * variance**0.5)


def test_pairing_is_sharper_than_two_intervals():
    rng = np.random.default_rng(0)
    labels = (rng.random((300, 8)) < 0.3).astype(np.int8)
    good = rng.random((300, 8)) < 0.3 + 0.5 * labels
    slightly_worse = good.copy()
    slightly_worse[:25] &= labels[:25] == 0  # misses what the other finds
    images, every = np.arange(300).astype(str), np.ones((1, 8), bool)
    a, b = (jackknife(count_by_product(g, labels, images), every) for g in (good, slightly_worse))
    alone, difference = macro_estimate([a]), macro_difference([a], [b])
    assert difference.high - difference.low < alone.high - alone.low
    assert not difference.is_tie


def test_estimates_and_differences_hold_the_known_truth_of_a_small_world():
    """60 tags on about 4 of 400 images each; one model finds more of them with more alarms."""
    rng = np.random.default_rng(11)
    rate, models = 0.01, ((0.6, 0.004), (0.75, 0.012))
    truth = [2 * rate * r / (rate * r + a * (1 - rate) + rate) for r, a in models]
    mask, errors, held, apart = np.ones((1, 60), bool), [], [], []
    for _ in range(60):
        labels = (rng.random((400, 60)) < rate).astype(np.int8)
        luck = rng.random((400, 60))
        found = [
            jackknife(
                count_by_product(
                    luck < np.where(labels == 1, r, a), labels, np.arange(400).astype(str)
                ),
                mask,
            )
            for r, a in models
        ]
        for jack, true in zip(found, truth, strict=True):
            estimate = macro_estimate([jack])
            errors.append((estimate.value - true, np.nanmean(jack.f1) - true))
            held.append(estimate.low <= true <= estimate.high)
        difference = macro_difference([found[0]], [found[1]])
        apart.append(difference.low <= truth[0] - truth[1] <= difference.high)
    corrected, counted = np.abs(np.mean(errors, axis=0))
    assert corrected < 0.01
    assert corrected < counted
    assert np.mean(held) >= 0.88
    assert np.mean(apart) >= 0.88
