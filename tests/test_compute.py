"""The device and the processes of a run."""

import os

import pytest
import torch

from retailtag.cli.verb import speaks
from retailtag.compute import n_workers, resolve_device
from retailtag.errors import Unavailable
from retailtag.ranks import ALONE, Ranks, joined
from retailtag.settings import ComputeSettings


@pytest.mark.parametrize(("rank", "gpu"), [("1", [1]), ("3", [1]), ("", [])])
def test_processes_of_one_machine_take_its_gpus_in_turn(monkeypatch, rank, gpu):
    chosen = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setenv("LOCAL_RANK", rank)
    assert resolve_device("auto") == "cuda"
    assert chosen == gpu


@pytest.fixture
def launched(monkeypatch):
    """Set what torchrun tells the second of two processes on a machine."""
    given = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    for name, value in (given | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29400"}).items():
        monkeypatch.setenv(name, value)


def test_a_process_knows_its_place_from_the_launcher(launched, monkeypatch):
    assert Ranks.given() == Ranks(1, 2, 2)
    assert not speaks("finetune")  # the first process does
    assert speaks("extract")  # whose processes do not work together
    monkeypatch.delenv("MASTER_PORT")
    assert Ranks.given() == ALONE
    assert speaks("finetune")


def test_more_processes_than_devices_are_refused(launched, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    sentence = "1 CUDA device for 2 processes; give torchrun --nproc-per-node 1"
    with pytest.raises(Unavailable, match=sentence), joined("auto"):
        pass


def test_processes_of_one_machine_share_its_cores(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert [n_workers(ComputeSettings(), sharing) for sharing in (1, 3, 16)] == [8, 2, 1]
    assert n_workers(ComputeSettings(workers=5), 4) == 5


def test_parts_cover_all_rows_once_and_batches_leave_no_process_without_an_image():
    parts = [Ranks(rank, 3) for rank in range(3)]
    assert [range(10)[ranks.stretch(10)] for ranks in parts] == [
        range(3),
        range(3, 6),
        range(6, 10),
    ]
    assert sorted(i for ranks in parts for i in range(10)[ranks.places(10)]) == list(range(10))
    assert [list(range(2)[ranks.places(2)]) for ranks in parts] == [[0], [1], [0]]
