"""How the families of backbones differ by the number of training images of a tag.

A family is a kind of pretraining, such as supervised or image-text. The pair that stands for it is
chosen without the scored images wherever the predictions allow it: a difference between pairs that
were chosen on the images of the difference would be too large.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retailtag.catalog.catalog import Catalog
from retailtag.catalog.table import POSITIVE, GroupCutoffs
from retailtag.predictions import Predictions
from retailtag.scoring.aligned import Aligned, align, product_counts
from retailtag.scoring.bootstrap import ProductCounts, macro_f1
from retailtag.scoring.intervals import Z, macro_difference
from retailtag.scoring.jackknife import ap_deviations, jackknife, variance_of
from retailtag.scoring.metrics import Floats, average_precision_per_tag, columns, f1, macro
from retailtag.scoring.permutation import PERMUTATIONS, holm, swap_p_by_tag
from retailtag.statistics.exclusive import INDEPENDENT

FAMILIES, STRATEGIES = "families", "strategies"
OUT_OF_FOLD = "out-of-fold and validation scores"
SCORED = "the scored images"
ONLY = "only pair"
ALPHA = 0.05
# Products on which two models differ, from which swaps can give a p under 0.05: 2 / 2**6 = 0.03.
MIN_DISCORDANT = 6
MAX_PERMUTATIONS = 20_000  # 4e11 operations for 250 tags on 5,000 products would take minutes

Masks = Mapping[tuple[int, int], NDArray[np.bool_]]


@dataclass(frozen=True, eq=False)
class Entrant:
    """A pair of a backbone and a strategy, with its family."""

    name: str
    backbone: str
    strategy: str
    family: str
    predictions: Predictions

    @property
    def kept_probe(self) -> bool:
        """Whether it is a fine-tune for which no epoch validated better than its probe."""
        return bool(self.predictions.provenance.get("is_probe"))

    @property
    def evidence(self) -> float:
        """Cross-fit macro-F1 on scores that the test split took no part in; NaN: not recorded."""
        recorded = self.predictions.provenance.get("threshold_f1") or {}
        value = recorded.get("all", {}).get("cross_fit")
        return math.nan if value is None else float(value)


@dataclass(frozen=True)
class Member:
    """The pair that stands for a family."""

    family: str
    pair: str
    chosen_by: str  # `OUT_OF_FOLD`, `SCORED` or `ONLY`
    others: tuple[str, ...] = ()  # pairs of the family that it was chosen from


@dataclass(frozen=True)
class BinDifference:
    """Macro-F1 or macro-AP of pair `a` minus that of `b` over tags of some training counts."""

    kind: str  # `FAMILIES`: two members; `STRATEGIES`: fine-tune minus probe of a backbone
    metric: str  # ``F1`` or ``AP``
    a: str
    b: str
    low_count: int  # first training count of the bin
    high_count: int  # last; -1: no end
    n_tags: int  # with a positive among the scored images
    value: float
    low: float  # 95 % interval, paired by product
    high: float
    p: float  # two-sided, normal
    p_holm: float = math.nan  # adjusted over all differences of its kind and metric

    @property
    def is_clear(self) -> bool:
        """Whether it remains after the adjustment for the number of differences."""
        return self.p_holm < ALPHA


@dataclass(frozen=True)
class OwnedTag:
    """A tag whose F1 under one family is clearly above that under every other."""

    tag: str
    family: str
    train_count: int
    support: int
    f1: float
    next_f1: float  # of the best other family
    p_holm: float  # over the tags that could be told apart


@dataclass(frozen=True)
class TextGain:
    """What names of tags as training rows add to a probe, in out-of-fold AP."""

    backbone: str
    low_count: int
    high_count: int  # -1: no end
    n_tags: int
    without: float  # macro-AP of logistic regression
    with_names: float
    low: float  # 95 % interval of the difference, with tags as the unit
    high: float


@dataclass(frozen=True)
class FamilyComparison:
    """What the section on the families is made of; empty without two families."""

    members: tuple[Member, ...] = ()
    differences: tuple[BinDifference, ...] = ()
    owned: tuple[OwnedTag, ...] = ()
    n_compared: int = 0  # tags whose predictions differ on enough products to be told apart
    text: tuple[TextGain, ...] = ()
    kept: tuple[str, ...] = ()  # backbones whose fine-tune kept its probe


NO_FAMILIES = FamilyComparison()


def count_bins(cutoffs: GroupCutoffs) -> tuple[tuple[int, int], ...]:
    """First and last training count of the ranges of the tail and of the groups above it.

    Examples
    --------
    >>> count_bins(GroupCutoffs())
    ((0, 9), (10, 19), (20, 49), (50, 499), (500, -1))
    """
    tail = cutoffs.tail_bins() or ((0, cutoffs.tail - 1),)
    return (*tail, (cutoffs.tail, cutoffs.frequent - 1), (cutoffs.frequent, -1))


def in_bin(train_count: NDArray[np.int64], low: int, high: int) -> NDArray[np.bool_]:
    """Whether the training count of each tag (n_tags,) lies in a bin of `count_bins`."""
    return (train_count >= low) & (train_count <= (sys.maxsize if high < 0 else high))


def choose_members(entrants: Sequence[Entrant], scored: Mapping[str, float]) -> tuple[Member, ...]:
    """The pair that stands for each family, in the order of the entrants.

    Of several backbones that with the best cross-fit macro-F1 of its probe on out-of-fold scores;
    of it the fine-tune, unless that kept its probe: it then validated better than its start. Where
    this is not recorded, the pair with the best macro-F1 on the scored images (`scored`, by name).
    """
    by_family: dict[str, list[Entrant]] = {}
    for entrant in entrants:
        by_family.setdefault(entrant.family, []).append(entrant)
    members = []
    for family, own in by_family.items():
        chosen, how = own[0], ONLY
        if len(own) > 1:
            unseen = _chosen_unseen(own)
            chosen = unseen or max(own, key=lambda e: np.nan_to_num(scored[e.name], nan=-1))
            how = OUT_OF_FOLD if unseen else SCORED
        others = tuple(e.name for e in own if e is not chosen)
        members.append(Member(family, chosen.name, how, others))
    return tuple(members)


def _chosen_unseen(own: Sequence[Entrant]) -> Entrant | None:
    by_backbone: dict[str, dict[str, Entrant]] = {}
    for entrant in own:
        by_backbone.setdefault(entrant.backbone, {})[entrant.strategy] = entrant
    pairs = list(by_backbone.values())
    if len(pairs) > 1:
        if not all("probe" in p and math.isfinite(p["probe"].evidence) for p in pairs):
            return None
        pairs.sort(key=lambda p: -p["probe"].evidence)
    tuned, probe = pairs[0].get("finetune"), pairs[0].get("probe")
    return tuned if tuned is not None and not (probe and tuned.kept_probe) else probe


def compare_families(
    entrants: Sequence[Entrant],
    catalog: Catalog,
    *,
    split: str = "test",
    seed: int = 0,
    assignment: str = INDEPENDENT,
) -> FamilyComparison:
    """Differences between families, and between strategies of a backbone, by training count.

    F1 is compared as by `retailtag.scoring.intervals.macro_difference`, AP as by `ap_differences`,
    both in the population and paired by product. All images of `split` that have predictions take
    part; `seed` is that of the swaps behind the tags that a family owns.
    """
    aligned = {
        e.name: align(e.predictions, catalog, split, allow_missing=True, assignment=assignment)
        for e in entrants
    }
    counts = {name: product_counts(one, catalog) for name, one in aligned.items()}
    if any(len(a.rows) != len(next(iter(aligned.values())).rows) for a in aligned.values()):
        return NO_FAMILIES  # a bake-off refuses to compare such pairs before
    defined = next(iter(counts.values())).positives.sum(axis=0) > 0
    scored = {name: macro_f1(c, defined) for name, c in counts.items()}
    members = choose_members(entrants, scored)
    wanted = [(FAMILIES, a.pair, b.pair) for a, b in combinations(members, 2)]
    wanted += [(STRATEGIES, tuned, probe) for tuned, probe in _rivals(entrants)]
    if not wanted:
        return NO_FAMILIES
    table = catalog.table
    bins = {b: defined & in_bin(table.train_count, *b) for b in count_bins(table.cutoffs)}
    masks = {b: mask for b, mask in bins.items() if mask.any()}
    found = [
        *_f1_differences(wanted, counts, masks),
        *ap_differences(wanted, aligned, masks, catalog.group),
    ]
    owned, n_compared = _owned_tags(members, counts, catalog, seed) if len(members) > 1 else ((), 0)
    return FamilyComparison(
        members=members,
        differences=tuple(_adjusted(found)),
        owned=owned,
        n_compared=n_compared,
        kept=tuple(e.backbone for e in entrants if e.kept_probe),
    )


def _rivals(entrants: Sequence[Entrant]) -> Iterator[tuple[str, str]]:
    """Names of fine-tune and probe of every backbone whose fine-tune is another model."""
    probes = {e.backbone: e for e in entrants if e.strategy == "probe"}
    for e in entrants:
        if e.strategy == "finetune" and e.backbone in probes and not e.kept_probe:
            yield e.name, probes[e.backbone].name


def _f1_differences(
    wanted: Sequence[tuple[str, str, str]], counts: Mapping[str, ProductCounts], masks: Masks
) -> Iterator[BinDifference]:
    scopes = np.array(list(masks.values()))
    names = {name for _, *both in wanted for name in both}
    jacks = {name: jackknife(counts[name], scopes) for name in names}
    for kind, a, b in wanted:
        for k, (span, mask) in enumerate(masks.items()):
            d = macro_difference([jacks[a]], [jacks[b]], k)
            p = _normal_p(d.value, d.standard_error)
            n = int(mask.sum())
            yield BinDifference(kind, "F1", a, b, *span, n, d.value, d.low, d.high, p)


def ap_differences(
    wanted: Iterable[tuple[str, str, str]],
    aligned: Mapping[str, Aligned],
    masks: Masks,
    product: NDArray[np.str_],
) -> Iterator[BinDifference]:
    """Differences of macro-AP by bin, less their bias, by the jackknife over products.

    From few positives AP comes out too low, the more so the better a model is. A tag whose
    positives lie on one product has neither a bias nor a spread that leaving out products could
    show: its squared difference stands for its variance.
    """
    names = sorted({name for _, *both in wanted for name in both})
    first = aligned[names[0]]
    products, row = np.unique(product[first.rows], return_inverse=True)
    held = np.zeros((len(products), first.labels.shape[1]), bool)
    image, tag = np.nonzero(first.labels == POSITIVE)
    held[row[image], tag] = True
    several = held.sum(axis=0) > 1
    values = {n: average_precision_per_tag(aligned[n].logits, aligned[n].labels) for n in names}
    spread = {span: mask & several for span, mask in masks.items()}
    left_out = {n: _left_out(aligned[n], spread, row, len(products)) for n in names}
    for kind, a, b in wanted:
        difference = values[a] - values[b]
        for span, mask in masks.items():
            n_tags = int(mask.sum())
            change = (left_out[a][span] - left_out[b][span]) / n_tags
            bias = (len(products) - 1) * float(change.mean())
            alone = float((difference[mask & ~several] ** 2).sum()) / n_tags**2
            value = macro(difference, mask) - bias
            se = math.sqrt(variance_of(change) + alone)
            yield BinDifference(
                kind, "AP", a, b, *span, n_tags,
                value, value - Z * se, value + Z * se, _normal_p(value, se),
            )  # fmt: skip


def _left_out(
    aligned: Aligned, masks: Masks, row: NDArray[np.intp], n_products: int
) -> dict[tuple[int, int], Floats]:
    """Deviations of AP summed over each mask's tags, (n_products,) each."""
    sums = {span: np.zeros(n_products) for span in masks}
    for j, (scores, truth) in enumerate(columns(aligned.logits, aligned.labels)):
        inside = [span for span, mask in masks.items() if mask[j]]
        if inside:
            deviation = ap_deviations(scores, truth, row, n_products)
            for span in inside:
                sums[span] += deviation
    return sums


