"""Statistics equal their definitions under every permutation; p-values keep their rate."""

import numpy as np
import pytest
import reference_drift as slow
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import ks_2samp, mannwhitneyu

from retailtag.tagger.drift.effects import rate_estimates, rates, superiority, wilson
from retailtag.tagger.drift.permutations import (
    adjusted_p,
    p_values,
    permuted_labels,
    standardised,
)
from retailtag.tagger.drift.two_sample import (
    NEIGHBOURS,
    deviance_root,
    gaussian_kernel,
    kinds_deviance,
    kolmogorov_smirnov,
    median_distance,
    mmd2,
    novelty,
    squared_distances,
    witness,
)

SIZES = (1, 3, 2, 1, 2, 4, 1, 2, 3, 1)  # images of each group; the last four groups are new


@pytest.fixture(scope="module")
def world():
    """Embeddings, groups, and labels as observed and permuted."""
    rng = np.random.default_rng(0)
    group = np.repeat(np.arange(len(SIZES)), SIZES)
    group = group[rng.permutation(len(group))]
    X = rng.normal(size=(len(group), 6)).astype(np.float32)
    labels = permuted_labels(np.arange(len(SIZES)) >= 6, 7, seed=1)
    return X, group, labels


def test_mmd_equals_its_definition_under_every_permutation(world):
    X, group, labels = world
    squared = squared_distances(X)
    kernel = gaussian_kernel(squared, median_distance(squared, group), group)
    assert (kernel[group[:, None] == group] == 0).all()
    expected = [slow.mmd2(kernel, group, row[group]) for row in labels]
    np.testing.assert_allclose(mmd2(kernel, group, labels), expected, atol=1e-6)


def test_distances_do_not_depend_on_the_scale_of_a_coordinate(world):
    X, _, _ = world
    squared = squared_distances(X)
    np.testing.assert_allclose(squared_distances(X * [1, 5, 100, 1, 1e-3, 1]), squared, atol=1e-3)
    constant = np.concatenate([X, np.ones((len(X), 1), np.float32)], axis=1)
    np.testing.assert_allclose(squared_distances(constant), squared, atol=1e-4)


def test_novelty_equals_its_definition_under_every_permutation(world):
    X, group, labels = world
    found = novelty(squared_distances(X), group, labels.T[group])
    expected = [slow.novelty(X.astype(np.float64), group, row[group], NEIGHBOURS) for row in labels]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("values", ["smooth", "tied", "missing", "constant", "unknown"])
def test_the_gap_is_that_of_kolmogorov_and_smirnov(world, values):
    _, group, labels = world
    column = np.random.default_rng(2).normal(size=len(group))
    if values == "tied":
        column = column.round()
    if values == "missing":
        column[::3] = np.nan
    if values == "constant":
        column[:] = 2.0
    if values == "unknown":
        column[:] = np.nan
    by_image = labels.T[group]
    expected = [slow.gap(column, is_new) for is_new in by_image.T]
    np.testing.assert_allclose(kolmogorov_smirnov(column, by_image), expected, atol=1e-9)
    if values == "smooth":
        is_new = by_image[:, 0]
        known = ks_2samp(column[~is_new], column[is_new]).statistic
        assert expected[0] == pytest.approx(known)


def test_deviance_of_counts_equals_the_likelihood_ratio(world):
    _, group, labels = world
    cells = np.random.default_rng(3).random((len(group), 4)) < (0.5, 0.1, 0.0, 1.0)
    found = deviance_root(cells, group, labels)
    raw = np.empty_like(found)
    for row, own in enumerate(labels[:, group]):
        for column, cell in enumerate(cells.T):
            deviance = slow.deviance(cell[~own].sum(), (~own).sum(), cell[own].sum(), own.sum())
            raw[row, column] = np.sqrt(max(deviance, 0))
    spread = np.maximum(np.sqrt((raw**2).mean(axis=0)), 1)
    np.testing.assert_allclose(found, raw / spread, atol=1e-6)
    assert not found[:, 2:].any()  # a tag of none, and of all, moves nowhere


def test_deviance_of_file_types_is_that_of_a_table(world):
    _, group, labels = world
    kinds = np.array(["JPEG", "PNG"])[np.random.default_rng(4).integers(2, size=len(group))]
    own = kinds == "PNG"
    found = kinds_deviance(kinds, labels.T[group])
    for value, is_new in zip(found, labels[:, group], strict=True):
        counts = own[~is_new].sum(), (~is_new).sum(), own[is_new].sum(), is_new.sum()
        assert value == pytest.approx(slow.deviance(*counts), abs=1e-9)
    assert not kinds_deviance(np.full(len(group), "JPEG"), labels.T[group]).any()


