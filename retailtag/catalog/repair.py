"""Exchanges of products between folds that give a tag the positive image it lacks in one of them.

Arrays here are products x tags: ``has[p, t]`` says whether any image of product p carries tag t.
Every exchange moves equal numbers of images both ways, so that the folds keep their sizes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

MAX_CANDIDATES = 2000  # products considered for one exchange
MAX_DONORS = 32  # products of a tag tried before the tag is given up
MAX_CELLS = 10**10  # products x tags looked at in all: ten seconds or so
MAX_ASSIGNMENTS = 1 << 14  # of products to folds that `search_all` looks at: 14 products, 2 folds

Exchange = tuple[list[int], list[int]]  # products that go to the fold, products that come back


class Repair:
    """Local search for exchanges that give a tag its positive and cost no other tag one.

    ``size[p]`` is the number of images of product p, ``fold[p]`` its fold, changed in place;
    ``required[k, t]`` says whether tag t must have a positive in fold k. `rng` decides which
    products are tried first.
    """

    def __init__(
        self,
        has: NDArray[np.bool_],
        size: NDArray[np.int64],
        fold: NDArray[np.int64],
        required: NDArray[np.bool_],
        rng: np.random.Generator,
    ) -> None:
        self.has = has
        self.size = size
        self.fold = fold
        self.required = required
        self.rng = rng
        self.alike = len(size) <= MAX_CANDIDATES and bool((size == size[:1]).all())
        self.cells = 0  # products x tags that were looked at
        # (n_folds, n_tags): products of each tag in each fold, updated with every exchange.
        self.cover = np.stack([has[fold == k].sum(axis=0) for k in range(len(required))])

    def run(self) -> int:
        """Exchange products until no pair of fold and tag can be repaired; how many are left.

        The search also ends after `MAX_CELLS`: of thousands of rare tags most cannot be repaired,
        and each exchange would try all of them again.
        """
        # Every exchange lowers the number of missing pairs, so the search ends. A pair that
        # could not be repaired is tried again after an exchange, which may have freed a product.
        missing = self._missing()
        while self.cells < MAX_CELLS and any(self._give(*pair) for pair in missing):
            missing = self._missing()
        return len(missing)

    def _missing(self) -> list[tuple[int, int]]:
        """Pairs of fold and tag without a positive, the rarest tag first."""
        fold, tag = np.nonzero(self.required & (self.cover == 0))
        order = np.argsort(self.cover.sum(axis=0)[tag], kind="stable")
        return list(zip(fold[order].tolist(), tag[order].tolist(), strict=True))

    def _give(self, to: int, tag: int) -> bool:
        """Move one product of `tag` into fold `to`; whether that was possible."""
        if self.cells >= MAX_CELLS:
            return False
        donors = np.flatnonzero(self.has[:, tag] & (self.fold != to))
        for donor in self.rng.permutation(donors)[:MAX_DONORS].tolist():
            source = int(self.fold[donor])
            exchange = self._one_for_one(donor, source, to) or self._several(donor, source, to)
            if exchange is not None:
                self._move(exchange[0], source, to)
                self._move(exchange[1], to, source)
                return True
        return False

    def _one_for_one(self, donor: int, source: int, to: int) -> Exchange | None:
        """Exchange `donor` for a product of its size if fewer pairs are missing afterwards."""
        others = np.flatnonzero((self.fold == to) & (self.size == self.size[donor]))
        others = self._some(others)
        if not len(others):
            return None
        mine = self.has[donor]
        cover_to = self.cover[to] + mine
        cover_source = self.cover[source] - mine
        # The product that comes back takes the last positive of the tags in `last` out of `to`,
        # and gives a positive to the tags in `bare`, of which `source` has none left.
        last = self.required[to] & (cover_to == 1)
        bare = self.required[source] & (cover_source == 0)
        missing = (
            np.count_nonzero(self.required[to] & (cover_to == 0))
            + np.count_nonzero(bare)
            + self._has(others) @ (last - bare.astype(np.float32))
        )
        now = (self.required[[to, source]] & (self.cover[[to, source]] == 0)).sum()
        best = int(np.argmin(missing))
        return ([donor], [int(others[best])]) if missing[best] < now else None

    def _several(self, donor: int, source: int, to: int) -> Exchange | None:
        """Exchange `donor` for several smaller products, or it and others for a larger one."""
        mine = self.has[donor]
        cover_to = self.cover[to] + mine
        cover_source = self.cover[source] - mine
        if (self.required[source] & (cover_source == 0) & mine).any():
            return None
        back = self._fill(to, int(self.size[donor]), cover_to, donor)
        if back is not None:
            return [donor], back
        larger = np.flatnonzero((self.fold == to) & (self.size > self.size[donor]))
        for other in self._some(larger)[:MAX_DONORS].tolist():
            if not self._needs(to, other, cover_to):
                gap = int(self.size[other] - self.size[donor])
                more = self._fill(source, gap, cover_source + self.has[other], donor)
                if more is not None:
                    return [donor, *more], [other]
        return None

    def _fill(
        self, fold: int, n_images: int, cover: NDArray[np.int64], excluded: int
    ) -> list[int] | None:
        """Products that `fold` can spare and that sum to `n_images`, large ones first."""
        pool = self._some(np.flatnonzero((self.fold == fold) & (self.size <= n_images)))
        if self.alike:
            return None  # what could be exchanged for one product `_one_for_one` has seen
        pool = pool[np.argsort(-self.size[pool], kind="stable")]
        chosen: list[int] = []
        while len(pool):
            last = self.required[fold] & (cover == 1)
            spare = self._has(pool) @ last.astype(np.float32) == 0
            spare &= (pool != excluded) & (self.size[pool] <= n_images)
            at = int(np.argmax(spare))
            if not spare[at]:
                return None
            chosen.append(int(pool[at]))
            cover = cover - self.has[pool[at]]
            n_images -= int(self.size[pool[at]])
            if n_images == 0:
                return chosen
            pool = pool[at + 1 :]
        return None

    def _needs(self, fold: int, product: int, cover: NDArray[np.int64]) -> bool:
        """Whether `product` holds the last positive of a tag that `fold` must have."""
        return bool((self.required[fold] & (cover == 1) & self.has[product]).any())

    def _has(self, products: NDArray[np.intp]) -> NDArray[np.float32]:
        """Whether products carry tags, as numbers for a product of matrices (exact)."""
        self.cells += len(products) * self.has.shape[1]
        return self.has[products].astype(np.float32)

    def _some(self, products: NDArray[np.intp]) -> NDArray[np.intp]:
        return self.rng.permutation(products)[:MAX_CANDIDATES]

    def _move(self, products: list[int], source: int, to: int) -> None:
        gained = self.has[products].sum(axis=0)
        self.cover[source] -= gained
        self.cover[to] += gained
        self.fold[products] = to


def search_all(
    has: NDArray[np.bool_],
    size: NDArray[np.int64],
    fold: NDArray[np.int64],
    required: NDArray[np.bool_],
) -> NDArray[np.int64]:
    """The assignment of the same fold sizes with the fewest missing pairs of fold and tag.

    Parameters are those of `Repair`. Of equals it moves the fewest products; above
    `MAX_ASSIGNMENTS` it is `fold` unchanged.
    """
    n_folds = len(required)
    n_products = len(size)
    if n_folds**n_products > MAX_ASSIGNMENTS:
        return fold
    every = np.indices((n_folds,) * n_products).reshape(n_products, -1).T
    for k in range(n_folds):
        every = every[(every == k) @ size == size[fold == k].sum()]
    missing = np.zeros(len(every), np.int64)
    for k in range(n_folds):
        cover = (every == k).astype(np.int64) @ has[:, required[k]].astype(np.int64)
        missing += (cover == 0).sum(axis=1)
    return every[np.lexsort(((every != fold).sum(axis=1), missing))[0]]
