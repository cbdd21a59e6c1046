"""What the report shows of the finished pairs beside their scores: pictures, confusions, curves."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from retailtag.bakeoffs.pairs import Pair
from retailtag.catalog.catalog import Catalog
from retailtag.errors import RetailtagError
from retailtag.predictions import Predictions
from retailtag.report.curves import Curves, LearningCurve, StrengthCurve
from retailtag.report.decision import Decision
from retailtag.report.gallery import make_gallery
from retailtag.report.report import Report
from retailtag.report.results import BakeoffResult
from retailtag.runs.finetune import read_history
from retailtag.runs.operating_points import TITLES, other_points
from retailtag.runs.tune import Model, tuned_on
from retailtag.scoring.aligned import Aligned, align
from retailtag.scoring.confusion import confused_pairs
from retailtag.scoring.curves import OperatingPoint, operating_point, reliability, trade_off
from retailtag.statistics.exclusive import INDEPENDENT, assign


def illustrated(
    result: BakeoffResult,
    decision: Decision,
    pairs: Sequence[Pair],
    catalog: Catalog,
    *,
    pictures: bool = True,
) -> Report:
    """Report of a finished bake-off, with pictures unless they are not wanted."""
    winner = result.pair(decision.winner)
    wanted = (winner.backbone, winner.strategy)
    pair = next(p for p in pairs if (p.backbone, p.strategy) == wanted)
    assignment = winner.scorecard.assignment
    predictions = pair.predictions
    aligned = align(predictions, catalog, "test", allow_missing=True, assignment=assignment)
    is_tail = catalog.table.group == "tail"
    curves = Curves(
        strengths=tuple(c for p in pairs if p.strategy == "probe" for c in strength_curves(p)),
        learning=tuple(learning_curve(p) for p in pairs if p.strategy == "finetune"),
        trade_off=trade_off(aligned, is_tail),
        points=tuple(operating_points(pair, predictions, aligned, catalog, assignment)),
        reliability=reliability(aligned, catalog.table.group),
    )
    return Report(
        result,
        decision,
        gallery=make_gallery(aligned, catalog) if pictures else None,
        confused=confused_pairs(aligned, catalog.table.tags),
        curves=curves,
    )


def strength_curves(pair: Pair) -> Iterator[StrengthCurve]:
    """Out-of-fold AP of the groups by C, under the scaling that a probe took."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    facts = pair.predictions.provenance
    names = ["scale", "C", "fold", "group", "out_of_fold_ap"]
    table = pq.read_table(pair.folder / "sweep.parquet", columns=names)
    # Every fold repeats the AP of the pooled scores.
    inside = pc.and_(pc.equal(table["scale"], facts["scale"]), pc.equal(table["fold"], 0))
    table = table.filter(inside)
    C, group, ap = (table[name].to_numpy() for name in ("C", "group", "out_of_fold_ap"))
    for name in np.unique(group.astype(str)).tolist():
        own = (group == name) & np.isfinite(ap)
        if own.any():
            strengths = np.unique(C[own])
            means = [float(ap[own & (c == C)].mean()) for c in strengths]
            chosen = facts["out_of_fold"][name]["C"]
            yield StrengthCurve(
                pair.backbone, name, tuple(strengths.tolist()), tuple(means), tuple(chosen)
            )


def learning_curve(pair: Pair) -> LearningCurve:
    """Validation scores of a fine-tune by epoch."""
    rows = read_history(pair.folder)
    return LearningCurve(
        backbone=pair.backbone,
        epochs=tuple(int(row["epoch"]) for row in rows),
        macro_f1=tuple(_number(row.get("macro_f1")) for row in rows),
        tail_macro_f1=tuple(_number(row.get("tail_macro_f1")) for row in rows),
        best_epoch=int(pair.predictions.provenance["best_epoch"]),
    )


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def operating_points(
    pair: Pair,
    predictions: Predictions,
    aligned: Aligned,
    catalog: Catalog,
    assignment: str = INDEPENDENT,
) -> Iterator[OperatingPoint]:
    """The thresholds as fitted, for a precision and for a number of tags, on held-out images.

    The first alone where the model keeps no scores to tune on.
    """
    is_tail = catalog.table.group == "tail"
    thresholds = predictions.provenance.get("thresholds", {})
    objective = thresholds.get("objective", "f1")
    yield operating_point(f"{objective}, as fitted", aligned.predicted, aligned.labels, is_tail)
    try:
        model = Model.load(tuned_on(pair.folder, predictions))
        rows = model.rows(catalog)
    except RetailtagError:
        return  # a pair of an earlier version
    for name, tuned in other_points(model, catalog, rows, thresholds):
        given = assign(aligned.logits, tuned, catalog.table.tags, aligned.exclusive, assignment)
        yield operating_point(TITLES[name], given, aligned.labels, is_tail)