def test_witness_of_one_half_is_scored_on_the_other(world):
    X, group, labels = world
    squared = squared_distances(X)
    kernel = gaussian_kernel(squared, 2.0, group)
    is_new, half = labels[0][group], group % 2 == 0
    found = witness(kernel, is_new, half)
    for i, value in enumerate(found):
        others = [j for j in range(len(X)) if half[j] != half[i]]
        new = np.mean([kernel[i, j] for j in others if is_new[j]])
        old = np.mean([kernel[i, j] for j in others if not is_new[j]])
        assert value == pytest.approx(new - old, abs=1e-6)


def test_labels_keep_the_number_of_new_groups_within_each_stratum():
    is_new = np.arange(20) % 3 == 0
    strata = np.arange(20) // 10
    labels = permuted_labels(is_new, 50, seed=0, strata=strata)
    assert (labels[0] == is_new).all()
    for stratum in (0, 1):
        own = labels[:, strata == stratum].sum(axis=1)
        assert (own == is_new[strata == stratum].sum()).all()
    assert len(np.unique(labels, axis=0)) > 40


STATISTICS = arrays(
    np.float64, st.tuples(st.integers(2, 30), st.integers(1, 4)), elements=st.integers(0, 5)
)


@given(STATISTICS)
@settings(max_examples=50, deadline=None)
def test_p_values_reach_a_rate_no_more_often_than_it_says(values):
    """Each row might have been the observed one: at most a share a of them has p <= a."""
    p = p_values(values)
    for rate in (0.05, 0.1, 0.3):
        assert ((p <= rate).mean(axis=0) <= rate).all()


@given(STATISTICS)
@settings(max_examples=50, deadline=None)
def test_adjusted_p_equals_its_definition_and_keeps_the_rate_of_any_false_alarm(values):
    np.testing.assert_allclose(adjusted_p(values), slow.adjusted_p(values))
    smallest = [adjusted_p(np.roll(values, -k, axis=0)).min() for k in range(len(values))]
    for rate in (0.1, 0.3):
        assert np.mean(np.array(smallest) <= rate) <= rate


def test_standardised_columns_have_one_scale_and_constant_ones_none():
    values = np.array([[1.0, 100.0, 3.0], [2.0, 300.0, 3.0], [3.0, 200.0, 3.0]])
    found = standardised(values)
    np.testing.assert_allclose(found[:, 0].std(), found[:, 1].std())
    assert not found[:, 2].any()


def test_superiority_is_the_area_under_the_curve_and_its_interval_covers():
    rng = np.random.default_rng(5)
    hits = []
    for _ in range(200):
        a = np.repeat(rng.normal(size=40), 3) + 0.5 * rng.normal(size=120)
        b = np.repeat(rng.normal(0.5, 1, size=30), 3) + 0.5 * rng.normal(size=90)
        groups = np.repeat(np.arange(40), 3), np.repeat(np.arange(30), 3)
        found = superiority(a, b, groups)
        # P(b > a) of normal values, each of variance 1 + 0.25: Phi(0.5 / sqrt(2.5))
        hits.append(found.low <= 0.6241 <= found.high)
    u = mannwhitneyu(b, a).statistic
    assert found.value == pytest.approx(u / (len(a) * len(b)))
    assert 0.9 <= np.mean(hits) <= 0.99  # of 95 % intervals; by images, not products: 0.8


def test_a_complete_separation_has_an_interval_too():
    codes = np.arange(20)
    found = superiority(np.zeros(20), np.ones(20), (codes, codes))
    assert found.value == 1
    assert 0.7 < found.low < 1
    assert np.isnan(superiority(np.array([]), np.ones(3), (codes, codes)).value)


def test_rates_count_groups_where_their_images_agree():
    cells = np.repeat(np.arange(20) % 2 == 0, 4)[:, None]
    alike = np.repeat(np.arange(20), 4)
    share, n = rates(cells, alike)
    assert share.tolist() == [0.5]
    assert n[0] == pytest.approx(20)
    assert rates(cells, np.arange(80))[1][0] == pytest.approx(80)
    assert rates(np.zeros((80, 1), bool), alike)[1][0] == pytest.approx(20)


def test_intervals_of_rates_are_wilsons_and_newcombes():
    """Newcombe 1998, table II, example (a): 56/70 against 48/80."""
    low, high = wilson(np.array([56 / 70]), np.array([70.0]))
    assert (low[0], high[0]) == pytest.approx((0.6918, 0.8769), abs=1e-3)
    new, reference = (np.array([56 / 70]), np.array([70.0])), (np.array([0.6]), np.array([80.0]))
    difference = rate_estimates(reference, new)[0][2]
    assert difference.value == pytest.approx(0.2)
    assert (difference.low, difference.high) == pytest.approx((0.0524, 0.3339), abs=1e-4)
