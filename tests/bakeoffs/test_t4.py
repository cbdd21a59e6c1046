"""Estimates for a T4: counted operations of a sweep, and what the host adds."""

from dataclasses import fields, replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from retailtag.backbones.operations import PRODUCT, Kernels
from retailtag.backbones.roofline import T4, Rates
from retailtag.bakeoffs import t4
from retailtag.errors import UsageError
from retailtag.report.results import T4Cost
from retailtag.runs.latency import LatencyRow, to_csv
from retailtag.runs.stage import StageRecord
from retailtag.scoring.strict_json import parsed

HERE = Rates(1e9, 1e9, 1e12, 0.0, value_bytes=4)  # a machine bound by its products alone
FLOPS = 2e9  # of one image: two seconds here


def _kernels(backbone, batch_size, *_):
    one = np.array([FLOPS * batch_size])
    return Kernels(np.array([PRODUCT], np.int8), one, np.ones(1), np.full(1, 1e9))


@pytest.fixture
def pair(tmp_path, monkeypatch):
    """A fine-tune of a model of one kernel, whose probe took 36 iterations."""
    monkeypatch.setattr(t4, "embedding_kernels", _kernels)
    monkeypatch.setattr(t4, "training_kernels", lambda *a: _kernels(a[0], 3 * a[1]))
    columns = {"scale": ["none"] * 8, "fold": [0, 0, 0, 0, 1, 1, 1, 1], "tag": list("aabbaabb")}
    columns["iterations"] = [1, 2, 3, 4, 1, 2, 3, 20]
    pq.write_table(pa.table(columns), tmp_path / "sweep.parquet")
    settings = {"batch_size": 64, "blocks": 4, "epochs": 2}
    records = {
        "probe": StageRecord({}, {}, 50.0, 0.0, {}),
        "finetune": StageRecord({"settings": settings}, {}, 5_000.0, 0.0, {}),
    }
    return t4.Trained("demo:cnn", tmp_path, records, 640, 64, 10, 16, extract_seconds=1_280.0)


def test_a_sweep_has_the_operations_of_its_iterations(pair):
    found = t4.solver_kernels(pair.folder / "sweep.parquet", 640, 16)
    # of two folds each fit sees half of the images; fold 0 took 10 iterations, 7 of them of b
    assert found.operations[:2].tolist() == [4 * 10 * 320 * 16, 4 * 26 * 320 * 16]
    assert len(found) == 2 + t4.SOLVER_KERNELS * (7 + 23)


def test_what_the_network_does_not_explain_here_is_the_hosts(pair):
    found = t4.t4_cost(pair, {1: 2.0, 32: 64.0}, HERE)
    assert found["float32"]["predicted_here"] == {"1": 1.0, "32": 1.0}
    for arithmetic, device in T4.items():
        cost = found[arithmetic]
        one = device.seconds(_kernels("", 1))
        np.testing.assert_allclose(cost["latency_ms"], [1000 * s for s in one])
        value, low, high = cost["images_per_second"]
        assert low < value < high
        # extraction took here as long as the network does: the host adds nothing
        n_batches = 640 / 32
        batch = device.seconds(_kernels("", 32))
        np.testing.assert_allclose(cost["extract_seconds"], [n_batches * s for s in batch])
        # the fine-tune: 20 steps and 2 batches take 7,808 s here, more than it took
        step = device.step_seconds(_kernels("", 192))
        tuned = [20 * s + 2 * b for s, b in zip(step, batch, strict=True)]
        rest = np.subtract(cost["train_seconds"], tuned) - cost["extract_seconds"]
        probe = T4["float32"].seconds(t4.solver_kernels(pair.folder / "sweep.parquet", 640, 16))
        host = 50.0 - HERE.seconds(t4.solver_kernels(pair.folder / "sweep.parquet", 640, 16))
        np.testing.assert_allclose(rest, np.array([1.0, 0.5, 1.5]) * host + probe, rtol=1e-6)


def test_a_probe_pays_for_no_fine_tune_and_decoding_bounds_an_extraction(pair):
    probe = t4.Trained(
        **{**vars(pair), "records": {"probe": pair.records["probe"]}, "extract_seconds": 9_280.0}
    )
    cost = t4.t4_cost(probe, {1: 2.0}, HERE)["float16"]
    assert cost["extract_seconds"][0] == pytest.approx(8_000.0)  # the host is the slower
    assert cost["train_seconds"][0] < 8_200


def test_on_a_t4_figures_are_the_measured_ones(pair):
    latency = {"latency_ms_p50": 9.0, "latency_ms_low": 8.0, "latency_ms_high": 10.0}
    cost = t4.measured_t4({**latency, "images_per_second": 300.0}, pair)["float32"]
    assert cost["is_measured"]
    assert cost["latency_ms"] == [9.0, 8.0, 10.0]
    assert cost["train_seconds"] == [6_330.0] * 3


def _timed(engine, batch_size, seconds, **changes):
    """A row as `retailtag latency` writes it on a T4."""
    figures = {f.name: 1000 * seconds for f in fields(LatencyRow) if f.type == "float"}
    row = LatencyRow(
        **figures,
        pair="there",
        model="0" * 64,
        engine=engine,
        batch_size=batch_size,
        is_best_batch=True,
        is_fastest=True,
        n_calls=20,
        n_turns=6,
        machine="Xeon (4 cores), Tesla T4",
        threads=4,
        date="2026-11-30",
    )
    return replace(row, images_per_second=batch_size / seconds, **changes)


def test_what_a_t4_measured_takes_the_place_of_its_estimates(pair):
    found = t4.t4_cost(pair, {1: 2.0, 32: 64.0}, HERE)
    estimates = {name: parsed(T4Cost, cost) for name, cost in found.items()}
    rows = [
        _timed("eager-float32", 1, 0.02),
        _timed("compile-float32", 1, 0.01),
        _timed("eager-float32", 32, 0.1),
    ]
    merged = t4.merged_t4(estimates, rows)
    assert merged["float32"].latency_ms[0] == 10
    assert merged["float32"].images_per_second == 3 * (320.0,)
    assert merged["float32"].merged_from.startswith("compile-float32, Xeon (4 cores), Tesla T4")
    assert merged["float32"].train_seconds == estimates["float32"].train_seconds
    assert merged["float16"] == estimates["float16"]
    assert t4.merged_t4(estimates, []) == estimates
    alone = t4.merged_t4({}, rows)  # a model whose kernels cannot be counted
    assert alone["float32"].latency_ms[0] == 10
    assert np.isnan(alone["float32"].train_seconds).all()


def test_figures_of_another_device_are_no_t4s(tmp_path):
    path = tmp_path / "there.csv"
    path.write_text(to_csv([_timed("eager-float32", 1, 0.02)]))
    t4.check_merged([path])
    path.write_text(to_csv([_timed("eager-float32", 1, 0.02, machine="EPYC (2 cores), cpu")]))
    with pytest.raises(UsageError, match=r"there.csv was measured on EPYC .* measured on a T4"):
        t4.check_merged([path])
