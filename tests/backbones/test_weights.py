"""Weights from files and from the hub's cache: what loads, and what is refused."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from retailtag.backbones import load_backbone, resolve_id
from retailtag.backbones.hub import Published
from retailtag.backbones.tensor_file import read_tensors
from retailtag.backbones.weights import state_sha256, weights_file
from retailtag.demo.networks import packaged_weights
from retailtag.errors import DataError, Unavailable, UsageError

SMALL = "timm:mobilenetv3_small_050"
GENUINE = Path(__file__).parents[3] / "shared" / "weights" / "mobilenetv2_100"


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    """Weights of SMALL as timm publishes them: with their classifier."""
    import timm

    torch.manual_seed(3)
    return dict(timm.create_model("mobilenetv3_small_050").state_dict())


@pytest.fixture
def saved(state, tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    save_file(state, path)
    return path


class Bomb:
    """Unpickling this would create a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return (os.mkdir, (str(self.mark),))


def test_file_folder_and_torch_file_give_one_identity(saved, state, tmp_path):
    torch.save(state, tmp_path / "plain.pth")
    torch.save(
        {"epoch": 3, "state_dict": {f"module.{k}": v for k, v in state.items()}},
        tmp_path / "run.ckpt",
    )
    sources = [saved, tmp_path, tmp_path / "plain.pth", tmp_path / "run.ckpt"]
    specs = [load_backbone(SMALL, weights=source).spec() for source in sources]
    assert len({s.digest for s in specs}) == 1
    assert specs[0].weights_sha256 != load_backbone(SMALL, random_weights=True).weights_sha256


def test_loaded_weights_embed_as_timm_does(saved, state, pixels):
    import timm

    backbone = load_backbone(SMALL, weights=saved)
    model = timm.create_model("mobilenetv3_small_050")
    model.load_state_dict(state)
    model.eval().to(memory_format=torch.channels_last)
    images = pixels(2, 224, 224).contiguous(memory_format=torch.channels_last)
    mean, std = (
        torch.tensor(v).view(1, 3, 1, 1)
        for v in (backbone.preprocess.mean, backbone.preprocess.std)
    )
    with torch.inference_mode():
        x = (images.float() / 255 - mean) / std
        theirs = model.forward_head(model.forward_features(x), pre_logits=True)
    assert torch.equal(backbone.embed(images), theirs)
    assert backbone.embed(images[:1]).shape == (1, backbone.dim)


def test_the_hash_sees_one_bit_and_not_the_head(saved, state, tmp_path):
    whole = load_backbone(SMALL, weights=saved).weights_sha256
    headless = {k: v for k, v in state.items() if not k.startswith("classifier.")}
    save_file(headless, tmp_path / "headless.safetensors")
    assert load_backbone(SMALL, weights=tmp_path / "headless.safetensors").weights_sha256 == whole
    changed = {k: v.clone() for k, v in state.items()}
    changed["conv_stem.weight"].view(-1).view(torch.int32)[0] ^= 1
    save_file(changed, tmp_path / "changed.safetensors")
    assert load_backbone(SMALL, weights=tmp_path / "changed.safetensors").weights_sha256 != whole


def test_the_hash_covers_names_dtypes_and_shapes():
    plain = torch.nn.Linear(2, 2, bias=False)
    reference = state_sha256(plain)
    for change in ("dtype", "shape", "name"):
        other = torch.nn.Module()
        weight = plain.weight.detach().clone()
        if change == "dtype":
            weight = weight.view(torch.int32)
        elif change == "shape":
            weight = weight.reshape(1, 4)
        other.register_buffer("weights" if change == "name" else "weight", weight)
        assert state_sha256(other) != reference
    assert state_sha256(torch.nn.BatchNorm2d(2)) == state_sha256(torch.nn.BatchNorm2d(2))
    assert state_sha256(plain.bfloat16()) != reference


def test_random_weights_are_the_same_everywhere_and_leave_the_callers_randomness():
    torch.manual_seed(7)
    first = load_backbone(SMALL, random_weights=True).weights_sha256
    after = torch.rand(1)
    torch.manual_seed(7)
    assert torch.rand(1) == after
    assert load_backbone(SMALL, random_weights=True).weights_sha256 == first


@pytest.mark.parametrize("suffix", [".pth", ".bin", ".pt"])
def test_a_file_that_needs_code_is_refused_and_not_run(tmp_path, suffix):
    mark = tmp_path / "ran"
    path = tmp_path / f"evil{suffix}"
    torch.save({"state_dict": {"a": Bomb(mark)}}, path)
    with pytest.raises(DataError, match=r"asks to run posix\.mkdir"):
        read_tensors(path)
    path.write_bytes(pickle.dumps(Bomb(mark)))
    with pytest.raises(DataError, match="nothing was run") as caught:
        read_tensors(path)
    assert "weights_only" not in str(caught.value)
    assert not mark.exists()


