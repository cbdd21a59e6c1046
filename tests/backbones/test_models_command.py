"""`retailtag models list|pull|verify`."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from retailtag.backbones import cost
from retailtag.cli.models import app
from retailtag.errors import ArtefactError, DataError, Unavailable

SMALL = "timm:mobilenetv3_small_050"


def run(*args: str) -> str:
    result = CliRunner().invoke(app, args)
    if result.exception is not None:
        raise result.exception
    return result.stdout


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    import timm

    save_file(timm.create_model("mobilenetv3_small_050").state_dict(), tmp_path / "m.safetensors")
    return tmp_path / "m.safetensors"


@pytest.fixture(autouse=True)
def _offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def test_list_shows_the_trio_and_the_demos(monkeypatch):
    pytest.importorskip("retailtag.demo.networks")
    monkeypatch.setattr(cost, "cost_of", cache(cost.cost_of))  # each is counted once
    rows = {row["name"]: row for row in json.loads(run("list", "--json"))["models"]}
    assert {"cnn", "dinov2", "clip", "demo:cnn", "demo:dino", "demo:clip"} == set(rows)
    assert 8 < rows["cnn"]["gflops_per_image"] < 8.5
    assert not rows["cnn"]["weights_here"]
    assert rows["demo:dino"]["weights_here"]
    assert "GFLOP/image" in run("list")


def test_pull_needs_a_network_for_hub_weights_and_none_for_the_demos():
    with pytest.raises(Unavailable, match="HF_HUB_OFFLINE is set"):
        run("pull", "cnn")
    assert "nothing to download" in run("pull", "demo:cnn")
    assert json.loads(run("pull", "demo:cnn", "--json")) == {"id": "demo:cnn", "path": None}


def test_verify_prints_the_hash_and_holds_it_against_the_expected(saved):
    facts = json.loads(run("verify", SMALL, "--weights", str(saved), "--json"))
    assert facts["blocks"] == 11
    assert facts["dim"] == 1024
    assert facts["weights_sha256"] in run("verify", SMALL, "--weights", str(saved))
    args = ("verify", SMALL, "--weights", str(saved), "--quiet", "--expect")
    assert run(*args, facts["weights_sha256"].upper()) == ""
    with pytest.raises(ArtefactError, match=r"have SHA-256 \w+, not abc"):
        run(*args, "abc")


def test_verify_refuses_weights_that_are_no_numbers(saved):
    state = load_file(saved)
    for name, bad in (("conv_head.weight", torch.nan), ("blocks.0.0.bn1.running_var", torch.inf)):
        save_file(state | {name: torch.full_like(state[name], bad)}, saved)
        with pytest.raises(DataError, match=rf"m\.safetensors holds NaN or infinite .* in {name};"):
            run("verify", SMALL, "--weights", str(saved))
    save_file(state | {"conv_head.weight": state["conv_head.weight"] * 1j}, saved)
    with pytest.raises(DataError, match=r"holds conv_head\.weight as a tensor of complex64"):
        run("verify", SMALL, "--weights", str(saved))
