"""What every pair costs: latency, training, memory, size, a T4, money."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from retailtag.report.report import Report
from retailtag.report.results import PairResult, T4Cost
from retailtag.report.tables import duration, milliseconds

PARTS = ("decode", "preprocess", "backbone", "head")  # of a latency, in the order they run

SECONDS_PER_HOUR = 3600


@dataclass(frozen=True)
class Price:
    """Prices of one pair at the price of an hour."""

    million: str  # of a million images
    training: str


@dataclass(frozen=True)
class T4Row:
    """A pair on a T4, as text: figures with their ranges."""

    latency: str  # one image in float32
    float32: str  # images per second in batches
    float16: str
    training: str
    error: str  # predicted over measured, of one image and of a batch on this machine
    merged_from: tuple[str, ...]  # where latency and throughput were measured, if they were
    price: Price | None


@dataclass(frozen=True)
class CostRow:
    """One pair."""

    pair: PairResult
    interval: str  # of the latency; empty where unknown
    stages: str  # parts of the latency
    shared_by: int  # pairs that use the same extraction
    price: Price | None
    t4: T4Row | None


@dataclass(frozen=True)
class Costs:
    """Costs as measured on this machine, and on a T4."""

    rows: tuple[CostRow, ...]
    price_per_hour: float | None
    has_t4: bool
    t4_is_measured: bool
    t4_is_merged: bool  # some of it


def costs(report: Report) -> Costs:
    """Costs in the order of the ranking."""
    rows = tuple(_row(report, pair) for pair in report.result.ranking)
    t4 = [cost for row in rows for cost in row.pair.cost.t4.values()]
    return Costs(
        rows,
        _per_hour(report),
        bool(t4),
        any(cost.is_measured for cost in t4),
        any(cost.merged_from for cost in t4),
    )


def _per_hour(report: Report) -> float | None:
    """Price of an hour; None if there is none."""
    price = report.result.rule.price_per_hour
    return None if math.isnan(price) else price


def _row(report: Report, pair: PairResult) -> CostRow:
    cost = pair.cost
    known = not math.isnan(cost.latency_ms_low)
    low, high = milliseconds(cost.latency_ms_low), milliseconds(cost.latency_ms_high)
    known_parts = [name for name in PARTS if name in cost.latency_ms_stages]
    stages = [f"{name} {milliseconds(cost.latency_ms_stages[name])}" for name in known_parts]
    return CostRow(
        pair,
        f"{low}\N{EN DASH}{high}" if known else "",
        ", ".join(stages),
        sum(other.backbone == pair.backbone for other in report.result.pairs),
        _price(_per_hour(report), cost.images_per_second, cost.train_seconds),
        _t4_row(_per_hour(report), cost.t4),
    )


def _price(per_hour: float | None, images_per_second: float, seconds: float) -> Price | None:
    if per_hour is None:
        return None
    hours = 1e6 / images_per_second / SECONDS_PER_HOUR if images_per_second else math.nan
    return Price(
        milliseconds(hours * per_hour), milliseconds(seconds / SECONDS_PER_HOUR * per_hour)
    )


def _t4_row(per_hour: float | None, t4: dict[str, T4Cost]) -> T4Row | None:
    if not t4:
        return None
    exact = t4["float32"]
    fast = t4.get("float16", exact)
    errors = [f"{error:.2f}" for error in exact.predicted_here.values()]
    return T4Row(
        latency=_ranged(exact.latency_ms),
        float32=_ranged(exact.images_per_second),
        float16=_ranged(fast.images_per_second) if "float16" in t4 else "\N{EN DASH}",
        training=_ranged(fast.train_seconds, duration),
        error=" / ".join(errors) or "\N{EN DASH}",
        merged_from=tuple(cost.merged_from for cost in t4.values() if cost.merged_from),
        price=_price(per_hour, fast.images_per_second[0], fast.train_seconds[0]),
    )


def _ranged(figures: tuple[float, ...], shown: Callable[[float], str] = milliseconds) -> str:
    """Value with its range."""
    value, low, high = map(shown, figures)
    return f"{value} ({low}\N{EN DASH}{high})"
