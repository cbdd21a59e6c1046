"""Checkpoints as training scripts and other libraries write them, read as the plain weights are."""

from __future__ import annotations

import argparse
import json
import os
import pickle
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from retailtag.backbones import load_backbone
from retailtag.backbones.weights import state_sha256
from retailtag.errors import DataError, UsageError

SIZES: dict[str, Any] = {"depth": 2, "embed_dim": 32, "num_heads": 2, "img_size": 32}
TINY = "&".join(f"{name}={value}" for name, value in SIZES.items())
VIT = f"timm:vit_tiny_patch16_224.augreg_in21k?{TINY}"
DINOV2 = f"timm:vit_small_patch14_dinov2.lvd142m?{TINY.replace('img_size=32', 'img_size=28')}"
State = dict[str, Tensor]


class Said(list[str]):
    """A progress that collects what it is told."""

    say = list.append


def read(path: Path, backbone: str = VIT, branch: str = "") -> tuple[str, str]:
    """Hash of the loaded weights, and what was said."""
    said = Said()
    place = Path(f"{path}?branch={branch}") if branch else path
    loaded = load_backbone(backbone, weights=place, progress=said)
    return loaded.weights_sha256, " ".join(said)


def random_state(model: torch.nn.Module) -> State:
    rng = torch.Generator().manual_seed(5)
    return {k: torch.rand(v.shape, generator=rng) for k, v in model.state_dict().items()}


@pytest.fixture(scope="module")
def vit() -> State:
    import timm

    return random_state(timm.create_model("vit_tiny_patch16_224", num_classes=3, **SIZES))


@pytest.fixture(scope="module")
def plain(vit, tmp_path_factory) -> str:
    """Hash of the plain weights."""
    path = tmp_path_factory.mktemp("plain") / "plain.safetensors"
    save_file(vit, path)
    expected, said = read(path)
    assert not said
    return expected


@pytest.fixture
def saved(tmp_path):
    """Save a content as a PyTorch file."""

    def save(content: Any, name: str = "weights.pth", **options: Any) -> Path:
        torch.save(content, tmp_path / name, **options)
        return tmp_path / name

    return save


def under(prefix: str, state: State, add: float = 0) -> State:
    return {prefix + name: tensor + add for name, tensor in state.items()}


def dino(vit: State) -> dict[str, Any]:
    head = {"head.mlp.0.weight": torch.zeros(4, 32)}
    student = under("module.backbone.", vit, add=1)
    return {"student": student, "teacher": under("backbone.", vit) | head, "optimizer": {}}


@pytest.mark.parametrize(
    ("wrap", "where"),
    [
        (lambda s: {"epoch": 3, "state_dict": under("model.", s)}, "state_dict.model"),
        (lambda s: under("module.", s), "module"),
        (lambda s: under("_orig_mod.module.", s), "_orig_mod.module"),
        (lambda s: {"model": s, "args": argparse.Namespace(lr=0.1)}, "model"),
        (lambda s: {"state_dict": s, "best": np.float64(71)}, "state_dict"),
        (lambda s: {"state_dict": s, "seen": defaultdict(list, a=[1])}, "state_dict"),
        (lambda s: {"a": under("backbone.", s), "b": under("backbone.", s)}, "a.backbone"),
    ],
)
def test_the_one_prefix_that_fits_is_stripped_and_said(saved, vit, plain, wrap, where):
    found, said = read(saved(wrap(vit)))
    assert found == plain
    assert f"took the weights under {where}" in said


def test_what_lies_beside_the_branch_is_said(saved, vit, plain):
    state = under("backbone.", vit) | {"head.weight": torch.zeros(9, 32)}
    found, said = read(saved({"state_dict": state}))
    assert found == plain
    assert said.endswith("took the weights under state_dict.backbone; left out state_dict.head.")


def test_of_several_branches_the_user_chooses(saved, vit, plain):
    path = saved(dino(vit))
    with pytest.raises(UsageError, match=r"2 sets .* student, teacher; .*\.pth\?branch=NAME"):
        read(path)
    found, said = read(path, branch="teacher")
    assert found == plain
    assert "under teacher.backbone; left out student, teacher.head" in said
    assert read(path, branch="student")[0] not in (found, "")
    with pytest.raises(DataError, match=r"no branch pupil .* known: student, .*teacher"):
        read(path, branch="pupil")
    with pytest.raises(UsageError, match=r"--weights FILE\?branch=teacher"):
        load_backbone(f"{VIT}&branch=teacher", weights=path)


def test_a_branch_that_does_not_fit_wholly_is_refused(saved, vit):
    more = {"backbone.blocks.2.norm1.weight": torch.zeros(32)}
    with pytest.raises(DataError, match=r"under model.backbone it has unknown blocks\.2\.norm1"):
        read(saved({"model": under("backbone.", vit) | more, "iteration": 3}))


