"""Weights of ONNX files: read as the exported model had them, or refused in a sentence."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from retailtag.backbones import load_backbone, onnx_file
from retailtag.backbones.tensor_file import read_tensors
from retailtag.backbones.weights import Target, weights_file
from retailtag.errors import DataError

SIZE = 3  # square layers, whose shape does not tell that they are transposed
Arrays = Mapping[str, np.ndarray]


def network() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(SIZE, SIZE), nn.BatchNorm1d(SIZE), nn.Linear(SIZE, SIZE))
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape) + 0.5)
    return model.eval()


def stored(**changed: np.ndarray | None) -> dict[str, np.ndarray]:
    """Tensors of the network, without counters; `changed` replaces or (None) removes some."""
    state = {k: v.numpy() for k, v in network().state_dict().items() if v.ndim}
    return {k: v for k, v in {**state, **changed}.items() if v is not None}


def write(path: Path, nodes: Sequence[Any], arrays: Arrays) -> Path:
    """Write a graph from x to y."""
    graph = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", SIZE])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", SIZE])],
        [numpy_helper.from_array(value, name) for name, value in arrays.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path)
    return path


NORM = [f"1.{part}" for part in ("weight", "bias", "running_mean", "running_var")]


def layer(form: str, name: str, x: str, y: str) -> tuple[list[Any], str, bool]:
    """Nodes of a dense layer as exporters write it, its weight's name, whether transposed."""
    weight, bias = f"{name}.weight", f"{name}.bias"
    if form == "gemm":
        return [helper.make_node("Gemm", [x, weight, bias], [y], transB=1)], weight, False
    if form == "gemm, anonymous":
        return [helper.make_node("Gemm", [x, f"val_{name}", bias], [y])], f"val_{name}", True
    source = f"onnx::MatMul_1{name}" if "anonymous" in form else weight
    path = f"/{name}/MatMul" if "scope" in form else f"node_{name}"
    product = helper.make_node("MatMul", [x, source], [f"p{name}"], name=path)
    addends = [bias, f"p{name}"] if "scope" in form else [f"p{name}", bias]
    return [product, helper.make_node("Add", addends, [y])], source, True


FORMS = ("gemm", "gemm, anonymous", "matmul", "matmul, anonymous", "matmul, anonymous, scope")


@pytest.fixture
def export(tmp_path):
    """Write the network with its two dense layers in given forms."""

    def write_forms(first: str, second: str, **changed: np.ndarray | None) -> Path:
        arrays = stored(**changed)
        nodes: list[Any] = []
        between = helper.make_node("BatchNormalization", ["a", *NORM], ["b"])
        for form, name, x, y in ((first, "0", "x", "a"), (second, "2", "b", "y")):
            found, source, is_transposed = layer(form, name, x, y)
            nodes += [*found, *([between] if name == "0" else [])]
            value = arrays.pop(f"{name}.weight")
            arrays[source] = np.ascontiguousarray(value.T if is_transposed else value)
        return write(tmp_path / "model.onnx", nodes, arrays)

    return write_forms


def load(path: Path) -> nn.Sequential:
    model = network()
    for tensor in model.state_dict().values():
        tensor.zero_()
    Target(model).load(path)
    return model


def equals(model: nn.Module, expected: nn.Module) -> bool:
    others = expected.state_dict()
    return all(torch.equal(v, others[k]) for k, v in model.state_dict().items() if v.ndim)


@pytest.mark.parametrize(("first", "second"), list(itertools.product(FORMS, FORMS)))
def test_every_form_of_a_dense_layer_computes_what_the_graph_computes(first, second, export):
    path = export(first, second)
    model = load(path)
    assert equals(model, network())
    x = np.random.default_rng(0).standard_normal((4, SIZE)).astype(np.float32)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, {"x": x})
    with torch.inference_mode():
        np.testing.assert_allclose(model(torch.from_numpy(x)), expected, rtol=1e-5)


def rewrite(path: Path, change: Any) -> Path:
    model = onnx.load(path)
    change(model)
    onnx.save(model, path)
    return path


def test_a_layer_without_bias_is_named_by_its_node(tmp_path):
    model = nn.Sequential(nn.Sequential(nn.Linear(SIZE, SIZE, bias=False)))
    weight = model[0][0].weight.detach().numpy()
    product = helper.make_node("MatMul", ["x", "val_3"], ["y"], name="/0/0.0/MatMul")
    path = write(tmp_path / "m.onnx", [product], {"val_3": weight.T.copy()})
    read = read_tensors(path).tensors
    np.testing.assert_array_equal(read["0.0.weight"], weight)


def test_a_factor_that_is_no_layer_is_read_as_it_is(tmp_path):
    factor = np.arange(SIZE**2, dtype=np.float32).reshape(SIZE, SIZE)
    product = helper.make_node("MatMul", ["x", "proj"], ["y"], name="/MatMul")
    path = write(tmp_path / "m.onnx", [product], {"proj": factor})
    np.testing.assert_array_equal(read_tensors(path).tensors["proj"], factor)


