"""Stratified folds of multi-tag images that keep products whole."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retailtag.catalog.allotment import allot
from retailtag.catalog.repair import Repair, search_all
from retailtag.catalog.table import POSITIVE
from retailtag.errors import DataError, UsageError, named


@dataclass(frozen=True, eq=False)
class Assignment:
    """Which fold each image is in, and what was asked for but is not possible."""

    fold: NDArray[np.int64]  # (n_images,), index into the sizes asked for
    unsatisfied: tuple[str, ...]  # a sentence for each wrong size, each tag that a fold lacks
    summary: tuple[str, ...] = ()  # the same with one sentence for all tags of a kind


def stratified_folds(
    labels: NDArray[np.int8],
    groups: NDArray[np.str_],
    ids: NDArray[np.str_],
    sizes: Sequence[int],
    seed: int,
    *,
    tags: Sequence[str] | None = None,
    names: Sequence[str] | None = None,
) -> Assignment:
    """Folds of given sizes with every tag spread over them and no product separated.

    `labels` (n_images, n_tags) are 1, 0 or -1, and only positives are stratified; `groups`
    (n_images,) is the product of each image; `ids` are unique and order the products, so that the
    order of the rows does not matter. `sizes` are the images wanted in each fold, the training fold
    first and the held-out fold last; `seed` decides between equals; `tags` and `names` name tags
    and folds in `Assignment.unsatisfied`.

    Two folds are as near to their sizes as whole products allow (see
    `retailtag.catalog.allotment.allot`). A tag of at least as many products as folds has a
    positive in every fold, a tag of at least two products in the first and the last fold, as far
    as the repair reaches; the rest is in `Assignment.unsatisfied`.

    Raises
    ------
    DataError
        If shapes disagree, an id repeats, or `sizes` do not sum to the images.

    Notes
    -----
    Iterative stratification over whole products [1]_: the rarest tag first, each of its products
    to the fold that lacks this tag most. The lack is relative to the fold's size (the paper takes
    it absolute): the slots of large products run out, and the fold served last would otherwise
    get what remains. On 3,000 long-tailed images this lowers the mean error of a tag's test count
    from 0.9 to 0.3 images. A repair step then exchanges products for tags that lack a positive in
    a fold. The best repair is as hard as set splitting, hence a local search; a handful of
    products is searched completely.

    References
    ----------
    .. [1] Sechidis, Tsoumakas and Vlahavas, "On the stratification of multi-label data", ECML
       PKDD 2011.
    """
    products = _Products.build(labels, groups, ids)
    if sum(sizes) != len(ids) or min(sizes, default=0) < 0:
        raise DataError(f"Fold sizes {list(sizes)} do not sum to {len(ids)} images.")
    rng = np.random.default_rng(seed)
    required = _required(products.has.sum(axis=0), sizes)
    fold = _stratify(products, sizes, rng)
    if Repair(products.has, products.size, fold, required, rng).run() > 0:
        fold = search_all(products.has, products.size, fold, required)
    tags = tags or [str(t) for t in range(labels.shape[1])]
    names = names or [str(k) for k in range(len(sizes))]
    wrong = _wrong_sizes(products, fold, sizes, names)
    missing = _missing_tags(products, fold, required, tags, names)
    return Assignment(
        fold[products.of_image],
        (*wrong, *(f"tag '{tag}' {what}" for found in missing.values() for tag, what in found)),
        (*wrong, *itertools.starmap(_one_line, missing.items())),
    )


def k_folds(
    labels: NDArray[np.int8],
    groups: NDArray[np.str_],
    ids: NDArray[np.str_],
    k: int,
    seed: int,
) -> NDArray[np.int64]:
    """Fold (n_images,) of each image: `k` stratified folds of nearly equal size.

    Parameters are those of `stratified_folds`; raises `UsageError` if `k` is below 2 or above the
    number of products.
    """
    n = len(ids)
    n_products = len(np.unique(groups))
    if not 2 <= k <= n_products:
        raise UsageError(f"{k} folds of {n_products} products: choose from 2 to {n_products}.")
    sizes = [n // k + (fold < n % k) for fold in range(k)]
    return stratified_folds(labels, groups, ids, sizes, seed).fold


@dataclass(frozen=True, eq=False)
class _Products:
    """Products in canonical order, and the tags on their images."""

    of_image: NDArray[np.intp]  # (n_images,), product of each image
    size: NDArray[np.int64]  # (n_products,), in images
    has: NDArray[np.bool_]  # (n_products, n_tags), whether any of its images carries the tag
    tag: NDArray[np.intp]  # (n_cells,), the tags of one product after those of the other
    count: NDArray[np.float64]  # (n_cells,), images of the product with that tag
    start: NDArray[np.intp]  # (n_products + 1,), where the cells of each product start

    @classmethod
    def build(
        cls, labels: NDArray[np.int8], groups: NDArray[np.str_], ids: NDArray[np.str_]
    ) -> _Products:
        """Gather images by product; raises `DataError` if shapes differ or an id repeats."""
        n = len(ids)
        if labels.shape[:1] != (n,) or groups.shape != (n,):
            raise DataError("A split needs one row of labels and one group per image id.")
        if len(np.unique(ids)) != n:
            raise DataError("An image id appears twice; a split needs unique ids.")
        order = np.argsort(ids, kind="stable")
        _, first, code = np.unique(groups[order], return_index=True, return_inverse=True)
        # Products in the order of their smallest id: neither rows nor product names matter.
        rank = np.empty(len(first), np.intp)
        rank[np.argsort(first)] = np.arange(len(first))
        of_image = np.empty(n, np.intp)
        of_image[order] = rank[code]
        # One number per (product, tag) cell, so that one sort counts the images of every cell.
        n_tags = labels.shape[1]
        image, tag = np.nonzero(labels == POSITIVE)
        cell, count = np.unique(of_image[image] * n_tags + tag, return_counts=True)
        product, tag = np.divmod(cell, max(n_tags, 1))
        has = np.zeros((len(first), n_tags), bool)
        has[product, tag] = True
        return cls(
            of_image,
            np.bincount(of_image, minlength=len(first)),
            has,
            tag,
            count.astype(np.float64),
            np.searchsorted(product, np.arange(len(first) + 1)),
        )


def _stratify(
    products: _Products, sizes: Sequence[int], rng: np.random.Generator
) -> NDArray[np.int64]:
    """Fold of each product (n_products,), by iterative stratification within `allot`'s slots."""
    product_sizes, kind, counts = np.unique(products.size, return_inverse=True, return_counts=True)
    slots = allot(product_sizes.tolist(), counts.tolist(), sizes)
    n_tags = products.has.shape[1]
    total = np.bincount(products.tag, products.count, n_tags)
    share = np.maximum(sizes, 1e-9) / max(sum(sizes), 1)
    # wanted[k, t]: images of tag t that fold k still lacks of its share, negative above it.
    # Divided by the share it compares folds of different sizes: a fold at 50 % of its share of
    # the tag comes before one at 80 %.
    wanted = share[:, None] * total
    left = products.has.sum(axis=0)  # products of each tag without a fold
    fold = np.full(len(products.size), -1, np.int64)
    # Large products first: they are the hardest to place. The shuffle decides between equals.
    order = rng.permutation(len(fold))
    order = order[np.argsort(-products.size[order], kind="stable")]
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    while (left > 0).any():
        tag = int(np.argmin(np.where(left > 0, left, np.iinfo(np.int64).max)))
        waiting = np.flatnonzero(products.has[:, tag] & (fold < 0))
        for product in waiting[np.argsort(rank[waiting])]:
            chosen = _most_lacking(wanted[:, tag] / share, slots[:, kind[product]])
            fold[product] = chosen
            slots[chosen, kind[product]] -= 1
            cells = slice(products.start[product], products.start[product + 1])
            wanted[chosen, products.tag[cells]] -= products.count[cells]
            left[products.tag[cells]] -= 1
    # Products without any tag fill the slots that remain.
    for size in range(len(product_sizes)):
        waiting = order[(fold[order] < 0) & (kind[order] == size)]
        fold[waiting] = np.repeat(np.arange(len(sizes)), slots[:, size])
    return fold


