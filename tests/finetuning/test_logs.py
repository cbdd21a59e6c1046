import json
import os
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from retailtag.errors import Unavailable, UsageError
from retailtag.finetuning.logs import JsonLines, open_logs


def _rows(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _fill(log, steps):
    for step in steps:
        log.metrics(step, {"loss": 1 / step})


def test_lines_hold_settings_and_numbers(tmp_path):
    with open_logs(tmp_path / "run") as logs:
        logs.settings({"lr": 3e-4, "loss": "asl:clip=0"})
        logs.metrics(1, {"loss": np.float32(0.5), "seen": np.int64(64), "tail": float("nan")})
        logs.metrics(2, {"loss": torch.tensor(0.25), "tail": None})
    assert _rows(tmp_path / "run" / "log.jsonl") == [
        {"settings": {"lr": 3e-4, "loss": "asl:clip=0"}},
        {"step": 1, "loss": 0.5, "seen": 64, "tail": None},
        {"step": 2, "loss": 0.25, "tail": None},
    ]


def test_a_resumed_log_reads_like_an_uninterrupted_one(tmp_path):
    whole, broken = tmp_path / "whole.jsonl", tmp_path / "broken.jsonl"
    log = JsonLines(whole)
    log.settings({"lr": 1})
    _fill(log, range(1, 9))
    log.close()
    log = JsonLines(broken)
    log.settings({"lr": 1})
    _fill(log, range(1, 6))  # the checkpoint was of step 3
    log.close()
    with broken.open("ab") as handle:
        handle.write(b'{"step": 6, "lo')
    log = JsonLines(broken, resume_at=3)
    log.settings({"lr": 1})
    _fill(log, range(4, 9))
    log.close()
    assert broken.read_bytes() == whole.read_bytes()


def test_a_torn_line_that_parses_is_not_kept(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"step": 1}\n{"step": 2}')
    JsonLines(path, resume_at=9).close()
    assert path.read_bytes() == b'{"step": 1}\n'


def test_a_fresh_run_begins_a_fresh_log(tmp_path):
    for _ in range(2):
        log = JsonLines(tmp_path / "log.jsonl")
        _fill(log, [1])
        log.close()
        log.close()
    assert _rows(tmp_path / "log.jsonl") == [{"step": 1, "loss": 1.0}]


def test_what_was_told_before_a_kill_is_there(tmp_path, fork_script):
    program = (
        "import os, signal\nfrom pathlib import Path\n"
        "from retailtag.finetuning.logs import open_logs\n"
        f"logs = open_logs(Path({str(tmp_path)!r}))\n"
        "for step in range(1, 50): logs.metrics(step, {'loss': 0.5})\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    killed = fork_script(program)
    killed.join()
    assert killed.exitcode == -signal.SIGKILL
    assert [row["step"] for row in _rows(tmp_path / "log.jsonl")] == list(range(1, 50))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_names_the_log(tmp_path, monkeypatch):
    log = JsonLines(tmp_path / "log.jsonl")
    full = os.open("/dev/full", os.O_WRONLY)
    monkeypatch.setattr(log, "_file", full)
    with pytest.raises(OSError, match=r"No space left.*log\.jsonl"):
        log.metrics(1, {"loss": 0.5})
    os.close(full)
    monkeypatch.undo()
    monkeypatch.setattr(os, "write", lambda file, data: 3)
    with pytest.raises(OSError, match=r"No space left.*log\.jsonl"):
        log.metrics(1, {"loss": 0.5})
    monkeypatch.undo()
    log.close()


def test_tensorboard_files_hold_the_numbers(tmp_path):
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator"
    ).EventAccumulator
    with open_logs(tmp_path, ["tensorboard"]) as logs:
        logs.settings({"lr": 1})
        logs.metrics(1, {"loss": 0.5, "tail": None})
        logs.metrics(2, {"loss": 0.25, "tail": float("inf")})
        logs.metrics(3, {"loss": 9.0})
    with open_logs(tmp_path, ["tensorboard"], resume_at=2) as logs:
        logs.metrics(3, {"loss": 0.125})
    events = accumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert events.Tags()["scalars"] == ["loss"]
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(1, 0.5), (2, 0.25), (3, 0.125)]


