"""The script for a GPU, run on the CPU in a tiny size, and how it treats checks that go wrong."""

import csv
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "benchmarks" / "gpu_check.py"
# What a CPU cannot do, with a word of the reason.
SKIPPED = {
    "parity: head ridge": "NumPy",
    "fine-tune epoch, fp16": "CUDA",
    "cuML beside (b)": "CUDA",
    "parity: engine compile": "CPU",
}


@pytest.fixture
def modules(monkeypatch):
    """The script and the module that runs its checks."""
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    import gpu_check
    import gpu_runner

    return gpu_check, gpu_runner


def run(*options):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(SCRIPT), *map(str, options)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def test_every_check_runs_on_a_cpu_in_a_tiny_size(modules, tmp_path):
    out = tmp_path / "check.json"
    done = run("--device", "cpu", "--tiny", "--out", out)
    assert done.returncode == 0, done.stderr
    written = json.loads(out.read_text(encoding="utf-8"))
    checks = {check["check"]: check for check in written["checks"]}
    assert list(checks) == [check.name for check in modules[0].CHECKS]
    for name, check in checks.items():
        for figure in check["figures"]:
            assert figure["status"] != "failed", f"{name}: {figure}"
            assert (figure["value"] is None) == (figure["status"] == "skipped"), f"{name}: {figure}"
            assert bool(figure["reason"]) == (figure["status"] == "skipped"), f"{name}: {figure}"
    for name, word in SKIPPED.items():
        assert checks[name]["status"] == "skipped"
        assert word in checks[name]["figures"][0]["reason"]
    busy = [f for f in checks["fine-tune epoch, bf16"]["figures"] if "GPU busy" in f["name"]]
    assert {figure["status"] for figure in busy} == {"skipped"}
    assert written["failed"] == []
    check_table(out.with_suffix(".csv"), written)
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert all(any(line.startswith(name) for line in lines) for name in checks)


def check_table(path, written):
    """One row per figure, each with where it was measured."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    figures = [(c["check"], f["name"]) for c in written["checks"] for f in c["figures"]]
    assert [(row["check"], row["figure"]) for row in rows] == figures
    assert all(row["date"] and row["device"] == "cpu" and row["torch"] for row in rows)
    assert all(row["status"] == "skipped" or math.isfinite(float(row["value"])) for row in rows)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_it_says_so(modules, capsys):
    with pytest.raises(SystemExit) as done:
        modules[0].parse([])
    assert done.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("gpu_check needs a CUDA device and PyTorch sees none")
    assert said.count(".") == said.count("\n") == 1


def test_a_failure_is_recorded_and_the_rest_goes_on(modules, tmp_path, monkeypatch, capsys):
    script, runner = modules

    def broken(world):
        yield runner.Figure("before", 1.0, "s")
        raise ValueError("the first line\nand the second")

    def too_large(world):
        yield runner.Figure("objective", 2.0, "", 1.0)

    def fine(world):
        yield runner.Figure("objective", 0.5, "", 1.0)

    checks = [runner.Check(f.__name__, f, 10) for f in (broken, too_large, fine)]
    monkeypatch.setattr(script, "CHECKS", checks)
    out = tmp_path / "check.json"
    monkeypatch.setattr(sys, "argv", ["", "--device", "cpu", "--tiny", "--out", str(out)])
    assert script.main() == 1
    written = json.loads(out.read_text(encoding="utf-8"))
    assert written["failed"] == ["broken", "too_large"]
    assert [check["status"] for check in written["checks"]] == ["failed", "failed", "passed"]
    before, error = written["checks"][0]["figures"]
    assert before["value"] == 1.0
    assert error["reason"] == "ValueError: the first line"
    assert "ValueError: the first line" in capsys.readouterr().out


def test_time_is_limited(modules):
    _, runner = modules

    def slow(world):
        yield runner.Figure("before", 1.0)
        time.sleep(20)

    def skips(world):
        raise runner.Skip("nothing to do")
        yield

    found = runner.run_check(runner.Check("slow", slow, 0.05), None, "cpu", 60)
    assert (found.status, found.figures[-1].reason) == (
        "failed",
        "it took more than the 0.05 s that it has",
    )
    found = runner.run_check(runner.Check("slow", slow, 60), None, "cpu", 0.05)
    assert (found.status, found.figures[-1].status) == ("measured", "skipped")
    (found,) = runner.run_checks([runner.Check("slow", slow, 60)], None, "cpu", minutes=0)
    assert found.figures[0].reason == "the time of all checks is over"
    found = runner.run_check(runner.Check("skips", skips, 60), None, "cpu", 60)
    assert (found.status, found.figures[0].reason) == ("skipped", "nothing to do")


def test_a_value_that_is_not_finite_keeps_no_limit(modules):
    _, runner = modules
    for at_least in (False, True):
        assert runner.Figure("gap", math.nan, "", 1.0, at_least=at_least).status == "failed"
    result = runner.Result("all", (runner.Figure("gap", math.nan, "", 1.0),), 0.0)
    assert result.to_json()["figures"][0]["value"] is None


def test_cuml_is_compared_on_the_fits_that_were_audited(modules, tmp_path, monkeypatch):
    """With scikit-learn in its place: the two have one interface."""
    import gpu_speed
    from gpu_world import TINY, World
    from probe_rivals import scikit_learn

    world = World("cpu", TINY, tmp_path)
    assert {figure.status for figure in gpu_speed.narrow_sweep(world)} == {"passed", "measured"}
    world.device = "cuda"
    monkeypatch.setattr(gpu_speed, "cuml", scikit_learn)
    found = {figure.name: figure.value for figure in gpu_speed.beside_cuml(world)}
    assert found["matched: suboptimality"] <= 1e-4
    assert found["matched: the grid, estimated"] > 0


def test_targets_for_times_are_those_of_an_h200(modules, monkeypatch):
    from gpu_world import FULL, TINY, World

    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200")
    assert World("cuda", FULL, Path()).time_limit(10) == 10
    assert World("cuda", TINY, Path()).time_limit(10) is None
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    assert World("cuda", FULL, Path()).time_limit(10) is None


def test_the_union_of_kernels_counts_once(modules):
    from gpu_speed import covered

    assert covered([(5, 7), (0, 2), (1, 3), (1, 2)]) == 5
    assert covered([]) == 0
