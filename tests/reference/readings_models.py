"""Second readings of fitted models, weights, and the states that a stopped fit leaves."""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import pickle
import random
import struct
import warnings
import zipfile
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import onnx
import onnx.numpy_helper
import torch
from PIL import Image
from reference_attack import Format
from reference_mutations import (
    Mutator,
    any_of,
    of_arrays,
    of_bytes,
    of_json,
    of_npz,
    of_safetensors,
    of_zip,
    safetensors,
    tried,
)
from reference_readings import is_names, need, strict_json
from torch import nn

from retailtag.backbones import load_backbone
from retailtag.backbones.weights import Target
from retailtag.calibration import Calibration
from retailtag.finetuning.activation_cache import ActivationCache, ActivationSpec
from retailtag.finetuning.artefact import Checkpoint
from retailtag.finetuning.snapshots import Snapshots
from retailtag.probes.artefact import Probe, load_out_of_fold
from retailtag.probes.checkpoints import Checkpoints
from retailtag.probes.heads.knn import KnnBank, KnnVote
from retailtag.probes.solver.fits import ProbeFits
from retailtag.tagger.drift.properties import PROPERTIES
from retailtag.tagger.drift.reference import Reference
from retailtag.tagger.drift.sample import CONFIDENCES, Sample
from retailtag.tagger.exported import Exported, write_exported
from retailtag.tagger.loading import load_fitted
from retailtag.tagger.tagger import Tagger
from retailtag.tuning_scores import TuningScores

TAGS = ("blue", "colour:red", "dotted")
RNG = np.random.default_rng(0)

# Probes and fine-tunes


@cache
def _backbone(name: str, **options: Any) -> Any:
    return load_backbone(name, **options)


def _load_backbone(name: str, *, progress: Any = None, **options: Any) -> Any:
    """As `load_backbone`, which takes longer than reading a mutant."""
    return _backbone(name, **options)


def _facts() -> dict[str, Any]:
    spec = _backbone("demo:cnn", weights=None, device="cpu").spec("eager-float32", "float32")
    return {
        "backbone": "demo:cnn",
        "catalog_digest": "c" * 64,
        "exclusive": ["colour"],
        "features": spec.digest,
        "settings": {"seed": 0, "folds": 3},
        "stored_as": {"engine": "eager-float32", "dtype": "float32"},
        "threshold_f1": {"shrunk": 0.5},
        "thresholds": {"rule": "shrunk"},
        "model": [spec.architecture, spec.preprocessing],
    }


def _head(dim: int) -> dict[str, Any]:
    return {
        "tags": TAGS,
        "weight": RNG.standard_normal((3, dim)).astype(np.float32),
        "bias": RNG.standard_normal(3).astype(np.float32),
        "thresholds": np.array([0.5, np.inf, -1], np.float32),
    }


def _dim() -> int:
    return _backbone("demo:cnn", weights=None, device="cpu").dim


def make_probe(folder: Path) -> None:
    C = np.array([0.1, 1, 10])
    Probe(**_head(_dim()), C=C, facts=_facts()).save(folder)


def make_knn(folder: Path) -> None:
    X = RNG.standard_normal((8, _dim())).astype(np.float32)
    bank = KnnBank.build(X, RNG.integers(-1, 2, (8, 3)).astype(np.int8))
    vote = KnnVote(bank, np.array([1, 3, 5]))
    head = _head(0)
    Probe(**head, C=np.array([1.0, 3, 5]), facts=_facts(), head="knn", vote=vote).save(folder)


def make_finetune(folder: Path) -> None:
    module = _backbone("demo:cnn", weights=None, device="cpu").module
    state = {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}
    facts = {**_facts(), "best_epoch": 2}
    Checkpoint("demo:cnn", state, facts=facts, **_head(_dim())).save(folder)