class _FakeMlflow(SimpleNamespace):
    """Keeps what it is told; a server that is `down` raises."""

    def __init__(self):
        class MlflowException(Exception):
            pass

        super().__init__(exceptions=SimpleNamespace(MlflowException=MlflowException))
        self.calls, self.down = [], False

    def _note(self, *call):
        if self.down:
            raise self.exceptions.MlflowException("no answer")
        self.calls.append(call)

    def start_run(self, run_id=None, run_name=None):
        self._note("start", run_id, run_name)
        return SimpleNamespace(info=SimpleNamespace(run_id=run_id or "run-7"))

    def log_params(self, params):
        self._note("params", params)

    def log_metrics(self, values, step):
        self._note("metrics", step, values)

    def end_run(self):
        self._note("end")


@pytest.fixture
def mlflow(monkeypatch):
    fake = _FakeMlflow()
    monkeypatch.setitem(sys.modules, "mlflow", fake)
    return fake


def test_mlflow_gets_settings_and_finite_numbers(mlflow, tmp_path):
    with open_logs(tmp_path / "mine", ["mlflow"]) as logs:
        logs.settings({"lr": 0.1, "note": "x" * 900})
        logs.metrics(4, {"loss": 0.5, "tail": float("nan")})
    assert mlflow.calls == [
        ("start", None, "mine"),
        ("params", {"lr": "0.1", "note": "x" * 500}),
        ("metrics", 4, {"loss": 0.5}),
        ("end",),
    ]


def test_mlflow_continues_the_same_run(mlflow, tmp_path):
    with open_logs(tmp_path, ["mlflow"]):
        pass
    mlflow.calls.clear()
    with open_logs(tmp_path, ["mlflow"], resume_at=3) as logs:
        logs.settings({"lr": 0.1})
    assert mlflow.calls == [("start", "run-7", None), ("end",)]


def test_training_outlives_a_tracker(mlflow, tmp_path):
    said = []
    with open_logs(tmp_path, ["mlflow"], say=said.append) as logs:
        mlflow.down = True
        _fill(logs, [1, 2, 3])
    assert said == ["MLflow stopped answering (no answer); log.jsonl has all numbers."]
    assert len(_rows(tmp_path / "log.jsonl")) == 3


def test_wandb_gets_settings_and_numbers_and_continues_its_run(monkeypatch, tmp_path):
    calls = []

    def init(**given):
        calls.append(("init", given))
        return SimpleNamespace(
            id="abc",
            config=SimpleNamespace(update=lambda v, allow_val_change: calls.append(("config", v))),
            log=lambda values, step: calls.append(("log", step, values)),
            finish=lambda: calls.append(("finish",)),
        )

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    with open_logs(tmp_path, ["wandb"]) as logs:
        logs.settings({"lr": 0.1})
        logs.metrics(1, {"loss": 0.5, "tail": None})
    first = {"project": "retailtag", "name": tmp_path.name, "dir": str(tmp_path), "resume": "allow"}
    assert calls == [
        ("init", {**first, "id": None}),
        ("config", {"lr": 0.1}),
        ("log", 1, {"loss": 0.5}),
        ("finish",),
    ]
    calls.clear()
    with open_logs(tmp_path, ["wandb"], resume_at=1):
        pass
    assert calls[0] == ("init", {**first, "id": "abc"})


@pytest.mark.parametrize(
    ("name", "module"),
    [("tensorboard", "torch.utils.tensorboard"), ("mlflow", "mlflow"), ("wandb", "wandb")],
)
def test_an_absent_package_is_one_sentence_with_the_remedy(name, module, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(Unavailable, match=rf'run `pip install "retailtag\[{name}\]"`\.'):
        open_logs(tmp_path, [name])


def test_an_unknown_tracker_names_the_option(tmp_path):
    with pytest.raises(UsageError, match="--log comet is unknown"):
        open_logs(tmp_path, ["comet"])
    assert not list(tmp_path.iterdir())