def test_integers_are_not_taken_for_weights(saved, vit):
    quantised = vit | {"blocks.0.mlp.fc1.weight": vit["blocks.0.mlp.fc1.weight"].to(torch.int8)}
    with pytest.raises(DataError, match=r"it has integers .* for blocks\.0\.mlp\.fc1\.weight"):
        read(saved(quantised))


def chunked(state: State) -> State:
    return {re.sub(r"^blocks\.(\d+)", r"blocks.0.\1", k): v for k, v in state.items()}


QKV = ("query", "key", "value")


def hugging_face_vit(state: State, *, old: bool) -> State:
    """ViT's names (`old`) or Dinov2's, with what else such files hold."""
    outer = {
        "cls_token": "embeddings.cls_token", "pos_embed": "embeddings.position_embeddings",
        "patch_embed.proj": "embeddings.patch_embeddings.projection", "norm": "layernorm",
    }  # fmt: skip
    inner = {"attn.proj": "attention.output.dense"}
    inner |= {"ls1.gamma": "layer_scale1.lambda1", "ls2.gamma": "layer_scale2.lambda1"}
    if old:
        inner |= {"norm1": "layernorm_before", "norm2": "layernorm_after"}
        inner |= {"mlp.fc1": "intermediate.dense", "mlp.fc2": "output.dense"}
    found = {"embeddings.mask_token": torch.zeros(1, 32)}
    for name, tensor in state.items():
        stem, _, kind = name.rpartition(".")
        match = re.fullmatch(r"blocks\.(\d+)\.(.+)", stem if not stem.endswith("ls") else name)
        if match is None:
            known = outer.get(name) or f"{outer.get(stem, stem)}.{kind}"
            found[known] = tensor
        elif match[2] == "attn.qkv":
            for part, third in zip(QKV, tensor.chunk(3), strict=True):
                found[f"encoder.layer.{match[1]}.attention.attention.{part}.{kind}"] = third
        else:
            whole = f"{match[2]}.{kind}"
            renamed = inner.get(whole) or f"{inner.get(match[2], match[2])}.{kind}"
            found[f"encoder.layer.{match[1]}.{renamed}"] = tensor
    return {k: v.contiguous() for k, v in found.items() if not k.startswith("head.")}


def test_chunked_blocks_are_renamed(saved, vit, plain):
    found, said = read(saved({"teacher": under("backbone.", chunked(vit))}))
    assert found == plain
    assert "teacher.backbone; converted chunked blocks" in said


def test_hugging_faces_vit_embeds_as_timms(tmp_path, vit, plain):
    state = under("vit.", hugging_face_vit(vit, old=True))
    state |= {
        "vit.pooler.dense.weight": torch.zeros(32, 32),
        "classifier.weight": torch.zeros(3, 32),
    }
    save_file(state, tmp_path / "model.safetensors")
    found, said = read(tmp_path / "model.safetensors")
    assert found == plain
    assert (
        "under vit; converted names of Hugging Face's ViT and Dinov2; left out classifier" in said
    )


def test_a_hugging_face_folder_of_dinov2_gives_normalisation_and_weights(tmp_path):
    import timm

    sizes = SIZES | {"img_size": 28}
    state = random_state(timm.create_model("vit_small_patch14_dinov2", num_classes=0, **sizes))
    save_file(state, tmp_path / "plain.safetensors")
    folder = tmp_path / "dinov2"
    folder.mkdir()
    save_file(hugging_face_vit(state, old=False), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "dinov2"}))
    found, said = read(folder, DINOV2)
    assert found == read(tmp_path / "plain.safetensors", DINOV2)[0]
    assert "converted names of Hugging Face's ViT and Dinov2" in said
    stored = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6], "size": 7}
    (folder / "preprocessor_config.json").write_text(json.dumps(stored))
    assert load_backbone(DINOV2, weights=folder).preprocess.mean == (0.1, 0.2, 0.3)


def test_torchvisions_vit_embeds_as_torchvision_does(saved, pixels):
    from torchvision.models import VisionTransformer

    torch.manual_seed(4)
    theirs = VisionTransformer(32, 16, 2, 2, hidden_dim=32, mlp_dim=128, num_classes=3).eval()
    theirs.heads = torch.nn.Identity()
    said = Said()
    ours = load_backbone(VIT, weights=saved(theirs.state_dict()), progress=said)
    assert "torchvision's ViT" in said[0]
    images = pixels(2, 32, 32)
    with torch.inference_mode():
        mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ours_normalisation(ours))
        expected = theirs((images / 255 - mean) / std)
    torch.testing.assert_close(ours.embed(images), expected, rtol=1e-4, atol=1e-5)


