import numpy as np
import pytest
import torch

from retailtag.backbones import load_backbone
from retailtag.errors import ArtefactError, DataError, UnreadableImage, UsageError
from retailtag.files import read_json, write_json
from retailtag.finetuning import image_loader as image_loader_module
from retailtag.finetuning.artefact import Checkpoint
from retailtag.finetuning.checks import check_finetune_settings, repeats_pixels
from retailtag.finetuning.head import Head, HeadInit
from retailtag.finetuning.image_loader import ImageLoader
from retailtag.images.decode import MAX_PIXELS
from retailtag.probes.scaling import Standardiser
from retailtag.settings import FinetuneSettings


def make_start(dim, n_tags, seed=0):
    rng = np.random.default_rng(seed)
    return HeadInit(
        rng.standard_normal(dim).astype(np.float32),
        (1 + rng.random(dim)).astype(np.float32),
        0.01 * rng.standard_normal((n_tags, dim)).astype(np.float32),
        rng.standard_normal(n_tags).astype(np.float32),
    )


def test_head_starts_as_the_probe_and_folds_into_raw_embeddings():
    start = make_start(5, 3)
    head, X = Head(start), np.random.default_rng(1).standard_normal((7, 5)).astype(np.float32)
    scaler = Standardiser(start.mean, start.scale)
    expected = scaler.transform(X) @ start.weight.T + start.bias
    np.testing.assert_allclose(head(torch.from_numpy(X)).detach().numpy(), expected, rtol=1e-5)
    weight, bias = head.folded()
    np.testing.assert_allclose(X @ weight.T + bias, expected, rtol=1e-4, atol=1e-5)


@pytest.fixture
def backbone():
    torch.manual_seed(0)
    return load_backbone("demo:cnn", random_weights=True)


def _source(tiny, backbone, rows):
    return ImageLoader(tiny, backbone, rows.tolist(), workers=2, max_pixels=MAX_PIXELS)


def test_pixels_are_the_same_from_memory_and_from_disk(tiny, backbone, monkeypatch):
    rows = tiny.rows("test")[:9]
    order = rows[::-1].copy()
    kept = _source(tiny, backbone, rows)
    first = [(r.tolist(), p) for r, p in kept.batches(order, 4)]
    second = [(r.tolist(), p) for r, p in kept.batches(order, 4)]
    monkeypatch.setattr(image_loader_module, "MEMORY_SHARE", 0.0)
    streamed = [(r.tolist(), p) for r, p in _source(tiny, backbone, rows).batches(order, 4)]
    for other in (second, streamed):
        assert [r for r, _ in other] == [r for r, _ in first]
        assert all(torch.equal(a, b) for (_, a), (_, b) in zip(other, first, strict=True))


def test_an_image_that_went_bad_is_named(tiny, backbone, monkeypatch):
    def broken(index):
        return b"not an image"

    monkeypatch.setattr(tiny.images, "read", broken, raising=False)
    with pytest.raises(UnreadableImage, match=r"p000-0\.png.*extract --recompute"):
        list(_source(tiny, backbone, tiny.rows("train")[:1]).batches(tiny.rows("train")[:1], 1))


def test_an_image_that_changed_since_it_was_extracted_is_named(tiny, backbone):
    row = tiny.rows("train")[:1]
    known = {str(tiny.image_ids[row[0]]): "0" * 64}
    source = ImageLoader(
        tiny, backbone, row.tolist(), workers=0, max_pixels=MAX_PIXELS, sha256=known
    )
    with pytest.raises(DataError, match=r"p000-0\.png has changed since.*extract"):
        list(source.batches(row, 1))


def test_rows_asked_for_twice_are_decoded_once(tiny, backbone):
    rows = np.repeat(tiny.rows("train")[:5], 3)
    source = _source(tiny, backbone, np.unique(rows))
    shown = torch.cat([pixels for _, pixels in source.batches(rows, 4)])
    alone = torch.cat([pixels for _, pixels in source.batches(np.unique(rows), 4)])
    assert torch.equal(shown, alone.repeat_interleave(3, 0))


@pytest.mark.parametrize(
    ("setting", "option"),
    [
        ({"epochs": -1}, "--epochs"),
        ({"lr": 0}, "--lr"),
        ({"layer_decay": 1.5}, "--layer-decay"),
        ({"layer_decay": 0}, "--layer-decay"),
        ({"ema": 1}, "--ema"),
        ({"micro_batches": 65}, "--micro-batches 65 exceeds --batch-size 64"),
        ({"mixed_precision": "int8"}, "--mixed-precision int8"),
        ({"choose_epoch": "loss"}, "--choose-epoch loss"),
        ({"interpolate": "2"}, "--interpolate 2"),
        ({"interpolate": "some"}, "--interpolate some"),
        ({"loss": "hinge"}, "--loss"),
        ({"sampler": "all"}, "--sampler"),
        ({"mix": "both"}, "--mix"),
        ({"augment": "cached:0"}, "--augment"),
    ],
)
def test_bad_settings_name_the_option(setting, option):
    with pytest.raises(UsageError, match=option):
        check_finetune_settings(FinetuneSettings(**setting))


def test_settings_tell_whether_epochs_repeat_pixels():
    assert repeats_pixels(FinetuneSettings(augment="none"))
    assert repeats_pixels(FinetuneSettings(augment="cached:3"))
    for changes in (
        {"augment": "light"},
        {"mix": "mixup"},
        {"blocks": "all"},
        {"blocks": "scratch"},
    ):
        assert not repeats_pixels(FinetuneSettings(**{"augment": "none", **changes}))


def test_checkpoint_round_trip_and_damage(tmp_path):
    saved = Checkpoint(
        "demo:cnn",
        {"a.b": torch.arange(4.0), "n": torch.tensor(3)},
        ("x", "y"),
        np.ones((2, 3), np.float32),
        np.zeros(2, np.float32),
        np.array([0.5, np.inf], np.float32),
        {"best_epoch": 2},
    )
    saved.save(tmp_path)
    back = Checkpoint.load(tmp_path)
    assert (back.backbone, back.tags, back.facts) == ("demo:cnn", ("x", "y"), {"best_epoch": 2})
    assert all(torch.equal(back.state[k], v) for k, v in saved.state.items())
    np.testing.assert_array_equal(back.thresholds, saved.thresholds)
    (tmp_path / "checkpoint.safetensors").write_bytes(b"{}")
    with pytest.raises(ArtefactError, match="run retailtag finetune again"):
        Checkpoint.load(tmp_path)
    write_json(
        tmp_path / "checkpoint.json", {**read_json(tmp_path / "checkpoint.json"), "format": 9}
    )
    with pytest.raises(ArtefactError, match="another format"):
        Checkpoint.load(tmp_path)
