from dataclasses import replace

import numpy as np
import pytest

from retailtag.errors import ArtefactError, DataError
from retailtag.files import read_json, write_json
from retailtag.probes.artefact import Probe


@pytest.fixture
def probe():
    rng = np.random.default_rng(0)
    return Probe(
        tags=("a", "b"),
        weight=rng.standard_normal((2, 3)).astype(np.float32),
        bias=np.zeros(2, np.float32),
        thresholds=np.array([0.5, np.inf], np.float32),
        C=np.array([0.1, 1.0]),
        facts={"backbone": "demo:cnn"},
        scale="l2",
    )


def test_round_trip(probe, tmp_path):
    probe.save(tmp_path)
    back = Probe.load(tmp_path)
    assert back.tags == probe.tags
    assert back.facts == probe.facts
    assert back.scale == "l2"
    for name in ("weight", "bias", "thresholds", "C"):
        np.testing.assert_array_equal(getattr(back, name), getattr(probe, name))


def test_a_probe_of_unit_rows_does_not_see_the_norm(probe):
    X = np.array([[1.0, -2.0, 0.5]], np.float32)
    np.testing.assert_allclose(probe.logits(7 * X), probe.logits(X), rtol=1e-6)
    raw = replace(probe, scale="none")
    assert not np.allclose(raw.logits(7 * X), raw.logits(X))


def test_damage_and_newer_formats_are_named(probe, tmp_path):
    probe.save(tmp_path)
    (tmp_path / "probe.safetensors").write_bytes(b"no")
    with pytest.raises(ArtefactError, match=r"probe\.safetensors"):
        Probe.load(tmp_path)
    write_json(tmp_path / "probe.json", {**read_json(tmp_path / "probe.json"), "format": 99})
    with pytest.raises(ArtefactError, match="run retailtag probe again"):
        Probe.load(tmp_path)
    with pytest.raises(DataError, match="does not exist"):
        Probe.load(tmp_path / "nowhere")


def test_a_lacking_fact_is_named_where_it_is_taken(probe, tmp_path):
    probe.save(tmp_path)
    assert Probe.load(tmp_path).facts["backbone"] == "demo:cnn"
    with pytest.raises(ArtefactError, match=r"probe\.json lacks features; run retailtag probe"):
        Probe.load(tmp_path).facts["features"]
