"""An exported folder is the tagger that was written, bit for bit, without hub or network."""

from __future__ import annotations

import json
import shutil
import socket
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file, save_file

from retailtag.artefacts import BOUND, bound_header
from retailtag.backbones import cpu
from retailtag.backbones.engines.build import as_fitted
from retailtag.backbones.engines.embedder import EngineEmbedder
from retailtag.backbones.engines.names import EngineName
from retailtag.backbones.factory import load_backbone
from retailtag.calibration import Calibration
from retailtag.errors import ArtefactError
from retailtag.files import file_sha256, read_json, write_json
from retailtag.probes.artefact import Probe
from retailtag.probes.heads.knn import KnnBank, KnnVote
from retailtag.tagger.exported import Exported, licences_of, write_exported
from retailtag.tagger.loading import load_fitted
from retailtag.tagger.tagger import Tagger

TAGS = ("colour:red", "colour:blue", "cotton")
PICTURES = [
    Image.fromarray(np.random.default_rng(k).integers(0, 256, (50 + k, 40, 3), dtype=np.uint8))
    for k in range(5)
]


def _linear(dim: int, **more) -> Probe:
    rng = np.random.default_rng(0)
    return Probe(
        TAGS,
        rng.normal(size=(3, dim)).astype(np.float32),
        rng.normal(size=3).astype(np.float32),
        np.array([0.5, -0.5, np.inf], np.float32),
        np.ones(3),
        facts={"backbone": "any", "thresholds": {"rule": "shrunk", "objective": "f1"}},
        **more,
    )


def _tagger(*embedders, head=None, strategy="probe", **more) -> Tagger:
    head = head or _linear(sum(e.dim for e in embedders), scale="l2")
    points = {"f1": head.thresholds, "precision:0.8": head.thresholds + np.float32(1)}
    return Tagger(embedders, head, strategy, operating_points=points, **more)


def _knn() -> Tagger:
    backbone = load_backbone("demo:cnn")
    rng = np.random.default_rng(2)
    bank = KnnBank.build(
        rng.normal(size=(9, backbone.dim)).astype(np.float32),
        rng.integers(-1, 2, (9, 3)).astype(np.int8),
    )
    vote = KnnVote(bank, np.array([1, 3, 5]))
    return _tagger(backbone, head=replace(_linear(0), head="knn", vote=vote))


def _calibrated() -> Tagger:
    curves = Calibration(np.array([0.5, 1, 2], np.float32), np.array([-1, 0, 1], np.float32))
    backbone = load_backbone("demo:cnn", random_weights=True)
    tagger = _tagger(backbone, calibration=curves, exclusive=("colour",))
    return tagger.assigning("at-most-one")


def _joint() -> Tagger:
    return _tagger(load_backbone("demo:dino"), load_backbone("demo:clip"))


def _finetuned() -> Tagger:
    backbone = load_backbone("demo:cnn")
    with torch.no_grad():
        next(backbone.module.parameters()).add_(0.25)  # training changes weights in place
    return _tagger(backbone, head=_linear(backbone.dim, head="fine-tuned"), strategy="finetune")


def _timm() -> Tagger:
    # arguments of the model and of its preprocessing, and a model of a fixed input size
    ids = (
        "timm:test_byobnet?mean=0.4&std=0.2&size=48",
        "timm:test_vit?img_size=64&depth=2",
    )
    return _tagger(*(load_backbone(i, random_weights=True) for i in ids))


def _export(tagger, folder):
    licences = ["Apache-2.0"] * len(tagger.embedders)
    about = Exported({"method": "platt"}, {"retailtag": "1"}, licences)
    write_exported(folder, tagger, about)
    return folder


@pytest.fixture
def offline(monkeypatch):
    """No hub, and no network at all."""

    def refused(*args, **kwargs):
        raise AssertionError("a socket was opened")

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name in ("socket", "create_connection", "getaddrinfo"):
        monkeypatch.setattr(socket, name, refused)