def read_model(folder: Path) -> Any:
    """Everything that `predict` uses of a model; its logits are numbers."""
    with mock.patch("retailtag.tagger.loading.load_backbone", _load_backbone):
        tagger = load_fitted(folder)
    head = tagger.head
    X = np.linspace(-1, 1, 2 * _dim(), dtype=np.float32).reshape(2, -1)
    need(head.logits(X).shape == (2, len(tagger.tags)), "logits")
    need(bool(np.isfinite(head.logits(X)).all()), "logits")
    bank = head.vote.bank if head.vote else None
    arrays = {"weight": head.weight, "bias": head.bias, "thresholds": head.thresholds}
    arrays |= {name: getattr(bank, name) for name in ("mean", "directions", "labels") if bank}
    if tagger.strategy == "finetune":
        state = tagger.backbones[0].module.state_dict()
        arrays |= {f"backbone.{name}": tensor.numpy() for name, tensor in state.items()}
    votes = [head.vote.counts.tolist(), head.vote.temperature] if head.vote else None
    rule = tagger._summary()["thresholds"]
    head_name = "" if tagger.strategy == "finetune" else head.head
    return [tagger.strategy, tagger.tags, tagger.exclusive, head_name, rule, votes, arrays]


def stored_tensors(data: bytes) -> dict[str, np.ndarray]:
    """Tensors of a safetensors file, by its specification: no gap, no overlap, no rest."""
    (size,) = struct.unpack("<Q", data[:8])
    layout = json.loads(data[8 : 8 + size])
    layout.pop("__metadata__", None)
    body = data[8 + size :]
    kinds = {"F64": "f8", "F32": "f4", "F16": "f2", "I64": "i8", "I32": "i4", "I16": "i2",
             "I8": "i1", "U8": "u1", "BOOL": "?"}  # fmt: skip
    found, end = {}, 0
    for name, one in sorted(layout.items(), key=lambda item: item[1]["data_offsets"]):
        start, stop = one["data_offsets"]
        need(start == end, "gap")
        found[name] = np.frombuffer(body[start:stop], kinds[one["dtype"]]).reshape(one["shape"])
        end = stop
    need(end == len(body), "rest")
    return found


def second_model(name: str, others: tuple[str, ...] = ()) -> Callable[[Path], Any]:
    """A header, and the tensors that its digests are of; every number and name as it must be."""

    def read(folder: Path) -> Any:
        header = json.loads((folder / f"{name}.json").read_bytes())
        need(header["files"][f"{name}.json"] == digest_of(header, f"{name}.json"), "digest")
        tensors: dict[str, np.ndarray] = {}
        for file in (f"{name}.safetensors", *others):
            body = (folder / file).read_bytes()
            need(header["files"][file] == hashlib.sha256(body).hexdigest(), "digest")
            tensors |= stored_tensors(body)
        tags, facts = header["tags"], header["facts"]
        prefix = "head." if name == "checkpoint" else ""
        kept = {k.removeprefix(prefix): v for k, v in tensors.items() if k != "C"}
        head = "" if prefix else header["head"]
        _check_head(kept, tags, 0 if head == "knn" else _dim())
        exclusive = facts.get("exclusive") or []
        need(isinstance(exclusive, list) and all(isinstance(e, str) and e for e in exclusive))
        rule = (facts.get("thresholds") or {}).get("rule", "unknown rule")
        need(isinstance(rule, str) and head in ("", "logistic", "ridge", "text", "knn"))
        knn = header["knn"] if head == "knn" else None
        votes = [knn["counts"], knn["temperature"]] if knn else None
        if knn:
            need(len(knn["counts"]) == len(tags) and all(type(k) is int for k in knn["counts"]))
            need(min(knn["counts"]) >= 1 and 0 < knn["temperature"] < math.inf)
        strategy = "finetune" if prefix else "probe"
        return [strategy, tags, exclusive, head, rule, votes, kept]

    return read


def _check_head(tensors: dict[str, np.ndarray], tags: Any, dim: int) -> None:
    need(isinstance(tags, list) and all(isinstance(t, str) and t for t in tags))
    need(len({*tags}) == len(tags) > 0)
    need(tensors["weight"].shape == (len(tags), dim))
    need(tensors["bias"].shape == tensors["thresholds"].shape == (len(tags),))
    need(all(tensors[k].dtype == np.float32 for k in ("weight", "bias", "thresholds")))
    finite = {k: v for k, v in tensors.items() if k != "thresholds"}
    need(all(np.isfinite(v).all() for v in finite.values()), "numbers")
    need(bool((tensors["thresholds"] > -np.inf).all()), "thresholds")


