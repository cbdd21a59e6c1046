"""How many products of each size go to each part, so that the parts' sizes come out exact.

Solving this first, on the histogram of product sizes alone, frees the stratification from
arithmetic: it fills slots, and swaps between equal sizes never change a part's size.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from math import prod

import numpy as np
from numpy.typing import NDArray

# Above this many part-size tuples the joint search is given up for the sequential one.
MAX_STATES = 200_000


def allot(
    group_sizes: Sequence[int], counts: Sequence[int], sizes: Sequence[int]
) -> NDArray[np.int64]:
    """Slots by part and product size, with part sizes exact wherever they can be.

    Parameters
    ----------
    group_sizes : sequence of int
        Distinct product sizes in images.
    counts : sequence of int
        Number of products of each size.
    sizes : sequence of int
        Wanted size of each part in images; they sum to all images.

    Returns
    -------
    ndarray of int64, shape (n_parts, n_group_sizes)
        Columns sum to `counts`. Each size is spread over the parts about in proportion.

    Notes
    -----
    Parts are split off one at a time, the last first, each by a bounded subset sum whose
    reachable totals are the bits of one integer; a total out of reach is replaced by the nearest.
    With two parts that is exact. With more, an early choice may spoil a later part: then, where
    the number of states allows it, a joint search over all parts decides.
    """
    slots = _sequential(group_sizes, counts, sizes)
    if len(sizes) > 2 and (slots @ np.asarray(group_sizes, np.int64)).tolist() != list(sizes):
        joint = _joint(group_sizes, counts, sizes)
        return slots if joint is None else joint
    return slots


def _sequential(
    group_sizes: Sequence[int], counts: Sequence[int], sizes: Sequence[int]
) -> NDArray[np.int64]:
    left = np.array(counts, np.int64)
    slots = np.zeros((len(sizes), len(counts)), np.int64)
    for part in range(len(sizes) - 1, 0, -1):
        slots[part] = _subset(group_sizes, left, sizes[part])
        left -= slots[part]
    slots[0] = left
    return slots


def _subset(
    group_sizes: Sequence[int], counts: NDArray[np.int64], target: int
) -> NDArray[np.int64]:
    """Products of each size whose images sum to `target`, or as near as can be.

    Bit t of `reach[i]` tells whether the first i sizes can sum to t. Walking back takes of every
    size the share nearest to proportional that leaves a reachable rest.
    """
    total = int(np.dot(group_sizes, counts))
    reach = [1]
    for size, count in zip(group_sizes, counts.tolist(), strict=True):
        reach.append(_add(reach[-1], size, count))
    wanted = _nearest_bit(reach[-1], target, total)
    share = wanted / max(total, 1)
    taken = np.zeros(len(counts), np.int64)
    for i in range(len(counts) - 1, -1, -1):
        fitting = (j for j in _from_middle(counts[i] * share, int(counts[i])))
        rest = reach[i]
        taken[i] = next(
            j
            for j in fitting
            if wanted - j * group_sizes[i] >= 0 and rest >> (wanted - j * group_sizes[i]) & 1
        )
        wanted -= int(taken[i]) * group_sizes[i]
    return taken


def _add(reach: int, size: int, count: int) -> int:
    """Totals reachable with up to `count` more products of `size`, by binary doubling."""
    step = 1
    while count > 0:
        take = min(step, count)
        reach |= reach << (size * take)
        count -= take
        step *= 2
    return reach


def _nearest_bit(bits: int, target: int, top: int) -> int:
    """The set bit nearest to `target`; the lower of two."""
    for away in range(top + 1):
        for total in (target - away, target + away):
            if 0 <= total <= top and bits >> total & 1:
                return total
    return 0


def _from_middle(middle: float, top: int) -> list[int]:
    """0..top by distance from `middle`."""
    return sorted(range(top + 1), key=lambda j: (abs(j - middle), j))


def _joint(
    group_sizes: Sequence[int], counts: Sequence[int], sizes: Sequence[int]
) -> NDArray[np.int64] | None:
    """Search all parts at once; None if there is no exact answer or too many states."""
    rest = tuple(sizes[1:])
    if prod(s + 1 for s in rest) > MAX_STATES:
        return None
    levels: list[dict[tuple[int, ...], tuple[int, ...]]] = [{rest: ()}]
    work = 0
    for size, count in zip(group_sizes, counts, strict=True):
        level: dict[tuple[int, ...], tuple[int, ...]] = {}
        for state in levels[-1]:
            for take in product(*(range(min(count, r // size) + 1) for r in state)):
                work += 1
                if sum(take) <= count:
                    after = tuple(r - t * size for r, t in zip(state, take, strict=True))
                    level.setdefault(after, take)
            if work > 10 * MAX_STATES:
                return None
        levels.append(level)
    state = tuple(0 for _ in rest)
    if state not in levels[-1]:
        return None
    slots = np.zeros((len(sizes), len(counts)), np.int64)
    for i in range(len(counts) - 1, -1, -1):
        take = levels[i + 1][state]
        slots[1:, i] = take
        state = tuple(r + t * group_sizes[i] for r, t in zip(state, take, strict=True))
    slots[0] = np.asarray(counts) - slots[1:].sum(axis=0)
    return slots
