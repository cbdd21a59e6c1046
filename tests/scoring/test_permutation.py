"""Swap test, Holm and probability of being best against slow references."""

import numpy as np
import pytest
import reference_comparison as reference
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from retailtag.scoring.bootstrap import count_by_product
from retailtag.scoring.compare import best_shares
from retailtag.scoring.permutation import holm, swap_p_values

N, TAGS = 8, 3
GROUPS = np.array(["p0", "p1", "p1", "p2", "p3", "p4", "p4", "p5"])
MASK = np.array([True, True, False])
QUICK = settings(max_examples=25, deadline=None, derandomize=True)
cells = hnp.arrays(bool, (N, TAGS))
truths = hnp.arrays(np.int8, (N, TAGS), elements=st.sampled_from([-1, 0, 1]))


def counted(given_tags, labels):
    return count_by_product(given_tags, labels, GROUPS)


@QUICK
@given(cells, cells, truths)
def test_p_agrees_with_the_exhaustive_test(first, second, labels):
    labels[0, :] = 1
    n = 4000
    (fast,) = swap_p_values(
        [counted(first, labels), counted(second, labels)],
        [(0, 1)],
        {"all": MASK},
        n_permutations=n,
    )["all"]
    exact = reference.exhaustive_swap_p(first, second, labels, GROUPS, MASK)
    assert fast == pytest.approx(exact, abs=5 * np.sqrt(exact * (1 - exact) / n) + 2 / n)


@settings(max_examples=4, deadline=None, derandomize=True)
@given(cells, cells, truths)
def test_p_is_uniform_at_most_under_the_null(first, second, labels):
    """Every swap of the data is as likely under the null: P(p <= alpha) <= alpha over them."""
    labels[0, :] = 1
    orbit = [
        reference.swapped(first, second, GROUPS, [bool(k >> b & 1) for b in range(6)])
        for k in range(64)
    ]
    p = np.array(
        [
            swap_p_values(
                [counted(a, labels), counted(b, labels)],
                [(0, 1)],
                {"all": MASK},
                n_permutations=500,
                seed=k,
            )["all"][0]
            for k, (a, b) in enumerate(orbit)
        ]
    )
    exact = reference.exhaustive_swap_p(first, second, labels, GROUPS, MASK)
    slack = 5 * np.sqrt(exact * (1 - exact) / 500) + 0.01
    for alpha in np.unique(p):
        assert (p <= alpha).mean() <= alpha + slack


def test_pairs_and_scopes_are_each_as_alone():
    rng = np.random.default_rng(0)
    labels = (rng.random((40, 4)) < 0.4).astype(np.int8)
    groups = np.array([f"p{k}" for k in range(40)])
    models = [count_by_product(rng.random((40, 4)) < 0.5, labels, groups) for _ in range(3)]
    masks = {"all": np.ones(4, bool), "tail": np.array([True, False, False, True])}
    pairs = [(0, 1), (0, 2), (1, 2)]
    together = swap_p_values(models, pairs, masks, n_permutations=200)
    for k, (a, b) in enumerate(pairs):
        alone = swap_p_values([models[a], models[b]], [(0, 1)], masks, n_permutations=200)
        for scope in masks:
            assert together[scope][k] == alone[scope][0]


def test_blocks_do_not_change_p(monkeypatch):
    rng = np.random.default_rng(1)
    labels = (rng.random((30, 4)) < 0.4).astype(np.int8)
    groups = np.array([f"p{k}" for k in range(30)])
    models = [count_by_product(rng.random((30, 4)) < 0.5, labels, groups) for _ in range(2)]
    masks = {"all": np.ones(4, bool)}
    whole = swap_p_values(models, [(0, 1)], masks, n_permutations=100)["all"]
    monkeypatch.setattr("retailtag.scoring.permutation.BLOCK_CELLS", 7 * 30)
    assert swap_p_values(models, [(0, 1)], masks, n_permutations=100)["all"] == whole


def test_equal_models_have_p_one():
    rng = np.random.default_rng(2)
    labels = (rng.random((30, 2)) < 0.4).astype(np.int8)
    one = count_by_product(rng.random((30, 2)) < 0.5, labels, np.arange(30).astype(str))
    assert swap_p_values([one, one], [(0, 1)], {"all": np.ones(2, bool)})["all"] == 1.0


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(0, 1), min_size=1, max_size=7),
    st.sampled_from([0.003, 0.01, 0.05, 0.2, 0.61]),
)
def test_holm_rejects_what_the_procedure_rejects(p, alpha):
    adjusted = holm(np.array(p))
    if np.isclose(adjusted, alpha, rtol=1e-9).any():
        return
    assert (adjusted <= alpha).tolist() == reference.holm_rejected(p, alpha)
    assert (adjusted >= np.array(p)).all()


@settings(max_examples=40, deadline=None)
@given(hnp.arrays(np.float64, (3, 12), elements=st.sampled_from([0.1, 0.2, 0.3])))
def test_probability_of_being_best_shares_ties(replicates):
    shares = best_shares(replicates)
    np.testing.assert_allclose(shares, reference.best_shares(replicates.tolist()))
    assert shares.sum() == pytest.approx(1)


def test_replicates_without_a_value_are_left_out():
    drawn = np.array([[0.5, np.nan, 0.1], [0.2, 0.9, 0.4]])
    assert best_shares(drawn).tolist() == [0.5, 0.5]
    assert np.isnan(best_shares(np.full((2, 2), np.nan))).all()
