"""Folds keep products whole, have the sizes asked for, reach every tag and ignore row order."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retailtag.catalog.allotment import _outward, allot
from retailtag.catalog.folds import k_folds, stratified_folds
from retailtag.errors import DataError, UsageError


@st.composite
def worlds(draw, max_products=7, max_size=4, max_tags=5):
    """Labels, groups and ids of a few products in shuffled rows."""
    sizes = draw(st.lists(st.integers(1, max_size), min_size=2, max_size=max_products))
    groups = np.repeat([f"p{i}" for i in range(len(sizes))], sizes)
    n, n_tags = len(groups), draw(st.integers(1, max_tags))
    cells = draw(st.lists(st.sampled_from([-1, 0, 0, 1]), min_size=n * n_tags, max_size=n * n_tags))
    labels = np.array(cells, np.int8).reshape(n, n_tags)
    order = np.random.default_rng(draw(st.integers(0, 99))).permutation(n)
    ids = np.array([f"{i:03d}" for i in range(n)])
    return labels[order], groups[order], ids[order]


def cut(n: int, fractions: tuple[float, ...]) -> list[int]:
    sizes = [max(1, round(f * n)) for f in fractions]
    return [n - sum(sizes), *sizes]


def has_by_product(labels, groups):
    names = np.unique(groups)
    sizes = np.array([(groups == name).sum() for name in names])
    return sizes, np.stack([(labels[groups == name] == 1).any(axis=0) for name in names])


def missing(fold, has, n_folds):
    """Pairs of tag and fold without the positive that the docstring promises."""
    products = has.sum(axis=0)
    cover = np.stack([has[fold == k].sum(axis=0) for k in range(n_folds)])
    bare = (cover == 0) & (products >= n_folds)
    bare[[0, -1]] |= (cover[[0, -1]] == 0) & (products >= 2)
    return int(bare.sum())


def brute_force(sizes, has, wanted):
    """Whether the sizes can be had exactly, and the fewest missing pairs then."""
    best = None
    for assignment in product(range(len(wanted)), repeat=len(sizes)):
        fold = np.array(assignment)
        if [int(sizes[fold == k].sum()) for k in range(len(wanted))] == list(wanted):
            found = missing(fold, has, len(wanted))
            best = found if best is None else min(best, found)
    return best


def fold_of_products(fold, groups):
    return np.array([fold[groups == name][0] for name in np.unique(groups)])


@settings(max_examples=40, deadline=None)
@given(world=worlds(), three=st.booleans(), seed=st.integers(0, 5))
def test_products_stay_whole_and_sizes_are_near_what_brute_force_finds(world, three, seed):
    labels, groups, ids = world
    wanted = cut(len(ids), (0.2, 0.3) if three else (0.3,))
    if wanted[0] < 1:
        return
    found = stratified_folds(labels, groups, ids, wanted, seed)
    for name in np.unique(groups):
        assert len(np.unique(found.fold[groups == name])) == 1
    sizes, has = has_by_product(labels, groups)
    best = brute_force(sizes, has, wanted)
    got = np.bincount(found.fold, minlength=len(wanted))
    exact = got.tolist() == wanted
    if not three:
        assert exact == (best is not None)
    assert (np.abs(got[1:] - wanted[1:]) < sizes.max()).all()
    assert exact == (not any("instead of" in s for s in found.unsatisfied))
    told = sum("no positive in" in s for s in found.unsatisfied)
    assert told == missing(fold_of_products(found.fold, groups), has, len(wanted))
    if exact:
        assert told == best


@settings(max_examples=40, deadline=None)
@given(world=worlds(max_products=25, max_tags=8), three=st.booleans(), seed=st.integers(0, 5))
def test_beyond_brute_force_everything_missed_is_told(world, three, seed):
    labels, groups, ids = world
    wanted = cut(len(ids), (0.2, 0.3) if three else (0.3,))
    if wanted[0] < 1:
        return
    found = stratified_folds(labels, groups, ids, wanted, seed)
    _, has = has_by_product(labels, groups)
    fold = fold_of_products(found.fold, groups)
    assert (found.fold == fold[np.unique(groups, return_inverse=True)[1]]).all()
    told = sum("no positive in" in s for s in found.unsatisfied)
    assert told == missing(fold, has, len(wanted))


@settings(max_examples=30, deadline=None)
@given(world=worlds(), seed=st.integers(0, 5), shuffle=st.integers(0, 99))
def test_the_row_order_does_not_matter(world, seed, shuffle):
    labels, groups, ids = world
    order = np.random.default_rng(shuffle).permutation(len(ids))
    wanted = cut(len(ids), (0.3,))
    if wanted[0] < 1:
        return
    one = stratified_folds(labels, groups, ids, wanted, seed)
    other = stratified_folds(labels[order], groups[order], ids[order], wanted, seed)
    assert (one.fold[order] == other.fold).all()
    assert one.unsatisfied == other.unsatisfied


@given(st.floats(0, 30), st.integers(0, 20))
def test_numbers_are_tried_outward_from_the_middle(middle, most):
    nearest = sorted(range(most + 1), key=lambda j: (abs(j - middle), j))
    assert list(_outward(middle, most)) == nearest


@settings(max_examples=60, deadline=None)
@given(
    histogram=st.dictionaries(st.integers(1, 9), st.integers(1, 4), min_size=1, max_size=4),
    share=st.floats(0, 1),
)
def test_two_folds_are_exact_whenever_a_subset_sums_to_one(histogram, share):
    sizes, counts = list(histogram), list(histogram.values())
    total = int(np.dot(sizes, counts))
    target = round(share * total)
    reachable = {int(np.dot(sizes, j)) for j in product(*(range(c + 1) for c in counts))}
    slots = allot(sizes, counts, [total - target, target])
    assert (slots >= 0).all()
    assert slots.sum(axis=0).tolist() == counts
    got = int(slots[1] @ np.array(sizes))
    assert abs(got - target) == min(abs(r - target) for r in reachable)


def long_tail(n=3000, n_tags=60, n_products=2000, seed=0):
    rng = np.random.default_rng(seed)
    p = np.clip(0.8 / np.arange(1, n_tags + 1) ** 1.4, 0.0015, 1)
    labels = (rng.random((n, n_tags)) < p).astype(np.int8)
    groups = np.array([f"p{i}" for i in rng.integers(0, n_products, n)])
    return labels, groups, np.array([f"{i:05d}" for i in range(n)])


@pytest.mark.parametrize("sizes", [[2700, 300], [2500, 200, 300]])
def test_a_long_tailed_catalogue_is_split_without_complaint(sizes):
    labels, groups, ids = long_tail()
    found = stratified_folds(labels, groups, ids, sizes, 0)
    _, has = has_by_product(labels, groups)
    assert [s for s in found.unsatisfied if "single" not in s] == []
    assert np.bincount(found.fold).tolist() == sizes
    assert missing(fold_of_products(found.fold, groups), has, len(sizes)) == 0


def test_frequent_tags_keep_their_share():
    labels, groups, ids = long_tail()
    fold = stratified_folds(labels, groups, ids, [2400, 600], 0).fold
    count = labels.sum(axis=0)
    share = labels[fold == 1].sum(axis=0) / count
    assert np.abs(share[count >= 100] - 0.2).max() < 0.01


def test_a_rare_tag_on_large_products_alone_still_reaches_both_sides():
    groups = np.array(["big"] * 7 + ["huge"] * 9 + [f"s{i}" for i in range(84)])
    labels = np.zeros((100, 1), np.int8)
    labels[:16] = 1
    ids = np.array([f"{i:03d}" for i in range(100)])
    found = stratified_folds(labels, groups, ids, [90, 10], 0)
    assert found.unsatisfied == ()
    assert np.bincount(found.fold).tolist() == [90, 10]
    assert len({found.fold[0], found.fold[7]}) == 2


def test_what_cannot_be_had_is_told_by_name():
    groups = np.array(["a", "a", "a", "b", "b", "b"])
    labels = np.array([[1, 0]] * 3 + [[0, 0]] * 3, np.int8)
    ids = np.array(list("123456"))
    found = stratified_folds(
        labels, groups, ids, [4, 2], 0, tags=["red", "blue"], names=["train", "test"]
    )
    assert any("test has 3 images instead of 2" in s for s in found.unsatisfied)
    assert any("'red' has a single product" in s for s in found.unsatisfied)
    assert not any("blue" in s for s in found.unsatisfied)


def test_folds_are_nearly_equal_and_spread_rare_tags():
    labels, groups, ids = long_tail()
    fold = k_folds(labels, groups, ids, 5, 0)
    sizes = np.bincount(fold)
    assert sizes.max() - sizes.min() <= 1
    _, has = has_by_product(labels, groups)
    by_product = fold_of_products(fold, groups)
    cover = np.stack([has[by_product == k].sum(axis=0) for k in range(5)])
    assert ((cover > 0).sum(axis=0) >= np.minimum(has.sum(axis=0), 5)).all()
    with pytest.raises(UsageError, match="folds"):
        k_folds(labels[:3], groups[:3], ids[:3], 9, 0)


def test_malformed_input_is_refused():
    labels, groups, ids = long_tail(20, 3, 10)
    with pytest.raises(DataError, match="sum to 20"):
        stratified_folds(labels, groups, ids, [1, 2], 0)
    with pytest.raises(DataError, match="twice"):
        stratified_folds(labels, groups, np.full(20, "x"), [10, 10], 0)
    with pytest.raises(DataError, match="one row"):
        stratified_folds(labels[:5], groups, ids, [10, 10], 0)