def digest_of(header: dict[str, Any], name: str) -> str:
    """SHA-256 of a header without its own digest, as it is written."""
    files = {file: digest for file, digest in header["files"].items() if file != name}
    text = json.dumps({**header, "files": files}, indent=2, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(f"{text}\n".encode()).hexdigest()


def bind(name: str) -> Callable[[Path], None]:
    """Write the digests of the tensors, and of the header itself, into the header anew."""

    def make(folder: Path) -> None:
        path = folder / f"{name}.json"
        header = json.loads(path.read_bytes())
        files = {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in folder.glob("*.s*s")}
        if isinstance(header.get("files"), dict) and header["files"].keys() >= files.keys():
            bound = {**header, "files": {**header["files"], **files}}
            bound["files"][path.name] = digest_of(bound, path.name)
            path.write_text(json.dumps(bound), encoding="utf-8")

    return make


def _model(form: str, make: Any, name: str, others: tuple[str, ...] = ()) -> Format:
    targets: dict[str, Mutator] = {f"{name}.json": of_json, "*.safetensors": of_safetensors}
    return Format(
        form, make, targets, read_model, second_model(name, others), codes=(3, 4), bind=bind(name)
    )


def make_scores(folder: Path) -> None:
    scores = TuningScores(
        np.array(["i0", "i1", "ï2", "i3"]),
        RNG.standard_normal((4, 3)).astype(np.float32),
        np.array([0, 1, 1, 0]),
    )
    C = np.array([0.1, 1, 10])
    Probe(**_head(_dim()), C=C, facts=_facts(), out_of_fold=scores).save(folder)


def read_scores(folder: Path) -> Any:
    scores = load_out_of_fold(folder)
    need(scores.logits.shape == (len(scores.image_ids), len(TAGS)), "shape")
    fold = None if scores.fold is None else scores.fold.tolist()
    return [scores.image_ids.tolist(), fold, scores.logits]


def second_scores(folder: Path) -> Any:
    header = json.loads((folder / "probe.json").read_bytes())
    need(header["files"]["probe.json"] == digest_of(header, "probe.json"), "digest")
    body = (folder / "out_of_fold.safetensors").read_bytes()
    digest = hashlib.sha256(body).hexdigest()
    need(header["files"]["out_of_fold.safetensors"] == digest, "digest")
    tensors = stored_tensors(body)
    need(set(tensors) == {"scores", "fold", "ids"}, "names")
    need([tensors[k].dtype.str for k in ("scores", "fold", "ids")] == ["<f2", "<i4", "|u1"])
    ids = json.loads(tensors["ids"].tobytes().decode())
    need(isinstance(ids, list) and all(isinstance(i, str) and i for i in ids))
    need(len(set(ids)) == len(ids) == len(tensors["fold"]) > 0)
    need(tensors["scores"].shape == (len(ids), len(TAGS)) and tensors["fold"].ndim == 1)
    need(bool(np.isfinite(tensors["scores"]).all() and (tensors["fold"] >= -1).all()))
    fold = tensors["fold"].tolist()
    return [ids, None if max(fold) < 0 else fold, tensors["scores"].astype(np.float32)]


def make_exported(folder: Path) -> None:
    backbone = _backbone("demo:cnn", weights=None, device="cpu")
    head = _head(backbone.dim)
    points = {"f1": head["thresholds"], "precision:0.8": head["thresholds"] + np.float32(1)}
    tagger = Tagger(
        (backbone,),
        Probe(**head, C=np.ones(3), facts=_facts()),
        "probe",
        exclusive=("colour",),
        operating_points=points,
        calibration=Calibration(np.array([0.5, 1, 2], np.float32), np.zeros(3, np.float32)),
    )
    write_exported(folder, tagger, Exported({"method": "platt"}, {"code": "c"}, ["MIT"]))


def read_tagger(folder: Path) -> Any:
    """Everything that `predict` uses of an exported tagger."""
    tagger = load_fitted(folder)
    backbone, head, curves = tagger.backbones[0], tagger.head, tagger.calibration
    need(bool(np.isfinite(tagger.logits([_PICTURE])).all()), "logits")
    need(bool(np.isfinite(tagger.probabilities(head.logits(np.zeros((1, head.dim), "f4")))).all()))
    state = {k: t.numpy() for k, t in backbone.module.state_dict().items()}
    arrays = {"weight": head.weight, "bias": head.bias}
    arrays["thresholds"] = np.stack(list(tagger.operating_points.values()))
    if curves:
        arrays |= {"slope": curves.slope, "offset": curves.offset}
    pixels = json.loads(backbone.preprocess.to_json())
    names = [tagger.strategy, tagger.tags, list(tagger.operating_points), tagger.assignment]
    return [*names, tagger.exclusive, head.head, head.scale, pixels, arrays, state]


def second_tagger(folder: Path) -> Any:
    header = json.loads((folder / "tagger.json").read_bytes())
    need(header["files"]["tagger.json"] == digest_of(header, "tagger.json"), "digest")
    need(header["format"] == 1 and type(header["format"]) is int, "format")
    found = []
    for file in ("head.safetensors", "backbone-1.safetensors"):
        body = (folder / file).read_bytes()
        need(header["files"][file] == hashlib.sha256(body).hexdigest(), "digest")
        found.append(stored_tensors(body))
    arrays, state = found
    points, tags = header["operating_points"], header["tags"]
    (one,) = header["backbones"]
    own = _backbone("demo:cnn", weights=None, device="cpu")
    wanted = {k: t.numpy() for k, t in own.module.state_dict().items()}
    state = {k.removeprefix("backbone."): v for k, v in state.items()}
    # the digest of the weights is in the header: no others are right
    need(state.keys() == wanted.keys())
    need(all(np.array_equal(state[k], wanted[k]) for k in wanted), "weights")
    need(one["weights_sha256"] == own.weights_sha256 and one["id"].startswith("demo:cnn"))
    need(arrays["thresholds"].shape == (len(points), len(tags)) and len({*points}) == len(points))
    need(bool((arrays["thresholds"] > -np.inf).all()), "thresholds")
    need(arrays["weight"].shape == (len(tags), own.dim) and arrays["bias"].shape == (len(tags),))
    has_curves = "calibration" in header
    names = {"weight", "bias", "thresholds"} | ({"slope", "offset"} if has_curves else set())
    need(set(arrays) == names and all(a.dtype == np.float32 for a in arrays.values()), "names")
    if has_curves:
        need(bool((arrays["slope"] > 0).all()), "slopes")
    need(all(np.isfinite(a).all() for n, a in arrays.items() if n != "thresholds"), "numbers")
    need(all(isinstance(t, str) and t for t in (*tags, *points)) and len({*tags}) == len(tags) > 0)
    exclusive = header["facts"].get("exclusive") or []
    parts = [header["strategy"], tags, points, header["assignment"]]
    need(header["head"] in ("logistic", "ridge", "text", "fine-tuned"), "head")
    return [*parts, exclusive, header["head"], header["scale"], one["preprocessing"], arrays, state]


_PICTURE = Image.new("RGB", (40, 50), (200, 30, 60))

MODELS = (
    Format(
        "exported tagger",
        make_exported,
        {"tagger.json": of_json, "*.safetensors": of_safetensors},
        read_tagger,
        second_tagger,
        codes=(3, 4),
        bind=bind("tagger"),
    ),
    Format(
        "out-of-fold scores",
        make_scores,
        {"out_of_fold.safetensors": of_safetensors},
        read_scores,
        second_scores,
        codes=(3, 4),
        bind=bind("probe"),
    ),
    _model("probe", make_probe, "probe"),
    _model("knn probe", make_knn, "probe", ("knn.safetensors",)),
    _model("fine-tune", make_finetune, "checkpoint"),
)

# Weights


def _network() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))


