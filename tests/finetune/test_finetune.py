import numpy as np
import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from retailtag.backbones import load_backbone
from retailtag.catalog.decode import MAX_PIXELS
from retailtag.errors import ArtefactError, DataError, UnreadableImage, UsageError
from retailtag.files import read_json, write_json
from retailtag.finetune import pixels as pixels_module
from retailtag.finetune.artefact import Checkpoint
from retailtag.finetune.augment import flip_and_shift
from retailtag.finetune.head import Head, HeadInit
from retailtag.finetune.losses import masked_bce
from retailtag.finetune.pixels import PixelSource
from retailtag.finetune.trainer import FinetuneConfig, predict, train
from retailtag.probes.scaling import Standardiser


def test_loss_is_the_mean_over_known_cells():
    logits = torch.tensor([[0.3, -2.0], [1.0, 5.0]])
    labels = torch.tensor([[1, 0], [-1, 1]], dtype=torch.int8)
    by_hand = binary_cross_entropy_with_logits(
        torch.tensor([0.3, -2.0, 5.0]), torch.tensor([1.0, 0.0, 1.0])
    )
    assert masked_bce(logits, labels).item() == pytest.approx(by_hand.item())
    assert masked_bce(logits, torch.full_like(labels, -1)).item() == 0


def _start(dim, n_tags, seed=0):
    rng = np.random.default_rng(seed)
    return HeadInit(
        rng.standard_normal(dim).astype(np.float32),
        (1 + rng.random(dim)).astype(np.float32),
        0.01 * rng.standard_normal((n_tags, dim)).astype(np.float32),
        rng.standard_normal(n_tags).astype(np.float32),
    )


def test_head_starts_as_the_probe_and_folds_into_raw_embeddings():
    start = _start(5, 3)
    head, X = Head(start), np.random.default_rng(1).standard_normal((7, 5)).astype(np.float32)
    scaler = Standardiser(start.mean, start.scale)
    expected = scaler.transform(X) @ start.weight.T + start.bias
    np.testing.assert_allclose(head(torch.from_numpy(X)).detach().numpy(), expected, rtol=1e-5)
    weight, bias = head.folded()
    np.testing.assert_allclose(X @ weight.T + bias, expected, rtol=1e-4, atol=1e-5)


def test_augmentation_only_mirrors_and_shifts():
    image = torch.arange(3 * 32 * 32, dtype=torch.int64).reshape(1, 3, 32, 32) % 251
    batch = image.to(torch.uint8).repeat(64, 1, 1, 1)
    out = flip_and_shift(batch, torch.Generator().manual_seed(0))
    assert out.shape == batch.shape
    assert out.dtype == torch.uint8
    inside = out[:, :, 4:-4, 4:-4]
    candidates = {
        side[:, 4 + dy : 28 + dy, 4 + dx : 28 + dx].contiguous().numpy().tobytes()
        for side in (batch[0], batch[0].flip(2))
        for dy in range(-2, 3)
        for dx in range(-2, 3)
    }
    seen = {view.contiguous().numpy().tobytes() for view in inside}
    assert seen <= candidates
    assert len(seen) > 20


@pytest.fixture
def backbone():
    torch.manual_seed(0)
    return load_backbone("demo:cnn", random_weights=True)


def _source(tiny, backbone, rows):
    return PixelSource(tiny, backbone, rows.tolist(), workers=2, max_pixels=MAX_PIXELS)


def _accuracy(logits, labels):
    known = labels >= 0
    return float(((logits > 0) == (labels == 1))[known].mean())


def _train(tiny, backbone, config):
    rows = tiny.rows("train")
    fit, val = rows[: len(rows) * 3 // 4], rows[len(rows) * 3 // 4 :]
    start = _start(backbone.dim, len(tiny.table.tags))
    pixels = _source(tiny, backbone, rows)
    return (
        train(backbone, start, pixels, tiny.table.labels, fit, val, _accuracy, config),
        pixels,
        val,
    )


def test_only_the_last_blocks_and_the_head_move(tiny, backbone):
    before = {k: v.clone() for k, v in backbone.module.state_dict().items()}
    result, _, _ = _train(tiny, backbone, FinetuneConfig(blocks=2, epochs=2, batch_size=16))
    after, trained = backbone.module.state_dict(), set(backbone.trainable_names(2))
    assert result.best_epoch > 0
    assert all(not torch.equal(before[name], after[name]) for name in trained)
    layers = {name.rsplit(".", 1)[0] for name in trained}
    for name in after:
        if name.rsplit(".", 1)[0] not in layers:
            assert torch.equal(before[name], after[name]), name


def test_it_learns_and_keeps_its_best_epoch(tiny, backbone):
    result, pixels, val = _train(tiny, backbone, FinetuneConfig(epochs=3, batch_size=16, lr=1e-3))
    values = [row["criterion"] for row in result.history]
    assert values[result.best_epoch] == max(values) > values[0]
    assert result.history[-1]["loss"] < result.history[1]["loss"]
    again = predict(backbone, result.head, pixels, val, 16)
    np.testing.assert_allclose(again, result.val_logits, rtol=1e-4, atol=1e-4)


def test_same_seed_same_result(tiny):
    runs = []
    for _ in range(2):
        torch.manual_seed(0)
        backbone = load_backbone("demo:cnn", random_weights=True)
        runs.append(_train(tiny, backbone, FinetuneConfig(epochs=1, batch_size=16))[0].val_logits)
    np.testing.assert_array_equal(*runs)


def test_non_finite_loss_names_the_batch(tiny, backbone):
    with pytest.raises(DataError, match=r"batch \d+ of epoch 1; lower --lr"):
        _train(tiny, backbone, FinetuneConfig(epochs=1, lr=1e30, head_lr=1e30, clip_norm=1e30))


def test_pixels_are_the_same_from_memory_and_from_disk(tiny, backbone, monkeypatch):
    rows = tiny.rows("test")[:9]
    order = rows[::-1].copy()
    kept = _source(tiny, backbone, rows)
    first = [(r.tolist(), p) for r, p in kept.batches(order, 4)]
    second = [(r.tolist(), p) for r, p in kept.batches(order, 4)]
    monkeypatch.setattr(pixels_module, "MEMORY_SHARE", 0.0)
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


def test_bad_settings_name_the_option():
    with pytest.raises(UsageError, match="--epochs"):
        FinetuneConfig(epochs=-1)
    with pytest.raises(UsageError, match="--lr"):
        FinetuneConfig(lr=0)


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
    with pytest.raises(DataError, match="run retailtag finetune again"):
        Checkpoint.load(tmp_path)
    write_json(
        tmp_path / "checkpoint.json", {**read_json(tmp_path / "checkpoint.json"), "format": 9}
    )
    with pytest.raises(ArtefactError, match="another format"):
        Checkpoint.load(tmp_path)
