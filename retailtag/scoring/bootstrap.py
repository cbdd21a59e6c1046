"""Intervals for macro-F1 by resampling products, with matrix products instead of loops.

F1 depends on three sums over images (true positives, given, present). A bootstrap replicate
weights every product by how often it was drawn, so all replicates of all tags of all models are
three products ``W @ counts``; drawing the same W for every model makes their differences paired.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retailtag.catalog.table import POSITIVE, UNKNOWN
from retailtag.errors import DataError
from retailtag.scoring.metrics import Floats, f1

N_REPLICATES = 2000
PERCENTILES = (2.5, 97.5)  # of a 95 % interval
BLOCK_CELLS = 8_000_000  # weights held at once: 32 MiB of float32
# float32 adds whole numbers exactly up to 2**24; a replicate's sums stay well under 4 n_images
FLOAT32_IMAGES = 2**22


@dataclass(frozen=True, eq=False)
class ProductCounts:
    """One model's counts on each product: all that a bootstrap of F1 needs.

    Parameters
    ----------
    products : ndarray of str, shape (n_products,)
        Distinct, ascending.
    tp, predicted, positives : ndarray of float32, shape (n_products, n_tags)
        True positives, images given the tag, images that carry it, over known labels.
    n_images : int
        Images behind the counts.
    """

    products: NDArray[np.str_]
    tp: NDArray[np.float32]
    predicted: NDArray[np.float32]
    positives: NDArray[np.float32]
    n_images: int


def count_by_product(
    predicted: NDArray[np.bool_], labels: NDArray[np.int8], product: NDArray[np.str_]
) -> ProductCounts:
    """Sum the counts of the images of each product.

    Parameters
    ----------
    predicted : ndarray of bool, shape (n_images, n_tags)
        Whether the tag was given.
    labels : ndarray of int8, shape (n_images, n_tags)
        1, 0, or -1 (left out).
    product : ndarray of str, shape (n_images,)
        Product of each image; a replicate draws products whole because their images are alike.

    Examples
    --------
    >>> given = np.array([[True], [True], [False]])
    >>> truth = np.array([[1], [0], [1]], dtype=np.int8)
    >>> counts = count_by_product(given, truth, np.array(["b", "a", "b"]))
    >>> counts.products.tolist(), counts.tp.tolist(), counts.positives.tolist()
    (['a', 'b'], [[0.0], [1.0]], [[0.0], [2.0]])
    """
    products, place = np.unique(product, return_inverse=True)
    present, given = labels == POSITIVE, predicted & (labels != UNKNOWN)

    def total(cells: NDArray[np.bool_]) -> NDArray[np.float32]:
        out = np.zeros((len(products), labels.shape[1]), np.float32)
        image, tag = np.nonzero(cells)  # few: most images carry few tags
        np.add.at(out, (place[image], tag), 1)
        return out

    return ProductCounts(
        products, total(given & present), total(given), total(present), len(product)
    )


def replicate_weights(
    n_products: int, n_replicates: int, seed: int
) -> Iterator[NDArray[np.float32]]:
    """Yield multinomial weights in blocks of replicates, each (block, n_products).

    A row holds how often each product was drawn in one replicate and sums to `n_products`. The
    blocks bound the memory; the numbers depend on the seed alone.
    """
    rng = np.random.default_rng(seed)
    block = max(1, min(n_replicates, BLOCK_CELLS // max(n_products, 1)))
    for start in range(0, n_replicates, block):
        size = min(block, n_replicates - start)
        weights = np.empty((size, n_products), np.float32)
        for row in weights:
            drawn = rng.integers(n_products, size=n_products, dtype=np.int32)
            row[:] = np.bincount(drawn, minlength=n_products)
        yield weights


def bootstrap_f1(
    models: Sequence[ProductCounts], *, n_replicates: int = N_REPLICATES, seed: int = 0
) -> NDArray[np.float64]:
    """Per-tag F1 of every model in every replicate, under the same weights.

    Parameters
    ----------
    models : sequence of ProductCounts
        Counts on the same products and labels.
    n_replicates : int
        Bootstrap replicates.
    seed : int
        Equal seeds draw equal replicates.

    Returns
    -------
    ndarray of float64, shape (n_models, n_replicates, n_tags)
        NaN where the tag has no positive in the replicate; averages drop it there.

    Raises
    ------
    DataError
        If the models were counted on different products, labels or numbers of images.

    Notes
    -----
    A tag that vanishes is dropped: counted as 0 it would pull every replicate down. Even so the
    replicates of a macro average are off centre where tags are rare (`intervals.macro_interval`
    says why and what is shown instead); paired differences cancel most of that.

    References
    ----------
    Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapters 8 and 13.
    """
    _same_products(models)
    first = models[0]
    dtype = np.float32 if first.n_images < FLOAT32_IMAGES else np.float64
    out = np.empty((len(models), n_replicates, first.positives.shape[1]))
    start = 0
    for weights in replicate_weights(len(first.products), n_replicates, seed):
        rows = slice(start, start + len(weights))
        positives = np.matmul(weights, first.positives, dtype=dtype)
        for m, model in enumerate(models):
            tp, predicted = (
                np.matmul(weights, counts, dtype=dtype) for counts in (model.tp, model.predicted)
            )
            out[m, rows] = f1(tp, predicted, positives)
        start = rows.stop
    return out


def _same_products(models: Sequence[ProductCounts]) -> None:
    first = models[0]
    for other in models[1:]:
        same = other.n_images == first.n_images and np.array_equal(other.products, first.products)
        if not (same and np.array_equal(other.positives, first.positives)):
            raise DataError(
                "Models can be compared only on the same images and labels; score all of them on "
                "one catalogue and split."
            )


def macro_replicates(replicates: Floats, mask: NDArray[np.bool_]) -> Floats:
    """Mean over the tags of `mask` that did not vanish, (..., n_tags) to (...)."""
    kept = replicates[..., mask]
    defined = ~np.isnan(kept)
    total = np.where(defined, kept, 0.0).sum(axis=-1)
    count = defined.sum(axis=-1)
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)


def percentile_interval(replicates: Floats) -> tuple[float, float]:
    """Central 95 % of the replicates (n_replicates,), NaN replicates left out.

    Examples
    --------
    >>> percentile_interval(np.arange(1001) / 1000)
    (0.025, 0.975)
    """
    kept = replicates[~np.isnan(replicates)]
    if not len(kept):
        return float("nan"), float("nan")
    low, high = np.percentile(kept, PERCENTILES)
    return float(low), float(high)


@dataclass(frozen=True)
class Difference:
    """How much larger one model's macro-F1 is than another's, with its paired uncertainty.

    Parameters
    ----------
    value : float
        First minus second, on the data as it is; in [-1, 1].
    low, high : float
        95 % paired percentile interval.
    standard_error : float
        Standard deviation of the difference over the replicates.
    """

    value: float
    low: float
    high: float
    standard_error: float

    @property
    def is_tie(self) -> bool:
        """Whether the interval includes 0, so that the data do not tell the two apart."""
        return not (self.low > 0 or self.high < 0)

    @property
    def detectable(self) -> float:
        """Smallest true difference found with 80 % power at the 5 % level: 2.80 standard errors.

        ``z(0.975) + z(0.80) = 1.960 + 0.842``.
        """
        return 2.802 * self.standard_error


def difference_of(
    value_a: float, value_b: float, replicates_a: Floats, replicates_b: Floats
) -> Difference:
    """Difference of two models from their values and paired replicates (n_replicates,)."""
    delta = replicates_a - replicates_b
    kept = delta[~np.isnan(delta)]
    error = float(kept.std(ddof=1)) if len(kept) > 1 else float("nan")
    return Difference(value_a - value_b, *percentile_interval(delta), error)


def paired_difference(
    a: ProductCounts,
    b: ProductCounts,
    mask: NDArray[np.bool_] | None = None,
    *,
    n_replicates: int = N_REPLICATES,
    seed: int = 0,
) -> Difference:
    """Macro-F1 of `a` minus that of `b` with a paired bootstrap interval.

    Parameters
    ----------
    a, b : ProductCounts
        Two models on the same images.
    mask : ndarray of bool, shape (n_tags,), optional
        Tags to average over (for example the tail); all by default.
    n_replicates, seed : int
        As in `bootstrap_f1`.

    Raises
    ------
    DataError
        If the two were counted on different images or labels.

    Examples
    --------
    >>> truth = np.array([[1], [1], [0], [0]] * 5, dtype=np.int8)
    >>> images = np.array([f"i{k}" for k in range(20)])
    >>> right = count_by_product(truth == 1, truth, images)
    >>> wrong = count_by_product(truth == 0, truth, images)
    >>> gap = paired_difference(right, wrong)
    >>> gap.value, gap.low, gap.is_tie
    (1.0, 1.0, False)
    """
    if mask is None:
        mask = np.ones(a.tp.shape[1], bool)
    replicates = macro_replicates(bootstrap_f1([a, b], n_replicates=n_replicates, seed=seed), mask)
    return difference_of(macro_f1(a, mask), macro_f1(b, mask), replicates[0], replicates[1])


def macro_f1(counts: ProductCounts, mask: NDArray[np.bool_]) -> float:
    """Macro-F1 over the tags of `mask` on the data as it is."""
    tp, predicted, positives = (
        m.sum(axis=0, dtype=np.float64) for m in (counts.tp, counts.predicted, counts.positives)
    )
    return float(macro_replicates(f1(tp, predicted, positives), mask))