@pytest.mark.parametrize(
    "make", [_calibrated, _knn, _joint, _finetuned, _timm], ids=lambda f: f.__name__[1:]
)
def test_logits_tags_and_probabilities_are_the_same_bits(make, tmp_path, offline):
    tagger = make()
    loaded = load_fitted(_export(tagger, tmp_path / "tagger"))
    logits = tagger.logits(PICTURES)
    assert np.array_equal(loaded.logits(PICTURES), logits)
    assert loaded.predict(PICTURES) == tagger.predict(PICTURES)
    assert np.array_equal(loaded.probabilities(logits), tagger.probabilities(logits))
    assert (loaded.tags, loaded.strategy) == (tagger.tags, tagger.strategy)
    assert (loaded.exclusive, loaded.assignment) == (tagger.exclusive, tagger.assignment)
    assert loaded.at("precision:0.8").tag(PICTURES) == tagger.at("precision:0.8").tag(PICTURES)
    assert [type(e) for e in loaded.embedders] == [type(e) for e in tagger.embedders]
    assert [b.id for b in loaded.backbones] == [b.id for b in tagger.backbones]
    # and what was loaded can be written again
    again = load_fitted(_export(loaded, tmp_path / "again"))
    assert np.array_equal(again.logits(PICTURES), logits)
    assert file_sha256(tmp_path / "again" / "tagger.json") == file_sha256(
        tmp_path / "tagger" / "tagger.json"
    )


def test_the_arithmetic_of_a_probe_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(cpu, "has_bfloat16", lambda: True)  # others emulate it
    reduced = _tagger(as_fitted(load_backbone("demo:cnn"), EngineName("eager", "bfloat16")))
    loaded = load_fitted(_export(reduced, tmp_path))
    assert isinstance(loaded.embedders[0], EngineEmbedder)
    assert str(loaded.embedders[0].name) == "eager-bfloat16"
    assert np.array_equal(loaded.logits(PICTURES), reduced.logits(PICTURES))


def test_a_folder_of_weights_that_describes_its_architecture(tmp_path, offline):
    """What ``--weights FOLDER`` reads from a config.json is in the exported header."""
    import timm

    weights = tmp_path / "weights"
    weights.mkdir()
    torch.manual_seed(0)
    model = timm.create_model("test_vit", num_classes=0, img_size=96, depth=2)
    state = {k: v.numpy() for k, v in model.state_dict().items()}
    save_file(state, weights / "model.safetensors")
    config = {"mean": [0.1] * 3, "std": [0.3] * 3, "crop_pct": 0.8, "input_size": [3, 96, 96]}
    write_json(
        weights / "config.json",
        {"architecture": "test_vit", "model_args": {"depth": 2}, "pretrained_cfg": config},
    )
    tagger = _tagger(load_backbone("timm:test_vit", weights=weights))
    expected = tagger.logits(PICTURES)
    folder = _export(tagger, tmp_path / "tagger")
    shutil.rmtree(weights)
    loaded = load_fitted(folder)
    assert np.array_equal(loaded.logits(PICTURES), expected)
    assert loaded.backbones[0].preprocess == tagger.backbones[0].preprocess


def test_an_image_tower_of_open_clip_leaves_its_texts_behind(tmp_path, offline):
    import open_clip

    vision = {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8}
    text = {"context_length": 8, "vocab_size": 99, "width": 16, "heads": 2, "layers": 1}
    config = {"embed_dim": 24, "vision_cfg": vision, "text_cfg": text, "quick_gelu": True}
    weights = tmp_path / "weights"
    weights.mkdir()
    write_json(
        weights / "open_clip_config.json",
        {"model_cfg": config, "preprocess_cfg": {"resize_mode": "longest", "mean": [0.3] * 3}},
    )
    torch.manual_seed(1)
    state = {k: v.numpy() for k, v in open_clip.CLIP(**config).state_dict().items()}
    save_file(state, weights / "open_clip_model.safetensors")
    tagger = _tagger(load_backbone("open_clip:Small", weights=weights))
    expected = tagger.logits(PICTURES)
    folder = _export(tagger, tmp_path / "tagger")
    shutil.rmtree(weights)
    loaded = load_fitted(folder)
    assert np.array_equal(loaded.logits(PICTURES), expected)
    names = load_file(folder / "backbone-1.safetensors")
    assert names
    assert all(name.startswith("backbone.trunk.") for name in names)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    return _export(_tagger(load_backbone("demo:cnn")), tmp_path_factory.mktemp("x") / "tagger")


