"""An ONNX model gives the tags of the tagger that it was made from, with and without torch."""

from __future__ import annotations

import io
import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format
from PIL import Image, ImageCms
from torch import nn

from retailtag.backbones import fingerprint
from retailtag.backbones.backbone import Backbone, LoadedModel
from retailtag.backbones.ids import resolve_id
from retailtag.backbones.preprocess import Preprocess
from retailtag.calibration import Calibration
from retailtag.errors import DataError, Mismatch, Unavailable, UsageError
from retailtag.images.decode import decode_image
from retailtag.probes.artefact import Probe
from retailtag.probes.heads.knn import KnnBank, KnnVote
from retailtag.tagger.onnx import folder as folder_module
from retailtag.tagger.onnx import preprocess, session
from retailtag.tagger.onnx.folder import MODEL, Int8, write_onnx
from retailtag.tagger.onnx.graph import feed_of, inputs_of
from retailtag.tagger.onnx.parity import logits_in_torch
from retailtag.tagger.onnx.quantise import quantise
from retailtag.tagger.onnx.resizing import preprocessing_json, resizing_graph
from retailtag.tagger.onnx.session import OnnxSession
from retailtag.tagger.tagger import Tagger

DIM = 12
TAGS = ("colour:red", "colour:blue", "striped", "cötton", "never")
GOLDEN = Path(__file__).parents[1] / "golden" / "triton_model_config.binpb"
BICUBIC = Preprocess((20, 20), crop_pct=0.9, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.2))
SQUASH = Preprocess((16, 24), "squash", interpolation="bilinear")


class _Net(nn.Module):
    """A convolution, its mean and a product."""

    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.conv, self.out = nn.Conv2d(3, 16, 5, stride=3), nn.Linear(16, DIM)

    def forward(self, x):
        return self.out(torch.relu(self.conv(x)).mean(dim=(2, 3)))


def _backbone(name="timm:a", rule=BICUBIC):
    module = _Net(len(name)).eval()
    return Backbone(LoadedModel(resolve_id(name), module, None, rule, {}, "vector"))


def _images(n=12):
    """Pictures of several sizes."""
    rng = np.random.default_rng(3)
    found = {}
    for i in range(n):
        h, w = (int(v) for v in rng.integers(9, 90, 2))
        y, x = np.mgrid[:h, :w]
        shade = 127 + 120 * np.sin(x * rng.uniform(0.1, 1) + y * rng.uniform(0.1, 1))
        pixels = np.stack([shade, shade.T.mean() + 0 * shade, 255 - shade], -1)
        noisy = pixels + rng.normal(0, 20, pixels.shape)
        found[f"{i}.png"] = Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))
    return found


def _head(embeddings, kind="standardise"):
    """A linear head whose thresholds lie among the logits of these embeddings."""
    rng = np.random.default_rng(1)
    spread = embeddings.std(axis=0) + 1e-3
    weight = (rng.normal(size=(len(TAGS), embeddings.shape[1])) / spread).astype(np.float32)
    bias = -(weight @ embeddings.mean(axis=0))
    ones = np.ones(len(TAGS))
    head = Probe(TAGS, weight, bias, np.zeros(len(TAGS), np.float32), ones, scale=kind)
    logits = head.logits(embeddings)
    thresholds = np.quantile(logits, 0.6, axis=0).astype(np.float32)
    thresholds[-1] = np.inf
    return replace(head, thresholds=thresholds)


def _tagger(kind):
    rules = {"joint": (BICUBIC, SQUASH), "shared": (BICUBIC, replace(BICUBIC, mean=(0.1,) * 3))}
    used = rules.get(kind, (BICUBIC,))
    parts = tuple(_backbone(f"timm:{'ab'[i]}{'c' * i}", rule) for i, rule in enumerate(used))
    dim = DIM * len(parts)
    blank = np.zeros((len(TAGS), dim), np.float32)
    bare = Probe(TAGS, blank, blank[:, 0], blank[:, 0], np.ones(len(TAGS)))
    tagger = Tagger(parts, bare, "probe")
    pixels = [tagger.pixels(image) for image in _images(40).values()]
    embeddings = tagger.embeddings(pixels)
    if kind == "knn":
        labels = np.random.default_rng(2).integers(-1, 2, (len(embeddings), len(TAGS)), np.int8)
        vote = KnnVote(KnnBank.build(embeddings[12:], labels[12:]), np.array([1, 5, 5, 20, 999]))
        head = Probe(
            TAGS, blank[:, :0], blank[:, 0], blank[:, 0], np.ones(5), head="knn", vote=vote
        )
        limits = np.median(head.logits(embeddings), axis=0) + 1e-3
        return replace(tagger, head=replace(head, thresholds=limits.astype(np.float32)))
    return replace(tagger, head=_head(embeddings, "l2" if kind == "shared" else "standardise"))


