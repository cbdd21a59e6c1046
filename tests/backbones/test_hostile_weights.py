"""Weights files without numbers, with too many names, or that lie: one sentence names the place."""

from __future__ import annotations

import json
import random
import struct
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from retailtag import npz
from retailtag.backbones import load_backbone, tensor_file
from retailtag.backbones.tensor_file import read_tensors
from retailtag.backbones.weights import Target, state_sha256
from retailtag.errors import DataError, UsageError

State = dict[str, Tensor]
NORM = "1.weight"


class Masked(nn.Sequential):
    """A model of seven tensors, one of which holds infinity by design."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(3, 4), nn.BatchNorm1d(4))
        self.register_buffer("mask", torch.tensor([0, -torch.inf]))


def good() -> State:
    torch.manual_seed(0)
    return dict(Masked().state_dict())


def load(path: Path) -> str:
    """Hash of a model with the weights of a file."""
    model = Masked()
    Target(model).load(path)
    return state_sha256(model)


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("plain") / "w.safetensors"
    save_file(good(), path)
    return load(path)


ODD = {
    "sparse": (lambda t: t.to_sparse(), "a sparse tensor"),
    "sparse rows": (lambda t: t[None].to_sparse_csr(), "a sparse tensor"),
    "quantised": (
        lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8),
        "a quantised tensor",
    ),
    "meta": (lambda t: t.to("meta"), "a meta tensor"),
    "complex": (lambda t: t * 1j, "a tensor of complex64"),
    "conjugate": (lambda t: (t * 1j).conj(), "a tensor of complex64"),
    "expanded": (lambda t: t[:1].expand(10**6, 10**6), "a tensor of 4,000,000,000,000 bytes"),
}


@pytest.mark.filterwarnings("ignore")  # torch's about what it will deprecate
@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("kind", ODD)
def test_a_tensor_without_dense_numbers_is_named_where_the_model_needs_it(
    tmp_path, plain, kind, zipped
):
    make, what = ODD[kind]
    state = good()
    path = tmp_path / "w.pth"
    how = {"_use_new_zipfile_serialization": zipped}
    torch.save({"model": state | {NORM: make(state[NORM])}}, path, **how)
    with pytest.raises(DataError, match=rf"w\.pth holds model\.1\.weight as {what}"):
        load(path)
    torch.save({"model": state, "optimizer": {"moment": make(state[NORM])}}, path, **how)
    assert load(path) == plain
    torch.save({name: make(state[NORM]) for name in state}, path, **how)
    with pytest.raises(DataError, match=rf"holds \S+ as {what}.* \(and 7 such tensors more"):
        load(path)


@pytest.mark.parametrize(
    ("value", "dtype"),
    [(torch.nan, "float32"), (torch.inf, "float32"), (-torch.inf, "float16"), (1e300, "float64"),
     (torch.nan, "bfloat16"), (torch.nan, "float8_e4m3fn"), (torch.inf, "float8_e5m2")],
)  # fmt: skip
@pytest.mark.parametrize("name", ["0.weight", "1.running_var"])
def test_nan_and_infinity_are_named_as_the_model_would_hold_them(tmp_path, value, dtype, name):
    state = good()
    bad = torch.full_like(state[name], value, dtype=torch.float64).to(getattr(torch, dtype))
    save_file(state | {name: bad}, tmp_path / "w.safetensors")
    with pytest.raises(DataError, match=rf"w\.safetensors holds NaN or infinite .* in {name};"):
        load(tmp_path / "w.safetensors")


def safetensors(header: Any, body: bytes = bytes(8)) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def entry(shape: Any = (2,), offsets: Any = (0, 8), dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@pytest.mark.parametrize(
    "content",
    [
        safetensors({"a": entry(), "b": entry(offsets=(4, 12))}, bytes(12)),
        safetensors({"a": entry(offsets=(8, 16))}, bytes(16)),
        safetensors({"a": entry()}, bytes(7)),
        safetensors({"a": entry()}, bytes(9)),
        safetensors({"a": entry(offsets=(8, 0))}),
        safetensors({"a": entry(shape=(2**62, 2**62))}),
        safetensors({"a": entry(shape=(0, 2**63, 2**63), offsets=(0, 0))}, b""),
        safetensors({"a": entry(shape=(0, 2**63 - 1, 2), offsets=(0, 0))}, b""),
        safetensors({"a": entry(shape=(-2,))}),
        safetensors({"a": entry(shape=(2.5,))}),
        safetensors({"a": entry(shape="2")}),
        safetensors({"a": entry(dtype="F6_E2M3", shape=(8,), offsets=(0, 6))}, bytes(6)),
        safetensors({"a": entry(dtype="O")}),
        safetensors({"a": 3}),
        safetensors({"__metadata__": {"a": 3}, "a": entry()}),
        safetensors(b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"a":{}}'),
        safetensors(b'{"\\ud800":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'),
        safetensors(b'{"a":' + b"[" * 99_999),
        safetensors(b'{"a":' * 5_000),
        safetensors(b"{\xff}"),
        struct.pack("<Q", 2**60) + b"{}",
        struct.pack("<Q", 90_000_000) + b"{}",
        b"\x08\x07\x12\x07pytorch" + bytes(200),  # ONNX
    ],
)
def test_a_header_that_lies_is_damage(tmp_path, content):
    for name in ("w.safetensors", "w.bin"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=rf"{name} is damaged or cut off, no complete weights"):
            read_tensors(tmp_path / name)


def test_unknown_endings_are_told_what_is_read(tmp_path):
    with pytest.raises(DataError, match=r"w\.h5 has an unknown ending; weights are"):
        read_tensors(tmp_path / "w.h5")


def test_every_changed_byte_is_a_sentence_or_a_number(tmp_path):
    save_file(good(), tmp_path / "w.safetensors")
    torch.save(good(), tmp_path / "w.pth")
    torch.save(good(), tmp_path / "w.bin", _use_new_zipfile_serialization=False)
    rng = random.Random(0)
    for name in ("w.safetensors", "w.pth", "w.bin"):
        whole = (tmp_path / name).read_bytes()
        for k in [*range(64), *(rng.randrange(len(whole)) for _ in range(60))]:
            changed = bytearray(whole)
            changed[k] ^= rng.randrange(1, 256)
            (tmp_path / name).write_bytes(changed)
            with suppress(DataError):
                load(tmp_path / name)


VIT = {"depth": 1, "embed_dim": 32, "num_heads": 2, "img_size": 32, "mlp_ratio": 1}
TIMM_CONFIG = {
    "architecture": "vit_tiny_patch16_224",
    "model_args": VIT,
    "pretrained_cfg": {"input_size": [3, 32, 32]},
}


def test_a_plain_configuration_is_followed(tmp_path, vit_file):
    (tmp_path / "config.json").write_text(json.dumps(TIMM_CONFIG))
    (tmp_path / "model.safetensors").write_bytes(vit_file)
    backbone = load_backbone("timm:vit_tiny_patch16_224.augreg_in21k", weights=tmp_path)
    assert backbone.dim == 32


@pytest.mark.parametrize(
    "changes",
    [
        {"pretrained_cfg": [1]}, {"pretrained_cfg": "a"}, {"model_args": [1]}, {"model_args": "a"},
        {"pretrained_cfg": {"mean": "x"}}, {"pretrained_cfg": {"mean": [1, 2]}},
        {"pretrained_cfg": {"mean": [0, 0, float("nan")]}}, {"pretrained_cfg": {"std": [0, 1, 1]}},
        {"pretrained_cfg": {"std": {"a": 1}}}, {"pretrained_cfg": {"std": [[1], [1], [1]]}},
        {"pretrained_cfg": {"input_size": "a"}}, {"pretrained_cfg": {"input_size": [3, 0, 0]}},
        {"pretrained_cfg": {"input_size": []}}, {"pretrained_cfg": {"crop_pct": "a"}},
        {"pretrained_cfg": {"crop_pct": 0}}, {"pretrained_cfg": {"crop_mode": ["a"]}},
        {"pretrained_cfg": {"interpolation": 7}}, {"pretrained_cfg": {"interpolation": {}}},
        {"pretrained_cfg": {"classifier": 7}}, {"model_args": {"embed_dim": "a"}},
        {"model_args": {"embed_dim": -32}}, {"model_args": {"depth": 10.5}},
        {"model_args": {"num_heads": 0}}, {"model_args": {"colour": 1}},
        {"architecture": ["a"]}, {"architecture": 3},
    ],
)  # fmt: skip
def test_a_configuration_that_cannot_be_followed_is_a_sentence(tmp_path, vit_file, changes):
    config = {**TIMM_CONFIG, **changes}
    for name in ("pretrained_cfg", "model_args"):
        if isinstance(config[name], dict):
            config[name] = {**TIMM_CONFIG[name], **config[name]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes(vit_file)
    with pytest.raises((DataError, UsageError)):
        load_backbone("timm:vit_tiny_patch16_224.augreg_in21k", weights=tmp_path)


@pytest.fixture(scope="module")
def vit_file() -> bytes:
    import timm
    from safetensors.torch import save

    return save(timm.create_model("vit_tiny_patch16_224", num_classes=0, **VIT).state_dict())


def rewritten(path: Path, **how: Any) -> Path:
    """The same members, written by Python's zipfile."""
    with zipfile.ZipFile(path) as archive:
        members = [(i.filename, archive.read(i)) for i in archive.infolist()]
    with zipfile.ZipFile(path, "w", **how) as archive:
        for member, body in members:
            archive.writestr(member, body)
    return path


