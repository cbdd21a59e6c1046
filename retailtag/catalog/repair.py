"""Swaps between the parts of a split that give a tag the positive it misses.

Axes here are products x tags: ``has[p, t]`` says whether any image of product p carries tag t.
Every move exchanges equal numbers of images, so that the parts keep their sizes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

CANDIDATES = 2000  # products looked at for one swap
DONORS = 32  # products of a tag tried before the tag is given up
FEW = 1 << 14  # assignments that are simply all looked at

Swap = tuple[list[int], list[int]]


class Repair:
    """Search for swaps that give a tag its missing positive and cost no other tag one.

    Parameters
    ----------
    has : ndarray of bool, shape (n_products, n_tags)
        Which product carries which tag.
    size : ndarray of int64, shape (n_products,)
        Images of each product.
    part : ndarray of int64, shape (n_products,)
        Part of each product; changed in place.
    required : ndarray of bool, shape (n_parts, n_tags)
        Whether the tag must have a positive in the part.
    rng : numpy.random.Generator
        Decides which products are looked at first.
    """

    def __init__(
        self,
        has: NDArray[np.bool_],
        size: NDArray[np.int64],
        part: NDArray[np.int64],
        required: NDArray[np.bool_],
        rng: np.random.Generator,
    ) -> None:
        self.has, self.size = has, size
        self.part, self.required, self.rng = part, required, rng
        self.cover = np.stack([has[part == k].sum(axis=0) for k in range(len(required))])

    def run(self) -> bool:
        """Mend until nothing more can be; whether no tag misses a part any more."""
        hopeless: set[tuple[int, int]] = set()
        while missing := self._missing():
            open_ = next((m for m in missing if m not in hopeless), None)
            if open_ is None:
                return False
            if self._mend(*open_):
                hopeless.clear()
            else:
                hopeless.add(open_)
        return True

    def _missing(self) -> list[tuple[int, int]]:
        """(part, tag) pairs without a positive, the rarest tag first."""
        part, tag = np.nonzero(self.required & (self.cover == 0))
        order = np.argsort(self.cover.sum(axis=0)[tag], kind="stable")
        return list(zip(part[order].tolist(), tag[order].tolist(), strict=True))

    def _mend(self, to: int, tag: int) -> bool:
        """Bring one product of `tag` into part `to`; whether that could be done."""
        donors = np.flatnonzero(self.has[:, tag] & (self.part != to))
        for donor in self.rng.permutation(donors)[:DONORS].tolist():
            source = int(self.part[donor])
            swap = self._equal(donor, source, to) or self._unequal(donor, source, to)
            if swap is not None:
                self._move(swap[0], source, to)
                self._move(swap[1], to, source)
                return True
        return False

    def _equal(self, donor: int, source: int, to: int) -> Swap | None:
        """Exchange `donor` for a product of its size, if fewer tags are missing afterwards."""
        others = np.flatnonzero((self.part == to) & (self.size == self.size[donor]))
        others = self._some(others)
        if not len(others):
            return None
        mine = self.has[donor]
        after_to, after_source = self.cover[to] + mine, self.cover[source] - mine
        # Leaving `to`, a product takes the last positive of these tags; entering `source`, it
        # gives one to those.
        last = self.required[to] & (after_to == 1)
        bare = self.required[source] & (after_source == 0)
        missing = (
            (self.required[to] & (after_to == 0)).sum()
            + self.has[others][:, last].sum(axis=1)
            + (~self.has[others][:, bare]).sum(axis=1)
        )
        now = (self.required[[to, source]] & (self.cover[[to, source]] == 0)).sum()
        best = int(np.argmin(missing))
        return ([donor], [int(others[best])]) if missing[best] < now else None

    def _unequal(self, donor: int, source: int, to: int) -> Swap | None:
        """Exchange `donor` for several smaller products, or it and others for a larger one."""
        mine = self.has[donor]
        cover_to, cover_source = self.cover[to] + mine, self.cover[source] - mine
        if (self.required[source] & (cover_source == 0) & mine).any():
            return None
        back = self._fill(to, int(self.size[donor]), cover_to, donor)
        if back is not None:
            return [donor], back
        larger = np.flatnonzero((self.part == to) & (self.size > self.size[donor]))
        for other in self._some(larger)[:DONORS].tolist():
            if not self._needs(to, other, cover_to):
                gap = int(self.size[other] - self.size[donor])
                more = self._fill(source, gap, cover_source + self.has[other], donor)
                if more is not None:
                    return [donor, *more], [other]
        return None

    def _fill(self, part: int, amount: int, cover: NDArray[np.int64], but: int) -> list[int] | None:
        """Products that `part` can spare and that sum to `amount` images, large ones first."""
        pool = self._some(np.flatnonzero((self.part == part) & (self.size <= amount)))
        chosen: list[int] = []
        for product in pool[np.argsort(-self.size[pool], kind="stable")].tolist():
            fits = product != but and self.size[product] <= amount
            if fits and not self._needs(part, product, cover):
                chosen.append(product)
                cover = cover - self.has[product]
                amount -= int(self.size[product])
            if amount == 0:
                return chosen
        return None

    def _needs(self, part: int, product: int, cover: NDArray[np.int64]) -> bool:
        """Whether `product` holds the last positive of a tag that `part` must have."""
        return bool((self.required[part] & (cover == 1) & self.has[product]).any())

    def _some(self, products: NDArray[np.intp]) -> NDArray[np.intp]:
        return self.rng.permutation(products)[:CANDIDATES]

    def _move(self, moved: list[int], source: int, to: int) -> None:
        gained = self.has[moved].sum(axis=0)
        self.cover[source] -= gained
        self.cover[to] += gained
        self.part[moved] = to


def exhaustive(
    has: NDArray[np.bool_],
    size: NDArray[np.int64],
    part: NDArray[np.int64],
    required: NDArray[np.bool_],
) -> NDArray[np.int64]:
    """The assignment of the same part sizes with the fewest missing pairs; `part` if too many.

    Parameters are those of `Repair`. Of equals it is the one that moves the fewest products.
    """
    n_parts, n_products = len(required), len(size)
    if n_parts**n_products > FEW:
        return part
    every = np.indices((n_parts,) * n_products).reshape(n_products, -1).T
    wanted = [size[part == k].sum() for k in range(n_parts)]
    for k in range(n_parts):
        every = every[(every == k) @ size == wanted[k]]
    missing = np.zeros(len(every), np.int64)
    for k in range(n_parts):
        cover = (every == k).astype(np.int64) @ has[:, required[k]].astype(np.int64)
        missing += (cover == 0).sum(axis=1)
    best = np.lexsort(((every != part).sum(axis=1), missing))[0]
    return every[best]
