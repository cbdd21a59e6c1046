"""Training from cached activations: same results, bounded size, and never from wrong rows."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from retailtag.backbones import load_backbone
from retailtag.errors import DamagedFile, DataError, Unavailable
from retailtag.finetuning import activation_cache as cache_module
from retailtag.finetuning import cached_loader as loader_module
from retailtag.finetuning.activation_cache import (
    ActivationCache,
    ActivationSpec,
    make_room,
    parse_budget,
)
from retailtag.finetuning.cached_loader import from_bytes, spec_of, storage_dtype, to_bytes
from retailtag.finetuning.trainer import Training
from retailtag.finetuning.training_step import MicroBatches, predict
from retailtag.lock import WriterLock

SPEC = ActivationSpec(
    "demo:cnn", "0" * 64, "{}", "{}", "eager-float32", "b", (3,), "contiguous", "float32"
)


def rows_of(*values):
    return np.array([[v] * 3 for v in values], np.float32).view(np.uint8)


def write(cache, **values):
    """Write rows of images; the hash of an image is its name and a digit."""
    with cache.writer() as writer:
        for name, value in values.items():
            writer.add([name], [f"{name}1"], rows_of(value))


# -- the cache alone -------------------------------------------------------------------------


def test_rows_come_back_in_the_order_asked_for(tmp_path):
    write(ActivationCache(tmp_path, SPEC), a=1, b=2, c=3)
    cache = ActivationCache(tmp_path, SPEC)
    assert len(cache) == 3
    np.testing.assert_array_equal(cache.read(["c", "a", "c"]), rows_of(3, 1, 3))
    assert cache.missing({"a": "a1", "b": "b2", "d": "d1"}) == ["b", "d"]


def test_a_second_writer_adds_and_replaces(tmp_path):
    write(ActivationCache(tmp_path, SPEC), a=1, b=2)
    write(ActivationCache(tmp_path, SPEC), b=5, c=3)
    np.testing.assert_array_equal(
        ActivationCache(tmp_path, SPEC).read(["a", "b", "c"]), rows_of(1, 5, 3)
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"weights_sha256": "1" * 64},
        {"preprocessing": '{"size": 2}'},
        {"engine": "autocast-bf16"},
        {"boundary": "c"},
        {"dtype": "float16"},
        {"view": "light seed 0 view 1"},
        {"architecture": "{1}"},
        {"order": "channels-last"},
    ],
)
def test_another_identity_has_another_folder(tmp_path, changes):
    write(ActivationCache(tmp_path, SPEC), a=1)
    assert len(ActivationCache(tmp_path, replace(SPEC, **changes))) == 0
    assert len(ActivationCache(tmp_path, SPEC)) == 1


def test_a_folder_of_another_identity_gives_no_rows_and_is_emptied(tmp_path):
    cache = ActivationCache(tmp_path, SPEC)
    write(cache, a=1, b=2)
    identity = cache.path / "identity.json"
    identity.write_text(identity.read_text().replace("demo:cnn", "demo:dino"))
    again = ActivationCache(tmp_path, SPEC)
    assert again.missing({"a": "a1"}) == ["a"]
    write(again, a=7)
    last = ActivationCache(tmp_path, SPEC)
    assert last.missing({"a": "a1", "b": "b1"}) == ["b"]
    np.testing.assert_array_equal(last.read(["a"]), rows_of(7))


def test_every_flipped_byte_is_found_or_harmless(tmp_path, monkeypatch):
    monkeypatch.setattr(cache_module, "SEGMENT_BYTES", 24)
    cache = ActivationCache(tmp_path, SPEC)
    write(cache, a=1, b=2, c=3)
    hashes, right = {n: f"{n}1" for n in "abc"}, rows_of(1, 2, 3)
    for path in sorted(cache.path.glob("*[0-9].*")) + [cache.path / "identity.json"]:
        content = path.read_bytes()
        for place in range(len(content)):
            path.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
            damaged = ActivationCache(tmp_path, SPEC)
            if not damaged.missing(hashes):
                try:
                    np.testing.assert_array_equal(damaged.read(list("abc")), right)
                except DamagedFile:
                    assert damaged.missing(hashes)
                    for lost in cache.path.glob("rows-*"):
                        lost.unlink(missing_ok=True)
                    write(ActivationCache(tmp_path, SPEC), a=1, b=2, c=3)
            damaged.close()
        path.write_bytes(content)


def test_a_segment_ends_with_a_batch(tmp_path, monkeypatch):
    """What a continued run computes is batched as in a run that was not interrupted."""
    monkeypatch.setattr(cache_module, "SEGMENT_BYTES", 36)
    cache = ActivationCache(tmp_path, SPEC)
    with cache.writer() as writer:
        for names in ("ab", "cd", "e"):
            rows = rows_of(*map(ord, names))
            writer.add(list(names), [f"{name}1" for name in names], rows)
    sizes = [path.stat().st_size // 12 for path in sorted(cache.path.glob("*.bin"))]
    assert sizes == [4, 1]


def test_files_of_a_killed_writer_do_not_count_and_are_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(cache_module, "SEGMENT_BYTES", 12)
    real = cache_module.write_json

    def killed(path, value):
        if path.name == "rows-000001.json":
            raise KeyboardInterrupt
        real(path, value)

    monkeypatch.setattr(cache_module, "write_json", killed)
    with pytest.raises(KeyboardInterrupt):
        write(ActivationCache(tmp_path, SPEC), a=1, b=2, c=3)
    monkeypatch.setattr(cache_module, "write_json", real)
    cache = ActivationCache(tmp_path, SPEC)
    assert cache.missing({n: f"{n}1" for n in "abc"}) == ["b", "c"]
    write(cache, c=3)
    assert sorted(p.name for p in cache.path.glob("*.bin")) == [
        "rows-000000.bin",
        "rows-000001.bin",
    ]
    np.testing.assert_array_equal(ActivationCache(tmp_path, SPEC).read(["c", "a"]), rows_of(3, 1))


def test_one_writer_at_a_time(tmp_path):
    other = ActivationCache(tmp_path, SPEC)
    with (
        ActivationCache(tmp_path, SPEC).writer(),
        pytest.raises(Unavailable, match="another process"),
    ):
        write(other, a=1)


def test_an_evicted_cache_can_be_read_while_it_is_open(tmp_path):
    write(ActivationCache(tmp_path, SPEC), a=1)
    cache = ActivationCache(tmp_path, SPEC)
    assert make_room(tmp_path, 20, [], 20)
    assert not cache.path.exists()
    np.testing.assert_array_equal(cache.read(["a"]), rows_of(1))


def test_the_least_recently_used_cache_is_evicted_first(tmp_path):
    caches = [ActivationCache(tmp_path, replace(SPEC, view=f"view {k}")) for k in range(3)]
    for age, cache in enumerate(caches):
        write(cache, a=1, b=2)
        os.utime(cache.path / "identity.json", (1000 - age, 1000 - age))
    size = sum(f.stat().st_size for f in caches[0].path.glob("rows-*"))
    assert make_room(tmp_path, 3 * size, [], 0)
    assert make_room(tmp_path, 3 * size, [caches[2].path], size)
    assert [cache.path.exists() for cache in caches] == [True, False, True]
    assert not make_room(tmp_path, 3 * size, [caches[2].path], 3 * size)
    assert [cache.path.exists() for cache in caches] == [True, False, True]


def test_the_budget_is_a_share_of_the_disk_or_what_is_given(tmp_path):
    assert parse_budget(1.5, tmp_path) == 1_500_000_000
    assert parse_budget(0, tmp_path) == 0
    assert 0 < parse_budget(None, tmp_path / "not" / "yet") <= 100_000_000_000


# -- from the network to the cache -----------------------------------------------------------

FAMILIES = [
    "demo:cnn",
    "demo:dino",
    "demo:clip",
    "timm:resnet18?size=32",
    "timm:vit_tiny_patch16_224?img_size=32",
    "timm:vit_small_patch14_dinov2?img_size=28",
    "timm:swin_tiny_patch4_window7_224?embed_dim=24&img_size=112",
    "open_clip:ViT-S-32?size=64",
    "open_clip:RN50?size=64",
]


@pytest.mark.parametrize("name", FAMILIES)
def test_stored_and_read_activations_are_the_same_bit_for_bit(world, quick, name):
    world.name = name
    network = world.network(replace(quick, mixed_precision="float32"))
    network.eval()
    pixels = torch.randint(0, 256, (3, 3, *network.backbone.preprocess.size), dtype=torch.uint8)
    sample = network.activations(pixels)
    spec = spec_of(network, network.backbone.spec(), sample, "float32")
    back = from_bytes(to_bytes(sample, spec), spec)
    assert torch.equal(back, sample)
    with torch.no_grad():
        whole = network.head(network.backbone.forward(pixels))
        _, rest = network.backbone.split_at(4)
        assert torch.equal(network.head(rest(back)), whole)
        torch.testing.assert_close(network.logits(back), whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["demo:cnn", "demo:dino", "demo:clip"])
def test_half_precision_is_used_where_embeddings_agree(world, quick, name):
    network = world.network(quick, load_backbone(name))
    network.eval()
    _, batch = next(world.loader(network).batches(world.fit, 16))
    sample = network.activations(batch)
    assert storage_dtype(network, sample) == "float16"
    assert storage_dtype(network, sample.bfloat16()) == "bfloat16"
    assert storage_dtype(network, sample * 1e6) == "float32"  # beyond float16
    assert storage_dtype(network, 1000 + sample / 1000) == "float32"  # within, and rounded away


def _epoch(world, network, loader):
    """Loss of an epoch and scores after it."""
    run = Training(network, loader, world.labels, world.fit)
    loss, _ = run.epoch(1)
    return loss, run.predict(world.val)


@pytest.mark.parametrize("name", ["demo:cnn", "demo:dino", "demo:clip"])
@pytest.mark.parametrize("augment", ["none", "cached:3"])
def test_cached_and_plain_training_agree(world, quick, tmp_path, name, augment):
    world.name = name
    config = replace(quick, augment=augment, epochs=2 if augment == "none" else 3)
    plain = world.train(config)
    half = [("float16", 2e-2)] if augment == "none" else []
    for dtype, tolerance in [("float32", 1e-5), *half]:
        network = world.network(config)
        loader = world.cached(network, tmp_path, dtype=dtype)
        assert loader.dtype == dtype
        cached = world.train(network=network, loader=loader)
        scale = np.abs(plain.val_logits).max()
        np.testing.assert_allclose(
            cached.val_logits, plain.val_logits, atol=tolerance * scale, rtol=0
        )
        for a, b in zip(cached.history, plain.history, strict=True):
            if a["loss"] is not None:
                assert a["loss"] == pytest.approx(b["loss"], rel=tolerance)
        loader.close()


def test_the_second_time_nothing_is_computed_or_decoded(world, quick, tmp_path, monkeypatch):
    network = world.network(quick)
    first = _epoch(world, network, world.cached(network, tmp_path))
    network = world.network(quick)
    loader = world.cached(network, tmp_path, dtype=_dtype(tmp_path))
    monkeypatch.setattr(type(network), "activations", None)
    again = _epoch(world, network, loader)
    assert first[0] == again[0]
    np.testing.assert_array_equal(first[1], again[1])


def _dtype(root):
    """The dtype that was chosen: given, no sample of pixels is needed."""
    import json

    (identity,) = Path(root).glob("*/identity.json")
    return json.loads(identity.read_text())["dtype"]


def test_a_damaged_row_is_computed_again_in_the_middle_of_an_epoch(world, quick, tmp_path):
    network = world.network(quick)
    expected = _epoch(world, network, world.cached(network, tmp_path))
    (path,) = tmp_path.glob("*/rows-000000.bin")
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 64
    path.write_bytes(content)
    network = world.network(quick)
    found = _epoch(world, network, world.cached(network, tmp_path))
    assert found[0] == expected[0]
    np.testing.assert_array_equal(found[1], expected[1])


def test_changed_images_are_computed_again_and_unknown_changes_refused(world, quick, tmp_path):
    network = world.network(quick)
    world.cached(network, tmp_path).close()
    changed = str(world.catalog.image_ids[world.fit[0]])
    world.hashes = {**world.hashes, changed: "0" * 64}
    with pytest.raises(DataError, match="has changed since"):
        world.cached(network, tmp_path)


def test_activations_of_other_weights_are_not_used(world, quick, tmp_path):
    network = world.network(quick)
    world.cached(network, tmp_path).close()
    other = load_backbone("demo:cnn", random_weights=True, seed=1)
    network = world.network(quick, other)
    cached = world.cached(network, tmp_path)
    plain = world.loader(network)
    np.testing.assert_allclose(
        predict(network, cached, world.val, MicroBatches(16)),
        predict(network, plain, world.val, MicroBatches(16)),
        rtol=1e-2,
        atol=1e-2,
    )


def test_activations_that_do_not_fit_are_not_cached_and_the_reason_is_given(
    world, quick, tmp_path, monkeypatch, said
):
    network = world.network(quick)
    assert world.cached(network, tmp_path, budget=1000, progress=said) is None
    assert "do not fit --cache-gb" in said.lines[-1]
    assert not list(tmp_path.glob("*/rows*"))

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache_module, "write_whole", full)
    assert world.cached(network, tmp_path, progress=said) is None
    assert "No space left on device" in said.lines[-1]


def test_a_cache_that_another_process_writes_is_not_used(world, quick, tmp_path, said):
    network = world.network(quick)
    world.cached(network, tmp_path).close()
    (folder,) = tmp_path.iterdir()
    for path in folder.glob("rows-*"):
        path.unlink()
    lock = WriterLock(folder / "writer.lock")
    lock.acquire()
    try:
        assert world.cached(network, tmp_path, progress=said) is None
    finally:
        lock.release()
    assert "another process" in said.lines[-1]


def test_activations_beyond_the_stored_range_are_stored_in_float32(
    world, quick, tmp_path, monkeypatch
):
    """The sample fits float16 and a later image does not."""
    monkeypatch.setattr(loader_module, "storage_dtype", lambda *args: "float16")
    network = world.network(quick)
    real = network.frozen_part
    network.frozen_part = lambda pixels: real(pixels) * 1e6
    assert world.cached(network, tmp_path).dtype == "float32"


def test_models_that_cannot_be_cut_are_not_cached(world, quick, tmp_path):
    whole = world.network(replace(quick, blocks="all"))
    assert whole.frozen_part is None
    assert world.cached(whole, tmp_path) is None
    assert world.cached(world.network(quick), tmp_path, budget=0) is None


def test_views_differ_from_each_other_and_from_another_seed(world, quick, tmp_path):
    config = replace(quick, augment="cached:2")
    shown = []
    for seed in (0, 1):
        network = world.network(replace(config, seed=seed))
        loader = world.cached(network, tmp_path)
        for epoch in (1, 2, 3):
            (_, batch), *_ = loader.batches(world.fit[:8], 8, epoch)
            shown.append(batch.clone())
    assert torch.equal(shown[0], shown[2])
    assert torch.equal(shown[0], shown[3])  # view 0 is the image itself
    assert not torch.equal(shown[0], shown[1])
    assert not torch.equal(shown[1], shown[4])
    assert len(list(tmp_path.iterdir())) == 3