@cache
def _state() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return _network().state_dict()


def read_weights(name: str) -> Callable[[Path], Any]:
    def read(folder: Path) -> Any:
        module = _network()
        Target(module).load(folder / name)
        return _loaded(module.state_dict())

    return read


def _loaded(state: dict[str, Any]) -> Any:
    return {k: np.asarray(v) for k, v in state.items() if not k.endswith("num_batches_tracked")}


def _fitting(tensors: dict[str, Any]) -> Any:
    """The state that tensors of the network's names and shapes give, as float32."""
    wanted = _state()
    need(set(tensors) - {"1.num_batches_tracked"} == set(wanted) - {"1.num_batches_tracked"})
    found = {}
    for name, value in _loaded(tensors).items():
        need(value.shape == tuple(wanted[name].shape) and value.dtype.kind == "f", name)
        with np.errstate(over="ignore"):
            found[name] = value.astype(np.float32)
        need(bool(np.isfinite(found[name]).all()), name)
    return found


def second_safetensors(folder: Path) -> Any:
    return _fitting(stored_tensors((folder / "weights.safetensors").read_bytes()))


def _is_float(name: str, value: Any) -> bool:
    counter = name.endswith("num_batches_tracked")
    need(counter or value.is_floating_point(), name)
    return not counter


