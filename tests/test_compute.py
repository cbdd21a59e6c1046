"""The device and the processes of a run."""

import pytest
import torch

from retailtag.compute import resolve_device


@pytest.mark.parametrize(("rank", "gpu"), [("1", [1]), ("3", [1]), ("", [])])
def test_processes_of_one_machine_take_its_gpus_in_turn(monkeypatch, rank, gpu):
    chosen = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setenv("LOCAL_RANK", rank)
    assert resolve_device("auto") == "cuda"
    assert chosen == gpu