CALIBRATION = Calibration(
    np.linspace(0.5, 1.5, len(TAGS), dtype=np.float32), np.full(len(TAGS), 0.3, np.float32)
)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Export a generated tagger once: its folder, the tagger, and what was measured."""
    found = {}

    def exported(kind):
        if kind not in found:
            tagger = _tagger(kind)
            if kind == "probe":
                points = {"f1": tagger.thresholds}
                tagger = replace(tagger, calibration=CALIBRATION, operating_points=points)
            if kind == "joint":
                tagger = replace(tagger, exclusive=("colour",)).assigning("exactly-one")
            out = tmp_path_factory.mktemp(kind)
            found[kind] = out, tagger, write_onnx(tagger, out, _images())
        return found[kind]

    return exported


@pytest.mark.parametrize("kind", ["probe", "joint", "shared", "knn"])
def test_logits_and_tags_are_those_of_the_tagger_at_any_batch_size(exported, kind):
    folder, tagger, made = exported(kind)
    assert made.parity.images == 12
    assert made.parity.cells_that_differ == 0
    assert 0 <= made.parity.largest_logit_difference < 1e-4
    pixels = [tagger.pixels(image) for image in _images().values()]
    expected = logits_in_torch(tagger, pixels)
    assert (expected >= tagger.thresholds).any()
    model = OnnxSession(folder / MODEL)
    for n in (1, 3, 7):
        logits, probabilities = model.run(feed_of(tagger, pixels[:n]), ["logits", "probabilities"])
        assert logits.shape == probabilities.shape == (n, len(TAGS))
        assert np.allclose(logits, expected[:n], atol=1e-4)
        assert np.allclose(probabilities, tagger.probabilities(expected[:n]), atol=1e-5)


def test_backbones_with_the_same_pixels_share_an_input(exported):
    assert list(inputs_of(exported("shared")[1])) == ["pixels"]
    folder, tagger, _ = exported("joint")
    assert list(inputs_of(tagger)) == ["pixels_1", "pixels_2"]
    inputs = onnx.load(folder / MODEL).graph.input
    assert [i.name for i in inputs] == ["pixels_1", "pixels_2"]
    assert {i.type.tensor_type.elem_type for i in inputs} == {onnx.TensorProto.UINT8}
    assert [i.type.tensor_type.shape.dim[0].dim_param for i in inputs] == ["batch", "batch"]


def test_facts_stand_beside_the_model_and_in_it(exported):
    folder, tagger, made = exported("probe")
    about = json.loads((folder / "model.json").read_text())
    model = onnx.load(folder / MODEL)
    inside = {p.key: json.loads(p.value) for p in model.metadata_props}
    assert about["tags"] == inside["tags"] == list(TAGS)
    assert about["thresholds"] == inside["thresholds"]
    assert about["thresholds"][-1] is None
    assert np.array_equal(np.array(about["thresholds"][:-1], np.float32), tagger.thresholds[:-1])
    assert about["operating_points"] == {"f1": about["thresholds"]}
    assert about["calibrated"]
    assert about["parity"] == made.parity.to_json()
    assert about["opset"] == model.opset_import[0].version == 20
    rules = json.loads((folder / "preprocessing.json").read_text())
    assert inside["preprocessing"] == rules
    assert rules["inputs"]["pixels"] == {
        "size": [20, 20], "mode": "shortest", "scaled": [22, 22], "interpolation": "bicubic",
        "fill": [0, 0, 0], "crop": "centre",
    }  # fmt: skip
    assert "--minShapes=pixels:1x3x20x20" in made.guide
    assert "--maxShapes=pixels:64x3x20x20" in made.guide
    assert "on 12 images: all tags identical" in made.guide


BLOCKED = """
import runpy, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "timm", "open_clip", "torchvision", "retailtag"):
            raise ImportError(name + " is blocked")

sys.meta_path.insert(0, Blocked())
from os.path import dirname
for script in sys.argv[1].split(","):
    arguments, sys.argv[:] = sys.argv[:], [script, *sys.argv[2:]]
    sys.path.insert(0, dirname(script))
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        print("exit", end.code)
    sys.argv[:] = arguments
