"""Every engine agrees with eager float32 within the tolerance of its numeric precision."""

from __future__ import annotations

import importlib.util
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from retailtag.backbones import cpu, load_backbone
from retailtag.backbones.engines import EAGER, EngineName, embedder_of, with_engine
from retailtag.backbones.engines import build as build_module
from retailtag.backbones.engines.build import (
    best_name,
    candidates,
    why_unavailable,
)
from retailtag.backbones.engines.trial import Parity
from retailtag.errors import Unavailable
from retailtag.extraction.verify import FAST

DEMO = ("demo:cnn", "demo:dino", "demo:clip")
RESNET = "timm:resnet18?size=64"
VIT = "timm:vit_tiny_patch16_224?depth=2&img_size=64"
SMALL = "timm:vit_tiny_patch16_224?depth=1&img_size=32"

needs_bfloat16 = pytest.mark.skipif(
    not cpu.has_bfloat16(), reason="this CPU does not compute in bfloat16"
)
needs_compiler = pytest.mark.skipif(
    bool(why_unavailable(EngineName("compile"), "cpu")), reason="there is no C++ compiler"
)


@pytest.fixture(scope="module")
def load(tiny_clip_folder):
    """Load a backbone once: a demo one, a random one of timm, or the tiny CLIP."""
    loaded = {}

    def load(name):
        if name not in loaded:
            clip = {"weights": tiny_clip_folder} if name.startswith("open_clip") else {}
            loaded[name] = load_backbone(name, random_weights=name.startswith("timm"), **clip)
        return loaded[name]

    return load


@pytest.fixture(scope="module")
def built(load):
    """Build an exact engine of a backbone once: an export takes seconds."""
    found = {}

    def built(name, engine):
        if (name, engine) not in found:
            found[name, engine] = with_engine(load(name), engine, "exact", batch_size=8)
        return found[name, engine]

    return built


@pytest.fixture(scope="module")
def pictures(tiny):
    """Pixels (21, 3, h, w) of the small world's images, as a backbone wants them."""

    def pictures(backbone):
        paths = [tiny.images.read(i) for i in range(0, 42, 2)]
        rows = [backbone.preprocess(_opened(data)) for data in paths]
        return torch.from_numpy(np.stack(rows))

    return pictures


def _opened(data):
    import io

    return Image.open(io.BytesIO(data)).convert("RGB")


def parity(backbone, embedder, pixels):
    found = embedder.embed(pixels)
    assert (found.dtype, found.shape) == (torch.float32, (len(pixels), backbone.dim))
    return Parity.of(backbone.embed(pixels).numpy(), found.numpy())


@pytest.mark.parametrize("name", ["demo:cnn", RESNET, VIT, "open_clip:tiny"])
@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_float32_is_exact(load, built, pictures, engine, name):
    backbone = load(name)
    embedder = built(name, engine)
    assert embedder.spec().engine == f"{engine}-float32"
    found = parity(backbone, embedder, pictures(backbone))
    assert not found.problem("exact")


def test_openvino_sends_no_telemetry(load, built, pictures):
    built("demo:cnn", "openvino").embed(pictures(load("demo:cnn")))
    from openvino.tools.ovc import telemetry_utils

    assert telemetry_utils.tm.__name__ == "openvino.tools.ovc.telemetry_stub"


@needs_bfloat16
@pytest.mark.parametrize("name", ["demo:cnn", "demo:clip"])
@pytest.mark.parametrize("engine", ["openvino", "eager"])
def test_bfloat16_is_near(load, pictures, engine, name):
    backbone = load(name)
    embedder = with_engine(backbone, engine, "fast", batch_size=8)
    assert embedder.spec().engine == f"{engine}-bfloat16"
    found = parity(backbone, embedder, pictures(backbone))
    assert not found.problem("fast")
    assert found.problem("exact")


@needs_compiler
@pytest.mark.parametrize("precision", ["exact", pytest.param("fast", marks=needs_bfloat16)])
def test_compiled_is_as_near(load, pictures, precision):
    backbone = load(SMALL)
    embedder = with_engine(backbone, "compile", precision, batch_size=8)
    pixels = pictures(backbone)
    found = Parity.of(backbone.embed(pixels).numpy(), embedder.embed(pixels).numpy(), FAST)
    assert not found.problem(precision)


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
@pytest.mark.parametrize("name", ["demo:cnn", VIT])
def test_an_embedding_does_not_depend_on_its_batch(load, built, pictures, engine, name):
    """Bit for bit: the graph always gets as many images."""
    backbone = load(name)
    pixels = pictures(backbone)
    embedder = built(name, engine)
    whole = embedder.embed(pixels)
    assert torch.equal(torch.cat([embedder.embed(p) for p in pixels.split(5)]), whole)
    assert torch.equal(embedder.embed(pixels[3:4]), whole[3:4])
    assert torch.equal(with_engine(backbone, engine, batch_size=8).embed(pixels), whole)
    assert embedder.embed(pixels[:0]).shape == (0, backbone.dim)


def test_micro_batches_in_parallel_streams_keep_their_order(load, pictures):
    backbone = load("demo:cnn")
    pixels = pictures(backbone)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        found = with_engine(backbone, "openvino", batch_size=2).embed(pixels)
    finally:
        torch.set_num_threads(before)
    assert not Parity.of(backbone.embed(pixels).numpy(), found.numpy()).problem("exact")


def test_the_backbone_is_left_as_it_was(load, pictures):
    backbone = load(SMALL)
    pixels = pictures(backbone)
    before, digest = backbone.embed(pixels), backbone.spec().digest
    for engine in ("openvino", "onnxruntime", "eager"):
        with_engine(backbone, engine, "fast", batch_size=8).embed(pixels)
    assert torch.equal(backbone.embed(pixels), before)
    assert backbone.spec().digest == digest
    assert {p.dtype for p in backbone.module.parameters()} == {torch.float32}


