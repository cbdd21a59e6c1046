"""What a pair would cost on an NVIDIA T4, by a roofline, with the range and the error here.

Only what a GPU computes is estimated. The rest of a measured time, such as decoding, choices and
files, is the host's: what the same roofline with this machine's rates leaves unexplained of the
time measured here. On a T4 it is taken to last as long, give or take a half, since hosts differ.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from retailtag.backbones.operations import (
    PRODUCT,
    Kernels,
    embedding_kernels,
    training_kernels,
)
from retailtag.backbones.roofline import T4, Device, Estimated, Rates
from retailtag.errors import UsageError
from retailtag.report.results import T4Cost
from retailtag.runs.latency import LatencyRow, read_rows
from retailtag.runs.stage import StageRecord

BATCH = 32
HOST_RANGE = (1.0, 0.5, 1.5)  # usual, fast and slow hosts, as shares of this one's time
SOLVER_KERNELS = 1_000  # of an iteration of all tags: a trace of small sweeps counts 560 to 1,080
CELL_VALUES = 6  # passes over (images, tags) of an iteration


@dataclass(frozen=True)
class Trained:
    """A finished pair as far as its training is estimated."""

    backbone: str
    folder: Path  # of its probe
    records: Mapping[str, StageRecord]  # probe, and finetune if that is the pair's strategy
    n_train: int
    n_held_out: int
    n_tags: int
    dim: int
    extract_seconds: float  # of the training images, here


def t4_cost(pair: Trained, model_seconds: Mapping[int, float], here: Rates) -> dict[str, Any]:
    """Estimates by arithmetic, as `retailtag.report.results.T4Cost` holds them.

    `model_seconds` are those of the network alone measured here, by batch size; `here` the rates
    of this machine.
    """
    predicted = {n: here.seconds(embedding_kernels(pair.backbone, n)) for n in model_seconds}
    errors = {str(n): predicted[n] / model_seconds[n] for n in model_seconds}
    found = {}
    for arithmetic, device in T4.items():
        single, batch = (device.seconds(embedding_kernels(pair.backbone, n)) for n in (1, BATCH))
        extraction = _extraction(pair, device, here)
        training = [extraction, _probe(pair, T4["float32"], here)]
        if "finetune" in pair.records:
            training.append(_finetune(pair, device, here))
        found[arithmetic] = {
            "latency_ms": [1000 * s for s in single],
            "images_per_second": [BATCH / batch.value, BATCH / batch.high, BATCH / batch.low],
            "extract_seconds": list(extraction),
            "train_seconds": [float(s) for s in np.sum(training, axis=0)],
            "predicted_here": errors,
        }
    return found


def measured_t4(cost: Mapping[str, Any], pair: Trained) -> dict[str, Any]:
    """What a bake-off measured on a T4, in the form of `t4_cost`."""
    seconds = pair.extract_seconds + sum(record.seconds for record in pair.records.values())
    latency = [cost[f"latency_ms_{name}"] for name in ("p50", "low", "high")]
    return {
        "float32": {
            "latency_ms": latency,
            "images_per_second": 3 * [cost["images_per_second"]],
            "extract_seconds": 3 * [pair.extract_seconds],
            "train_seconds": 3 * [seconds],
            "predicted_here": {},
            "is_measured": True,
        }
    }


def check_merged(paths: Sequence[Path]) -> None:
    """Raise `DataError` for a file that `read_rows` refuses, `UsageError` for one of no T4."""
    for path in paths:
        machines = {row.machine for row in read_rows(path).values()}
        if strange := [machine for machine in machines if not _T4.search(machine)]:
            raise UsageError(
                f"--merge {path} was measured on {strange[0]}, and the report has figures of a T4 "
                "beside those of its own machine; give a file measured on a T4."
            )


def merged_t4(estimates: Mapping[str, T4Cost], rows: Sequence[LatencyRow]) -> dict[str, T4Cost]:
    """Costs with the latency of one image and the throughput of `rows`, of one pair on a T4.

    By arithmetic the engine with the shortest time for one image, and the batch with the most
    images a second. Training stays an estimate.
    """
    merged = dict(estimates)
    for arithmetic in T4:
        own = [row for row in rows if row.engine.endswith(f"-{arithmetic}")]
        single = [row for row in own if row.batch_size == 1]
        if not single:
            continue
        first = min(single, key=lambda row: row.tags_ms_p50)
        rate = max(row.images_per_second for row in own)
        known = merged.get(arithmetic, _UNKNOWN)
        merged[arithmetic] = replace(
            known,
            latency_ms=(first.tags_ms_p50, first.tags_ms_p50_low, first.tags_ms_p50_high),
            images_per_second=(rate, rate, rate),
            merged_from=f"{first.engine}, {first.machine}, {first.date}",
        )
    return merged


_T4 = re.compile(r"\bT4\b")
_NANS = (math.nan, math.nan, math.nan)
_UNKNOWN = T4Cost(_NANS, _NANS, _NANS, _NANS, predicted_here={})


def _with_host(device: Estimated, here: float, measured: float) -> Estimated:
    """A time on the device and what the host adds, from `measured` and what explains it here."""
    host = max(measured - here, 0.0)
    return Estimated(*(s + share * host for s, share in zip(device, HOST_RANGE, strict=True)))


def _times(n: float, one: Estimated) -> Estimated:
    return Estimated(*(n * seconds for seconds in one))


def _extraction(pair: Trained, device: Device, here: Rates) -> Estimated:
    """Embedding the training images once; decoding overlaps with the network."""
    kernels = embedding_kernels(pair.backbone, BATCH)
    n_batches = pair.n_train / BATCH
    network = _times(n_batches, device.seconds(kernels))
    host = max(pair.extract_seconds - n_batches * here.seconds(kernels), 0.0)
    return Estimated(*(max(s, h * host) for s, h in zip(network, HOST_RANGE, strict=True)))


def _probe(pair: Trained, device: Device, here: Rates) -> Estimated:
    """The sweep, by the iterations that its table records."""
    kernels = solver_kernels(pair.folder / "sweep.parquet", pair.n_train, pair.dim)
    measured = pair.records["probe"].seconds
    return _with_host(device.seconds(kernels), here.seconds(kernels), measured)


def solver_kernels(sweep: Path, n_images: int, dim: int) -> Kernels:
    """Kernels of all recorded fits; every tag of a fold goes along its path at its own pace."""
    table = pq.read_table(sweep, columns=["scale", "fold", "tag", "iterations"])
    paths = table.group_by(["scale", "fold", "tag"]).aggregate([("iterations", "sum")])
    folds = paths.group_by(["scale", "fold"]).aggregate(
        [("iterations_sum", "sum"), ("iterations_sum", "max"), ("iterations_sum", "count")]
    )
    n_folds = len(set(table["fold"].to_pylist()))
    n = n_images * max(n_folds - 1, 1) / n_folds
    total, steps, n_tags = (
        folds[f"iterations_sum_{name}"].to_numpy().astype(np.float64)
        for name in ("sum", "max", "count")
    )
    # The products of an iteration: features times directions, and the transpose times residuals.
    products = 4 * total * n * dim
    values = 2 * steps * n * dim + CELL_VALUES * total * n
    rest = np.zeros(int(SOLVER_KERNELS * steps.sum()))
    return Kernels(
        np.append(np.full(len(total), PRODUCT, np.int8), rest.astype(np.int8)),
        np.append(products, rest),
        np.append(values, rest),
        np.append(n * n_tags, rest),
    )


def _finetune(pair: Trained, device: Device, here: Rates) -> Estimated:
    """Training and one evaluation of the held-out images."""
    settings = pair.records["finetune"].inputs["settings"]
    batch, blocks = int(settings["batch_size"]), settings["blocks"]
    step = training_kernels(
        pair.backbone, batch, pair.n_tags, "all" if blocks == "scratch" else blocks
    )
    evaluated = embedding_kernels(pair.backbone, BATCH)
    n_steps = settings["epochs"] * math.ceil(pair.n_train / batch)
    n_batches = pair.n_held_out / BATCH

    steps = _times(n_steps, device.step_seconds(step))
    evaluation = _times(n_batches, device.seconds(evaluated))
    on_t4 = Estimated(*(a + b for a, b in zip(steps, evaluation, strict=True)))
    explained = n_steps * here.seconds(step) + n_batches * here.seconds(evaluated)
    return _with_host(on_t4, explained, pair.records["finetune"].seconds)
