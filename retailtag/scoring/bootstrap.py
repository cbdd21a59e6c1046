"""Bootstrap of macro-F1 over products: three matrix products give all replicates of all models.

The same draws for every model make the chance of being best a paired one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retailtag.catalog.table import POSITIVE, UNKNOWN
from retailtag.errors import DataError
from retailtag.scoring.metrics import Floats, f1

N_REPLICATES = 2000
BLOCK_CELLS = 8_000_000  # weights held at once: 32 MiB of float32
# float32 adds whole numbers exactly up to 2**24; a replicate's sums stay well under 4 n_images
FLOAT32_IMAGES = 2**22


@dataclass(frozen=True, eq=False)
class ProductCounts:
    """One model's counts on each product, over known labels: all that resampling F1 needs."""

    products: NDArray[np.str_]  # (n_products,), distinct and ascending
    tp: NDArray[np.float32]  # (n_products, n_tags), true positives
    predicted: NDArray[np.float32]  # images given the tag
    positives: NDArray[np.float32]  # images that carry it
    n_images: int

    def matrices(self) -> tuple[NDArray[np.float32], ...]:
        """True positives, given and present, in the order that `f1` takes them."""
        return self.tp, self.predicted, self.positives

    def totals(self) -> tuple[Floats, Floats, Floats]:
        """Sums of the three over all products, each (n_tags,)."""
        tp, predicted, positives = (m.sum(axis=0, dtype=np.float64) for m in self.matrices())
        return tp, predicted, positives


def count_by_product(
    predicted: NDArray[np.bool_], labels: NDArray[np.int8], product: NDArray[np.str_]
) -> ProductCounts:
    """Sum the counts of each product; a replicate draws whole products, whose images are alike.

    `predicted` and `labels` (1, 0, or -1: left out) are (n_images, n_tags), `product` (n_images,).

    Examples
    --------
    >>> given = np.array([[True], [True], [False]])
    >>> truth = np.array([[1], [0], [1]], dtype=np.int8)
    >>> counts = count_by_product(given, truth, np.array(["b", "a", "b"]))
    >>> counts.products.tolist(), counts.tp.tolist(), counts.positives.tolist()
    (['a', 'b'], [[0.0], [1.0]], [[0.0], [2.0]])
    """
    products, row_of_image = np.unique(product, return_inverse=True)
    present = labels == POSITIVE
    given = predicted & (labels != UNKNOWN)

    def total(cells: NDArray[np.bool_]) -> NDArray[np.float32]:
        out = np.zeros((len(products), labels.shape[1]), np.float32)
        image, tag = np.nonzero(cells)  # few: most images carry few tags
        np.add.at(out, (row_of_image[image], tag), 1)
        return out

    return ProductCounts(
        products, total(given & present), total(given), total(present), len(product)
    )


def replicate_weights(
    n_products: int, n_replicates: int, seed: int, width: int = 1
) -> Iterator[NDArray[np.float32]]:
    """Yield multinomial weights in blocks of replicates, each (block, n_products).

    `width` other columns bound the block.

    A row holds how often each product was drawn in one replicate and sums to `n_products`. The
    blocks bound the memory; the numbers depend on the seed alone.
    """
    rng = np.random.default_rng(seed)
    block = max(1, min(n_replicates, BLOCK_CELLS // max(n_products, width, 1)))
    for start in range(0, n_replicates, block):
        size = min(block, n_replicates - start)
        weights = np.empty((size, n_products), np.float32)
        for row in weights:  # one draw per row, so that the block size changes nothing
            drawn = rng.integers(n_products, size=n_products, dtype=np.int32)
            row[:] = np.bincount(drawn, minlength=n_products)
        yield weights


def bootstrap_f1(
    models: Sequence[ProductCounts], *, n_replicates: int = N_REPLICATES, seed: int = 0
) -> NDArray[np.float64]:
    """Per-tag F1 of every model in every replicate, float64 (n_models, n_replicates, n_tags).

    All models get the same weights; equal seeds draw equal replicates. NaN where the tag has no
    positive in the replicate: counted as 0 it would pull every replicate down. Even so the
    replicates of a macro average are off centre where tags are rare: `intervals.macro_estimate`
    says why and gives the interval that covers.

    Raises `DataError` if the models were counted on different products, labels or images.

    References
    ----------
    Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapters 8 and 13.
    """
    out = np.empty((len(models), n_replicates, models[0].positives.shape[1]))
    for m, rows, values in _replicated(models, n_replicates, seed):
        out[m, rows] = values
    return out


def bootstrap_macro(
    models: Sequence[ProductCounts],
    masks: Mapping[str, NDArray[np.bool_]],
    *,
    n_replicates: int = N_REPLICATES,
    seed: int = 0,
) -> dict[str, NDArray[np.float64]]:
    """Macro-F1 of the replicates of `bootstrap_f1` by scope, (n_models, n_replicates) each.

    Memory does not grow with the number of replicates times tags.
    """
    out = {scope: np.empty((len(models), n_replicates)) for scope in masks}
    for m, rows, values in _replicated(models, n_replicates, seed):
        for scope, mask in masks.items():
            out[scope][m, rows] = macro_replicates(values, mask)
    return out


def _replicated(
    models: Sequence[ProductCounts], n_replicates: int, seed: int
) -> Iterator[tuple[int, slice, Floats]]:
    """Yield number of a model, replicates of a block, and the model's F1 in these."""
    _refuse_other_products(models)
    first = models[0]
    n_products, n_tags = first.positives.shape
    dtype = np.float32 if first.n_images < FLOAT32_IMAGES else np.float64
    start = 0
    for weights in replicate_weights(n_products, n_replicates, seed, n_tags):
        rows = slice(start, start + len(weights))
        # W (block, n_products) holds how often each product is drawn. F1 needs three sums over
        # images only, and a drawn sample's sums are W @ TP, W @ predicted and W @ positives.
        positives = np.matmul(weights, first.positives, dtype=dtype)  # the same for every model
        for m, model in enumerate(models):
            tp = np.matmul(weights, model.tp, dtype=dtype)
            predicted = np.matmul(weights, model.predicted, dtype=dtype)
            yield m, rows, f1(tp, predicted, positives)
        start = rows.stop


def _refuse_other_products(models: Sequence[ProductCounts]) -> None:
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
    inside = replicates[..., mask]
    defined = ~np.isnan(inside)
    total = np.where(defined, inside, 0.0).sum(axis=-1)
    count = defined.sum(axis=-1)
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)


def macro_f1(counts: ProductCounts, mask: NDArray[np.bool_]) -> float:
    """Macro-F1 over the tags of `mask` on the data as it is."""
    return float(macro_replicates(f1(*counts.totals()), mask))
