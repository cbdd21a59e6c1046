"""The extract command over a stand-in backbone: options reach the library, results are told."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import retailtag.backbones
from retailtag.cli.main import app
from retailtag.errors import DataError, UsageError
from retailtag.store import FeatureSpec, FeatureStore, list_stores

ID = "demo:stand-in"


class StandIn:
    """Mean colour."""

    dim = 3

    def __init__(self, backbone_id, *, weights, device, progress):
        self.id = backbone_id
        self.device = device
        self.weights = weights

    def spec(self, engine="eager-float32", dtype="float32"):
        return FeatureSpec(self.id, str(self.weights), "{}", "avg", 3, "{}", engine, dtype)

    def preprocess(self, image):
        return np.asarray(image.resize((2, 2))).transpose(2, 0, 1)

    def embed(self, pixels):
        return pixels.float().mean(dim=(2, 3))


@pytest.fixture
def call(tmp_path, monkeypatch):
    """Run the command on six images, one of them broken; returns what it printed."""
    folder = tmp_path / "catalogue"
    folder.mkdir()
    for i in range(6):
        Image.new("RGB", (5, 4), (40 * i, 0, 0)).save(folder / f"{i}.png")
    (folder / "3.png").write_bytes(b"<html>")
    lines = [f"{i}.png,red,{'test' if i == 5 else 'train'}" for i in range(6)]
    (folder / "catalogue.csv").write_text("\n".join(["path,tags,split", *lines]))
    monkeypatch.setattr(retailtag.backbones, "load_backbone", StandIn, raising=False)

    def run(*options):
        command = ["extract", str(folder), "--features", str(tmp_path / "features")]
        result = CliRunner().invoke(app, [*command, "--device", "cpu", *options])
        if result.exception is not None:
            raise result.exception
        return result.stdout

    return run


def test_json_is_one_object_with_a_store_per_backbone(call, tmp_path):
    out = call("--backbone", ID, "--backbone", "demo:other", "--json", "--dtype", "float16")
    value = json.loads(out)
    assert value["n_images"] == 6
    assert [s["backbone"] for s in value["stores"]] == [ID, "demo:other"]
    for entry in value["stores"]:
        assert (entry["n_computed"], entry["n_absent"], entry["dtype"]) == (5, 1, "float16")
        assert list(entry["absent"]) == ["3"]
        assert (entry["engine"], entry["engines_tried"]) == ("eager-float32", [])
        assert FeatureStore.open(entry["store"]).n_rows == 5
    again = json.loads(call("--backbone", ID, "--json", "--quiet", "--dtype", "float16"))
    assert again["stores"][0]["n_reused"] == 5


def test_the_table_names_backbone_and_store(call, tmp_path):
    out = call("--backbone", ID)
    (store,) = list_stores(tmp_path / "features")
    assert ID in out
    assert store.path.name in out.replace("\n", "")
    assert store.load(["0"]).X.tolist() == [[0.0, 0.0, 0.0]]
    assert call("--backbone", ID, "--quiet") == ""


def test_several_backbones_are_named_in_one_option_or_in_many(call):
    ids = [ID, "demo:other", "demo:third"]
    out = call("--backbones", ",".join(ids[:2]), "--backbone", ids[2], "--json")
    stores = json.loads(out)["stores"]
    assert sorted(s["backbone"] for s in stores) == sorted(ids)
    assert all(s["limit"] in ("model", "decoding", "reading", "disk") for s in stores)
    with pytest.raises(UsageError, match="--backbones is missing"):
        call("--quiet")


def test_the_tables_at_the_end_say_what_was_the_limit(call):
    out = call("--backbones", f"{ID},demo:other")
    rows = [line.split() for line in out.splitlines() if "eager-float32" in line]
    assert [row[1] for row in rows] == [ID, "demo:other"]
    for row in rows:
        assert row[5] in ("model", "decoding", "reading", "disk")
        assert sum(int(cell[:-1]) for cell in row if cell.endswith("%")) in (99, 100, 101)
    assert "%" not in call("--backbone", ID)  # nothing was computed


def test_weights_reach_their_backbone(call, tmp_path):
    call("--backbone", ID, "--weights", f"{ID}=some.safetensors", "--quiet")
    (store,) = list_stores(tmp_path / "features")
    assert store.spec.weights_sha256 == "some.safetensors"


def test_strict_and_wrong_options_fail_with_a_sentence(call):
    with pytest.raises(DataError, match="--strict: 1 of 6 images"):
        call("--backbone", ID, "--strict", "--quiet")
    with pytest.raises(UsageError, match="--engine tensorrt is unknown"):
        call("--backbone", ID, "--engine", "tensorrt", "--quiet")
    with pytest.raises(UsageError, match="--precision half is unknown"):
        call("--backbone", ID, "--precision", "half", "--quiet")
    with pytest.raises(UsageError, match="--dtype int8"):
        call("--backbone", ID, "--dtype", "int8", "--quiet")