def ours_normalisation(backbone: Any) -> tuple[Any, Any]:
    return backbone.preprocess.mean, backbone.preprocess.std


def test_torchvisions_resnet_is_read_as_it_is(saved):
    from torchvision.models import resnet18

    theirs = resnet18()
    loaded = load_backbone("timm:resnet18.tv_in1k", weights=saved(theirs.state_dict()))
    trunk = loaded.module.trunk
    trunk.fc, theirs.fc = torch.nn.Identity(), torch.nn.Identity()
    assert state_sha256(trunk) == state_sha256(theirs)


def hugging_face_clip(state: State) -> State:
    """Hugging Face's names of an open_clip model."""
    outer = {
        "visual.class_embedding": "vision_model.embeddings.class_embedding",
        "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
        "visual.conv1": "vision_model.embeddings.patch_embedding",
        "visual.ln_pre": "vision_model.pre_layrnorm",
        "visual.ln_post": "vision_model.post_layernorm",
        "positional_embedding": "text_model.embeddings.position_embedding.weight",
        "token_embedding": "text_model.embeddings.token_embedding",
        "ln_final": "text_model.final_layer_norm",
        "logit_scale": "logit_scale",
    }
    inner = {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "attn.out_proj": "self_attn.out_proj"}
    inner |= {"mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}
    found = {"text_model.embeddings.position_ids": torch.arange(16)[None]}
    for name, tensor in state.items():
        stem, _, kind = name.rpartition(".")
        match = re.fullmatch(r"(visual\.)?transformer\.resblocks\.(\d+)\.(.+)", name)
        tower = "vision_model" if match and match[1] else "text_model"
        layer = f"{tower}.encoder.layers.{match[2]}." if match else ""
        if name in ("visual.proj", "text_projection"):
            found["visual_projection.weight" if "." in name else "text_projection.weight"] = (
                tensor.T
            )
        elif match and match[3].startswith("attn.in_proj_"):
            for part, third in zip("qkv", tensor.chunk(3), strict=True):
                found[f"{layer}self_attn.{part}_proj.{match[3][13:]}"] = third
        elif match:
            found[f"{layer}{inner[match[3].rpartition('.')[0]]}.{kind}"] = tensor
        else:
            found[outer.get(name) or f"{outer[stem]}.{kind}"] = tensor
    return {name: tensor.contiguous() for name, tensor in found.items()}


def test_hugging_faces_clip_is_read_by_open_clip_and_its_image_tower_by_timm(
    tiny_clip_folder, tmp_path
):
    state = load_file(tiny_clip_folder / "open_clip_model.safetensors")
    config = (tiny_clip_folder / "open_clip_config.json").read_text()
    (tmp_path / "open_clip_config.json").write_text(config)
    save_file(hugging_face_clip(state), tmp_path / "model.safetensors")
    plain = load_backbone("open_clip:tiny", weights=tiny_clip_folder)
    said = Said()
    converted = load_backbone("open_clip:tiny", weights=tmp_path, progress=said)
    assert "names of Hugging Face's CLIP" in said[0]
    assert converted.weights_sha256 == plain.weights_sha256
    assert torch.equal(converted.encode_text(["hat"]), plain.encode_text(["hat"]))
    sizes = "depth=5&embed_dim=32&num_heads=2&img_size=32&patch_size=8&mean=0.5&std=0.5"
    timms = f"timm:vit_base_patch32_clip_224?{sizes}"
    save_file(state, tmp_path / "openai.safetensors")  # OpenAI's names, which timm converts
    expected = read(tmp_path / "openai.safetensors", timms)[0]
    image_tower = {k: v for k, v in hugging_face_clip(state).items() if k.startswith("vision")}
    save_file(image_tower, tmp_path / "tower.safetensors")
    for name in ("model", "tower"):
        found, heard = read(tmp_path / f"{name}.safetensors", timms)
        assert found == expected
        assert "converted names of Hugging Face's CLIP" in heard


@pytest.mark.parametrize(("act", "name"), [("quick_gelu", ""), ("gelu", "_quickgelu")])
def test_clip_weights_of_another_activation_are_refused(tiny_clip_folder, tmp_path, act, name):
    state = load_file(tiny_clip_folder / "open_clip_model.safetensors")
    save_file(hugging_face_clip(state), tmp_path / "model.safetensors")
    config = {"model_type": "clip", "vision_config": {"hidden_act": act}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    sizes = "depth=5&embed_dim=32&num_heads=2&img_size=32&patch_size=8&mean=0.5&std=0.5"
    with pytest.raises(DataError, match=rf"activation of model.safetensors is {act}, which"):
        read(tmp_path / "model.safetensors", f"timm:vit_base_patch32_clip{name}_224?{sizes}")
    with pytest.raises(DataError, match=r"lacks|activation"):
        read(
            tmp_path, f"timm:vit_base_patch32_clip{name}_224?{sizes.replace('depth=5', 'depth=6')}"
        )


class Config(dict[str, Any]):
    """A dictionary of a class of its own, as configurations are."""


class Bomb:
    """Unpickling this would create a folder."""

    def __init__(self, mark: Path, call: Any = os.mkdir) -> None:
        self.mark, self.call = mark, call

    def __reduce__(self):
        return (self.call, (str(self.mark),))


def shady(path: str) -> None:
    """A function that is not torch's and is called by a file."""
    Path(path).mkdir()


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    "record",
    [
        argparse.Namespace(lr=0.1, path=Path("a"), shape=(1, 2)),
        Config(lr=0.1, inner=Config(a=[1])),
        {"score": np.float32(0.5), "curve": np.arange(3), "device": torch.device("cpu")},
    ],
)
def test_records_beside_the_tensors_do_not_stop_them(saved, vit, plain, record, zipped):
    content = {"state_dict": vit, "record": record}
    path = saved(content, _use_new_zipfile_serialization=zipped)
    assert read(path)[0] == plain


def test_a_call_is_not_made_whether_it_looks_hostile_or_not(saved, vit, plain, tmp_path):
    mark = tmp_path / "ran"
    allowed = set(torch.serialization.get_safe_globals())
    with pytest.raises(DataError, match=r"asks to run posix\.mkdir, .* nothing was run"):
        read(saved({"state_dict": vit, "extra": Bomb(mark)}))
    assert read(saved({"state_dict": vit, "extra": Bomb(mark, shady)}))[0] == plain
    (tmp_path / "odd.pth").write_bytes(pickle.dumps(Bomb(mark)))
    with pytest.raises(DataError, match=r"asks to run posix\.mkdir"):
        read(tmp_path / "odd.pth")
    assert not mark.exists()
    assert set(torch.serialization.get_safe_globals()) == allowed


def test_a_whole_model_a_program_and_damage_are_told_apart(saved, vit, tmp_path):
    model = torch.nn.Linear(2, 2)
    for content in (model, {"model": model, "optimizer": {"exp_avg": torch.zeros(2)}}):
        with pytest.raises(DataError, match=r"needs the class torch\.nn\.modules\.linear\.Linear"):
            read(saved(content))
    with pytest.warns(FutureWarning, match="deprecated"):
        torch.jit.trace(model, torch.zeros(1, 2)).save(tmp_path / "program.pt")
    with pytest.raises(DataError, match="is a TorchScript program, not weights"):
        read(tmp_path / "program.pt")
    whole = saved(vit).read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    old = saved(vit, _use_new_zipfile_serialization=False).read_bytes()
    for data in (
        whole[:5000],
        old[:5000],
        bytes(flipped),
        b"\x80garbage",
        b"\x80\x02N.",
        old[:300],
    ):
        (tmp_path / "cut.pth").write_bytes(data)
        with pytest.raises(DataError, match=r"cut\.pth is damaged or cut off(;|, or its pickle)"):
            read(tmp_path / "cut.pth")


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth", "w.bin"])
@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer, not weights; fetch"),
        (b"<!DOCTYPE html><html>Sign in</html>", "a web page, not weights"),
        (b"\x1f\x8b\x08" + bytes(30), "a gzip archive, not weights"),
        (b"", r"empty \(0 bytes\)"),
    ],
)
def test_what_lies_in_place_of_weights_is_called_what_it_is(tmp_path, name, content, kind):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=rf"{re.escape(name)} is {kind}"):
        read(tmp_path / name)


def test_a_file_that_torch_wrote_without_checksums_is_read(saved, vit, plain):
    torch.serialization.set_crc32_options(False)
    try:
        path = saved({"model": vit, "args": argparse.Namespace(lr=0.1)})
    finally:
        torch.serialization.set_crc32_options(True)
    assert read(path)[0] == plain


def test_files_are_read_by_their_content(saved, vit, plain, tmp_path):
    assert read(saved(vit, "named.safetensors"))[0] == plain
    save_file(vit, tmp_path / "named.bin")
    assert read(tmp_path / "named.bin")[0] == plain
    import zipfile

    with zipfile.ZipFile(tmp_path / "w.bin", "w") as archive:
        archive.writestr("conv1.npy", b"")
    with pytest.raises(DataError, match=r"zip archive without PyTorch's weights \(it holds conv1"):
        read(tmp_path / "w.bin")