def _normal_p(value: float, se: float) -> float:
    if not se > 0:
        return 1.0
    return math.erfc(abs(value) / se / math.sqrt(2))


def _adjusted(found: Sequence[BinDifference]) -> Iterator[BinDifference]:
    """The differences with p adjusted by Holm within their kind and metric."""
    groups: dict[tuple[str, str], list[int]] = {}
    for k, d in enumerate(found):
        groups.setdefault((d.kind, d.metric), []).append(k)
    adjusted = np.empty(len(found))
    for places in groups.values():
        adjusted[places] = holm(np.array([found[k].p for k in places]))
    for d, p in zip(found, adjusted.tolist(), strict=True):
        yield replace(d, p_holm=p)


def _owned_tags(
    members: Sequence[Member], counts: Mapping[str, ProductCounts], catalog: Catalog, seed: int
) -> tuple[tuple[OwnedTag, ...], int]:
    """Tags that one family gives clearly better than every other, and how many were compared.

    A tag's p is the largest of its winner against each other family (an intersection-union test),
    by random swaps of products, then adjusted by Holm over the tags compared. Which tags these are
    depends on where predictions differ, not on who is right there: swaps leave it as it is.
    """
    models = [counts[m.pair] for m in members]
    pairs = list(combinations(range(len(models)), 2))
    differ = np.min([_discordant(models[a], models[b]) for a, b in pairs], axis=0)
    tested = np.flatnonzero((differ >= MIN_DISCORDANT) & (models[0].positives.sum(axis=0) > 0))
    if not len(tested):
        return (), 0
    kept = [
        replace(m, tp=m.tp[:, tested], predicted=m.predicted[:, tested],
                positives=m.positives[:, tested])
        for m in models
    ]  # fmt: skip
    # Holm multiplies the smallest p, 1 / (n + 1), by the number of tags; twice that leaves room.
    n = min(max(PERMUTATIONS, int(2 / ALPHA) * len(tested)), MAX_PERMUTATIONS)
    p = dict(zip(pairs, swap_p_by_tag(kept, pairs, n_permutations=n, seed=seed), strict=True))
    values = np.array([f1(*m.totals()) for m in kept])  # (n_families, n_tested)
    order = np.argsort(-values, axis=0, kind="stable")
    best = order[0]
    worst_p = np.zeros(len(tested))
    for j, winner in enumerate(best.tolist()):
        against = [p[min(winner, k), max(winner, k)][j] for k in range(len(models)) if k != winner]
        worst_p[j] = max(against)
    adjusted = holm(worst_p)
    owned = [
        OwnedTag(
            tag=catalog.table.tags[tested[j]],
            family=members[best[j]].family,
            train_count=int(catalog.table.train_count[tested[j]]),
            support=int(kept[0].positives[:, j].sum()),
            f1=float(values[best[j], j]),
            next_f1=float(values[order[1, j], j]),
            p_holm=float(adjusted[j]),
        )
        for j in np.flatnonzero(adjusted < ALPHA).tolist()
    ]
    return tuple(sorted(owned, key=lambda o: (o.train_count, o.tag))), len(tested)


