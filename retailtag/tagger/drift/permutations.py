"""Permutation of labels by group, and p-values that count all figures tested.

Each image is labelled reference or new. If both come from one distribution, the labels of the
groups (products) may be exchanged without changing anything: images of one product may not, since
they resemble each other. All tests of a report use the same permutations, so that their joint
distribution is known and no correction has to assume that they are independent.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.bool_]
Floats = NDArray[np.float64]


def permuted_labels(
    is_new: Labels, n: int, seed: int, strata: NDArray[np.intp] | None = None
) -> Labels:
    """Labels of the groups (1 + n, n_groups): as observed, then `n` permutations of them.

    Labels are exchanged within `strata` (n_groups,) only; by default there is one.
    """
    rng = np.random.default_rng(seed)
    labels = np.repeat(is_new[None], n + 1, axis=0)
    strata = np.zeros(len(is_new), np.intp) if strata is None else strata
    for stratum in np.unique(strata):
        own = np.flatnonzero(strata == stratum)
        labels[1:, own] = rng.permuted(labels[1:, own], axis=1)
    return labels


def p_values(statistics: Floats) -> Floats:
    """P of every row (n_rows, ...) among all rows of its column; large statistics are extreme.

    The observed labels are one of those that could have been drawn: p is never 0, and
    P(p <= a) <= a where labels are exchangeable (Phipson and Smyth, 2010).

    Examples
    --------
    >>> p_values(np.array([3.0, 1.0, 2.0, 2.0])).tolist()
    [0.25, 1.0, 0.75, 0.75]
    """
    flat = statistics.reshape(len(statistics), -1)
    found = np.empty_like(flat)
    for column, values in enumerate(flat.T):
        at_least = len(values) - np.searchsorted(np.sort(values), values, side="left")
        found[:, column] = at_least / len(values)
    return found.reshape(statistics.shape)


def adjusted_p(statistics: Floats) -> Floats:
    """P of each column (n_columns,) of the first row, adjusted for the number of columns.

    Parameters
    ----------
    statistics : ndarray of float64, shape (1 + n_permutations, n_columns)
        Comparable from column to column, large where extreme; the first row is observed.

    Notes
    -----
    The step-down maximum of Westfall and Young: Holm's procedure with the distribution of the
    maximum by permutation in place of Bonferroni's bound. It keeps the family-wise rate under any
    dependence of the columns, and its smallest p does not grow with their number.

    References
    ----------
    Westfall and Young, "Resampling-Based Multiple Testing", 1993, algorithm 2.8; Ge, Dudoit and
    Speed, "Resampling-based multiple testing for microarray data analysis", TEST 12, 2003.

    Examples
    --------
    >>> adjusted_p(np.array([[5.0, 1.0], [2.0, 1.0], [1.0, 3.0], [0.0, 0.0]])).tolist()
    [0.25, 0.75]
    """
    order = np.argsort(-statistics[0], kind="stable")
    # the largest among a column and all less extreme ones
    ordered = statistics[:, order[::-1]]
    largest = np.maximum.accumulate(ordered, axis=1)[:, ::-1]
    raw = (largest >= largest[0]).mean(axis=0)
    found = np.empty(len(order))
    found[order] = np.maximum.accumulate(raw)
    return found


def standardised(statistics: Floats) -> Floats:
    """Columns with mean 0 and standard deviation 1 over the permutations; constant ones are 0.

    All rows, the observed one too, take part, as an exact test demands.
    """
    spread = statistics.std(axis=0)
    centred = statistics - statistics.mean(axis=0)
    return np.divide(centred, spread, out=np.zeros_like(centred), where=spread > 1e-12)
