"""The simulation of drift: shifts are made as named, and rows say what was compared."""

import argparse
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from retailtag.backbones.factory import load_backbone
from retailtag.probes.artefact import Probe
from retailtag.tagger.drift.properties import PROPERTIES
from retailtag.tagger.tagger import Tagger


@pytest.fixture(scope="module")
def bench():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
        import drift

        yield drift


def pictures(bench, name, n=4):
    kind = next(kind for kind in bench.KINDS if kind.name == name)
    rows = list(bench.records(kind, bench.products(n, bench.FIRST, unseen=False)))
    return [np.asarray(Image.open(io.BytesIO(row["image"])), np.float32) for row in rows]


def test_shifts_change_what_they_are_named_for(bench):
    plain, green, blurred, packed = (
        pictures(bench, name) for name in ("none", "background", "blur", "jpeg20")
    )
    corners = np.stack([image[:8, :8].mean(axis=(0, 1)) for image in green])
    assert (corners[:, 1] > corners[:, 0] + 20).mean() > 0.7
    assert np.mean([np.abs(np.diff(b, axis=0)).mean() for b in blurred]) < 0.8 * np.mean(
        [np.abs(np.diff(p, axis=0)).mean() for p in plain]
    )
    assert 0 < np.mean([np.abs(a - b).mean() for a, b in zip(plain, packed, strict=True)]) < 20


def test_the_unseen_type_is_in_one_kind_of_batch_only(bench):
    seen = list(bench.products(40, bench.FIRST, unseen=False))
    unseen = list(bench.products(10, bench.FIRST, unseen=True))
    assert not any(bench.UNSEEN in product.tags for product in seen)
    assert all(bench.UNSEEN in product.tags for product in unseen)


@pytest.fixture(scope="module")
def tagger():
    backbone = load_backbone("demo:cnn", random_weights=True)
    weight = np.random.default_rng(0).normal(size=(2, backbone.dim)).astype(np.float32)
    zeros = np.zeros(2, np.float32)
    return Tagger((backbone,), Probe(("a", "b"), weight, zeros, zeros, np.ones(2)), "probe")


def test_a_pool_is_what_the_model_sees_of_whole_products(bench, tagger):
    kinds = {kind.name: kind for kind in bench.KINDS}
    found = bench.pool(tagger, replace(kinds["article"], unseen=0.4), 12, bench.FIRST)
    assert len(found) >= 20
    assert found.has_groups
    assert len(np.unique(found.group)) < len(found)
    assert set(found.properties[:, PROPERTIES.index("jpeg_quality")]) == {bench.QUALITY}


def test_a_row_for_each_shift_size_and_way_of_counting(bench, tagger, monkeypatch):
    some = bench.pool(tagger, bench.KINDS[0], 12, bench.FIRST)

    def pool(tagger, kind, n_images, first):
        """The same few images under many names, of two images a product."""
        rows = np.random.default_rng(first).integers(len(some), size=n_images)
        names = np.array([f"{first}-{k}" for k in range(n_images)])
        group = np.array([f"{first}-{k // 2}" for k in range(n_images)])
        quality = some.properties[rows]
        quality[:, PROPERTIES.index("jpeg_quality")] = kind.quality
        return replace(some.take(rows), group=group, names=names, properties=quality)

    monkeypatch.setattr(bench, "pool", pool)
    monkeypatch.setattr(bench, "KINDS", (bench.KINDS[0], bench.KINDS[-1]))
    args = argparse.Namespace(
        reference=40, pool=100, null=2, power=1, permutations=99, batches=[20]
    )
    rows = list(bench.table(tagger, args))
    assert [(r["shift"], r["products"], r["comparisons"]) for r in rows] == [
        ("none", "grouped", 2),
        ("none", "ignored", 1),
        ("jpeg20", "grouped", 1),
    ]
    assert rows[2]["properties"] == 1  # of JPEG files another quality is always seen
    assert rows[2]["first_remedy"] == "input"
    assert all(0 <= r["alarms_low"] <= r["alarms"] <= r["alarms_high"] <= 1 for r in rows)