def second_torch(name: str) -> Callable[[Path], Any]:
    def read(folder: Path) -> Any:
        data = (folder / name).read_bytes()
        if data.startswith(b"PK"):
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                need(archive.testzip() is None, "checksum")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        content = content.get("state_dict", content)
        # bfloat16 and the types of 8 bits are numbers that NumPy does not know
        return _fitting({k: v.detach().float() for k, v in content.items() if _is_float(k, v)})

    return read


def torch_bytes(content: Any, *, legacy: bool = False) -> bytes:
    out = io.BytesIO()
    torch.save(content, out, _use_new_zipfile_serialization=not legacy)
    return out.getvalue()


KINDS = ("meta", torch.complex64, torch.bfloat16, torch.float64, torch.int64,
         torch.float8_e4m3fn)  # fmt: skip


def of_state(*, legacy: bool) -> Mutator:
    """Mutator of a torch file: other tensors, tensors of other kinds, other containers."""

    def mutate(rng: random.Random, data: bytes) -> bytes:
        state = dict(torch.load(io.BytesIO(data), weights_only=True))
        name = rng.choice([k for k, v in state.items() if v.ndim])
        tensor = state[name]
        kinds: tuple[Callable[[], Any], ...] = (
            *(partial(tensor.to, kind) for kind in KINDS), tensor.to_sparse, tensor.numpy,
            tensor.tolist, partial(torch.quantize_per_tensor, tensor, 0.1, 0, torch.qint8),
            partial(torch.full_like, tensor, math.nan), partial(nn.Parameter, tensor),
            partial(nn.Linear, 2, 2), partial(tensor.expand, 2, *tensor.shape),
            lambda: None, lambda: tensor.T, lambda: tensor[:0], lambda: tensor.reshape(-1)[0],
        )  # fmt: skip
        act = rng.random()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if act < 0.6:
                return torch_bytes({**state, name: rng.choice(kinds)()}, legacy=legacy)
            if act < 0.8:
                arrays = of_arrays(rng, {k: v.numpy() for k, v in state.items()})
                plain = {k: v for k, v in arrays.items() if v.dtype.kind in "fiub"}
                native = {k: np.array(v, v.dtype.newbyteorder("=")) for k, v in plain.items()}
                return torch_bytes(
                    {k: torch.from_numpy(v) for k, v in native.items()}, legacy=legacy
                )
            whole = rng.choice((
                {"state_dict": state, "epoch": 3}, [state], {"a": {"b": state}}, state[name], None,
                {1: state[name]}, {**state, 5: 6}, _network(), {"a": state, "b": state}, "text",
            ))  # fmt: skip
            return torch_bytes(whole, legacy=legacy)

    def make(rng: random.Random, data: bytes) -> bytes:
        return tried(rng, lambda: mutate(rng, data))

    return any_of(make, make, of_bytes, of_bytes if legacy else of_zip(of_bytes))


def _torch_weights(name: str, *, legacy: bool) -> Format:
    def make(folder: Path) -> None:
        (folder / name).write_bytes(torch_bytes(_state(), legacy=legacy))

    return Format(
        name, make, {name: of_state(legacy=legacy)}, read_weights(name), second_torch(name)
    )


def make_weights(folder: Path) -> None:
    data = safetensors({name: tensor.numpy() for name, tensor in _state().items()})
    (folder / "weights.safetensors").write_bytes(data)


# The network of an ONNX file has a square layer, whose shape does not tell that it is transposed.
_ONNX_NAMES = ("0.weight", "0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var")