def test_equal_tensors_that_are_stored_once_have_all_their_names(export):
    ones = np.ones(SIZE, np.float32)
    same = dict.fromkeys(("0.bias", "1.bias", "2.bias"), ones)
    path = export("gemm", "matmul, anonymous, scope", **same)

    def merge(model: onnx.ModelProto) -> None:
        kept = [t for t in model.graph.initializer if t.name not in ("1.bias", "2.bias")]
        del model.graph.initializer[:]
        model.graph.initializer.extend(kept)
        for name in ("1.bias", "2.bias"):
            model.graph.node.insert(0, helper.make_node("Identity", ["0.bias"], [name]))

    model = load(rewrite(path, merge))
    expected = network()
    expected.load_state_dict({k: torch.from_numpy(v) for k, v in same.items()}, strict=False)
    assert equals(model, expected)


def refused(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        load(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_a_bias_that_two_layers_share_is_refused(export):
    def share(model: onnx.ModelProto) -> None:
        for node in model.graph.node:
            for i, name in enumerate(node.input):
                node.input[i] = name.replace("2.bias", "0.bias")

    path = rewrite(export("matmul, anonymous", "matmul, anonymous"), share)
    assert "can be read in two ways" in refused(path)
    path = rewrite(export("gemm", "matmul, anonymous, scope"), share)
    assert "another layer's" in refused(path)


def test_a_weight_in_two_orientations_is_refused(export):
    def reuse(model: onnx.ModelProto) -> None:
        model.graph.node[-1].output[0] = "z"
        model.graph.node.append(helper.make_node("MatMul", ["z", "0.weight"], ["y"]))

    assert "two orientations" in refused(rewrite(export("gemm", "gemm"), reuse))


def test_folded_batch_norms_are_refused_whatever_they_leave_behind(export, tmp_path):
    path = export("gemm", "gemm")

    def fold(model: onnx.ModelProto) -> None:
        """Drop the operation; its parameters stay in the file, and no node uses them."""
        norm = next(n for n in model.graph.node if n.op_type == "BatchNormalization")
        norm.op_type = "Relu"
        del norm.input[1:]

    assert "holds no batch norms, which this model has: they were folded" in refused(
        rewrite(path, fold)
    )


def test_lost_names_are_refused_with_the_remedy(export):
    def rename(model: onnx.ModelProto) -> None:
        for node in model.graph.node:
            for i, name in enumerate(node.input):
                node.input[i] = name.replace("2.bias", "val_7")
        for tensor in model.graph.initializer:
            tensor.name = tensor.name.replace("2.bias", "val_7")

    message = refused(rewrite(export("gemm", "matmul, anonymous"), rename))
    assert "it lacks 2." in message
    assert "export it again with optimize=False" in message


def test_constants_without_a_name_are_left_out_and_named_ones_refused(export):
    def add(name: str) -> Any:
        def change(model: onnx.ModelProto) -> None:
            extra = numpy_helper.from_array(np.zeros(SIZE, np.float32), name)
            model.graph.initializer.append(extra)
            model.graph.node[-1].output[0] = "z"
            model.graph.node.append(helper.make_node("Add", ["z", name], ["y"]))

        return change

    for name in ("val_12", "onnx::Add_3", "/0/Constant"):
        assert equals(load(rewrite(export("gemm", "gemm"), add(name))), network())
    for name in ("3.bias", "dist_token"):  # a layer that the model lacks
        assert f"it has unknown {name}" in refused(rewrite(export("gemm", "gemm"), add(name)))


def test_half_precision_and_packed_floats_are_read(export):
    path = export("gemm", "gemm")

    def store_otherwise(model: onnx.ModelProto) -> None:
        for i, tensor in enumerate(model.graph.initializer):
            array = numpy_helper.to_array(tensor)
            if i % 2:
                kept = helper.make_tensor(
                    tensor.name, TensorProto.FLOAT, array.shape, array.ravel()
                )
            else:
                kept = numpy_helper.from_array(array.astype(np.float64), tensor.name)
            tensor.CopyFrom(kept)

    assert equals(load(rewrite(path, store_otherwise)), network())
    half = {k: torch.from_numpy(v).half().float() for k, v in stored().items()}
    path = export("gemm", "gemm", **{k: v.half().numpy() for k, v in half.items()})
    expected = network()
    expected.load_state_dict(half, strict=False)
    assert equals(load(path), expected)


# Tensors in another file


def with_data(path: Path, **change: str) -> Path:
    """Move the tensors into a file beside it; `change` alters where 0.weight is said to be."""
    (path.parent / "model.data").unlink(missing_ok=True)  # onnx would append to it
    model = onnx.load(path)
    onnx.save(model, path, save_as_external_data=True, location="model.data", size_threshold=0)
    model = onnx.load(path, load_external_data=False)
    tensor = next(t for t in model.graph.initializer if t.name == "0.weight")
    for entry in tensor.external_data:
        entry.value = change.get(entry.key, entry.value)
    path.write_bytes(model.SerializeToString())
    return path


def test_tensors_in_a_file_beside_it_are_read(export):
    path = with_data(export("gemm", "gemm"))
    assert (path.parent / "model.data").stat().st_size
    assert equals(load(path), network())


@pytest.mark.parametrize(
    "place", ["../model.data", "/etc/passwd", "..", "a/model.data", "a\\b", "C:x", "", "link", "\0"]
)
def test_a_location_outside_the_folder_is_refused(place, export):
    path = export("gemm", "gemm")
    (path.parent / "link").symlink_to("/etc/passwd")
    assert "is no file of its folder" in refused(with_data(path, location=place))


def test_missing_short_and_shared_data_are_refused(export):
    assert "no.data, which is missing" in refused(
        with_data(export("gemm", "gemm"), location="no.data")
    )
    for key, value in (("offset", "4000"), ("offset", "-4"), ("length", "12")):
        assert "does not hold them" in refused(with_data(export("gemm", "gemm"), **{key: value}))
    assert "damaged" in refused(with_data(export("gemm", "gemm"), offset="many"))
    path = with_data(export("gemm", "gemm"))
    model = onnx.load(path, load_external_data=False)
    first = model.graph.initializer[0]
    for i in range(40):  # a small file that would fill the memory
        copy = model.graph.initializer.add()
        copy.CopyFrom(first)
        copy.name = f"more.{i}"
    path.write_bytes(model.SerializeToString())
    assert "does not hold them" in refused(path)
    os.mkfifo(path.parent / "pipe")
    assert "is missing" in refused(with_data(export("gemm", "gemm"), location="pipe"))


# Hostile files


def message_of(number: int, body: bytes) -> bytes:
    """A field of bytes."""
    size = b""
    n = len(body)
    while n > 127:
        size += bytes([n & 127 | 128])
        n >>= 7
    return bytes([number << 3 | 2]) + size + bytes([n]) + body


HOSTILE = {
    "empty graph": (message_of(7, b""), "holds"),
    "no graph": (b"\x08\x08", "0 graphs"),
    "two graphs": (message_of(7, b"") * 2, "2 graphs"),
    "cut": (b"\x3a\x7fabc", "ends within a field"),
    "endless number": (b"\xff" * 20, "more than 64 bits"),
    "huge length": (b"\x3a" + b"\xff" * 9 + b"\x01", "ends within a field"),
    "old group": (b"\x0b", "unknown encoding"),
    "a size of 2^62": (
        message_of(7, message_of(5, b"\x08" + b"\x80" * 8 + b"\x40" + b"\x10\x01" + b"\x42\x01w")),
        "0 parts",
    ),
    "a negative size": (
        message_of(7, message_of(5, b"\x08" + b"\xff" * 9 + b"\x01" + b"\x10\x01" + b"\x42\x01w")),
        "a negative size",
    ),
    "own functions": (message_of(7, b"") + b"\xca\x01\x00", "functions of its own"),
    "a web page": (b"<!doctype html><p>Not found", "is a web page"),
}


@pytest.mark.parametrize(("data", "word"), HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_bytes_are_refused_in_a_sentence(data, word, tmp_path):
    path = tmp_path / "m.onnx"
    path.write_bytes(data)
    assert word in refused(path)


def test_fields_are_counted_and_sizes_limited(export, monkeypatch):
    path = export("gemm", "gemm")
    monkeypatch.setattr(onnx_file, "MAX_FIELDS", 50)
    assert "more than 50 fields" in refused(path)
    monkeypatch.setattr(onnx_file, "MAX_BYTES", 100)
    assert "over 2 GiB" in refused(path)


def test_a_folder_may_hold_an_onnx_file_alone(export):
    path = export("gemm", "gemm")
    assert weights_file(path.parent) == path
    (path.parent / "odd.safetensors").touch()
    assert weights_file(path.parent).name == "odd.safetensors"


# A real exporter


@pytest.fixture(scope="module")
def vit() -> tuple[str, nn.Module]:
    import timm

    sizes: dict[str, Any] = {"depth": 1, "embed_dim": 32, "num_heads": 2, "img_size": 32}
    model = timm.create_model("vit_tiny_patch16_224", num_classes=3, **sizes)
    rng = torch.Generator().manual_seed(5)
    state: dict[str, Tensor] = {
        k: torch.rand(v.shape, generator=rng) for k, v in model.state_dict().items()
    }
    model.load_state_dict(state)
    arguments = "&".join(f"{name}={value}" for name, value in sizes.items())
    return f"timm:vit_tiny_patch16_224.augreg_in21k?{arguments}", model.eval()


@pytest.mark.filterwarnings("ignore")  # of the tracer, on Python numbers
def test_what_torch_exports_embeds_as_the_model_does(vit, tmp_path):
    name, model = vit
    path = tmp_path / "vit.onnx"
    torch.onnx.export(model, (torch.rand(1, 3, 32, 32),), path, dynamo=False)
    assert any(t.name.startswith("onnx::MatMul") for t in onnx.load(path).graph.initializer)
    torch.save(model.state_dict(), tmp_path / "vit.pt")
    loaded = [load_backbone(name, weights=tmp_path / f"vit.{end}") for end in ("pt", "onnx")]
    assert loaded[0].weights_sha256 == loaded[1].weights_sha256
