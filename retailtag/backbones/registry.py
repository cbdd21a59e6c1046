"""Families of backbones by the scheme of their ids, the presets, and the demo catalogue.

A family is one entry of `FAMILIES`. Its functions are named as ``module:function`` and imported
when they are needed, so that parsing an id imports no model library, and so that no module
depends on `retailtag.demo`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

SUPERVISED = "supervised"
SELF_SUPERVISED = "self-supervised"
IMAGE_TEXT = "image-text"
# Words of timm's names. Weights that were fine-tuned on labels afterwards are supervised, whatever
# they started from.
_IMAGE_TEXT_WORDS = ("clip", "siglip", "openai", "laion", "datacomp", "metaclip", "dfn", "webli")
_SELF_SUPERVISED_WORDS = ("dino", "mae", "fcmae", "ijepa", "lvd", "sat493m")


@dataclass(frozen=True)
class Family:
    """How the ids of one family read, and which functions serve them."""

    build: str  # (BackboneId, Path of local weights or None, *, random_weights) -> LoadedModel
    # (BackboneId, arguments of the architecture, Preprocess) -> image tower with untrained weights
    # and its blocks; empty where there is none
    tower: str
    licence: str  # BackboneId -> licence of the published weights; empty where nothing states it
    published: str  # BackboneId -> Published; empty if retailtag packages the weights
    split_name: Callable[[str], tuple[str, str]]  # after the scheme: model's name, weights' tag
    # (model, tag) -> how the published weights were trained: one of the three below, or a name of
    # its own where nobody knows
    pretraining: Callable[[str, str], str]
    tag_separator: str = ""  # between the two in a canonical id; empty if weights have no tags
    models: tuple[str, ...] = ()  # all that an id may name; empty if the library checks them
    arguments: tuple[str, ...] = ()

    @property
    def pattern(self) -> str:
        """What follows ``scheme:``, for messages."""
        listed = "|".join(self.models) or "NAME"
        return f"MODEL{self.tag_separator}TAG" if self.tag_separator else listed


def _split_timm_name(name: str) -> tuple[str, str]:
    model, _, tag = name.partition(".")
    return model, tag


def _split_open_clip_name(name: str) -> tuple[str, str]:
    # OpenAI writes ViT-B/32 where open_clip writes ViT-B-32: the last slash precedes the tag
    model, _, tag = name.rpartition("/") if "/" in name else (name, "", "")
    return model.replace("/", "-"), tag


def _timm_pretraining(model: str, tag: str) -> str:
    words = re.split(r"[._-]", f"{model}.{tag}")
    if any(word in ("ft", "augreg") for word in words):
        return SUPERVISED
    if any(word.startswith(_IMAGE_TEXT_WORDS) for word in words):
        return IMAGE_TEXT
    if any(word.startswith(_SELF_SUPERVISED_WORDS) for word in words):
        return SELF_SUPERVISED
    return SUPERVISED


FAMILIES = {
    "timm": Family(
        build="retailtag.backbones.timm_models:build",
        tower="retailtag.backbones.timm_models:tower",
        licence="retailtag.backbones.timm_models:licence",
        published="retailtag.backbones.timm_models:published",
        split_name=_split_timm_name,
        pretraining=_timm_pretraining,
        tag_separator=".",
    ),
    "open_clip": Family(
        build="retailtag.backbones.clip_models:build",
        tower="retailtag.backbones.clip_models:tower",
        licence="",
        published="retailtag.backbones.clip_models:published",
        split_name=_split_open_clip_name,
        pretraining=lambda model, tag: IMAGE_TEXT,
        tag_separator="/",
    ),
    "demo": Family(
        build="retailtag.demo.backbones:build",
        tower="retailtag.demo.backbones:tower",
        licence="retailtag.demo.backbones:licence",
        published="",
        split_name=lambda name: (name, ""),
        pretraining=lambda model, tag: {
            "cnn": SUPERVISED,
            "dino": SELF_SUPERVISED,
            "clip": IMAGE_TEXT,
        }[model],
        models=("cnn", "dino", "clip"),
        arguments=("crop_mode", "crop_pct", "interpolation", "mean", "size", "std"),
    ),
    # Embeddings that were computed elsewhere: features import stores them under such an id.
    "own": Family(
        build="retailtag.backbones.imported:build",
        tower="",
        licence="",
        published="",
        split_name=lambda name: (name, ""),
        pretraining=lambda model, tag: f"own:{model}",
    ),
}

PRESETS = {
    # GFLOP per image (a multiply-add counts as two), parameters and dim: `backbones.cost`
    "cnn": "timm:resnet50.tv_in1k",  # 8.2, 23.5 M, 2048; ImageNet-1k labels
    "dinov2": "timm:vit_small_patch14_dinov2.lvd142m?img_size=224",  # 12.2, 21.6 M, 384
    "clip": "open_clip:ViT-B-32/datacomp_xl_s13b_b90k",  # 8.8, 87.8 M, 512
}
"""One backbone per kind of pretraining at comparable cost, small enough for an NVIDIA T4.

The ResNet-50 is the one of torchvision's plain softmax recipe: recipes with binary losses, mixing
and label smoothing raise ImageNet accuracy but lower linear transfer [1]_, which would decide the
comparison against the probe from the start. DINOv2 runs at 224 pixels instead of its native 518,
with a fifth of the tokens. The CLIP weights are DataComp's, which have the best zero-shot accuracy
published for this architecture [2]_.

References
----------
.. [1] Kornblith, Chen, Lee, Norouzi: Why Do Better Loss Functions Lead to Less Transferable
   Features? NeurIPS 2021.
.. [2] Gadre et al.: DataComp: In search of the next generation of multimodal datasets.
   NeurIPS 2023.
"""

DEMO_CATALOGUE = "retailtag.demo.drawing.write:write_demo_catalogue"


def load_function(target: str) -> Callable[..., Any]:
    """Import the function that ``module:function`` names."""
    from retailtag.backbones.late_compiler import compiler_later

    module, _, name = target.partition(":")
    with compiler_later():
        function: Callable[..., Any] = getattr(import_module(module), name)
    return function


def load_demo() -> Callable[..., Any]:
    """Import ``write_demo_catalogue``, which draws the demo catalogue into a folder."""
    return load_function(DEMO_CATALOGUE)