def test_an_engine_is_part_of_the_identity_and_the_rest_is_the_backbones(load):
    backbone = load("demo:cnn")
    assert with_engine(backbone, "eager") is backbone
    embedder = with_engine(backbone, "openvino")
    assert (backbone.spec().engine, embedder.spec().engine) == ("eager-float32", "openvino-float32")
    assert replace(embedder.spec(), engine=backbone.spec().engine) == backbone.spec()
    assert (embedder.id, embedder.dim) == (backbone.id, backbone.dim)
    assert embedder.preprocess is backbone.preprocess
    assert embedder.spec(dtype="float16").dtype == "float16"


def test_it_is_built_when_it_first_embeds_and_can_be_dropped(load, pictures, monkeypatch):
    built = []
    monkeypatch.setattr(build_module, "_build", lambda *args: built.append(args) or _doubled)
    backbone = load("demo:cnn")
    embedder = embedder_of(backbone, EngineName("openvino"), batch_size=4)
    assert built == []
    pixels = pictures(backbone)
    embedder.embed(pixels)
    embedder.embed(pixels)
    assert len(built) == 1
    embedder.release()
    embedder.embed(pixels)
    assert len(built) == 2


def _doubled(micro_batches):
    assert [len(m) for m in micro_batches] == [4] * 6
    return [2 * m.float().mean(dim=(2, 3)) for m in micro_batches]


def test_an_absent_package_is_one_sentence_with_its_extra(load, monkeypatch):
    found = importlib.util.find_spec
    absent = {"openvino", "onnxscript"}
    monkeypatch.setattr(importlib.util, "find_spec", lambda n: None if n in absent else found(n))
    for engine, extra in (("openvino", "openvino"), ("onnxruntime", "onnx")):
        with pytest.raises(Unavailable, match=rf"pip install 'retailtag\[{extra}\]'"):
            with_engine(load("demo:cnn"), engine)


def test_what_cannot_be_converted_is_one_sentence(load, pictures, monkeypatch):
    from retailtag.backbones.engines import with_openvino

    def fail(backbone, name, batch_size):
        raise RuntimeError("unknown operation aten::shear\nat line 3\n")

    monkeypatch.setattr(with_openvino, "build", fail)
    backbone = load("demo:cnn")
    sentence = (
        "^Engine openvino-float32 cannot compute demo:cnn: unknown operation aten::shear; use"
    )
    with pytest.raises(Unavailable, match=sentence):
        with_engine(backbone, "openvino").embed(pictures(backbone))


def test_unknown_names_are_refused(load):
    backbone = load("demo:cnn")
    with pytest.raises(Unavailable, match="no engine tensorrt"):
        with_engine(backbone, "tensorrt")
    with pytest.raises(Unavailable, match="no engine tensorrt"):
        embedder_of(backbone, EngineName("tensorrt"))


@pytest.mark.parametrize(
    ("name", "device", "what"),
    [
        (EngineName("openvino"), "cuda", "runs on a CPU only"),
        (EngineName("eager", "bfloat16"), "cuda", "needs a CPU"),
        (EngineName("eager", "autocast-float16"), "cpu", "needs a CUDA device"),
        (EAGER, "cpu", "^$"),
        (EAGER, "cuda", "^$"),
    ],
)
def test_devices_have_their_engines(name, device, what):
    import re

    assert re.search(what, why_unavailable(name, device))


@pytest.mark.parametrize(
    ("text", "has"),
    [
        ("flags\t\t: fpu avx512f avx512_bf16\n", True),
        ("flags\t\t: fpu amx_bf16\n", True),
        ("Features\t: fp asimd bf16 i8mm\n", True),
        ("flags\t\t: fpu avx512f avx512bw\nmodel name\t: bf16less\n", False),
        (None, False),
    ],
)
def test_bfloat16_is_where_the_processor_says_so(text, has, tmp_path, monkeypatch):
    if text is not None:
        (tmp_path / "cpuinfo").write_text(text)
    monkeypatch.setattr(cpu, "_CPUINFO", tmp_path / "cpuinfo")
    cpu.flags.cache_clear()
    try:
        assert cpu.has_bfloat16() == has
        arithmetic = "bfloat16" if has else "float32"
        assert best_name("openvino", "fast", "cpu") == EngineName("openvino", arithmetic)
        wants = EngineName("eager", "bfloat16")
        assert bool(why_unavailable(wants, "cpu")) != has
    finally:
        cpu.flags.cache_clear()


def test_candidates_end_with_eager_and_exact_ones_are_float32(monkeypatch):
    exact = candidates("exact", "cpu")
    assert exact[-1] == EAGER
    assert all(name.exact for name in exact)
    fast = candidates("fast", "cpu")
    assert len(fast) == len(set(fast))
    assert set(exact) <= set(fast)
    assert fast[-1] == EAGER
    monkeypatch.setattr(build_module, "_cuda_half", lambda: "float16")
    assert [str(name) for name in candidates("fast", "cuda")] == [
        "compile-autocast-float16",
        "eager-autocast-float16",
        "compile-float32",
        "eager-float32",
    ]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("name", DEMO)
def test_autocast_on_cuda_is_near(name, pictures):
    backbone = load_backbone(name, device="cuda")
    pixels = pictures(backbone)
    embedder = with_engine(backbone, "eager", "fast")
    found = Parity.of(backbone.embed(pixels).cpu().numpy(), embedder.embed(pixels).cpu().numpy())
    assert not found.problem("fast")
