"""Permutation test of the difference of two models' macro-F1.

Under the null hypothesis the two models' predictions for a product could be swapped without
changing anything. The test swaps them at random, product by product, and counts how often the
difference of the macro averages is at least as large as the one observed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retailtag.scoring.bootstrap import FLOAT32_IMAGES, ProductCounts, macro_f1, macro_replicates
from retailtag.scoring.metrics import Floats, f1

PERMUTATIONS = 2000
BLOCK_CELLS = 4_000_000  # signs, or sums of one model, held at once: 16 MB of float32
ROUNDING = 1e-12  # two orders of adding the same F1 values differ by less

Masks = Mapping[str, NDArray[np.bool_]]


def swap_signs(n_products: int, n: int, width: int, seed: int) -> Iterator[NDArray[np.float32]]:
    """Yield random signs in blocks (block, n_products); `width` other columns bound the block."""
    rng = np.random.default_rng(seed)
    block = max(1, min(n, BLOCK_CELLS // max(n_products, width, 1)))
    for start in range(0, n, block):
        size = min(block, n - start)
        signs = np.empty((size, n_products), np.float32)
        for row in signs:  # row by row, so that the numbers do not depend on the blocks
            row[:] = 2 * rng.integers(2, size=n_products, dtype=np.int8) - 1
        yield signs


def swap_p_values(
    models: Sequence[ProductCounts],
    pairs: Sequence[tuple[int, int]],
    masks: Masks,
    *,
    n_permutations: int = PERMUTATIONS,
    seed: int = 0,
) -> dict[str, NDArray[np.float64]]:
    """Two-sided p of every pair by scope, (n_pairs,) in (0, 1], under random swaps of products.

    `pairs` are positions in `models`, which are counted on the same products and labels; the swaps
    are the same for every pair. `masks` (n_tags,) are the tags that each scope averages over, all
    with a positive. With B = `n_permutations` the smallest possible p is 1 / (B + 1).

    References
    ----------
    Noreen, "Computer-Intensive Methods for Testing Hypotheses", 1989 (approximate randomisation);
    Phipson and Smyth, "Permutation P-values should never be zero", 2010.

    Examples
    --------
    >>> from retailtag.scoring.bootstrap import count_by_product
    >>> truth = np.array([[1], [1], [0], [0]] * 5, dtype=np.int8)
    >>> images = np.array([f"i{k}" for k in range(20)])
    >>> right = count_by_product(truth == 1, truth, images)
    >>> wrong = count_by_product(truth == 0, truth, images)
    >>> tags = {"all": np.array([True])}
    >>> swap_p_values([right, wrong], [(0, 1)], tags, n_permutations=99)["all"].tolist()
    [0.01]
    """
    observed = {
        scope: np.array([abs(macro_f1(models[a], m) - macro_f1(models[b], m)) for a, b in pairs])
        for scope, m in masks.items()
    }
    as_large = {scope: np.zeros(len(pairs), np.int64) for scope in masks}
    for swapped in _signed_sums(models, n_permutations, seed) if pairs else ():
        for k, (a, b) in enumerate(pairs):
            first, second = _f1_of_swapped(models[a], models[b], swapped[a], swapped[b])
            for scope, mask in masks.items():
                gap = np.abs(macro_replicates(first, mask) - macro_replicates(second, mask))
                as_large[scope][k] += int((gap >= observed[scope][k] - ROUNDING).sum())
    # The observed assignment is one of those that could have been drawn, hence the 1 above and
    # below: p is never 0, and P(p <= alpha) <= alpha under the null.
    return {scope: (1 + n) / (1 + n_permutations) for scope, n in as_large.items()}


def swap_p_by_tag(
    models: Sequence[ProductCounts],
    pairs: Sequence[tuple[int, int]],
    *,
    n_permutations: int = PERMUTATIONS,
    seed: int = 0,
) -> NDArray[np.float64]:
    """As `swap_p_values`, of the F1 of every tag by itself: (n_pairs, n_tags) in (0, 1]."""
    values = [f1(*model.totals()) for model in models]
    observed = np.array([np.abs(values[a] - values[b]) for a, b in pairs])
    as_large = np.zeros(observed.shape, np.int64)
    for swapped in _signed_sums(models, n_permutations, seed) if pairs else ():
        for k, (a, b) in enumerate(pairs):
            first, second = _f1_of_swapped(models[a], models[b], swapped[a], swapped[b])
            as_large[k] += (np.abs(first - second) >= observed[k] - ROUNDING).sum(axis=0)
    p: NDArray[np.float64] = (1 + as_large) / (1 + n_permutations)
    return p


def _signed_sums(
    models: Sequence[ProductCounts], n: int, seed: int
) -> Iterator[list[tuple[NDArray[Any], NDArray[Any]]]]:
    """Per model ``S @ tp`` and ``S @ predicted``, each (block, n_tags), block by block."""
    first = models[0]
    dtype: Any = np.float32 if first.n_images < FLOAT32_IMAGES else np.float64
    tables = [
        (model.tp.astype(dtype, copy=False), model.predicted.astype(dtype, copy=False))
        for model in models
    ]
    width = 2 * len(models) * first.tp.shape[1]
    for signs in swap_signs(len(first.products), n, width, seed):
        s = signs.astype(dtype, copy=False)
        yield [(s @ tp, s @ predicted) for tp, predicted in tables]


def _f1_of_swapped(
    a: ProductCounts,
    b: ProductCounts,
    signed_a: tuple[NDArray[Any], NDArray[Any]],
    signed_b: tuple[NDArray[Any], NDArray[Any]],
) -> tuple[Floats, Floats]:
    """Per-tag F1 of both models after each swap, two arrays (block, n_tags)."""
    # Sign +1 leaves a product as it is, -1 swaps it. With x the counts of one model on a product
    # and s its sign, the first model's sum is Σ (x_a + x_b + s (x_a - x_b)) / 2 and the second's
    # has the minus sign: the block's swaps are S @ x_a - S @ x_b, computed once per model.
    tp_a, predicted_a, positives = a.totals()
    tp_b, predicted_b, _ = b.totals()
    tp = tp_a + tp_b
    predicted = predicted_a + predicted_b
    d_tp = signed_a[0].astype(np.float64) - signed_b[0]
    d_predicted = signed_a[1].astype(np.float64) - signed_b[1]
    return (
        f1((tp + d_tp) / 2, (predicted + d_predicted) / 2, positives),
        f1((tp - d_tp) / 2, (predicted - d_predicted) / 2, positives),
    )


def holm(p: NDArray[np.float64]) -> NDArray[np.float64]:
    """Adjust p values (n,) so that the chance of any false claim among them stays under alpha.

    In ascending order ``max over j <= i of min(1, (n - j + 1) p_(j))``, at the original places.

    References
    ----------
    Holm, "A simple sequentially rejective multiple test procedure", 1979.

    Examples
    --------
    >>> holm(np.array([0.04, 0.01, 0.03])).round(3).tolist()
    [0.06, 0.03, 0.06]
    """
    order = np.argsort(p, kind="stable")
    # Once the j smallest are rejected, n - j hypotheses are left to share alpha
    steps = (len(p) - np.arange(len(p))) * p[order]
    adjusted = np.empty_like(p, dtype=np.float64)
    # A larger p is never adjusted to less than a smaller one: running maximum
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return adjusted
