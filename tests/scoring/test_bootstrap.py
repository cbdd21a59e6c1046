import numpy as np
import pytest
import reference_scoring as reference

from retailtag.errors import DataError
from retailtag.scoring import bootstrap
from retailtag.scoring.bootstrap import (
    Difference,
    bootstrap_f1,
    bootstrap_macro,
    count_by_product,
    difference_of,
    macro_f1,
    macro_replicates,
    percentile_interval,
    replicate_weights,
)


def paired_difference(a, b, n_replicates=500, seed=0):
    """Difference of two models' macro-F1 over all tags, under the same draws."""
    every = np.ones(a.tp.shape[1], bool)
    drawn = macro_replicates(bootstrap_f1([a, b], n_replicates=n_replicates, seed=seed), every)
    return difference_of(macro_f1(a, every), macro_f1(b, every), drawn[0], drawn[1])


@pytest.fixture(scope="module")
def world():
    rng = np.random.default_rng(5)
    labels = rng.choice(np.array([-1, 0, 1], np.int8), p=[0.1, 0.7, 0.2], size=(40, 5))
    labels[:, 4] = 0
    labels[7, 4] = 1  # vanishes in about a third of the replicates
    product = np.array([f"p{k}" for k in rng.integers(0, 25, 40)])
    guesses = [rng.random((40, 5)) < 0.4, rng.random((40, 5)) < 0.3]
    return labels, product, guesses


def test_matrix_products_equal_the_loop_over_replicates(world):
    labels, product, guesses = world
    counts = [count_by_product(g, labels, product) for g in guesses]
    mask = np.array([True, True, False, True, True])
    fast = macro_replicates(bootstrap_f1(counts, n_replicates=12, seed=2), mask)
    for block in replicate_weights(len(counts[0].products), 12, seed=2):
        for r, row in enumerate(block):
            weight = dict(zip(counts[0].products.tolist(), row.tolist(), strict=True))
            for m, guess in enumerate(guesses):
                slow = reference.weighted_macro_f1(guess, labels, product, weight, mask)
                np.testing.assert_allclose(fast[m, r], slow)


def test_macro_averages_need_no_replicate_of_every_tag(world, monkeypatch):
    labels, product, guesses = world
    counts = [count_by_product(g, labels, product) for g in guesses]
    masks = {"all": np.ones(5, bool), "some": np.array([True, False, True, False, True])}
    whole = bootstrap_f1(counts, n_replicates=12, seed=2)
    monkeypatch.setattr(bootstrap, "BLOCK_CELLS", 40)
    found = bootstrap_macro(counts, masks, n_replicates=12, seed=2)
    for scope, mask in masks.items():
        np.testing.assert_array_equal(found[scope], macro_replicates(whole, mask))


def test_a_tag_that_vanishes_is_nan_there(world):
    labels, product, guesses = world
    f1 = bootstrap_f1([count_by_product(guesses[0], labels, product)], n_replicates=60)[0]
    assert np.isnan(f1[:, 4]).any()
    assert not np.isnan(f1[:, 4]).all()


def test_weights_draw_as_many_products_as_there_are():
    weights = np.vstack(list(replicate_weights(17, 9, seed=0)))
    assert weights.shape == (9, 17)
    assert (weights.sum(axis=1) == 17).all()


def test_block_size_changes_nothing(monkeypatch):
    whole = np.vstack(list(replicate_weights(17, 9, seed=4)))
    monkeypatch.setattr(bootstrap, "BLOCK_CELLS", 40)
    blocks = list(replicate_weights(17, 9, seed=4))
    assert len(blocks) == 5
    assert np.array_equal(np.vstack(blocks), whole)


def test_large_data_take_double_precision(world, monkeypatch):
    labels, product, guesses = world
    counts = [count_by_product(guesses[0], labels, product)]
    single = bootstrap_f1(counts, n_replicates=5)
    monkeypatch.setattr(bootstrap, "FLOAT32_IMAGES", 1)
    np.testing.assert_array_equal(bootstrap_f1(counts, n_replicates=5), single)


def test_paired_difference_of_a_model_with_itself_is_a_tie(world):
    labels, product, guesses = world
    counts = count_by_product(guesses[0], labels, product)
    same = paired_difference(counts, counts, n_replicates=50)
    assert (same.value, same.low, same.high, same.standard_error) == (0, 0, 0, 0)
    assert same.is_tie


def test_difference_changes_sign_with_the_order(world):
    labels, product, guesses = world
    a, b = (count_by_product(g, labels, product) for g in guesses)
    there, back = paired_difference(a, b, seed=1), paired_difference(b, a, seed=1)
    assert there.value == pytest.approx(-back.value)
    assert (there.low, there.high) == pytest.approx((-back.high, -back.low))
    everything = np.ones(5, bool)
    assert there.value == pytest.approx(macro_f1(a, everything) - macro_f1(b, everything))


def test_pairing_is_sharper_than_two_intervals():
    rng = np.random.default_rng(0)
    labels = (rng.random((300, 8)) < 0.3).astype(np.int8)
    good = rng.random((300, 8)) < 0.3 + 0.5 * labels
    slightly_worse = good.copy()
    slightly_worse[:25] &= labels[:25] == 0  # misses what the other finds
    images = np.arange(300).astype(str)
    a, b = (count_by_product(g, labels, images) for g in (good, slightly_worse))
    everything = np.ones(8, bool)
    alone = macro_replicates(bootstrap_f1([a], n_replicates=300)[0], everything)
    low, high = percentile_interval(alone)
    difference = paired_difference(a, b, n_replicates=300)
    assert difference.high - difference.low < high - low
    assert not difference.is_tie


def test_models_on_other_images_are_refused(world):
    labels, product, guesses = world
    a = count_by_product(guesses[0], labels, product)
    b = count_by_product(guesses[0][1:], labels[1:], product[1:])
    with pytest.raises(DataError, match="same images"):
        bootstrap_f1([a, b], n_replicates=5)


def test_no_replicate_gives_no_interval():
    assert np.isnan(percentile_interval(np.array([np.nan]))).all()
    assert Difference(0.1, np.nan, np.nan, np.nan).is_tie
