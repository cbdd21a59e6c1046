"""Which parameters "the last four blocks" are, written down by hand for each architecture."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from retailtag.backbones import load_backbone
from retailtag.backbones.backbone import Backbone
from retailtag.backbones.blocks import layout_of
from retailtag.errors import UsageError

LAST_FOUR = {
    "timm:resnet18?size=64": ["layer3.", "layer4."],
    "timm:resnet50?size=64": ["layer3.5.", "layer4."],
    "timm:seresnet50?size=64": ["layer3.5.", "layer4."],
    "timm:convnext_atto?size=64": [
        "stages.2.blocks.4.",
        "stages.2.blocks.5.",
        "stages.3.",
        "head.",
    ],
    "timm:efficientnet_b0?size=64": [
        "blocks.5.1.",
        "blocks.5.2.",
        "blocks.5.3.",
        "blocks.6.",
        "conv_head.",
        "bn2.",
    ],
    "timm:mobilenetv2_100?size=64": ["blocks.5.", "blocks.6.", "conv_head.", "bn2."],
    "timm:mobilenetv3_small_100?size=64": ["blocks.3.1.", "blocks.4.", "blocks.5.", "conv_head."],
    # its first stage is a plain convolution, which is no block
    "timm:mobilenet_edgetpu_v2_xs?size=64": [
        "blocks.5.1.",
        "blocks.5.2.",
        "blocks.5.3.",
        "blocks.6.",
        "conv_head.",
        "bn2.",
    ],
    # its last stage is one too, and belongs to the block before it
    "timm:mobilenetv4_conv_small_035?size=64": [
        "blocks.3.2.",
        "blocks.3.3.",
        "blocks.3.4.",
        "blocks.3.5.",
        "blocks.4.",
        "conv_head.",
        "norm_head.",
    ],
    "timm:regnetx_002?size=64": ["s4.b4.", "s4.b5.", "s4.b6.", "s4.b7."],
    "timm:vit_tiny_patch16_224?img_size=64": [
        "blocks.8.",
        "blocks.9.",
        "blocks.10.",
        "blocks.11.",
        "norm.",
    ],
    "timm:vit_tiny_patch16_224?img_size=64&pool=avg": [
        "blocks.8.",
        "blocks.9.",
        "blocks.10.",
        "blocks.11.",
        "norm.",
    ],
    "timm:deit_tiny_distilled_patch16_224?img_size=64": [
        "blocks.8.",
        "blocks.9.",
        "blocks.10.",
        "blocks.11.",
        "norm.",
    ],
    "timm:vit_small_patch14_dinov2?img_size=56": [
        "blocks.8.",
        "blocks.9.",
        "blocks.10.",
        "blocks.11.",
        "norm.",
    ],
    "timm:eva02_tiny_patch14_224?img_size=56": [
        "blocks.8.",
        "blocks.9.",
        "blocks.10.",
        "blocks.11.",
        "fc_norm.",
    ],
    "timm:beit_base_patch16_224?depth=6&embed_dim=48&num_heads=3&img_size=64": [
        "blocks.2.",
        "blocks.3.",
        "blocks.4.",
        "blocks.5.",
        "fc_norm.",
    ],
    "timm:swin_tiny_patch4_window7_224?embed_dim=24&img_size=112": [
        "layers.2.blocks.4.",
        "layers.2.blocks.5.",
        "layers.3.",
        "norm.",
    ],
    "timm:swinv2_tiny_window8_256?embed_dim=24&img_size=128": [
        "layers.2.blocks.4.",
        "layers.2.blocks.5.",
        "layers.3.",
        "norm.",
    ],
    "timm:resnetv2_50?size=64": ["stages.2.blocks.5.", "stages.3.", "norm."],
    "timm:repvgg_a0?size=64": ["stages.2.11.", "stages.2.12.", "stages.2.13.", "stages.3."],
    "timm:eca_nfnet_l0?size=64": ["stages.2.5.", "stages.3.", "final_conv."],
    "timm:mixer_s32_224?img_size=64": ["blocks.4.", "blocks.5.", "blocks.6.", "blocks.7.", "norm."],
    "open_clip:ViT-S-32?size=64": [
        "transformer.resblocks.8.",
        "transformer.resblocks.9.",
        "transformer.resblocks.10.",
        "transformer.resblocks.11.",
        "ln_post.",
        "proj",
    ],
    "open_clip:RN50?size=64": ["layer3.5.", "layer4.", "attnpool."],
}
NOT_DIVISIBLE = ("eva02", "beit")


def load_small(backbone_id: str) -> Backbone:
    return load_backbone(backbone_id, random_weights=True)


@pytest.mark.parametrize("backbone_id", LAST_FOUR)
def test_last_four_blocks_and_the_new_head_alone_receive_gradients(backbone_id, pixels):
    backbone = load_small(backbone_id)
    expected = {
        name
        for name, _ in backbone.module.named_parameters()
        if name.removeprefix("trunk.").startswith(tuple(LAST_FOUR[backbone_id]))
    }
    assert all(
        any(name.startswith(f"trunk.{prefix}") for name in expected)
        for prefix in LAST_FOUR[backbone_id]
    )
    head = nn.Linear(backbone.dim, 3)

    chosen = backbone.unfreeze_last(4)
    backbone.train_last(4)
    images = pixels(2, *backbone.preprocess.size)
    before = backbone.split_at(4)[0] if not divided(backbone_id) else None
    head(backbone.forward(images)).square().sum().backward()

    received = {n for n, p in backbone.module.named_parameters() if p.grad is not None}
    assert received == expected == set(backbone.trainable_names(4))
    assert {id(p) for p in chosen} == {
        id(p) for n, p in backbone.module.named_parameters() if n in expected
    }
    assert all(p.grad is not None for p in head.parameters())
    assert before is None or not before(images).requires_grad


def divided(backbone_id: str) -> bool:
    return any(name in backbone_id for name in NOT_DIVISIBLE)


@pytest.mark.parametrize("backbone_id", [i for i in LAST_FOUR if not divided(i)])
def test_trunk_then_rest_equals_the_whole_bit_for_bit(backbone_id, pixels):
    backbone = load_small(backbone_id)
    images = pixels(2, *backbone.preprocess.size)
    for k in (1, 4, len(backbone.blocks)):
        trunk, rest = backbone.split_at(k)
        with torch.no_grad():
            assert torch.equal(rest(trunk(images)), backbone.forward(images)), k


@pytest.mark.parametrize("backbone_id", [i for i in LAST_FOUR if divided(i)])
def test_blocks_with_a_second_input_are_not_cut_apart(backbone_id):
    with pytest.raises(UsageError, match="cannot be cut before its last 2 blocks"):
        load_small(backbone_id).split_at(2)


def test_a_timm_tower_inside_open_clip_ends_in_its_head():
    import open_clip

    config = {
        "embed_dim": 16,
        "vision_cfg": {
            "timm_model_name": "vit_tiny_patch16_224",
            "timm_model_pretrained": False,
            "timm_pool": "token",
            "timm_proj": "linear",
            "image_size": 224,
        },
        "text_cfg": {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1},
    }
    visual = open_clip.CustomTextCLIP(**config).visual.eval()
    layout = layout_of(visual)
    assert layout is not None
    assert layout.family == "clip"
    last = layout.blocks[-1]
    assert last.name == "trunk.blocks.11"
    assert last.covers("head.proj.weight")
    assert last.covers("trunk.norm.weight")
    assert not last.covers("trunk.blocks.1.norm1.weight")
    x = torch.rand(1, 3, 224, 224)
    with torch.no_grad():
        hidden = layout.stem(x)
        for block in layout.blocks:
            for path in block.runs:
                hidden = visual.get_submodule(path)(hidden)
        assert torch.equal(layout.finish(hidden), visual(x))


def test_clip_from_a_folder_splits_and_freezes(tiny_clip_folder: Path, pixels):
    backbone = load_backbone("open_clip:tiny", weights=tiny_clip_folder)
    assert [b.name for b in backbone.blocks][-1] == "trunk.transformer.resblocks.4"
    assert not any("resblocks.0." in n for n in backbone.trainable_names(4))
    images = pixels(3, 32, 32)
    trunk, rest = backbone.split_at(2)
    assert torch.equal(rest(trunk(images)), backbone.forward(images))


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize("k", [4, "all"])
def test_statistics_move_in_unfrozen_blocks_alone_and_only_if_asked_to(pixels, k, stored):
    backbone = load_small("timm:resnet18?size=32")
    stats = {n: b.clone() for n, b in backbone.module.named_buffers() if "running_mean" in n}
    backbone.unfreeze_last(k)
    backbone.train_last(k, stored_statistics=stored)
    backbone.forward(pixels(4, 32, 32)).sum().backward()
    moved = {n for n, b in backbone.module.named_buffers() if n in stats and not b.equal(stats[n])}
    last = ("trunk.layer3.", "trunk.layer4.") if k == 4 else ("trunk.",)
    assert moved == (set() if stored else {n for n in stats if n.startswith(last)})
    assert backbone.module.trunk.layer4[1].bn2.weight.grad is not None


def test_all_is_everything_and_none_is_nothing():
    backbone = load_small("timm:resnet18?size=32")
    assert backbone.trainable_names("all") == [n for n, _ in backbone.module.named_parameters()]
    assert backbone.trainable_names(0) == []
    assert backbone.unfreeze_last(0) == []
    backbone.train_last("all")
    assert all(m.training for m in backbone.module.modules())


def test_blocks_partition_what_follows_the_stem():
    backbone = load_small("timm:mobilenetv3_small_100?size=32")
    every = backbone.trainable_names(len(backbone.blocks))
    for name in every:
        assert sum(block.covers(name) for block in backbone.blocks) == 1
    rest = set(backbone.trainable_names("all")) - set(every)
    assert {n.split(".")[1] for n in rest} == {"conv_stem", "bn1"}


def test_too_many_blocks_is_a_sentence_with_the_number_there_are():
    with pytest.raises(UsageError, match=r"has 8 blocks; --blocks 9 must be 0 to 8"):
        load_small("timm:resnet18?size=32").trainable_names(9)


def test_unknown_architecture_is_refused_by_name_but_trains_whole(pixels):
    backbone = load_small("timm:ghostnet_050?size=32")
    assert backbone.family == "other"
    assert backbone.blocks == ()
    with pytest.raises(UsageError, match=r"timm:ghostnet_050.*--blocks all"):
        backbone.unfreeze_last(4)
    assert backbone.unfreeze_last("all")


def test_a_subclass_with_its_own_forward_pass_is_not_read_as_its_parent():
    from timm.models.resnet import BasicBlock, ResNet

    class Odd(ResNet):
        def forward_features(self, x):
            return self.layer4(super().forward_features(x))

    assert layout_of(Odd(BasicBlock, (1, 1, 1, 1), num_classes=0)) is None


READS_ONE_TOKEN = {
    "demo:dino": True,
    "demo:clip": True,
    "timm:vit_tiny_patch16_224?img_size=64": True,
    "timm:vit_small_patch14_dinov2?img_size=56": True,
    "timm:vit_small_patch14_reg4_dinov2?img_size=56": True,
    "open_clip:ViT-S-32?size=64": True,
    "timm:vit_tiny_patch16_224?img_size=64&pool=avg": False,
    "timm:deit_tiny_distilled_patch16_224?img_size=64": False,
    "timm:resnet18?size=64": False,
}


@pytest.mark.parametrize("backbone_id", READS_ONE_TOKEN)
def test_a_last_block_for_one_token_agrees_in_value_and_gradient(backbone_id, pixels):
    backbone = load_small(backbone_id)
    images = pixels(2, *backbone.preprocess.size)
    backbone.unfreeze_last(2)
    found = []
    for first_token_only in (False, True):
        trunk, rest = backbone.split_at(2, first_token_only=first_token_only)
        embedding = rest(trunk(images))
        backbone.module.zero_grad()
        embedding.square().sum().backward()
        gradients = [p.grad.clone() for p in backbone.module.parameters() if p.grad is not None]
        found.append((embedding.detach(), gradients))
    assert len(found[0][1]) == len(backbone.trainable_names(2)) == len(found[1][1])
    scale = max(float(g.abs().max()) for g in found[0][1])
    torch.testing.assert_close(found[1][0], found[0][0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[1][1], found[0][1], rtol=1e-3, atol=1e-5 * scale)
    assert (backbone._layout.first_token_block is not None) == READS_ONE_TOKEN[backbone_id]


@pytest.mark.parametrize("backbone_id", READS_ONE_TOKEN)
def test_the_lean_module_gives_the_same_embeddings_from_the_same_weights(backbone_id, pixels):
    backbone = load_small(backbone_id)
    names = list(backbone.module.state_dict())
    normalised = backbone._normalised(pixels(3, *backbone.preprocess.size))
    lean = backbone.lean_module()
    with torch.inference_mode():
        torch.testing.assert_close(
            lean(normalised), backbone.module(normalised), rtol=1e-4, atol=1e-5
        )
    assert (lean is not backbone.module) == READS_ONE_TOKEN[backbone_id]
    addresses = {p.data_ptr() for p in backbone.module.parameters()}
    assert {p.data_ptr() for p in lean.parameters()} == addresses
    assert list(backbone.module.state_dict()) == names  # the original is as it was


def test_depth_counts_the_blocks_behind_a_parameter():
    backbone = load_small("timm:vit_tiny_patch16_224?img_size=64")
    depth = {n: backbone.depth_of(n) for n, _ in backbone.module.named_parameters()}
    assert depth["trunk.blocks.11.attn.qkv.weight"] == depth["trunk.norm.weight"] == 0
    assert depth["trunk.blocks.0.norm1.bias"] == 11
    assert depth["trunk.patch_embed.proj.weight"] == depth["trunk.cls_token"] == 12