def _most_lacking(lack: NDArray[np.float64], slots: NDArray[np.int64]) -> int:
    """The fold with a free slot that lacks the tag most; of equals the one with most slots."""
    best = -1
    best_key = (-np.inf, -1)
    for k, key in enumerate(zip(lack.tolist(), slots.tolist(), strict=True)):
        if key[1] and key > best_key:
            best = k
            best_key = key
    return best


def _required(n_products: NDArray[np.int64], sizes: Sequence[int]) -> NDArray[np.bool_]:
    """Whether a tag must have a positive in a fold, (n_folds, n_tags)."""
    filled = [k for k, size in enumerate(sizes) if size]
    required = np.zeros((len(sizes), len(n_products)), bool)
    if len(filled) > 1:
        required[filled] = n_products >= len(filled)
        # A tag of few products is of use only if it can be both learnt and scored.
        required[[filled[0], filled[-1]]] |= n_products >= 2
    return required


def _wrong_sizes(
    products: _Products, fold: NDArray[np.int64], sizes: Sequence[int], names: Sequence[str]
) -> list[str]:
    """A sentence about each fold of another size than asked for."""
    got = [int(products.size[fold == k].sum()) for k in range(len(sizes))]
    return [
        f"{names[k]} has {got[k]} images instead of {wanted}: no combination of whole products "
        "was found that gives this size"
        for k, wanted in enumerate(sizes)
        if got[k] != wanted
    ]


def _missing_tags(
    products: _Products,
    fold: NDArray[np.int64],
    required: NDArray[np.bool_],
    tags: Sequence[str],
    names: Sequence[str],
) -> dict[str, list[tuple[str, str]]]:
    """Tags without a positive in a fold, and what to say of each, by what they have in common."""
    found: dict[str, list[tuple[str, str]]] = {}
    n_products = products.has.sum(axis=0)
    for t in np.flatnonzero(n_products == 1).tolist():
        only = names[fold[np.flatnonzero(products.has[:, t])[0]]]
        kind = f"a single product and are in {only} alone"
        what = f"has a single product, so it is in {only} alone"
        found.setdefault(kind, []).append((tags[t], what))
    for k in range(len(required)):
        covered = products.has[fold == k].any(axis=0)
        for t in np.flatnonzero(required[k] & ~covered).tolist():
            what = f"({n_products[t]} products) has no positive in {names[k]}"
            found.setdefault(f"no positive in {names[k]}", []).append((tags[t], what))
    return found


def _one_line(kind: str, found: list[tuple[str, str]]) -> str:
    """One sentence about all tags of a kind."""
    if len(found) == 1:
        return f"tag '{found[0][0]}' {found[0][1]}"
    return f"{len(found)} tags have {kind} ({named([tag for tag, _ in found])})"