def test_swollen_encrypted_and_doubled_archives_are_refused(tmp_path, plain, monkeypatch):
    path = tmp_path / "w.pth"
    torch.save(good(), path)
    assert load(rewritten(path, compression=zipfile.ZIP_STORED)) == plain
    torch.save({"a": torch.zeros(1 << 18)}, path)
    monkeypatch.setattr(npz, "ALWAYS_UNPACKED", 1 << 16)
    with pytest.raises(DataError, match=r"w\.pth is not read: it unpacks to 1,0.* times its size"):
        read_tensors(rewritten(path, compression=zipfile.ZIP_DEFLATED))
    torch.save(good(), path)
    locked = bytearray(path.read_bytes())
    locked[locked.index(b"PK\1\2") + 8] |= 1
    path.write_bytes(locked)
    with pytest.raises(DataError, match=r"its member w/data\.pkl is encrypted"):
        read_tensors(path)
    torch.save(good(), path)
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("w/data.pkl", b"")
    with pytest.raises(DataError, match=r"it holds w/data\.pkl twice"):
        read_tensors(path)


def test_names_without_end_and_names_given_twice_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(tensor_file, "MAX_VALUES", 1000)
    path = tmp_path / "w.pth"
    cycle: dict[str, Any] = {"a": torch.zeros(1)}
    cycle.update(dict.fromkeys("bcdefgh", cycle))
    torch.save(cycle, path)
    with pytest.raises(DataError, match=r"w\.pth holds more than 1,000 values, which no"):
        read_tensors(path)
    torch.save({"." * 5000: torch.zeros(1)}, path)
    with pytest.raises(DataError, match=r"w\.pth holds a name of 5,000 characters"):
        read_tensors(path)
    torch.save({"a.b": torch.zeros(1), "a": {"b": torch.ones(1)}}, path)
    with pytest.raises(DataError, match=r"w\.pth holds the tensor a\.b twice"):
        read_tensors(path)
