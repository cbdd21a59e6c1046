"""Stores checked against their checksums and against the backbone that filled them."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from retailtag.backbones import load_backbone
from retailtag.backbones.engines.parity import EXACT, FAST, HALF
from retailtag.backbones.preprocess import with_truncated
from retailtag.context import RunContext
from retailtag.extraction.verify import Sample, tolerance, verify
from retailtag.store import FeatureStore


@pytest.fixture
def copy(tiny_store, tmp_path):
    """The small world's embeddings, free to be damaged."""
    return FeatureStore.open(shutil.copytree(tiny_store.path, tmp_path / tiny_store.path.name))


def sample(catalog, *args, **kwargs):
    return Sample(RunContext(catalog), *args, **kwargs)


def refilled(store, root, change=lambda X: X, **facts):
    """A store of the same rows under other facts, its embeddings changed."""
    known = store.known()
    other = FeatureStore.create_or_open(root, replace(store.spec, **facts))
    X = store.load(list(known)).X
    other.append(list(known), list(known.values()), change(X))
    return other


def test_a_fresh_store_is_sound(tiny, copy):
    found = verify(copy.path, sample(tiny, size=10))
    assert (found.verdict, found.problems, found.n_sampled) == ("sound", (), 10)
    assert (found.n_segments, found.n_rows, found.n_changed) == (1, len(tiny), 0)
    assert 0.999999 < found.smallest_cosine <= 1
    assert found.tolerance == EXACT.cosine
    alone = verify(copy.path)
    assert (alone.verdict, alone.n_sampled, alone.smallest_cosine) == ("sound", 0, None)


def test_half_precision_keeps_its_own_tolerance(tiny, copy, tmp_path):
    half = refilled(copy, tmp_path / "half", dtype="float16")
    found = verify(half.path, sample(tiny, size=10))
    assert (found.verdict, found.tolerance) == ("sound", HALF.cosine)
    assert 0.999 < found.smallest_cosine < 1 - 1e-12


def test_other_embeddings_have_drifted(tiny, copy, tmp_path):
    rng = np.random.default_rng(0)

    def disturb(X):
        return X + 0.05 * X.std(axis=0) * rng.normal(size=X.shape).astype(np.float32)

    found = verify(refilled(copy, tmp_path / "noisy", disturb).path, sample(tiny, size=10))
    assert found.verdict == "drifted"
    assert 0.99 < found.smallest_cosine < 0.9999
    assert "10 of 10 images have other embeddings now" in found.problems[0]
    assert "--recompute" in found.problems[0]


def test_the_shared_mean_hides_no_drift(tiny, copy, tmp_path):
    """Every row is another image's, next to a mean that makes any two nearly parallel."""
    mixed = refilled(copy, tmp_path / "mixed", lambda X: X[::-1])
    assert verify(mixed.path, sample(tiny, size=20)).smallest_cosine < 0.9


def test_the_sample_is_drawn_by_its_seed(tiny, copy):
    damaged = copy.load(tiny.image_ids).X
    damaged[5] += 1
    known = copy.known()
    ids = tiny.image_ids.tolist()
    copy.append(ids, [known[i] for i in ids], damaged)
    verdicts = {seed: verify(copy.path, sample(tiny, 70, seed)).verdict for seed in (1, 2, 3, 4, 5)}
    assert set(verdicts.values()) == {"sound", "drifted"}
    assert verdicts[3] == verify(copy.path, sample(tiny, 70, 3)).verdict
    assert verify(copy.path, sample(tiny, len(tiny))).verdict == "drifted"


def test_images_with_other_bytes_now_are_not_compared(tiny, copy):
    ids = tiny.image_ids.tolist()
    stale = copy.load(ids[:4]).X + 1
    copy.append(ids[:4], ["00" * 32] * 4, stale)
    found = verify(copy.path, sample(tiny, len(tiny)))
    assert (found.verdict, found.n_changed, found.n_sampled) == ("sound", 4, len(tiny) - 4)


def test_a_catalogue_of_other_images_leaves_the_checksums(tiny, copy):
    other = replace(tiny, image_ids=np.array([f"other-{i}" for i in range(len(tiny))]))
    found = verify(copy.path, sample(other))
    assert (found.verdict, found.n_sampled, found.smallest_cosine) == ("sound", 0, None)


def test_every_damaged_file_is_named_with_its_remedy(tiny, copy):
    ids = tiny.image_ids.tolist()
    for block in (ids[:10], ids[10:20]):
        copy.append(block, ["00" * 32] * 10, copy.load(block).X)
    for name in ("shard-000000.h5", "shard-000002.h5"):
        data = bytearray((copy.path / name).read_bytes())
        data[len(data) // 2] ^= 4
        (copy.path / name).write_bytes(data)
    found = verify(copy.path, sample(tiny))
    assert (found.verdict, found.n_rows, found.n_segments) == ("damaged", 10, 3)
    assert [p.split("/")[-1].split(" ")[0] for p in found.problems] == [
        "shard-000000.h5",
        "shard-000002.h5",
    ]
    assert all("run extract again: it sets that file aside" in p for p in found.problems)
    (copy.path / "spec.json").write_text("{}")
    assert "spec.json" in verify(copy.path).problems[0]


def test_a_backbone_of_another_identity_is_stale_and_one_not_at_hand_unchecked(
    tiny, copy, tmp_path
):
    other = refilled(copy, tmp_path / "other", weights_sha256="ab" * 32)
    found = verify(other.path, sample(tiny))
    assert found.verdict == "stale"
    assert "weights_sha256: stored 'abab" in found.problems[0]
    gone = refilled(copy, tmp_path / "gone", backbone="demo:retired")
    found = verify(gone.path, sample(tiny))
    assert (found.verdict, found.n_sampled) == ("unchecked", 0)
    assert "demo:retired" in found.problems[0]
    assert verify(gone.path).verdict == "sound"


def test_a_store_with_files_that_end_early_is_embedded_so(tiny, copy, tmp_path):
    lenient = refilled(
        copy, tmp_path / "lenient", preprocessing=with_truncated(copy.spec).preprocessing
    )
    assert verify(lenient.path, sample(tiny, 5)).verdict == "sound"


def test_tolerance_follows_the_precision():
    spec = load_backbone("demo:cnn").spec()
    assert tolerance(spec) == EXACT
    assert tolerance(replace(spec, dtype="float16")) == HALF
    assert tolerance(replace(spec, engine="openvino-bfloat16", dtype="float16")) == FAST
    assert tolerance(replace(spec, engine="eager-autocast-float16")) == FAST
    assert tolerance(replace(spec, engine="onnxruntime-float32")) == EXACT


def test_the_golden_store_is_sound():
    (path,) = (Path(__file__).parents[1] / "golden" / "features-v1").iterdir()
    found = verify(path)
    assert (found.verdict, found.n_segments, found.n_rows) == ("sound", 2, 4)