@pytest.fixture
def folder(exported, tmp_path):
    return shutil.copytree(exported, tmp_path / "tagger")


def _change(folder, change):
    """Write another header whose digests fit."""
    header = read_json(folder / "tagger.json")
    change(header)
    write_json(folder / "tagger.json", bound_header(header, "tagger.json"))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda h: h.update(format=2), "another format; run retailtag export again"),
        (lambda h: h.pop("tags"), "lacks tags"),
        (lambda h: h.update(more=1), "unknown field, 'more'"),
        (lambda h: h.update(strategy="magic"), "strategy is not one of probe, finetune"),
        (lambda h: h.update(operating_points=["f1"]), r"thresholds has shape \[2, 3\]"),
        (lambda h: h.update(assignment="exactly-one"), "records none|attributes|one-of"),
        (lambda h: h.update(calibration={}), "head.safetensors lacks slope"),
        (lambda h: h["backbones"].append(h["backbones"][0]), "backbone-2.safetensors cannot"),
        (lambda h: h["backbones"][0].pop("engine"), "backbones is not a list of objects"),
        (
            lambda h: h["backbones"][0].update(id="demo:dino"),
            "backbone-1.* (lacks|holds) ",
        ),
        (lambda h: h["backbones"][0].update(id="demo:none"), "demo:none is unknown"),
        (lambda h: h["backbones"][0].update(id="own:mine"), "own:mine names imported embeddings"),
        (lambda h: h["backbones"][0].update(weights_sha256="0" * 64), "does not hold the weights"),
        (
            lambda h: h["backbones"][0]["preprocessing"].update(size=[0, 9]),
            "not a positive height",
        ),
        (lambda h: h["backbones"][0]["preprocessing"].update(fill=[0, 0, 256]), "fill is"),
        (lambda h: h["backbones"][0]["preprocessing"].update(antialias=False), "another way than"),
    ],
)
def test_a_header_that_cannot_be_followed_is_one_sentence(folder, change, sentence):
    _change(folder, change)
    with pytest.raises(ArtefactError, match=sentence) as caught:
        load_fitted(folder)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_architecture_cannot_ask_for_files_or_the_hub(tmp_path):
    tagger = _tagger(load_backbone("timm:test_byobnet", random_weights=True))
    folder = _export(tagger, tmp_path)
    for name in ("pretrained", "checkpoint_path"):
        _change(folder, lambda h, n=name: h["backbones"][0]["architecture"].update(args={n: "x"}))
        with pytest.raises(ArtefactError, match=f"an architecture has no argument {name}"):
            load_fitted(folder)


def test_a_file_of_another_export_is_refused(folder, tmp_path):
    other = _export(_tagger(load_backbone("demo:cnn", random_weights=True)), tmp_path / "other")
    for name in ("backbone-1.safetensors", "head.safetensors"):
        kept = (folder / name).read_bytes()
        changed = load_file(other / name)
        first = next(iter(changed))
        save_file({**changed, first: np.array(changed[first] + 1)}, folder / name, metadata=BOUND)
        with pytest.raises(ArtefactError, match=rf"{name} were not written together"):
            load_fitted(folder)
        (folder / name).write_bytes(kept)
    load_fitted(folder)


def test_licences_are_those_that_were_written(exported):
    assert licences_of(exported) == ("Apache-2.0",)
    assert json.loads((exported / "tagger.json").read_bytes())["format"] == 1
