"""How many products of each size go to each fold, so that folds get the images they should.

Solved first, from the histogram of product sizes alone. The stratification then fills these slots,
and exchanging two products of one size never changes the size of a fold.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray


def allot(
    product_sizes: Sequence[int], counts: Sequence[int], fold_sizes: Sequence[int]
) -> NDArray[np.int64]:
    """Products of each size for each fold (n_folds, n_product_sizes), about in proportion.

    `product_sizes` are distinct sizes in images, `counts` the number of products of each; the
    wanted `fold_sizes`, in images, sum to all images.

    Folds are split off one at a time, the last first. Each gets the size that is nearest to the
    wanted one among those that the remaining products can sum to, so two folds are as exact as
    whole products allow. With more folds, an early choice may cost a later fold a few images.
    """
    left = np.array(counts, np.int64)
    slots = np.zeros((len(fold_sizes), len(counts)), np.int64)
    for fold in range(len(fold_sizes) - 1, 0, -1):
        slots[fold] = _subset(product_sizes, left, fold_sizes[fold])
        left -= slots[fold]
    slots[0] = left
    return slots


def _subset(
    product_sizes: Sequence[int], counts: NDArray[np.int64], target: int
) -> NDArray[np.int64]:
    """Products of each size whose images sum to `target`, or as near to it as possible."""
    total = int(np.dot(product_sizes, counts))
    # A set of totals is one integer: bit t of reachable[i] is set if products of the first i
    # sizes can sum to t. Adding one product of size s is then reach | reach << s.
    reachable = [1]
    for size, count in zip(product_sizes, counts.tolist(), strict=True):
        reachable.append(_add(reachable[-1], size, count))
    rest = _nearest_bit(reachable[-1], target, total)
    share = rest / max(total, 1)
    taken = np.zeros(len(counts), np.int64)
    # Walk back from the largest size. The invariant is that `rest` stays reachable with the
    # sizes not yet visited; of the numbers that keep it, take the one nearest to proportional.
    for i in range(len(counts) - 1, -1, -1):
        size = product_sizes[i]
        middle = counts[i] * share
        taken[i] = next(
            j
            for j in _outward(middle, int(counts[i]))
            if rest >= j * size and reachable[i] >> (rest - j * size) & 1
        )
        rest -= int(taken[i]) * size
    return taken


def _outward(middle: float, most: int) -> Iterator[int]:
    """The numbers from 0 to `most`, the nearest to `middle` first, the lower of two as near."""
    below = min(math.floor(middle), most)
    above = below + 1
    while below >= 0 or above <= most:
        if above > most or (below >= 0 and middle - below <= above - middle):
            yield below
            below -= 1
        else:
            yield above
            above += 1


def _add(reachable: int, size: int, count: int) -> int:
    """Totals that are reachable with up to `count` more products of `size`."""
    # Binary doubling: steps of 1, 2, 4, ... products and a last one combine to every number
    # from 0 to `count`, with log2(count) shifts in place of `count`.
    step = 1
    while count > 0:
        take = min(step, count)
        reachable |= reachable << (size * take)
        count -= take
        step *= 2
    return reachable


def _nearest_bit(bits: int, target: int, top: int) -> int:
    """The set bit nearest to `target`, the lower of two equally near."""
    for distance in range(top + 1):
        for total in (target - distance, target + distance):
            if 0 <= total <= top and bits >> total & 1:
                return total
    return 0