def test_truncated_files_are_refused(saved, state, tmp_path):
    content = saved.read_bytes()
    torch.save(state, tmp_path / "whole.pth")
    for name, data in [
        ("cut.safetensors", content[: len(content) // 2]),
        ("empty.safetensors", b""),
        ("cut.pth", (tmp_path / "whole.pth").read_bytes()[:1000]),
        ("empty.pth", b""),
    ]:
        (tmp_path / name).write_bytes(data)
        with pytest.raises(DataError, match=name):
            read_tensors(tmp_path / name)


def test_a_file_without_a_state_dict_is_refused(tmp_path):
    torch.save({"a": "b", "lr": 0.1}, tmp_path / "record.pth")
    with pytest.raises(DataError, match="no named tensors"):
        read_tensors(tmp_path / "record.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(DataError, match="no named tensors"):
        read_tensors(tmp_path / "list.pth")
    (tmp_path / "w.npz").write_bytes(b"PK")
    with pytest.raises(DataError, match="unknown ending"):
        read_tensors(tmp_path / "w.npz")


def test_another_architecture_is_refused_with_the_first_names(saved):
    with pytest.raises(
        DataError, match=r"another architecture: it lacks conv1\.weight.*and \d+ more"
    ):
        load_backbone("timm:resnet18", weights=saved)
    with pytest.raises(DataError, match=r"has another shape of .*blocks"):
        load_backbone("timm:mobilenetv3_small_075", weights=saved)


def test_a_missing_tensor_is_refused(state, tmp_path):
    cut = {k: v for k, v in state.items() if k != "blocks.0.0.conv_dw.weight"}
    save_file(cut, tmp_path / "cut.safetensors")
    with pytest.raises(DataError, match=r"lacks blocks\.0\.0\.conv_dw\.weight\."):
        load_backbone(SMALL, weights=tmp_path / "cut.safetensors")


def test_paths_that_hold_no_weights(tmp_path):
    with pytest.raises(UsageError, match="does not exist"):
        weights_file(tmp_path / "none")
    with pytest.raises(UsageError, match="holds 0 weights files"):
        weights_file(tmp_path)
    (tmp_path / "odd.safetensors").touch()
    assert weights_file(tmp_path) == tmp_path / "odd.safetensors"
    (tmp_path / "odder.pth").touch()
    with pytest.raises(UsageError, match="holds 2 weights files"):
        weights_file(tmp_path)
    with pytest.raises(UsageError, match="exclude each other"):
        load_backbone(SMALL, weights=tmp_path, random_weights=True)


def test_a_timm_folder_decides_arguments_and_preprocessing(saved):
    config = {
        "architecture": "mobilenetv3_small_050",
        "model_args": {"pad_type": "same", "num_classes": 1000},
        "pretrained_cfg": {"mean": [0.1, 0.2, 0.3], "crop_pct": 0.9, "unknown": 1},
    }
    (saved.parent / "config.json").write_text(json.dumps(config))
    backbone = load_backbone(SMALL, weights=saved.parent)
    assert backbone.preprocess.mean == (0.1, 0.2, 0.3)
    assert backbone.preprocess.crop_pct == 0.9
    assert json.loads(backbone.spec().architecture)["args"] == {"pad_type": "same"}
    assert load_backbone(f"{SMALL}?crop_pct=1", weights=saved.parent).preprocess.crop_pct == 1
    with pytest.raises(DataError, match="describes mobilenetv3_small_050, not resnet18"):
        load_backbone("timm:resnet18", weights=saved.parent)


def test_a_bare_file_of_ambiguous_normalisation_is_refused(tmp_path):
    import timm

    model = timm.create_model("vit_tiny_patch16_224", depth=1)
    save_file(model.state_dict(), tmp_path / "m.safetensors")
    with pytest.raises(UsageError, match="does not say how its images are normalised"):
        load_backbone("timm:vit_base_patch16_224", weights=tmp_path / "m.safetensors")
    with pytest.raises(UsageError, match="preprocessing and activation"):
        load_backbone("open_clip:ViT-B-32", weights=tmp_path / "m.safetensors")


def test_position_embeddings_are_resized_by_timm(tmp_path, pixels):
    import timm

    model = timm.create_model("vit_tiny_patch16_224.augreg_in21k_ft_in1k", depth=1)
    save_file(model.state_dict(), tmp_path / "m.safetensors")
    backbone = load_backbone(
        "timm:vit_tiny_patch16_224.augreg_in21k_ft_in1k?depth=1&img_size=64",
        weights=tmp_path / "m.safetensors",
    )
    assert backbone.preprocess.size == (64, 64)
    assert backbone.embed(pixels(1, 64, 64)).shape == (1, 192)


def test_an_open_clip_folder_decides_everything(tiny_clip_folder, pixels):
    backbone = load_backbone("open_clip:tiny", weights=tiny_clip_folder)
    assert backbone.family == "clip"
    assert backbone.preprocess.size == (32, 32)
    assert backbone.preprocess.mode == "squash"
    assert backbone.preprocess.std == (0.2, 0.3, 0.4)
    assert backbone.dim == 24
    import open_clip

    model = open_clip.create_model(f"local-dir:{tiny_clip_folder}").eval()
    images = pixels(3, 32, 32)
    mean, std = (
        torch.tensor(v).view(1, 3, 1, 1)
        for v in (backbone.preprocess.mean, backbone.preprocess.std)
    )
    with torch.inference_mode():
        theirs = model.encode_image((images.float() / 255 - mean) / std)
        words = model.encode_text(open_clip.get_tokenizer(f"local-dir:{tiny_clip_folder}")(["hat"]))
    assert torch.equal(backbone.embed(images), theirs)
    assert torch.equal(backbone.encode_text(["hat"]), words)


def fill_cache(cache: Path, repo: str, name: str, source: Path) -> None:
    """Lay a file out as the hub client does."""
    home = cache / f"models--{repo.replace('/', '--')}"
    snapshot = home / "snapshots" / "0123456789abcdef"
    snapshot.mkdir(parents=True)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text("0123456789abcdef")
    (snapshot / name).write_bytes(source.read_bytes())


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache, offline."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def test_a_filled_cache_serves_offline_under_the_default_tag(cache, saved):
    fill_cache(cache, "timm/mobilenetv3_small_050.lamb_in1k", "model.safetensors", saved)
    backbone = load_backbone(SMALL)
    assert backbone.id == f"{SMALL}.lamb_in1k"
    assert backbone.weights_sha256 == load_backbone(SMALL, weights=saved).weights_sha256


def test_offline_says_which_file_goes_where(cache):
    with pytest.raises(Unavailable) as caught:
        load_backbone("cnn")
    message = str(caught.value)
    assert "model.safetensors from the Hugging Face repository timm/resnet50.tv_in1k" in message
    assert "--weights FILE" in message
    assert str(cache) in message
    assert "HF_HUB_OFFLINE is set" in message
    with pytest.raises(Unavailable, match=r"open_clip_model\.safetensors from the .* laion/"):
        load_backbone("clip")


def test_a_host_without_network_is_reported_at_once(monkeypatch, tmp_path):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "https://hub.invalid")
    monkeypatch.setattr("retailtag.backbones.hub.getproxies", dict)
    with pytest.raises(Unavailable, match=r"hub\.invalid cannot be reached"):
        load_backbone("cnn")


def test_a_name_that_the_repository_lacks_leads_to_the_next(monkeypatch, tmp_path):
    import huggingface_hub
    from huggingface_hub import constants
    from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    asked = []

    def download(repo, name):
        asked.append(name)
        if name == "a":
            raise EntryNotFoundError("no such file")
        if name == "gone":
            raise RepositoryNotFoundError.__new__(RepositoryNotFoundError)
        return str(tmp_path / name)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr("retailtag.backbones.hub._resolves", lambda endpoint: True)
    assert Published("x", "org/repo", ("a", "b")).fetch() == tmp_path / "b"
    with pytest.raises(Unavailable, match="org/repo"):
        Published("x", "org/repo", ("gone", "b")).fetch()
    assert asked == ["a", "b", "gone"]


def test_weights_outside_the_hub_are_left_to_the_user():
    with pytest.raises(UsageError, match=r"xception-43020ad28\.pth, or give --weights FILE"):
        load_backbone("timm:legacy_xception.tf_in1k")


def test_every_open_clip_tag_and_timm_default_has_a_place():
    import open_clip

    from retailtag.backbones.factory import published

    for model, tag in open_clip.list_pretrained():
        if model in open_clip.list_models():
            assert published(resolve_id(f"open_clip:{model}/{tag}")).repo
    assert published(resolve_id("demo:cnn")) is None


def test_the_genuine_weights_load_and_embed():
    if not GENUINE.exists():
        pytest.skip("genuine MobileNetV2 weights (../shared/weights) are not on this machine")
    backbone = load_backbone("timm:mobilenetv2_100?pad_type=same&mean=0.5&std=0.5", weights=GENUINE)
    assert backbone.dim == 1280
    assert len(backbone.blocks) == 17
    assert backbone.preprocess.mean == backbone.preprocess.std == (0.5, 0.5, 0.5)
    state = load_file(GENUINE / "model.safetensors")
    loaded = backbone.module.trunk.state_dict()
    assert all(torch.equal(loaded[k], v) for k, v in state.items() if k in loaded)
    # grey and noise embed differently: the network answers to its input
    grey = torch.full((1, 3, 224, 224), 128, dtype=torch.uint8)
    noise = torch.randint(0, 256, (1, 3, 224, 224), dtype=torch.uint8)
    a, b = backbone.embed(grey), backbone.embed(noise)
    assert torch.nn.functional.cosine_similarity(a, b).item() < 0.9


def test_demo_models_take_local_weights_and_refuse_others_by_name(tmp_path):
    packaged = load_backbone("demo:cnn")
    path = tmp_path / "mine.safetensors"
    path.write_bytes(packaged_weights("cnn").read_bytes())
    assert load_backbone("demo:cnn", weights=path).spec() == packaged.spec()
    with pytest.raises(DataError, match=r"mine\.safetensors holds the weights of another"):
        load_backbone("demo:clip", weights=path)
