"""Which engine an extraction takes, and which store later stages read."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from retailtag.backbones import cpu, load_backbone
from retailtag.backbones.engines import EAGER, EngineName, with_engine
from retailtag.backbones.engines import build as build_module
from retailtag.backbones.engines.embedder import EngineEmbedder
from retailtag.backbones.engines.trial import Bench
from retailtag.context import RunContext
from retailtag.errors import StaleFeatures, Unavailable
from retailtag.extraction import engines as engines_module
from retailtag.extraction.embedder import identity
from retailtag.extraction.engines import choose_engine
from retailtag.extraction.extract import extract
from retailtag.extraction.shards import Shard
from retailtag.extraction.stores import EngineRequest, find_store, stores_of
from retailtag.progress import SILENT
from retailtag.runs.embeddings import find_embeddings
from retailtag.runs.probe import run_probe
from retailtag.settings import ComputeSettings, ExtractSettings, ProbeSettings
from retailtag.store import FeatureStore, JointSpec
from retailtag.tagger.loading import load_fitted

OPENVINO, HALF = EngineName("openvino"), EngineName("openvino", "bfloat16")
PROBE = ProbeSettings(sweep_C="0.1", folds=2, heads="logistic")


class Heard:
    """Silent progress that keeps what is said."""

    task = staticmethod(SILENT.task)

    def __init__(self):
        self.lines = []

    def say(self, line):
        self.lines.append(line)


@pytest.fixture(scope="module")
def backbone():
    return load_backbone("demo:cnn")


@pytest.fixture
def pretended(monkeypatch):
    """Every engine runs here and is eager float32 under its name, off by `noise` of the spread."""
    noise = {}

    def build(backbone, name, batch):
        def run_one(pixels):
            rows = backbone.embed(pixels)
            generator = np.random.default_rng(0)
            off = noise.get(name, 0.0) * rows.std(dim=0).numpy() * generator.normal(size=rows.shape)
            return rows + rows.new_tensor(off)

        return lambda parts: [run_one(part) for part in parts]

    monkeypatch.setattr(build_module, "_build", build)
    monkeypatch.setattr(build_module, "why_unavailable", lambda name, device: "")
    monkeypatch.setattr(engines_module, "why_unavailable", lambda name, device: "")
    monkeypatch.setattr(cpu, "has_bfloat16", lambda: True)
    return noise


@pytest.fixture
def rates(monkeypatch):
    """What the clock would say of each engine; building costs nothing and 140 images are many."""
    rates = {"openvino-float32": 30.0, "openvino-bfloat16": 60.0, "compile-bfloat16": 50.0}

    def rate(bench, embedder):
        name = embedder.name if isinstance(embedder, EngineEmbedder) else EAGER
        return rates.get(str(name), 10.0)

    monkeypatch.setattr(Bench, "rate", rate)
    monkeypatch.setattr("retailtag.backbones.engines.trial.pays", lambda name, seconds: True)
    monkeypatch.setattr(engines_module, "MIN_IMAGES_FOR_TRIAL", 100)
    return rates


def filled(root, store, *engines):
    """Stores of the same rows under other engines."""
    made = {}
    for engine in engines:
        made[engine] = FeatureStore.create_or_open(root, replace(store.spec, engine=engine))
        known = store.known()
        made[engine].append(list(known), list(known.values()), store.load(list(known)).X)
    return made


def choose(tiny, backbone, root, *args, progress=SILENT, **kwargs):
    engine, precision = (*args, *("auto", "exact")[len(args) :])
    settings = ExtractSettings(engine=engine, precision=precision)
    return choose_engine(run_context(tiny, root, progress), backbone, settings, **kwargs)


def run_context(tiny, root, progress=SILENT):
    compute = ComputeSettings(device="cpu", features=root, workers=0)
    return RunContext(tiny, compute=compute, progress=progress)


def test_few_images_are_computed_by_eager_without_a_trial(tiny, backbone, tmp_path, pretended):
    heard = Heard()
    chosen = choose(tiny, backbone, tmp_path, progress=heard)
    assert chosen.embedder is backbone
    assert (chosen.trials, heard.lines) == ((), [])
    assert "below 256 images" in chosen.to_json()["why_engine"]


def test_the_fastest_of_the_asked_precision_is_taken_and_said(
    tiny, backbone, tmp_path, pretended, rates
):
    heard = Heard()
    chosen = choose(tiny, backbone, tmp_path, progress=heard)
    assert chosen.embedder.spec().engine == "openvino-float32"
    assert all(trial.name.exact for trial in chosen.trials)
    (line,) = heard.lines
    assert line.startswith("engine openvino-float32 for demo:cnn: the fastest accurate one")
    assert "openvino-float32 30.0 images/s; " in line
    assert "eager-float32 10.0 images/s" in line
    fast = choose(tiny, backbone, tmp_path, "auto", "fast")
    assert fast.embedder.spec().engine == "openvino-bfloat16"
    told = fast.to_json()
    assert told["engine"] == "openvino-bfloat16"
    assert {"engine": "eager-float32"}.items() <= told["engines_tried"][-1].items()


def test_what_is_too_far_is_skipped(tiny, backbone, tmp_path, pretended, rates):
    pretended[HALF] = 1.0
    chosen = choose(tiny, backbone, tmp_path, "auto", "fast")
    assert chosen.embedder.spec().engine == "compile-bfloat16"
    (far,) = [trial for trial in chosen.trials if trial.name == HALF]
    assert "below 0.99" in far.problem


def test_what_is_not_here_is_skipped(tiny, backbone, tmp_path, rates, monkeypatch):
    monkeypatch.setattr(engines_module, "why_unavailable", lambda n, d: "it is not installed")
    monkeypatch.setattr(
        engines_module, "candidates", lambda *a: [OPENVINO, EngineName("onnxruntime"), EAGER]
    )
    chosen = choose(tiny, backbone, tmp_path)
    assert chosen.embedder is backbone
    assert [t.problem for t in chosen.trials if t.name != EAGER] == ["it is not installed"] * 2


def test_a_run_goes_on_with_the_engine_of_its_store(
    tiny, tiny_store, backbone, tmp_path, pretended, rates
):
    filled(tmp_path, tiny_store, "onnxruntime-float32")
    chosen = choose(tiny, backbone, tmp_path)
    assert chosen.embedder.spec().engine == "onnxruntime-float32"
    assert "is continued" in chosen.why
    extract(run_context(tiny, tmp_path), chosen.embedder)
    assert len(stores_of(tmp_path, backbone.spec())) == 1
    # a store of reduced precision is none that exact may continue
    filled(tmp_path / "half", tiny_store, "openvino-bfloat16")
    assert choose(tiny, backbone, tmp_path / "half").embedder.spec().engine == "openvino-float32"
    again = choose(tiny, backbone, tmp_path / "half", "auto", "fast")
    assert again.embedder.spec().engine == "openvino-bfloat16"


def test_an_engine_named_wins_over_the_store_that_is_there(
    tiny, tiny_store, backbone, tmp_path, pretended
):
    filled(tmp_path, tiny_store, "onnxruntime-float32")
    chosen = choose(tiny, backbone, tmp_path, "openvino")
    assert chosen.embedder.spec().engine == "openvino-float32"
    assert choose(tiny, backbone, tmp_path, "eager").embedder is backbone


def test_an_empty_store_binds_no_one(tiny, tiny_store, backbone, tmp_path, pretended):
    FeatureStore.create_or_open(tmp_path, replace(tiny_store.spec, engine="compile-float32"))
    assert choose(tiny, backbone, tmp_path).embedder is backbone


def test_a_store_whose_engine_is_not_here_is_said(tiny, tiny_store, backbone, tmp_path):
    store = filled(tmp_path, tiny_store, "tensorrt-float32")["tensorrt-float32"]
    with pytest.raises(
        Unavailable, match=r"cannot be continued: .*no engine tensorrt.*--engine"
    ) as e:
        choose(tiny, backbone, tmp_path)
    assert store.path.name in str(e.value)
    assert choose(tiny, backbone, tmp_path, "eager").embedder is backbone


def test_an_engine_asked_for_must_be_near_enough_too(
    tiny, tiny_store, backbone, tmp_path, pretended
):
    pretended[OPENVINO] = 0.1
    with pytest.raises(Unavailable, match=r"Engine openvino-float32 is too far .* --engine eager"):
        choose(tiny, backbone, tmp_path, "openvino")
    assert not list(tmp_path.iterdir())
    # the store of another machine where it was near: compared once there is something to compute
    filled(tmp_path, tiny_store, "openvino-float32")
    assert "is continued" in choose(tiny, backbone, tmp_path).why
    more = replace(tiny, image_ids=np.array([f"new-{i}" for i in range(len(tiny))]))
    with pytest.raises(Unavailable, match="too far"):
        choose(more, backbone, tmp_path)


def test_shards_agree_without_communicating(tiny, tiny_store, backbone, tmp_path, pretended, rates):
    shard = Shard(1, 2)
    chosen = choose(tiny, backbone, tmp_path, shard=shard)
    assert chosen.embedder is backbone
    assert "--engine for all of them" in chosen.why
    filled(tmp_path / shard.folder, tiny_store, "openvino-float32")
    assert (
        choose(tiny, backbone, tmp_path, shard=shard).embedder.spec().engine == "openvino-float32"
    )
    named = choose(tiny, backbone, tmp_path, "onnxruntime", shard=Shard(2, 2))
    assert named.embedder.spec().engine == "onnxruntime-float32"


def test_stores_are_found_whatever_the_engine(tiny, tiny_store, backbone, tmp_path):
    spec, heard = backbone.spec(), Heard()
    find = partial(find_store, tmp_path, spec, progress=heard)
    filled(tmp_path, tiny_store, "openvino-bfloat16")
    assert find().spec.engine == "openvino-bfloat16"
    assert heard.lines == []
    filled(tmp_path, tiny_store, "openvino-float32", "compile-float32", "eager-bfloat16")
    assert find().spec.engine == "compile-float32"
    assert "reading the embeddings of compile-float32 (also stored: " in heard.lines[-1]
    made = filled(tmp_path, tiny_store, "eager-float32")["eager-float32"]
    assert find().spec == made.spec
    assert find(EngineRequest("openvino", None)).spec.engine == "openvino-float32"
    assert find(EngineRequest("auto", "fast")).spec.engine == "eager-bfloat16"
    assert find(EngineRequest("openvino", "fast")).spec.engine == "openvino-bfloat16"
    wanted = replace(spec, engine="openvino-bfloat16").digest
    assert find(fitted=wanted).spec.digest == wanted
    assert find(fitted="another").spec.engine == "eager-float32"
    assert find_embeddings(run_context(tiny, tmp_path), "demo:cnn").spec.digest == made.spec.digest


def test_no_store_of_the_asked_engine_is_said_by_name(tiny_store, backbone, tmp_path):
    filled(tmp_path, tiny_store, "openvino-bfloat16")
    with pytest.raises(
        StaleFeatures,
        match=r"computed by openvino-bfloat16, which --engine auto --precision exact excludes",
    ):
        find_store(tmp_path, backbone.spec(), EngineRequest())
    with pytest.raises(StaleFeatures, match="dtype: stored 'float32', asked 'float16'"):
        find_store(tmp_path, identity(backbone, "float16"))


@pytest.mark.skipif(not cpu.has_bfloat16(), reason="this CPU does not compute in bfloat16")
def test_a_tagger_computes_as_the_features_of_its_probe(tiny, tmp_path, monkeypatch):
    fast = with_engine(load_backbone("demo:dino"), "eager", "fast")
    store = extract(run_context(tiny, tmp_path / "features"), fast).store
    run = run_probe(RunContext(tiny), store, tmp_path / "probe", PROBE)
    assert run.probe.facts["stored_as"]["engine"] == "eager-bfloat16"
    images = [tiny.images.read(i) for i in tiny.rows("test")[:6].tolist()]
    expected = run.probe.logits(store.load(tiny.image_ids[tiny.rows("test")[:6]]).X)
    heard = Heard()
    tagger = load_fitted(tmp_path / "probe", progress=heard)
    np.testing.assert_allclose(tagger.logits(images), expected, rtol=1e-3, atol=2e-3)
    assert heard.lines == []
    monkeypatch.setattr(cpu, "has_bfloat16", lambda: False)
    tagger = load_fitted(tmp_path / "probe", progress=heard)
    assert tagger.embedders == tagger.backbones
    assert "needs a CPU with bfloat16 instructions" in heard.lines[0]
    assert "Predictions are made in eager float32" in heard.lines[0]
    assert 1e-3 < np.abs(tagger.logits(images) - expected).max() < 1


def test_a_tagger_runs_components_with_different_engines(tiny, tiny_store, tmp_path):
    clip = extract(run_context(tiny, tmp_path / "clip"), load_backbone("demo:clip")).store
    filled(tmp_path / "features", clip, "openvino-float32")
    filled(tmp_path / "features", tiny_store, "eager-float32")
    store = find_embeddings(run_context(tiny, tmp_path / "features"), "demo:cnn+demo:clip")
    run = run_probe(RunContext(tiny), store, tmp_path / "probe", PROBE)
    assert run.probe.facts["stored_as"]["engine"] == "eager-float32+openvino-float32"
    tagger = load_fitted(tmp_path / "probe")
    assert [b.id for b in tagger.embedders] == ["demo:cnn", "demo:clip"]


def test_components_may_differ_in_engine(backbone):
    a = backbone.spec()
    b = load_backbone("demo:clip").spec(engine="openvino-float32")
    assert JointSpec((a, b)).engine == "eager-float32+openvino-float32"
    assert JointSpec((a, replace(b, engine=a.engine))).engine == "eager-float32"