def _square_network() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))


def make_onnx(folder: Path) -> None:
    torch.manual_seed(0)
    state = {k: torch.rand(v.shape).numpy() for k, v in _square_network().state_dict().items()}
    arrays = {k: state[k] for k in _ONNX_NAMES[1:]}
    arrays["onnx::MatMul_9"] = np.ascontiguousarray(state["0.weight"].T)
    graph = onnx.helper.make_graph(
        [
            onnx.helper.make_node("MatMul", ["x", "onnx::MatMul_9"], ["p"], name="/0/MatMul"),
            onnx.helper.make_node("Add", ["0.bias", "p"], ["a"], name="/0/Add"),
            onnx.helper.make_node("BatchNormalization", ["a", *_ONNX_NAMES[2:]], ["y"]),
        ],
        "g",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 3])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["n", 3])],
        [onnx.numpy_helper.from_array(value, name) for name, value in arrays.items()],
    )
    (folder / "weights.onnx").write_bytes(onnx.helper.make_model(graph).SerializeToString())


def read_onnx(folder: Path) -> Any:
    module = _square_network()
    Target(module).load(folder / "weights.onnx")
    return _loaded(module.state_dict())


def second_onnx(folder: Path) -> Any:
    """The weights with which the network computes what the graph does, node by node."""
    graph = onnx.load_from_string((folder / "weights.onnx").read_bytes()).graph
    product, bias, norm = graph.node
    need([node.op_type for node in graph.node] == ["MatMul", "Add", "BatchNormalization"])
    need(product.output[0] in bias.input and bias.output[0] == norm.input[0], "order")
    # a reader may take other tensors of the file for constants, but not these
    need([*norm.input[1:]] == [*_ONNX_NAMES[2:]] and "0.bias" in bias.input, "names")
    stored = {tensor.name: tensor for tensor in graph.initializer}
    sources = {**dict(zip(_ONNX_NAMES, _ONNX_NAMES, strict=True)), "0.weight": product.input[1]}
    found = {}
    for name, source in sources.items():
        value = onnx.numpy_helper.to_array(stored[source])
        need(value.shape == ((3, 3) if name == "0.weight" else (3,)), name)
        need(value.dtype.kind == "f", name)
        with np.errstate(over="ignore"):
            found[name] = value.astype(np.float32)
        need(bool(np.isfinite(found[name]).all()), name)
    found["0.weight"] = np.ascontiguousarray(found["0.weight"].T)
    return found


_ONNX_TEXTS = ("", "0.bias", "0.weight", "1.bias", "x", "p", "MatMul", "Gemm", "Identity", "Add",
               "../up", "/etc/passwd", "/1/MatMul", "val_1", "a" * 2000)  # fmt: skip


def of_onnx(rng: random.Random, data: bytes) -> bytes:
    """Another type, shape, name, place or number of a tensor; another node; nodes in disorder."""
    model = onnx.load_from_string(data)
    graph = model.graph
    tensor, node = rng.choice(graph.initializer), rng.choice(graph.node)

    def to_file() -> None:
        tensor.data_location = onnx.TensorProto.EXTERNAL
        entry = tensor.external_data.add()
        entry.key = "location"
        entry.value = rng.choice((*_ONNX_TEXTS, "weights.onnx"))

    def renamed() -> None:
        tensor.name = rng.choice(_ONNX_TEXTS)

    def connected() -> None:
        place = rng.choice((node.input, node.output))
        place[rng.randrange(len(place))] = rng.choice(_ONNX_TEXTS)

    def typed() -> None:
        tensor.data_type = rng.randrange(24)

    def shaped() -> None:
        tensor.dims.append(rng.choice((0, 1, 2, -1, 1 << 40, (1 << 63) - 1)))

    def flat() -> None:
        del tensor.dims[:]

    def kind() -> None:
        node.op_type = rng.choice(_ONNX_TEXTS)

    def scoped() -> None:
        node.name = rng.choice(_ONNX_TEXTS)

    def attribute() -> None:
        node.attribute.append(onnx.helper.make_attribute("transB", rng.randrange(2)))

    def twice() -> None:
        graph.initializer.add().CopyFrom(tensor)

    def again() -> None:
        graph.node.add().CopyFrom(node)

    def number() -> None:
        array = onnx.numpy_helper.to_array(tensor).copy()
        array.flat[0] = rng.choice((math.nan, math.inf, 0, 2.5))
        tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))

    def halved() -> None:
        array = onnx.numpy_helper.to_array(tensor)
        dtype = rng.choice((np.float16, np.float64, np.int64, np.int8))
        tensor.CopyFrom(onnx.numpy_helper.from_array(array.astype(dtype), tensor.name))

    rng.choice((to_file, renamed, connected, typed, shaped, flat, kind, scoped, attribute, twice,
                again, number, halved))()  # fmt: skip
    return model.SerializeToString()


