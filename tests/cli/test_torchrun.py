"""`torchrun -m retailtag finetune`, with real processes of which one is killed."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from retailtag.cli.main import run
from retailtag.predictions import Predictions

ROOT = Path(__file__).parents[2]
LIMIT = 300  # seconds after which something hangs


@pytest.fixture
def common(small_csv, tmp_path, monkeypatch):
    """Arguments of a fine-tune, in a folder with features and probe of the small world."""
    monkeypatch.chdir(tmp_path)
    same = [str(small_csv), "--backbone", "demo:cnn", "--device", "cpu"]
    assert run(["extract", *same, "--workers", "0", "--quiet"]) == 0
    quick = ["--sweep-C", "0.01", "--folds", "2", "--heads", "logistic"]
    assert run(["probe", *same, *quick, "--quiet"]) == 0
    return [*same, "--workers", "0", "--epochs", "12", "--blocks", "1", "--augment", "none"]


def _started(*args):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    launcher += ["--nproc-per-node", "2", "--max-restarts", "1", "-m", "retailtag"]
    lines = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    own = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    return subprocess.Popen([*launcher, *args], env=os.environ | own, **lines)


def _kill_second(launcher, snapshot):
    """Kill the process of rank 1 as soon as there is a snapshot."""
    end = time.monotonic() + LIMIT
    while not snapshot.exists():
        assert launcher.poll() is None, launcher.communicate()
        assert time.monotonic() < end
        time.sleep(0.01)
    (second,) = (
        child
        for child in psutil.Process(launcher.pid).children()
        if child.environ().get("RANK") == "1"
    )
    second.kill()


def test_a_killed_process_is_started_again_and_the_run_ends_as_one_process_does(common, tmp_path):
    launcher = _started("finetune", *common, "--out", "tuned", "--json")
    try:
        _kill_second(launcher, tmp_path / "tuned" / "resume.pt")
        out, err = launcher.communicate(timeout=LIMIT)
    finally:
        launcher.kill()
    assert launcher.returncode == 0, err
    assert "continuing from tuned/resume.pt" in err
    interrupted, told = map(json.loads, out.splitlines())  # of the first process, twice started
    assert interrupted["exit_code"] != 0
    assert len(told["history"]) == 13
    assert run(["finetune", *common, "--out", "alone", "--quiet"]) == 0
    ours, theirs = (Predictions.load(Path(f, "predictions.npz")) for f in ("tuned", "alone"))
    np.testing.assert_allclose(ours.logits, theirs.logits, atol=1e-3)
    assert not (tmp_path / "tuned" / "resume.pt").exists()
