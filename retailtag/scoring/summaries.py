"""Rows of the tags and means of the groups, from aligned predictions and labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retailtag.catalog.table import TagTable
from retailtag.scoring.aligned import Aligned
from retailtag.scoring.bootstrap import ProductCounts, bootstrap_f1, macro_replicates
from retailtag.scoring.calibration import CalibrationSums, calibration_sums
from retailtag.scoring.intervals import (
    bca_intervals,
    macro_interval,
    percentile_intervals,
    wilson_f1,
)
from retailtag.scoring.jackknife import Jackknife, jackknife
from retailtag.scoring.metrics import (
    Floats,
    TagCounts,
    f1_from_counts,
    macro,
    precision_from_counts,
    recall_from_counts,
)
from retailtag.scoring.oracle import ap_and_oracle
from retailtag.scoring.scorecard import LOW_SUPPORT, GroupSummary, TagRow


@dataclass(frozen=True, eq=False)
class Measured:
    """Everything that rows and summaries are made of.

    Parameters
    ----------
    counts : TagCounts
        Confusion counts of the tags.
    values : dict of str to ndarray of float64, shape (n_tags,)
        Per-tag metrics by the names of `TagRow`'s fields.
    calibration : CalibrationSums
        Of the logits.
    masks : dict of str to ndarray of bool, shape (n_tags,)
        Tags of each scope.
    jack : Jackknife
        Its scopes in the order of `masks`.
    tag_intervals, scope_intervals : ndarray of float64, shape (6, n_tags) and (6, n_scopes)
        Headline, percentile and BCa interval, low and high each; of F1 and of macro-F1.
    """

    counts: TagCounts
    values: dict[str, Floats]
    calibration: CalibrationSums
    masks: dict[str, NDArray[np.bool_]]
    jack: Jackknife
    tag_intervals: Floats
    scope_intervals: Floats


def measure(
    aligned: Aligned,
    counts: TagCounts,
    products: ProductCounts,
    table: TagTable,
    *,
    n_bootstrap: int,
    seed: int,
) -> Measured:
    """All per-tag metrics and all intervals of one model.

    Parameters
    ----------
    aligned : Aligned
        Logits, thresholds and labels of the scored images.
    counts, products
        Confusion counts of the tags, and counts by product.
    table : TagTable
        For training counts and cut-offs.
    n_bootstrap, seed : int
        Of the replicates.
    """
    masks = table.cutoffs.scopes(table.train_count)
    stacked = np.array(list(masks.values()))
    jack = jackknife(products, stacked)
    replicates = bootstrap_f1([products], n_replicates=n_bootstrap, seed=seed)[0]
    ap, oracle = ap_and_oracle(aligned.logits, aligned.labels)
    values = {
        "precision": precision_from_counts(counts),
        "recall": recall_from_counts(counts),
        "f1": f1_from_counts(counts),
        "ap": ap,
        "f1_oracle": oracle,
    }
    return Measured(
        counts=counts,
        values=values,
        calibration=calibration_sums(aligned.logits, aligned.labels),
        masks=masks,
        jack=jack,
        tag_intervals=_tag_intervals(products, jack, replicates),
        scope_intervals=_scope_intervals(stacked, jack, replicates),
    )


def _tag_intervals(products: ProductCounts, jack: Jackknife, replicates: Floats) -> Floats:
    """Headline, percentile and BCa interval of each tag, (6, n_tags)."""
    ordered = np.sort(replicates, axis=0)
    wilson = wilson_f1(products, jack.event_products)
    both = np.vstack(
        [percentile_intervals(ordered), bca_intervals(jack.f1, ordered, jack.tags.acceleration)]
    )
    return np.vstack([wilson, np.where(np.isnan(jack.f1), np.nan, both)])


def _scope_intervals(scopes: NDArray[np.bool_], jack: Jackknife, replicates: Floats) -> Floats:
    """Headline, percentile and BCa interval of each scope's macro-F1, (6, n_scopes)."""
    headline = np.array([macro_interval(jack, k, inside) for k, inside in enumerate(scopes)]).T
    estimate = np.array([macro(jack.f1, inside) for inside in scopes])
    drawn = np.stack([macro_replicates(replicates, inside) for inside in scopes], axis=1)
    ordered = np.sort(drawn, axis=0)
    bca = bca_intervals(estimate, ordered, jack.dropping)
    return np.vstack([headline, percentile_intervals(ordered), bca])


