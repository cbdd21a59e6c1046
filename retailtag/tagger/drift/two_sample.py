"""Two-sample statistics of every permutation of the labels.

Labels are True for new: ``labels`` (n_rows, n_groups) as `permuted_labels` gives them, or
``by_image`` (n_images, n_rows). The first of what is returned is observed.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import xlogy

from retailtag.tagger.drift.permutations import Floats, Labels, standardised

Codes = NDArray[np.intp]
Float32 = NDArray[np.float32]

BANDWIDTH_IMAGES = 1000  # whose distances the median is taken of
NEIGHBOURS = 5
NOVEL = 0.05  # share of the reference that is called novel


def squared_distances(X: Float32) -> Float32:
    """Squared distances (n, n) of rows whose columns are standardised first.

    Mean and spread are those of all rows together, so that a permutation changes nothing.
    """
    spread = X.std(axis=0, dtype=np.float64)
    centred = X - X.mean(axis=0, dtype=np.float64)
    scaled = np.divide(centred, spread, out=np.zeros_like(centred), where=spread > 1e-12)
    Z = scaled.astype(np.float32)
    norms = (Z * Z).sum(axis=1)
    distances = norms[:, None] + norms - 2 * (Z @ Z.T)
    return np.maximum(distances, 0, out=distances)


def median_distance(squared: Float32, group: Codes) -> float:
    """Median distance of images of different groups, 1 if all are alike."""
    step = max(len(squared) // BANDWIDTH_IMAGES, 1)
    some = squared[::step, ::step]
    codes = group[::step]
    between = some[codes[:, None] != codes]
    median = float(np.sqrt(np.median(between))) if len(between) else 0.0
    return median or 1.0


def gaussian_kernel(squared: Float32, bandwidth: float, group: Codes) -> Float32:
    """exp(-d^2 / (2 bandwidth^2)) of images of different groups, 0 within a group."""
    kernel: Float32 = np.exp(squared * np.float32(-0.5 / bandwidth**2))
    kernel[group[:, None] == group] = 0
    return kernel


def mmd2(kernel: Float32, group: Codes, labels: Labels) -> Floats:
    r"""Unbiased squared maximum mean discrepancy (n_rows,) of images of different groups.

    Parameters
    ----------
    kernel : ndarray of float32, shape (n_images, n_images)
        0 within a group.
    group : ndarray of int, shape (n_images,)
        From 0, one per column of `labels`.
    labels : ndarray of bool, shape (n_rows, n_groups)

    Notes
    -----
    With r and s the images of the reference and the new ones,

    .. math:: \overline{k(r, r')} + \overline{k(s, s')} - 2 \overline{k(r, s)}

    over pairs of different groups. Photographs of one product resemble each other, and would be a
    difference that is none.

    References
    ----------
    Gretton et al., "A kernel two-sample test", JMLR 13, 2012.
    """
    n_groups = labels.shape[1]
    sizes = np.bincount(group, minlength=n_groups).astype(np.float64)
    # sums of the kernel between groups, (n_groups, n_groups)
    order = np.argsort(group, kind="stable")
    if len(order) == n_groups:
        between = kernel[order][:, order]
    else:
        starts = np.searchsorted(group[order], np.arange(n_groups))
        by_row = np.add.reduceat(kernel[order], starts, axis=0)
        between = np.add.reduceat(by_row[:, order], starts, axis=1)
    new = labels.astype(np.float32)
    to_new = (new @ between).astype(np.float64)  # (n_rows, n_groups): with the new images
    inside = (to_new * new).sum(axis=1)
    across = to_new.sum(axis=1) - inside
    outside = float(between.sum(dtype=np.float64)) - inside - 2 * across
    n_new, squares = new @ sizes, new @ sizes**2
    n_reference = sizes.sum() - n_new
    pairs_new = np.maximum(n_new**2 - squares, 1)
    pairs_reference = np.maximum(n_reference**2 - ((sizes**2).sum() - squares), 1)
    return inside / pairs_new + outside / pairs_reference - 2 * across / (n_new * n_reference)


def witness(kernel: Float32, is_new: Labels, half: Labels) -> Floats:
    """Mean kernel with new images less that with the reference, of the other half, (n_images,).

    The function whose means MMD compares, fitted on one half of the images for the other. `is_new`
    and `half` are by image.
    """
    found = np.zeros(len(is_new))
    for side in (False, True):
        own = half == side
        means = [
            kernel[np.ix_(own, ~own & (is_new == label))].mean(axis=1, dtype=np.float64)
            for label in (True, False)
        ]
        found[own] = means[0] - means[1]
    return found


def kolmogorov_smirnov(values: Floats, by_image: Labels) -> Floats:
    """Largest gap of the two distribution functions (n_rows,); NaN values are left out.

    Parameters
    ----------
    values : ndarray of float64, shape (n_images,)
    by_image : ndarray of bool, shape (n_images, n_rows)
    """
    known = np.flatnonzero(~np.isnan(values))
    order = known[np.argsort(values[known], kind="stable")]
    ordered = values[order]
    if not len(ordered):
        return np.zeros(by_image.shape[1])
    ends = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True))  # of runs of equal values
    new = np.cumsum(by_image[order], axis=0, dtype=np.int32)
    n_new = new[-1].astype(np.float64)
    n_reference = len(order) - n_new
    at_ends = new[ends]
    # with s new ones among the first i: |s / n_new - (i - s) / n_reference|, brought to one product
    per_new = 1 / np.maximum(n_new, 1) + 1 / np.maximum(n_reference, 1)
    line = (ends + 1)[:, None] / np.maximum(n_reference, 1)
    gap = np.abs(at_ends * per_new - line).max(axis=0)
    # equal gaps must be equal numbers: ties count as extreme
    return np.where(n_new * n_reference > 0, gap.round(12), 0)


def deviance_root(cells: NDArray[np.bool_], group: Codes, labels: Labels) -> Floats:
    """How unlikely the counts of each column are if both rates are equal, (n_rows, n_columns).

    Parameters
    ----------
    cells : ndarray of bool, shape (n_images, n_columns)
    group : ndarray of int, shape (n_images,)
    labels : ndarray of bool, shape (n_rows, n_groups)

    Notes
    -----
    The root of the likelihood ratio's deviance, about the size of a standard normal deviate for
    rare columns too: a difference of rates over its standard deviation gives a single image of a
    rare tag more weight than its probability does. Where images of a group resemble each other the
    root spreads further, and is divided by its standard deviation over the permutations.
    """
    n_groups = labels.shape[1]
    counts = np.zeros((n_groups, cells.shape[1]), np.float32)
    np.add.at(counts, group, cells.astype(np.float32))
    sizes = np.bincount(group, minlength=n_groups).astype(np.float32)
    new = labels.astype(np.float32)
    hits = (new @ counts).astype(np.float64)
    n_new = (new @ sizes).astype(np.float64)[:, None]
    total, n = counts.sum(axis=0, dtype=np.float64), float(sizes.sum())
    observed = (hits, total - hits, n_new - hits, n - n_new - total + hits)
    rate = total / n
    expected = (rate * n_new, rate * (n - n_new), (1 - rate) * n_new, (1 - rate) * (n - n_new))
    deviance = sum(
        xlogy(o.clip(0), o.clip(1e-12) / np.maximum(e, 1e-12))
        for o, e in zip(observed, expected, strict=True)
    )
    root = np.sqrt(np.maximum(2 * np.asarray(deviance), 0))
    # the root without its sign has mean square 1 where counts are binomial
    spread = np.sqrt((root**2).mean(axis=0))
    return np.asarray(root / np.maximum(spread, 1))


def kinds_deviance(kinds: NDArray[np.str_], by_image: Labels) -> Floats:
    """Deviance of the table of kinds by label (n_rows,); labels (n_images, n_rows)."""
    n, n_new = len(kinds), by_image.sum(axis=0).astype(np.float64)
    found = np.zeros(by_image.shape[1])
    for kind in np.unique(kinds):
        own = kinds == kind
        new = by_image[own].sum(axis=0)
        for observed, size in ((new, n_new), (own.sum() - new, n - n_new)):
            expected = np.maximum(own.sum() * size / n, 1e-12)
            found += 2 * xlogy(observed, np.maximum(observed, 1e-12) / expected)
    return found


def nearest(squared: Float32, group: Codes, is_new: Labels) -> Floats:
    """Distance (n_images,) to the `NEIGHBOURS`-th nearest image of the reference.

    Images of the same group do not count: each image of the reference leaves out its own.
    """
    others = np.where(group[:, None] == group[~is_new], np.float32(np.inf), squared[:, ~is_new])
    k = min(NEIGHBOURS, others.shape[1])
    found = np.sqrt(np.partition(others, k - 1, axis=1)[:, k - 1].astype(np.float64))
    return np.asarray(np.where(np.isfinite(found), found, np.finfo(np.float32).max))


def outlying(distance: Floats, is_new: Labels) -> Floats:
    """Share of the reference that lies as far out as each new image (n_new,), never 0.

    A conformal p-value: uniform for an image of the reference's distribution.

    References
    ----------
    Vovk, Gammerman and Shafer, "Algorithmic Learning in a Random World", 2005; Bates et al.,
    "Testing for outliers with conformal p-values", Annals of Statistics 51, 2023.
    """
    reference = np.sort(distance[~is_new])
    as_far = len(reference) - np.searchsorted(reference, distance[is_new], side="left")
    return (1 + as_far) / (1 + len(reference))


def novelty(squared: Float32, group: Codes, by_image: Labels) -> Floats:
    """Mean of -log p over the new images (n_rows,), p as in `outlying` under each row's labels.

    Under every permutation the distances are those to the images that it calls reference, so that
    the test is exact. A few images far out weigh more than in a share beyond some quantile.
    Labels are (n_images, n_rows).
    """
    is_new = by_image[:, 0]
    found = np.zeros(by_image.shape[1])
    found[0] = -np.log(outlying(nearest(squared, group, is_new), is_new)).mean()
    neighbours, distances = _ordered(squared, group, float((~is_new).mean()))
    reference = ~by_image
    passed = np.zeros(by_image.shape, np.uint8)  # images of the reference met so far
    place = np.zeros(by_image.shape, np.uint16)  # of the last one counted among the neighbours
    for column in neighbours.T:
        np.add(passed, reference[column], out=passed, where=passed < NEIGHBOURS)
        place += passed < NEIGHBOURS
    # too few of the reference among the nearest, which chance hardly ever does
    np.minimum(place, neighbours.shape[1] - 1, out=place)
    rows = np.arange(len(group))
    for k in range(1, by_image.shape[1]):
        found[k] = -np.log(outlying(distances[rows, place[:, k]], by_image[:, k])).mean()
    return found


def _ordered(squared: Float32, group: Codes, share: float) -> tuple[Codes, Floats]:
    """Nearest images of other groups, and their distances, (n_images, n_nearest).

    As many as hold `NEIGHBOURS` of the reference under nearly every permutation: four standard
    deviations more than on average, and a few. Groups of several images spread the count.
    """
    largest = int(np.bincount(group).max())
    wanted = NEIGHBOURS + 4 * np.sqrt(NEIGHBOURS * min(largest, 4)) + 6
    n = min(int(np.ceil(wanted / max(share, 1e-3))), len(group) - 1)
    others = np.where(group[:, None] == group, np.float32(np.inf), squared)
    near = np.argpartition(others, n - 1, axis=1)[:, :n]
    distance = np.take_along_axis(others, near, axis=1)
    order = np.argsort(distance, axis=1, kind="stable")
    sorted_near = np.take_along_axis(near, order, axis=1)
    root = np.sqrt(np.take_along_axis(distance, order, axis=1).astype(np.float64))
    return sorted_near, np.where(np.isfinite(root), root, np.finfo(np.float32).max)


def combined(columns: list[Floats]) -> Floats:
    """Statistics of several figures (n_rows, n_figures), comparable with each other."""
    return standardised(np.stack(columns, axis=1))