assert "torch" not in sys.modules
"""


def test_the_runner_gives_the_same_tags_without_torch(exported, tmp_path):
    paths = []
    for name, image in _images().items():
        paths.append(tmp_path / name)
        image.save(paths[-1])
    (tmp_path / "page.png").write_text("<html>")
    kinds = ("probe", "joint")
    scripts = ",".join(str(exported(kind)[0] / "run_onnx.py") for kind in kinds)
    command = [sys.executable, "-c", BLOCKED, scripts, *map(str, paths), str(tmp_path / "page.png")]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    expected = []
    for kind in kinds:
        tags = exported(kind)[1].tag(paths)
        lines = zip(paths, tags, strict=True)
        expected += [f"{path}: {', '.join(given) or '-'}" for path, given in lines] + ["exit 3"]
    assert done.stdout.splitlines() == expected
    assert done.stderr.count("page.png could not be read: cannot identify image file") == 2


def _rule(p):
    return preprocessing_json({"pixels": p}, False)["inputs"]["pixels"]


@pytest.mark.parametrize("mode", ["shortest", "squash", "longest"])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos"])
def test_the_runner_resizes_to_the_same_bytes(mode, interpolation):
    rng = np.random.default_rng(5)
    for _ in range(12):
        h, w = (int(v) for v in np.exp(rng.uniform(0.5, 5.5, 2)))
        size = tuple(int(v) for v in rng.integers(4, 50, 2))
        size = (size[0], size[0]) if rng.random() < 0.5 else size
        p = Preprocess(
            size, mode, float(rng.choice([1, 0.875, 0.7])), interpolation, fill=(9, 9, 9)
        )
        image = Image.fromarray(rng.integers(0, 256, (h, w, 3), dtype=np.uint8))
        assert np.array_equal(preprocess.pixels_of(image, _rule(p)), p(image)), (h, w, p)


def _profiled(space, mode="RGB"):
    """A picture with an embedded profile."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile(space)).tobytes()
    buffer = io.BytesIO()
    _images(1)["0.png"].convert(mode).save(buffer, "PNG", icc_profile=profile)
    return buffer.getvalue()


def test_the_runner_decodes_odd_files_to_the_same_bytes(tmp_path):
    files = dict(fingerprint.pictures()) | {"srgb": _profiled("sRGB"), "lab": _profiled("LAB")}
    buffer = io.BytesIO()
    _images(1)["0.png"].convert("CMYK").save(buffer, "JPEG")
    files["cmyk"] = buffer.getvalue()
    assert len(files) > 10
    for name, data in files.items():
        (tmp_path / "file").write_bytes(data)
        if "grey16" in name:
            with pytest.raises(ValueError, match="16-bit"):
                preprocess.decode(tmp_path / "file")
            continue
        ours = np.asarray(decode_image(data))
        assert np.array_equal(np.asarray(preprocess.decode(tmp_path / "file")), ours), name


@pytest.mark.parametrize(
    "p",
    [
        BICUBIC,
        SQUASH,
        Preprocess((18, 30), "shortest", 0.8, "bilinear"),
        Preprocess((30, 18), "longest", 0.9, "bicubic", fill=(7, 7, 7)),
    ],
    ids=lambda p: f"{p.mode}-{p.interpolation}",
)
def test_resizing_in_the_graph_is_within_two_of_255(p):
    rng = np.random.default_rng(6)
    model = OnnxSession(resizing_graph({"pixels": p}).SerializeToString())
    differences = []
    # the height first, the width first, upwards, the same size, a batch
    for h, w, n in ((150, 32, 1), (40, 170, 1), (9, 12, 2), (*p.size, 1), (41, 41, 3)):
        images = rng.integers(0, 256, (n, h, w, 3), dtype=np.uint8)
        (found,) = model.run({"image": images}, ["pixels"])
        ours = np.stack([p.of_pixels(image) for image in images])
        differences.append(np.abs(found.astype(int) - ours).ravel())
    together = np.concatenate(differences)
    assert together.max() <= 2
    assert together.mean() < 0.05