def _discordant(a: ProductCounts, b: ProductCounts) -> NDArray[Any]:
    """Products on which two models differ, by tag (n_tags,)."""
    return np.count_nonzero((a.predicted != b.predicted) | (a.tp != b.tp), axis=0)


def text_gains(
    backbone: str,
    without: Mapping[str, float],
    with_names: Mapping[str, float],
    train_count: Mapping[str, int],
    cutoffs: GroupCutoffs,
) -> tuple[TextGain, ...]:
    """What the tags' names add, by training count, from the out-of-fold AP of each tag.

    Intervals take tags as the unit: only the AP of a head that was not taken is kept.
    """
    tags = [t for t in without if t in with_names and math.isfinite(without[t])]
    counts = np.array([train_count[t] for t in tags], np.int64)
    before = np.array([without[t] for t in tags])
    after = np.array([with_names[t] for t in tags])
    found = []
    for low, high in count_bins(cutoffs):
        inside = in_bin(counts, low, high) & np.isfinite(after)
        n = int(inside.sum())
        if n < 2:
            continue
        gain = (after - before)[inside]
        half = Z * float(gain.std(ddof=1)) / math.sqrt(n)
        mean = float(gain.mean())
        means = float(before[inside].mean()), float(after[inside].mean())
        found.append(TextGain(backbone, low, high, n, *means, mean - half, mean + half))
    return tuple(found)
