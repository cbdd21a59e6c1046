"""Typical times and ratios: known answers, coverage, and what turns share."""

from itertools import product

import numpy as np
import pytest

from retailtag.statistics.timing import _dropped, quantile, ratio, typical


def _signed_rank_tail(n, k):
    """P(W <= k) of the signed-rank statistic by counting all signs."""
    signs = np.array(list(product((0, 1), repeat=n)))
    return np.mean(signs @ np.arange(1, n + 1) <= k)


@pytest.mark.parametrize("n", range(6, 13))
def test_the_interval_drops_as_many_averages_as_the_test_allows(n):
    k = _dropped(n)
    assert _signed_rank_tail(n, k) <= 0.025 < _signed_rank_tail(n, k + 1)


@pytest.mark.parametrize("n", [6, 10, 20])
def test_intervals_cover_the_truth_under_heavy_tails(n):
    rng = np.random.default_rng(n)
    found = [typical(np.exp(0.1 * rng.standard_t(2, n))) for _ in range(600)]
    assert np.mean([t.low <= 1 <= t.high for t in found]) > 0.93


def test_many_turns_drop_what_the_normal_approximation_does():
    n = 400
    sd = (n * (n + 1) * (2 * n + 1) / 24) ** 0.5
    assert _dropped(n) == pytest.approx(n * (n + 1) / 4 - 1.96 * sd, rel=1e-3)


def test_a_ratio_is_free_of_what_turns_share():
    rng = np.random.default_rng(0)
    shared = np.exp(rng.standard_normal(10))
    a, b = shared * np.exp(0.01 * rng.standard_normal((2, 10)))
    assert typical(a).width > 0.5
    compared = ratio(1.2 * a, b)
    assert 1.17 < compared.low < compared.value < compared.high < 1.23


def test_scale_and_order_of_the_turns_do_not_matter():
    times = [3.0, 1.0, 2.0, 5.0, 4.0, 7.0, 6.0]
    one, other = typical(times), typical([10 * t for t in reversed(times)])
    np.testing.assert_allclose(other, [10 * v for v in one])
    np.testing.assert_allclose(ratio(times, [2.0] * 7), [v / 2 for v in one])


def test_a_quantile_varies_as_its_turns_do():
    alike = [np.array([1.0, 2.0, 3.0])] * 8
    assert quantile(alike, 0.5) == (2.0, 2.0, 2.0)
    unlike = [turn * factor for turn, factor in zip(alike, range(1, 9), strict=True)]
    value, low, high = quantile(unlike, 0.95)
    assert value == np.quantile(np.concatenate(unlike), 0.95)
    assert low < value <= high


def test_few_turns_give_their_range():
    assert typical([2.0, 1.0]) == pytest.approx((2**0.5, 1.0, 2.0))