def test_a_filter_that_onnx_lacks_is_refused_by_name(tmp_path):
    tagger = replace(
        _tagger("probe"), embedders=(_backbone(rule=replace(SQUASH, interpolation="box")),)
    )
    with pytest.raises(UsageError, match=r"no antialiased box filter, .* leave the option out"):
        write_onnx(tagger, tmp_path, _images(1), with_preprocessing=True)
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def measured(exported, tmp_path_factory):
    """Triton's repository of a tagger of two inputs that resizes, in float32 and int8."""
    folder, tagger, _ = exported("joint")
    out = tmp_path_factory.mktemp("repository")
    files = []
    for image in _images().values():
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        files.append(buffer.getvalue())

    def scores(logits):
        assert logits.shape == (6, len(TAGS))
        return {"macro_f1": float((logits >= tagger.thresholds).mean()), "tail_macro_f1": 0.0}

    int8 = Int8(files, files[:6], scores)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folder_module, "graph_of", lambda tagger: onnx.load(folder / MODEL))
        made = write_onnx(
            tagger, out, _images(), with_preprocessing=True, int8=int8, repository="shop"
        )
    return out, tagger, made


def test_a_graph_that_resizes_takes_images_of_any_size(measured):
    out, tagger, made = measured
    assert made.resizing["largest_pixel_difference"] <= 2
    assert made.resizing["images"] == 12
    model = OnnxSession(out / "shop" / "1" / MODEL)
    for image in _images(4).values():
        (logits,) = model.run({"image": np.asarray(image)[None]})
        assert np.allclose(logits, tagger.logits([image]), atol=0.05)
    assert "TensorRT has no antialiased Resize" in made.guide
    assert "takes `image` batch x height x width x 3, uint8" in made.guide


def test_int8_quantises_what_lies_between_the_pixels_and_the_head(measured):
    out, tagger, made = measured
    assert made.int8["calibration_images"] == 12
    assert made.int8["images"] == 6
    assert made.int8["int8_nodes"] == 3  # of two convolutions and two products, all but the first
    scores = made.int8["scores"]
    assert (
        made.int8["loss"]["macro_f1"] == scores["float32"]["macro_f1"] - scores["int8"]["macro_f1"]
    )
    assert json.loads((out / "model.json").read_text())["int8"] == made.int8
    nodes = onnx.load(out / "shop_int8" / "1" / MODEL).graph.node
    assert {"QuantizeLinear", "DequantizeLinear"} <= {node.op_type for node in nodes}
    image = np.asarray(_images(1)["0.png"])[None]
    exact, short = (
        OnnxSession(out / name / "1" / MODEL).logits({"image": image})
        for name in ("shop", "shop_int8")
    )
    spread = tagger.logits(list(_images().values())).std()
    assert 0 < np.abs(exact - short).max() < spread


