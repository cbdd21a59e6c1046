"""A backbone: embeddings, identity, texts and cost."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from retailtag.backbones import load_backbone, resolve_id
from retailtag.backbones.backbone import Backbone, LoadedModel, full_float32
from retailtag.backbones.cost import cost_of
from retailtag.backbones.preprocess import Preprocess
from retailtag.demo.backbones import from_demo_model
from retailtag.errors import Unavailable, UsageError

SMALL = "timm:mobilenetv3_small_050?size=32"


@pytest.fixture(scope="module")
def small() -> Backbone:
    return load_backbone(SMALL, random_weights=True)


def test_embedding_is_float32_detached_and_one_row_per_image(small, pixels):
    embedding = small.embed(pixels(3, 32, 32))
    assert embedding.shape == (3, small.dim)
    assert embedding.dtype == torch.float32
    assert not embedding.requires_grad


def test_embedding_does_not_depend_on_training_mode_or_batch(small, pixels):
    images = pixels(5, 32, 32)
    reference = small.embed(images)
    small.train_last("all")
    assert torch.equal(small.embed(images), reference)
    assert torch.allclose(torch.cat([small.embed(i[None]) for i in images]), reference, atol=1e-6)


def test_float32_on_cuda_turns_tf32_off(monkeypatch):
    cudnn = torch.backends.cudnn
    monkeypatch.setattr(cudnn, "allow_tf32", True)
    with full_float32(torch.device("cuda")):
        assert not cudnn.allow_tf32
    assert cudnn.allow_tf32
    with full_float32(torch.device("cpu")):
        assert cudnn.allow_tf32


def test_the_pixels_given_are_left_as_they_were(small, pixels):
    images = pixels(2, 32, 32)
    small.forward(images)
    assert torch.equal(images, pixels(2, 32, 32))


def test_spec_says_what_changes_an_embedding(small):
    spec = small.spec()
    assert spec.backbone == small.id
    assert spec.dim == small.dim
    assert spec.weights_sha256 == small.weights_sha256
    assert json.loads(spec.preprocessing)["size"] == [32, 32]
    assert small.spec(dtype="float16").digest != spec.digest
    other = load_backbone(f"{SMALL}&crop_pct=1", random_weights=True).spec()
    assert dict(spec.to_json().items() ^ other.to_json().items()).keys() == {
        "backbone",
        "preprocessing",
    }


def test_pooling_is_an_argument_and_part_of_the_identity(pixels):
    vit = "timm:vit_tiny_patch16_224?depth=2&img_size=32"
    token = load_backbone(vit, random_weights=True)
    mean = load_backbone(f"{vit}&pool=avg", random_weights=True)
    assert token.weights_sha256 == mean.weights_sha256
    assert "pool=token" in token.spec().output
    assert "pool=avg" in mean.spec().output
    images = pixels(1, 32, 32)
    trunk = mean.module.trunk
    seen = []
    trunk.norm.register_forward_hook(lambda _, __, out: seen.append(out))
    assert torch.allclose(mean.embed(images), seen[0][:, 1:].mean(dim=1), atol=1e-6)
    assert not torch.allclose(mean.embed(images), token.embed(images))


def test_a_model_without_one_vector_per_image_is_refused():
    model = LoadedModel(
        id=resolve_id("timm:x"),
        module=nn.Conv2d(3, 2, 1),
        layout=None,
        preprocess=Preprocess(size=(4, 4)),
        architecture={},
        output="map",
    )
    with pytest.raises(UsageError, match=r"timm:x gives an array of shape \(2, 4, 4\) per image"):
        Backbone(model)


def test_text_needs_a_text_tower(small, tiny_clip_folder):
    with pytest.raises(UsageError, match="has no text tower"):
        small.encode_text(["shoe"])
    clip = load_backbone("open_clip:tiny", weights=tiny_clip_folder)
    clip.train_last(2)
    words = [f"word {i}" for i in range(300)]
    encoded = clip.encode_text(words)
    assert encoded.shape == (300, 24)
    assert torch.allclose(encoded[-1:], clip.encode_text(words[-1:]), atol=1e-6)
    assert clip.module.trunk.transformer.resblocks[-1].training
    assert not any(name.startswith("text") for name, _ in clip.module.named_parameters())


class StubClip(nn.Module):
    """The shape of a demo model: a timm trunk, a projection, a text tower."""

    class Text(nn.Module):
        def encode_text(self, texts: list[str]) -> torch.Tensor:
            return torch.tensor([[float(len(t))] * 6 for t in texts])

    def __init__(self) -> None:
        super().__init__()
        import timm

        self.trunk = timm.create_model(
            "vit_tiny_patch16_224", num_classes=0, depth=5, embed_dim=24, num_heads=2, img_size=64
        )
        self.proj = nn.Linear(24, 6, bias=False)
        self.text = self.Text()
        self.dim = 6


def test_demo_clip_ends_in_its_projection(pixels):
    backbone = Backbone(from_demo_model(resolve_id("demo:clip"), StubClip()))
    assert backbone.family == "clip"
    assert backbone.dim == 6
    names = backbone.trainable_names(2)
    assert "proj.weight" in names
    assert {n.split(".")[2] for n in names if "blocks" in n} == {"3", "4"}
    images = pixels(2, 64, 64)
    trunk, rest = backbone.split_at(2)
    assert torch.equal(rest(trunk(images)), backbone.forward(images))
    assert backbone.encode_text(["ab"]).tolist() == [[2.0] * 6]


@pytest.mark.parametrize("name", ["cnn", "dino", "clip"])
def test_packaged_demo_models_split_and_agree_with_their_own_forward(name, pixels):
    demo = pytest.importorskip("retailtag.demo.networks")
    model = demo.build_demo_model(name, weights=None).eval()
    backbone = Backbone(from_demo_model(resolve_id(f"demo:{name}"), model))
    assert backbone.dim == model.dim
    assert backbone.family == {"cnn": "cnn", "dino": "vit", "clip": "clip"}[name]
    images = pixels(2, 64, 64)
    with torch.inference_mode():
        assert torch.equal(backbone.embed(images), model((images.float() / 255 - 0.5) / 0.5))
    trunk, rest = backbone.split_at(4)
    with torch.no_grad():
        assert torch.equal(rest(trunk(images)), backbone.forward(images))


@pytest.mark.parametrize(
    ("backbone_id", "gflops", "parameters"),
    [
        ("cnn", 8.2, 23_508_032),
        ("dinov2", 12.2, 21_628_800),
        ("clip", 8.8, 87_849_216),
        ("timm:mobilenetv2_100", 0.6, 2_223_872),
    ],
)
def test_cost_is_the_published_one(backbone_id, gflops, parameters):
    cost = cost_of(backbone_id)
    assert cost.flops / 1e9 == pytest.approx(gflops, abs=0.06)
    assert cost.parameters == parameters
    assert cost.weight_bytes == 4 * parameters
    assert cost.size == (224, 224)


def test_a_convolution_counts_by_hand():
    # 32x32 input halves to 16x16: 16 filters of 3x3x3, two operations each
    first = 2 * 16 * 16 * 16 * 27
    assert first < cost_of(SMALL).flops < 20 * first


def test_a_missing_tokenizer_is_one_sentence(tiny_clip_folder, monkeypatch):
    import open_clip

    def absent(name):
        raise ImportError("No module named 'transformers'")

    clip = load_backbone("open_clip:tiny", weights=tiny_clip_folder)
    monkeypatch.setattr(open_clip, "get_tokenizer", absent)
    with pytest.raises(Unavailable, match="needs the package transformers"):
        clip.encode_text(["shoe"])
