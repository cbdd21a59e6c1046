"""Compare new images with a reference: every test on the same permutations, one verdict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from retailtag.errors import UsageError
from retailtag.statistics.drift import (
    FAMILIES,
    DriftResult,
    Embeddings,
    Estimate,
    Family,
    Novelty,
    Shift,
    TagShift,
)
from retailtag.tagger.drift import two_sample
from retailtag.tagger.drift.effects import (
    halved_superiority,
    rate_estimates,
    rates,
    superiority,
    wilson,
)
from retailtag.tagger.drift.permutations import (
    Floats,
    Labels,
    adjusted_p,
    p_values,
    permuted_labels,
)
from retailtag.tagger.drift.properties import PROPERTIES
from retailtag.tagger.drift.remedies import remedies
from retailtag.tagger.drift.sample import CONFIDENCES, Sample

MIN_GROUPS = 6  # of either side, so that each half of one has a few
STRATUM_TAGS = 6  # moved tags, at most, whose images are compared among themselves
QUANTILES = (0.1, 0.5, 0.9)
BINS = 20  # of a histogram


@dataclass(frozen=True, eq=False)
class _Pooled:
    """Reference and new images below each other, with the permutations of their labels."""

    reference: Sample
    new: Sample
    labels: Labels  # (1 + n_permutations, n_groups)
    group: NDArray[np.intp]  # (n_images,); those of the reference come first

    @cached_property
    def by_image(self) -> Labels:
        """Labels (n_images, 1 + n_permutations)."""
        return np.ascontiguousarray(self.labels.T)[self.group]

    @property
    def is_new(self) -> Labels:
        """Observed labels (n_images,)."""
        return np.arange(len(self.group)) >= len(self.reference)

    def both(self, name: str) -> NDArray:
        """One array of the two samples, joined."""
        return np.concatenate([getattr(self.reference, name), getattr(self.new, name)])

    @cached_property
    def squared(self) -> NDArray[np.float32]:
        """Squared distances of standardised embeddings (n_images, n_images)."""
        return two_sample.squared_distances(self.both("embeddings"))

    @cached_property
    def bandwidth(self) -> float:
        return two_sample.median_distance(self.squared, self.group)

    @cached_property
    def kernel(self) -> NDArray[np.float32]:
        return two_sample.gaussian_kernel(self.squared, self.bandwidth, self.group)

    @property
    def codes(self) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        return self.reference.codes, self.new.codes


def compare(
    reference: Sample,
    new: Sample,
    tags: Sequence[str],
    *,
    alpha: float = 0.05,
    permutations: int = 999,
    seed: int = 0,
    described: str = "reference",
) -> DriftResult:
    """Whether `new` differs from `reference`, in what, and what to do.

    Parameters
    ----------
    reference, new : Sample
        Where the products of one side only are known, one image of each is compared.
    tags : sequence of str
        Columns of ``given``.
    alpha : float
        Rate of false alarms of the whole report.
    permutations : int
    seed : int
    described : str
        The reference in words.

    Notes
    -----
    Each family of `FAMILIES` has one p, adjusted for its figures by `adjusted_p`. The verdict is
    the smallest of them, adjusted for the families in the same way: the permutations give its
    distribution although the families depend on each other.

    Raises
    ------
    UsageError
        If a side has fewer than `MIN_GROUPS` products (or images).
    """
    pooled, notes = _pool(reference, new, permutations, seed)
    statistics = _statistics(pooled)
    within = {name: adjusted_p(columns) for name, columns in statistics.items()}
    # p of every row under every family: what their smallest is compared with
    tails = np.stack([p_values(statistics[name].max(axis=1)) for name in FAMILIES], axis=1)
    over = adjusted_p(-tails)
    families = tuple(
        Family(name, float(tails[0, k]), float(over[k]), bool(over[k] <= alpha))
        for k, name in enumerate(FAMILIES)
    )
    rates_moved = families[FAMILIES.index("tags")].has_drifted
    extreme = np.argsort(-statistics["tags"][0], kind="stable")
    moved = extreme[(within["tags"][extreme] <= alpha) & rates_moved]
    own = _confidences_and_properties(pooled, within)
    result = DriftResult(
        n_reference=len(pooled.reference),
        n_new=len(pooled.new),
        n_reference_groups=pooled.reference.n_groups,
        n_new_groups=pooled.new.n_groups,
        alpha=alpha,
        permutations=permutations,
        p=float(over.min()),
        families=families,
        embeddings=_embeddings(pooled, statistics["embeddings"], moved, seed),
        novelty=_novelty(pooled),
        confidences=own[0],
        properties=own[1],
        kinds=_kinds(pooled),
        kinds_p=float(within["properties"][-1]),
        tags=_tag_shifts(pooled, tags, within["tags"]),
        names=tuple(map(str, pooled.new.names)),
        reference=described,
        notes=tuple(notes),
    )
    return replace(result, remedies=remedies(result))


def _pool(
    reference: Sample, new: Sample, permutations: int, seed: int
) -> tuple[_Pooled, list[str]]:
    """Both samples with permuted labels, and notes on how they were made comparable."""
    notes = []
    if reference.has_groups != new.has_groups:
        known, unknown = ("reference", "new images")[:: 1 if reference.has_groups else -1]
        reference = reference.one_per_group() if reference.has_groups else reference
        new = new.one_per_group() if new.has_groups else new
        notes.append(
            f"The products of the {unknown} are unknown: one image of each product of the {known} "
            "is compared. If several of the others show one product, false alarms are more "
            "frequent than stated; give a manifest with the column group."
        )
    elif not new.has_groups:
        notes.append(
            "Products are unknown: every image counts as independent. If several show one product, "
            "false alarms are more frequent than stated; give manifests with the column group."
        )
    common = np.intersect1d(reference.digests[reference.digests > 0], new.digests)
    if len(common):
        notes.append(
            f"{len(common):,} of the new images are also in the reference, which hides drift; "
            "leave them out."
        )
    for sample, name in ((reference, "reference"), (new, "new images")):
        if sample.n_groups < MIN_GROUPS:
            units = "products" if sample.has_groups else "images"
            raise UsageError(
                f"A comparison needs at least {MIN_GROUPS} {units} on either side, and the {name} "
                f"are {sample.n_groups} that could be read; name more."
            )
    group = np.concatenate([reference.codes, reference.n_groups + new.codes])
    observed = np.arange(reference.n_groups + new.n_groups) >= reference.n_groups
    labels = permuted_labels(observed, permutations, seed)
    return _Pooled(reference, new, labels, group), notes


def _statistics(pooled: _Pooled) -> dict[str, Floats]:
    """Statistics (1 + n_permutations, n_figures) of every family, large where extreme."""
    by_image, group = pooled.by_image, pooled.group
    confidences, properties = pooled.both("confidences"), pooled.both("properties")
    ks = two_sample.kolmogorov_smirnov
    return {
        "embeddings": two_sample.mmd2(pooled.kernel, group, pooled.labels)[:, None],
        "novelty": two_sample.novelty(pooled.squared, group, by_image)[:, None],
        "confidences": two_sample.combined([ks(column, by_image) for column in confidences.T]),
        "tags": two_sample.deviance_root(pooled.both("given"), group, pooled.labels),
        "properties": two_sample.combined(
            [
                *(ks(column, by_image) for column in properties.T),
                two_sample.kinds_deviance(pooled.both("kinds"), by_image),
            ]
        ),
    }


def _embeddings(
    pooled: _Pooled, statistics: Floats, moved: NDArray[np.intp], seed: int
) -> Embeddings:
    halves = _halves(pooled, seed)
    scores = two_sample.witness(pooled.kernel, pooled.is_new, np.concatenate(halves))
    n = len(pooled.reference)
    return Embeddings(
        mmd2=float(statistics[0, 0]),
        bandwidth=pooled.bandwidth,
        separation=halved_superiority((scores[:n], scores[n:]), pooled.codes, halves),
        p_within_tags=_p_within(pooled, statistics, moved, seed),
    )


def _halves(pooled: _Pooled, seed: int) -> tuple[Labels, Labels]:
    """Which half each image of either side is in; groups stay whole, and halves are equal."""
    rng = np.random.default_rng(seed)
    found = []
    for sample, codes in zip((pooled.reference, pooled.new), pooled.codes, strict=True):
        half = rng.permutation(sample.n_groups) % 2 == 1
        found.append(half[codes])
    return found[0], found[1]


def _p_within(pooled: _Pooled, statistics: Floats, moved: NDArray[np.intp], seed: int) -> float:
    """P of MMD where labels are exchanged among groups that were given the same moved tags.

    Where the tags occur more or less often but look as before (a prior shift), groups of equal tags
    come from one distribution, and this p is uniform however far the rates moved.
    """
    if not len(moved):
        return float(p_values(statistics[:, 0])[0])
    given = pooled.both("given")[:, moved[:STRATUM_TAGS]]
    n_groups = pooled.labels.shape[1]
    sizes = np.bincount(pooled.group, minlength=n_groups)
    shares = np.zeros((n_groups, given.shape[1]))
    np.add.at(shares, pooled.group, given)
    patterns = shares * 2 > sizes[:, None]  # given to most images of the group
    strata = np.unique(patterns, axis=0, return_inverse=True)[1].reshape(-1).astype(np.intp)
    labels = permuted_labels(pooled.labels[0], len(statistics) - 1, seed, strata)
    return float(p_values(two_sample.mmd2(pooled.kernel, pooled.group, labels))[0])


def _novelty(pooled: _Pooled) -> Novelty:
    distance = two_sample.nearest(pooled.squared, pooled.group, pooled.is_new)
    p = two_sample.outlying(distance, pooled.is_new)
    novel = (p <= two_sample.NOVEL)[:, None]
    share, n = rates(novel, pooled.new.codes)
    low, high = wilson(share, n)
    order = np.lexsort((-distance[pooled.is_new], p))
    return Novelty(
        two_sample.NOVEL,
        Estimate(float(share[0]), float(low[0]), float(high[0])),
        tuple(order.tolist()),
        tuple(p.tolist()),
    )


def _confidences_and_properties(
    pooled: _Pooled, within: dict[str, Floats]
) -> tuple[tuple[Shift, ...], tuple[Shift, ...]]:
    confidences = _shifts(pooled, "confidences", CONFIDENCES, within["confidences"])
    # the last of that family is the file type
    return confidences, _shifts(pooled, "properties", PROPERTIES, within["properties"][:-1])


def _shifts(
    pooled: _Pooled, field: str, names: Sequence[str], p_adjusted: Floats
) -> tuple[Shift, ...]:
    values = getattr(pooled.reference, field), getattr(pooled.new, field)
    found = []
    for column, (name, p) in enumerate(zip(names, p_adjusted.tolist(), strict=True)):
        sides = [side[:, column] for side in values]
        known = [~np.isnan(side) for side in sides]
        a, b = (side[here] for side, here in zip(sides, known, strict=True))
        codes = [code[here] for code, here in zip(pooled.codes, known, strict=True)]
        both, is_new = np.concatenate([a, b]), np.arange(len(a) + len(b)) >= len(a)
        found.append(
            Shift(
                name,
                len(a),
                len(b),
                _quantiles(a),
                _quantiles(b),
                superiority(a, b, (codes[0], codes[1])),
                float(two_sample.kolmogorov_smirnov(both, is_new[:, None])[0]),
                p,
                *_histograms(a, b),
            )
        )
    return tuple(found)


def _histograms(
    reference: Floats, new: Floats
) -> tuple[tuple[float, ...], tuple[float, ...], tuple[float, ...]]:
    """Edges of the bins, and the share of either side in each; empty without images."""
    if not len(reference) or not len(new):
        return (), (), ()
    ends = [np.quantile(side, (0.005, 0.995)) for side in (reference, new)]
    low, high = min(e[0] for e in ends), max(e[1] for e in ends)
    edges = np.linspace(low, high, BINS + 1) if high > low else np.array([low - 0.5, low + 0.5])
    shares = [np.histogram(side.clip(low, high), edges)[0] / len(side) for side in (reference, new)]
    return tuple(edges.tolist()), tuple(shares[0].tolist()), tuple(shares[1].tolist())


def _quantiles(values: Floats) -> tuple[float, float, float]:
    if not len(values):
        return (np.nan, np.nan, np.nan)
    low, middle, high = np.quantile(values, QUANTILES).tolist()
    return low, middle, high


def _kinds(pooled: _Pooled) -> dict[str, tuple[float, float]]:
    sides = [sample.kinds for sample in (pooled.reference, pooled.new)]
    names = np.unique(np.concatenate(sides)).tolist()
    return {
        name: (float((sides[0] == name).mean()), float((sides[1] == name).mean())) for name in names
    }


def _tag_shifts(pooled: _Pooled, tags: Sequence[str], p_adjusted: Floats) -> tuple[TagShift, ...]:
    sides = [rates(sample.given, sample.codes) for sample in (pooled.reference, pooled.new)]
    estimates = rate_estimates(sides[0], sides[1])
    shifts = [
        TagShift(tag, *three, float(p))
        for tag, three, p in zip(tags, estimates, p_adjusted.tolist(), strict=True)
    ]
    return tuple(sorted(shifts, key=lambda t: (t.p_adjusted, -abs(t.difference.value))))
