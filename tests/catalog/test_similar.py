"""Images that show one product are found by looks and tags, and never joined by a chain."""

import numpy as np
import pytest

from retailtag.catalog.similar import (
    MAX_PHOTOS,
    Look,
    near_pairs,
    similar_images,
    similar_in,
    tags_name_products,
)
from retailtag.catalog.thumbnails import SIDE, thumbnail
from retailtag.errors import DataError


def normal(Z):
    return Z / np.linalg.norm(Z, axis=1, keepdims=True)


@pytest.fixture
def world():
    """Embeddings, labels and products: 60 products of 2 to 5 photographs, tags of the product."""
    rng = np.random.default_rng(0)
    product = np.repeat(np.arange(60), rng.integers(2, 6, 60))
    labels = (rng.random((60, 25)) < 0.25).astype(np.int8)
    labels[:, :3] = 1
    centre = rng.standard_normal((60, 32))
    X = normal(centre)[product] + 0.6 * normal(rng.standard_normal((len(product), 32)))
    return X.astype(np.float32), labels[product], product


def of(X):
    return Look.of_embeddings(X, np.ones(len(X), bool))


def test_photographs_of_a_product_are_found_where_tags_are_of_products(world):
    X, labels, product = world
    found = similar_images(of(X), labels)
    assert found.by_tags
    together = found.cluster[:, None] == found.cluster[None]
    truth = product[:, None] == product[None]
    assert (together & truth).sum() > 0.95 * truth.sum()
    assert not (together & ~truth).any()


def test_tags_of_photographs_count_for_nothing(world):
    X, labels, _ = world
    flipped = labels.copy()
    place = np.random.default_rng(1).integers(3, 25, len(labels))
    flipped[np.arange(len(labels)), place] ^= 1
    assert not tags_name_products(of(X), flipped)
    assert similar_images(of(X), flipped).members == []


def test_a_single_tag_per_image_names_no_product(world):
    X, _, product = world
    assert not tags_name_products(of(X), np.eye(60, dtype=np.int8)[product])


def test_near_pairs_are_those_of_the_whole_matrix(world, monkeypatch):
    X, labels, _ = world
    X[7] = X[3] + 1e-3
    X[50] = X[90]
    look = of(X)
    rows = np.arange(len(X))
    dense = np.argwhere(np.triu(look.between(rows, rows) >= look.near, 1))
    monkeypatch.setattr("retailtag.catalog.similar.BLOCK", 16)
    assert sorted(near_pairs(look, rows).tolist()) == dense.tolist() == [[3, 7], [50, 90]]
    assert similar_in(look, labels[:, :1], rows[40:60], rows[80:]) == {50: 90}


@pytest.mark.parametrize("kind", ["spread", "alike", "flat"])
def test_a_tree_finds_the_pairs_of_the_whole_matrix(kind, monkeypatch):
    """Vectors in the open, within one radius of each other on all axes, and with one direction."""
    rng = np.random.default_rng(1)
    X = rng.standard_normal((300, 40)).astype(np.float32)
    if kind == "alike":
        X[:, :-1] *= 0.1
    if kind == "flat":
        X[:, 2:] *= 1e-3
    X[100:120] = X[:20] + 0.01 * rng.standard_normal((20, 40)).astype(np.float32)
    look, rows = of(X), np.arange(10, 300)
    inside = np.argwhere(np.triu(look.between(rows, rows) >= look.near, 1))
    assert len(inside) >= 10
    for name, value in {"BLOCK": 32, "QUERIES": 7, "AXES": 3, "MAX_MEAN_PAIRS": 300}.items():
        monkeypatch.setattr(f"retailtag.catalog.similar.{name}", value)
    found = [near_pairs(look, rows)]
    monkeypatch.setattr("retailtag.catalog.similar.MAX_SHARE", 1.0)  # by the tree in any case
    found.append(near_pairs(look, rows))
    for pairs in found:
        assert pairs.tolist() == rows[inside].tolist()


def test_thumbnails_are_compared_by_their_mean_difference():
    rng = np.random.default_rng(0)
    pixels = rng.integers(20, 230, (6, SIDE, SIDE, 3), np.uint8)
    pixels[1] = pixels[0] + 2
    pixels[3] = pixels[2] + 4
    look = Look.of_thumbnails(pixels, np.ones(6, bool))
    assert near_pairs(look, np.arange(6)).tolist() == [[0, 1]]


def test_a_chain_is_not_one_cluster():
    # neighbours on an arc are near-duplicates, its ends are not
    angle = np.linspace(0, np.pi, 60)
    X = np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)
    X = np.concatenate([X, -X])
    found = similar_images(of(X), np.zeros((120, 1), np.int8))
    look = of(X)
    for rows in found.members:
        assert (look.between(rows, rows) >= look.near - 1e-6).all()


def test_equal_images_are_together_in_any_number_and_unseen_ones_alone():
    rng = np.random.default_rng(0)
    n = MAX_PHOTOS + 10
    X = np.concatenate([np.tile(rng.standard_normal((1, 8)), (n, 1)), rng.standard_normal((9, 8))])
    seen = np.ones(n + 11, bool)
    seen[-2:] = False
    found = similar_images(
        Look.of_embeddings(X.astype(np.float32), seen), np.zeros((len(seen), 2), np.int8)
    )
    assert [len(rows) for rows in found.members] == [n]
    assert found.n_unseen == 2
    assert found.cluster[-1] != found.cluster[-2]


def test_embeddings_that_are_all_alike_are_refused(monkeypatch):
    monkeypatch.setattr("retailtag.catalog.similar.MAX_MEAN_PAIRS", 2)
    X = np.concatenate([np.ones((10, 4)), -np.ones((10, 4))])
    X += np.random.default_rng(0).standard_normal(X.shape) * 1e-3
    with pytest.raises(DataError, match="do not tell images apart"):
        similar_images(of(X.astype(np.float32)), np.zeros((20, 1), np.int8))


def test_similar_images_of_another_split_are_the_closest_ones(world):
    X, labels, product = world
    order = np.arange(len(X))
    test = order[::2]
    train = order[1::2]
    found = similar_in(of(X), labels, test, train)
    assert all(product[i] == product[j] for i, j in found.items())
    assert set(found.values()) <= set(train.tolist())
    with_twin = np.isin(product[test], product[train])
    assert len(found) > 0.9 * with_twin.sum()


def test_a_thumbnail_is_the_mean_of_its_cells():
    pixels = np.zeros((2 * SIDE, 3 * SIDE, 3), np.uint8)
    pixels[:2, :3] = 90
    pixels[0, 3] = 60
    made = thumbnail(pixels)
    assert made.shape == (SIDE, SIDE, 3)
    assert made[0, 0].tolist() == [90] * 3
    assert made[0, 1].tolist() == [10] * 3
    assert thumbnail(pixels[:3, :5]).shape == (SIDE, SIDE, 3)
