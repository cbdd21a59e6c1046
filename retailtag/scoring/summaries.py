"""Rows of the tags and means of the groups, from aligned predictions and labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retailtag.catalog.table import TagTable
from retailtag.scoring.aligned import Aligned
from retailtag.scoring.bootstrap import ProductCounts
from retailtag.scoring.calibration import CalibrationSums, calibration_sums
from retailtag.scoring.intervals import Estimate, macro_estimate, wilson_f1
from retailtag.scoring.jackknife import jackknife
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
    """Everything that rows and summaries are made of."""

    counts: TagCounts
    values: dict[str, Floats]  # metrics (n_tags,) by the names of `TagRow`'s fields
    calibration: CalibrationSums
    masks: dict[str, NDArray[np.bool_]]  # tags (n_tags,) of each scope
    estimates: dict[str, Estimate]  # each scope's macro-F1 in the population


def measure(
    aligned: Aligned, counts: TagCounts, products: ProductCounts, table: TagTable
) -> Measured:
    """Compute all per-tag metrics and all intervals of one model."""
    masks = table.cutoffs.scopes(table.train_count)
    jack = jackknife(products, np.array(list(masks.values())))
    f1_low, f1_high = wilson_f1(products, jack.event_products)
    ap, oracle = ap_and_oracle(aligned.logits, aligned.labels)
    values = {
        "precision": precision_from_counts(counts),
        "recall": recall_from_counts(counts),
        "f1": f1_from_counts(counts),
        "f1_low": f1_low,
        "f1_high": f1_high,
        "ap": ap,
        "f1_oracle": oracle,
    }
    return Measured(
        counts=counts,
        values=values,
        calibration=calibration_sums(aligned.logits, aligned.labels),
        masks=masks,
        estimates={scope: macro_estimate([jack], k) for k, scope in enumerate(masks)},
    )


def threshold_rules(provenance: dict[str, Any], group: NDArray[np.str_]) -> list[str]:
    """Rule behind each tag's threshold, as its predictions record it; ``given`` if they do not.

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
    measured: Measured, table: TagTable, thresholds: NDArray[np.float32], rules: list[str]
) -> tuple[TagRow, ...]:
    """One row per tag in the catalogue's order; `thresholds` and `rules` are per tag."""
    counts = measured.counts
    columns: dict[str, list[Any]] = {
        "tag": list(table.tags),
        "group": table.group.tolist(),
        "train_count": table.train_count.tolist(),
        "support": counts.positives.tolist(),
        **{name: getattr(counts, name).tolist() for name in ("tp", "fp", "fn", "tn")},
        **{name: value.tolist() for name, value in measured.values.items()},
        "threshold": thresholds.tolist(),
        "rule": rules,
        "low_support": (counts.positives < LOW_SUPPORT).tolist(),
    }
    return tuple(
        TagRow(**dict(zip(columns, row, strict=True)))
        for row in zip(*columns.values(), strict=True)
    )


def group_summaries(measured: Measured) -> dict[str, GroupSummary]:
    """Means of every scope over its tags with a positive."""
    return {scope: _summary(measured, scope) for scope in measured.masks}


def _summary(measured: Measured, scope: str) -> GroupSummary:
    counts = measured.counts
    inside = measured.masks[scope]
    defined = inside & (counts.positives > 0)
    means = {name: macro(value, defined) for name, value in measured.values.items()}
    estimate = measured.estimates[scope]
    return GroupSummary(
        scope=scope,
        n_tags=int(defined.sum()),
        n_undefined=int(inside.sum() - defined.sum()),
        macro_f1=means["f1"],
        macro_f1_low=estimate.low,
        macro_f1_high=estimate.high,
        macro_precision=means["precision"],
        macro_recall=means["recall"],
        macro_ap=means["ap"],
        macro_f1_oracle=means["f1_oracle"],
        macro_f1_sklearn=macro(np.nan_to_num(measured.values["f1"][inside])),
        n_never_predicted=int((defined & (counts.predicted == 0)).sum()),
        brier=measured.calibration.brier(inside),
        calibration_error=measured.calibration.error(inside),
        macro_f1_population=estimate.value,
    )