WEIGHTS = (
    Format(
        "weights.onnx",
        make_onnx,
        {"weights.onnx": any_of(of_onnx, of_bytes)},
        read_onnx,
        second_onnx,
    ),
    Format(
        "weights.safetensors",
        make_weights,
        {"weights.safetensors": of_safetensors},
        read_weights("weights.safetensors"),
        second_safetensors,
    ),
    _torch_weights("weights.pt", legacy=False),
    _torch_weights("weights.pth", legacy=True),
)

# What a stopped fit leaves; it is computed again rather than refused


def make_snapshot(folder: Path) -> None:
    torch.manual_seed(0)
    Snapshots(folder, "key").save({"step": 3, "weights": torch.rand(3), "rng": [1, 2]})


def read_snapshot(folder: Path) -> Any:
    state = Snapshots(folder, "key").load()
    return state and {k: v.numpy() if isinstance(v, torch.Tensor) else v for k, v in state.items()}


def second_snapshot(folder: Path) -> Any:
    """The state behind a sound digest: torch compares no checksums inside."""
    data = (folder / "resume.pt").read_bytes()
    need(hashlib.sha256(data[32:]).digest() == data[:32])
    saved = torch.load(io.BytesIO(data[32:]), weights_only=True)
    need(saved["format"] == 3 and saved["key"] == "key" and isinstance(saved["state"], dict))
    return {k: v.numpy() if isinstance(v, torch.Tensor) else v for k, v in saved["state"].items()}


def of_snapshot(rng: random.Random, data: bytes) -> bytes:
    """Another content, its SHA-256 sound."""
    saved = torch.load(io.BytesIO(data[32:]), weights_only=True)
    act = rng.random()
    if act < 0.4:
        return of_bytes(rng, data)
    body = rng.choice((
        [saved], None, {**saved, "key": 1}, {"format": 1, "key": "key"}, {**saved, "state": None},
        {**saved, "format": [1]}, "text", {"format": 1, "key": "key", "state": []},
    ))  # fmt: skip
    raw = of_bytes(rng, data[32:]) if act < 0.6 else torch_bytes(body)
    raw = pickle.dumps(os.getcwd) if act > 0.95 else raw
    return hashlib.sha256(raw).digest() + raw


def _fits() -> ProbeFits:
    fits = ProbeFits.empty(np.array([0.1]), 3, 4)
    fits.weight[:] = np.arange(12).reshape(3, 4)
    return fits


def make_block(folder: Path) -> None:
    Checkpoints(folder, "key").save(_fits(), None)


def read_block(folder: Path) -> Any:
    found = Checkpoints(folder, "key").load(np.array([0.1]), None, 3, 4)
    return found and [found.weight, found.bias, found.status, found.seconds]


def _spec() -> ActivationSpec:
    return ActivationSpec("demo:cnn", "ab" * 32, "{}", "{}", "eager-float32", "block", (4,),
                          "contiguous", "float32")  # fmt: skip


def make_cache(folder: Path) -> None:
    rows = np.arange(6 * 16, dtype=np.uint8).reshape(6, 16)
    with ActivationCache(folder, _spec()).writer() as writer:
        writer.add([f"i{k}" for k in range(6)], ["cd" * 32] * 6, rows)
    for lock in folder.rglob("*.lock"):
        lock.unlink()


def read_cache(folder: Path) -> Any:
    """Row of each image; None for one that is computed again."""
    cache_ = ActivationCache(folder, _spec())
    names = [f"i{k}" for k in range(6)]
    gone = cache_.missing(dict.fromkeys(names, "cd" * 32))
    try:
        return {name: None if name in gone else cache_.read([name])[0] for name in names}
    finally:
        cache_.close()