def threshold_rules(provenance: dict[str, Any], group: NDArray[np.str_]) -> list[str]:
    """Where each tag's threshold came from, as its predictions record it; ``given`` if not.

    Examples
    --------
    >>> threshold_rules({"settings": {"thresholds": "per-tag"}}, np.array(["tail", "common"]))
    ['per-tag', 'per-tag']
    >>> threshold_rules({"thresholds": {"tail": "shared"}}, np.array(["tail", "common"]))
    ['shared', 'given']
    """
    recorded = provenance.get("thresholds")
    if recorded is None and isinstance(provenance.get("settings"), dict):
        recorded = provenance["settings"].get("thresholds")
    if isinstance(recorded, dict):
        whole = recorded.get("rule", "given")
        return [str(recorded.get(name, whole)) for name in group.tolist()]
    return [recorded if isinstance(recorded, str) else "given"] * len(group)


def tag_rows(
    found: Measured, table: TagTable, thresholds: NDArray[np.float32], rules: list[str]
) -> tuple[TagRow, ...]:
    """One row per tag in the catalogue's order; `thresholds` and `rules` are per tag."""
    counts = found.counts
    columns: dict[str, list[Any]] = {
        "tag": list(table.tags),
        "group": table.group.tolist(),
        "train_count": table.train_count.tolist(),
        "support": counts.positives.tolist(),
        **{name: getattr(counts, name).tolist() for name in ("tp", "fp", "fn", "tn")},
        **{name: value.tolist() for name, value in found.values.items()},
        "threshold": thresholds.tolist(),
        "rule": rules,
        "low_support": (counts.positives < LOW_SUPPORT).tolist(),
        **_named("f1", found.tag_intervals),
    }
    return tuple(
        TagRow(**dict(zip(columns, row, strict=True)))
        for row in zip(*columns.values(), strict=True)
    )


def _named(metric: str, intervals: Floats) -> dict[str, list[float]]:
    """Columns of the intervals (6, m) by the names of the fields."""
    kinds = (metric, f"{metric}_percentile", f"{metric}_bca")
    names = [f"{kind}_{end}" for kind in kinds for end in ("low", "high")]
    return dict(zip(names, intervals.tolist(), strict=True))


def group_summaries(found: Measured) -> dict[str, GroupSummary]:
    """Means of every scope over its tags with a positive."""
    intervals = _named("macro_f1", found.scope_intervals)
    return {
        scope: _summary(found, scope, {name: ends[k] for name, ends in intervals.items()})
        for k, scope in enumerate(found.masks)
    }


def _summary(found: Measured, scope: str, intervals: dict[str, float]) -> GroupSummary:
    inside, counts = found.masks[scope], found.counts
    defined = inside & (counts.positives > 0)
    means = {name: macro(value, defined) for name, value in found.values.items()}
    with_zeros = np.nan_to_num(found.values["f1"][inside])
    return GroupSummary(
        scope=scope,
        n_tags=int(defined.sum()),
        n_undefined=int(inside.sum() - defined.sum()),
        macro_f1=means["f1"],
        macro_precision=means["precision"],
        macro_recall=means["recall"],
        macro_ap=means["ap"],
        macro_f1_oracle=means["f1_oracle"],
        macro_f1_sklearn=macro(with_zeros),
        n_never_predicted=int((defined & (counts.predicted == 0)).sum()),
        brier=found.calibration.brier(inside),
        calibration_error=found.calibration.error(inside),
        **intervals,
    )