def test_depthwise_convolutions_stay_float32(tmp_path):
    torch.manual_seed(0)
    x = onnx.helper.make_tensor_value_info("pixels", onnx.TensorProto.FLOAT, [1, 4, 9, 9])
    y = onnx.helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, [1, 4, None, None])
    names, nodes, weights = ["pixels", "a", "b", "logits"], [], []
    for i, group in enumerate((1, 4, 1)):
        w = np.random.default_rng(i).normal(size=(4, 4 // group, 3, 3)).astype(np.float32)
        weights.append(onnx.numpy_helper.from_array(w, f"w{i}"))
        ends = [names[i], f"w{i}"], [names[i + 1]]
        nodes.append(onnx.helper.make_node("Conv", *ends, name=f"conv{i}", group=group))
    graph = onnx.helper.make_graph(nodes, "g", [x], [y], weights)
    opsets = [onnx.helper.make_opsetid("", 20)]
    model = onnx.helper.make_model(graph, ir_version=10, opset_imports=opsets)
    onnx.save(model, tmp_path / "a.onnx")
    batches = [{"pixels": np.ones((1, 4, 9, 9), np.float32)}]
    done = quantise(tmp_path / "a.onnx", tmp_path / "b.onnx", batches)
    assert (done["int8_nodes"], done["float32_nodes"]) == (1, 2)
    inputs = {n.name: n.input[1] for n in onnx.load(tmp_path / "b.onnx").graph.node}
    assert inputs["conv1"] == "w1"
    assert inputs["conv2"] != "w2"


def _triton_config(text):
    """The message that Triton parses, by its own description of ModelConfig."""
    file = descriptor_pb2.FileDescriptorProto.FromString(GOLDEN.read_bytes())
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    kind = pool.FindMessageTypeByName("inference.ModelConfig")
    return text_format.Parse(text, message_factory.GetMessageClass(kind)())


@pytest.mark.parametrize("name", ["shop", "shop_int8"])
def test_the_configuration_is_one_that_triton_parses(measured, name):
    out, tagger, _ = measured
    folder = out / name
    config = _triton_config((folder / "config.pbtxt").read_text())
    assert config.name == folder.name
    assert config.backend == "onnxruntime"
    assert config.max_batch_size == 64
    assert config.HasField("dynamic_batching")
    model = onnxruntime.InferenceSession(folder / "1" / MODEL)
    types = {"TYPE_UINT8": "tensor(uint8)", "TYPE_FP32": "tensor(float)"}
    for listed, own in ((config.input, model.get_inputs()), (config.output, model.get_outputs())):
        assert [i.name for i in listed] == [i.name for i in own]
        for ours, theirs in zip(listed, own, strict=True):
            value = ours.DESCRIPTOR.fields_by_name["data_type"].enum_type.values_by_number
            assert types[value[ours.data_type].name] == theirs.type
            shape = [n if isinstance(n, int) else -1 for n in theirs.shape]
            assert shape == [-1, *ours.dims]
    for output in config.output:
        assert (folder / output.label_filename).read_text().splitlines() == list(tagger.tags)


def test_a_field_that_triton_does_not_know_would_be_found():
    with pytest.raises(text_format.ParseError, match="max_batch"):
        _triton_config('name: "shop"\nmax_batch: 3\n')


def test_a_tag_with_a_line_break_is_refused_for_triton(tmp_path):
    tagger = _tagger("probe")
    head = replace(tagger.head, tags=("red\nblue", *TAGS[1:]))
    with pytest.raises(DataError, match=r"Tag 'red\\nblue' has a line break, .* rename it"):
        write_onnx(replace(tagger, head=head), tmp_path, _images(1), repository="shop")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("kind", "remedy"), [("probe", "report it"), ("knn", "--heads logistic")])
def test_other_logits_are_refused_with_the_cell(exported, monkeypatch, tmp_path, kind, remedy):
    folder, tagger, _ = exported(kind)
    true = OnnxSession.logits
    shift = np.array([0, 0, 0.002, 0, 0], np.float32)
    monkeypatch.setattr(folder_module, "graph_of", lambda tagger: onnx.load(folder / MODEL))
    monkeypatch.setattr(OnnxSession, "logits", lambda self, feed: true(self, feed) + shift)
    with pytest.raises(Mismatch, match=rf"differs from PyTorch in \d+ of 60 .*striped.*{remedy}"):
        write_onnx(tagger, tmp_path, _images())
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(OnnxSession, "logits", lambda self, feed: math.nan * true(self, feed))
    with pytest.raises(Mismatch, match="60 of 60"):
        write_onnx(tagger, tmp_path, _images())


def test_pixels_beyond_the_tolerance_are_refused(measured, monkeypatch):
    _, tagger, _ = measured
    monkeypatch.setattr(folder_module, "PIXEL_TOLERANCE", -1)
    model = measured[0] / "shop" / "1" / MODEL
    sentence = r"0\.png: ONNX Runtime resizes it .* leave --with-preprocessing out"
    with pytest.raises(Mismatch, match=sentence):
        folder_module._resized(tagger, model, _images(1))


def test_tensors_of_a_large_model_lie_beside_it(exported, monkeypatch, tmp_path):
    folder, tagger, _ = exported("probe")
    monkeypatch.setattr(folder_module, "graph_of", lambda tagger: onnx.load(folder / MODEL))
    monkeypatch.setattr(session, "MAX_INSIDE_BYTES", 0)
    made = write_onnx(tagger, tmp_path, _images(3))
    assert (tmp_path / "model.onnx.data").stat().st_size > 0
    assert made.parity.cells_that_differ == 0


def test_a_model_that_cannot_be_converted_is_one_sentence(monkeypatch, tmp_path):
    def fail(*_, **__):
        raise RuntimeError("no operator for x.\nTrace: ...")

    monkeypatch.setattr(torch.onnx, "export", fail)
    sentence = r"^timm:a cannot be exported to ONNX: no operator for x; export another pair,"
    with pytest.raises(Unavailable, match=sentence):
        write_onnx(_tagger("probe"), tmp_path, _images(1))
    assert not list(tmp_path.iterdir())


def test_without_the_extra_one_sentence_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *_: None)
    with pytest.raises(Unavailable, match=r"pip install 'retailtag\[onnx\]'"):
        write_onnx(_tagger("probe"), tmp_path, _images(1))