def rows_in_part(answer: Any, expected: Any) -> bool:
    return all(row is None or row == expected[name] for name, row in answer.items())


STATES = (
    Format("resume.pt", make_snapshot, {"resume.pt": of_snapshot}, read_snapshot, second_snapshot),
    Format("sweep block", make_block, {"*.block": of_bytes}, read_block),
    Format(
        "activation cache",
        make_cache,
        {"*/identity.json": of_json, "*/rows-*.json": of_json, "*/rows-*.bin": of_bytes},
        read_cache,
        agree=rows_in_part,
    ),
)
# References of drift


def make_drift(folder: Path) -> None:
    n = 4
    sample = Sample(
        embeddings=RNG.normal(size=(n, 3)).astype(np.float32),
        given=np.eye(n, 3, dtype=bool),
        confidences=RNG.normal(size=(n, len(CONFIDENCES))),
        properties=np.where(np.arange(len(PROPERTIES)) == 6, np.nan, np.ones((n, 1))),
        kinds=np.array(["JPEG", "PNG", "JPEG", "PNG"]),
        group=np.array(["p1", "p1", "p2", "p3"]),
        names=np.array(["a", "b", "c", "d"]),
        digests=np.arange(n, dtype=np.uint64),
        has_groups=True,
    )
    Reference(sample, TAGS, "ab" * 32, "test split").save(folder / "reference.npz")


def read_drift(folder: Path) -> Any:
    kept = Reference.load(folder / "reference.npz")
    s = kept.sample
    facts = kept.tags, kept.model, kept.described, s.has_groups
    known = np.nan_to_num(s.properties, nan=-1)
    arrays = s.embeddings, s.given, s.confidences, known, s.kinds.tolist(), s.digests
    return *facts, *arrays, _same(s.group)


def _same(group: Any) -> Any:
    return group[:, None] == group


def second_drift(folder: Path) -> Any:
    with np.load(folder / "reference.npz") as archive:
        arrays = {name: archive[name] for name in archive.files}
    header = strict_json(arrays.pop("header").tobytes())
    need(type(header["format"]) is int and header["format"] == 1)
    need(is_names(header["tags"]) and len(header["tags"]) > 0)
    need(isinstance(header["model"], str) and isinstance(header["described"], str))
    need(isinstance(header["has_groups"], bool))
    need(header["confidences"] == list(CONFIDENCES) and header["properties"] == list(PROPERTIES))
    embeddings, given, kinds = arrays["embeddings"], arrays["given"], arrays["kinds"]
    n, n_tags = len(embeddings), len(header["tags"])
    shapes = {
        "embeddings": (np.float16, (n, embeddings.shape[1])),
        "given": (np.uint8, (n, -(-n_tags // 8))),
        "confidences": (np.float32, (n, len(CONFIDENCES))),
        "properties": (np.float32, (n, len(PROPERTIES))),
        "group": (np.uint32, (n,)),
        "digests": (np.uint64, (n,)),
    }
    need(n > 0 and embeddings.shape[1] > 0)
    need(all(arrays[k].dtype == d and arrays[k].shape == s for k, (d, s) in shapes.items()))
    need(kinds.dtype.kind == "U" and kinds.shape == (n,))
    need(np.isfinite(embeddings).all() and np.isfinite(arrays["confidences"]).all())
    need(not np.isinf(arrays["properties"]).any())
    group = arrays["group"] if header["has_groups"] else np.arange(n)
    figures = [
        np.nan_to_num(arrays[k].astype(float), nan=-1) for k in ("confidences", "properties")
    ]
    return (
        header["tags"], header["model"], header["described"], header["has_groups"],
        embeddings.astype(np.float32), np.unpackbits(given, axis=1, count=n_tags).astype(bool),
        *figures, kinds.tolist(), arrays["digests"], _same(group),
    )  # fmt: skip


DRIFT = Format(
    "reference.npz",
    make_drift,
    {"reference.npz": of_npz({"header": of_json})},
    read_drift,
    second_drift,
)

FORMATS = (*MODELS, *WEIGHTS, *STATES, DRIFT)
