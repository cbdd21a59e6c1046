import numpy as np
import pytest
import reference_scoring as reference

from retailtag.errors import DataError
from retailtag.scoring import bootstrap
from retailtag.scoring.bootstrap import (
    bootstrap_f1,
    bootstrap_macro,
    count_by_product,
    macro_replicates,
    replicate_weights,
)


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


def test_models_on_other_images_are_refused(world):
    labels, product, guesses = world
    a = count_by_product(guesses[0], labels, product)
    b = count_by_product(guesses[0][1:], labels[1:], product[1:])
    with pytest.raises(DataError, match="same images"):
        bootstrap_f1([a, b], n_replicates=5)
