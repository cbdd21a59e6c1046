"""The demo family of backbones: packaged weights, which need no network."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from retailtag.backbones.backbone import EncodeText, LoadedModel, Tower
from retailtag.backbones.blocks import Layout, layout_of
from retailtag.backbones.ids import BackboneId
from retailtag.backbones.late_compiler import compiler_later
from retailtag.backbones.preprocess import Preprocess, with_arguments
from retailtag.backbones.weights import Target, split_branch, weights_file
from retailtag.demo.weights_file import unpack
from retailtag.errors import UsageError

MAX_SIZE = 1024
PREPROCESS = Preprocess(size=(64, 64), mode="squash", interpolation="bicubic")


def build(
    backbone_id: BackboneId, weights: Path | None, *, random_weights: bool = False
) -> LoadedModel:
    """Build a demo model with its packaged weights, local ones, or none.

    Raises
    ------
    UsageError
        If the id asks for images larger than `MAX_SIZE`.
    """
    with compiler_later():
        from retailtag.demo.networks import build_demo_model

    if max(with_arguments(PREPROCESS, backbone_id).size) > MAX_SIZE:
        raise UsageError(f"Backbone {backbone_id}: demo models take a size of at most {MAX_SIZE}.")
    weights, branch = split_branch(weights)
    packaged = weights is None and not random_weights
    model = build_demo_model(backbone_id.model, weights="packaged" if packaged else None)
    note = ""
    if weights is not None:
        target = Target(model, convert=lambda state: unpack(state, model.state_dict()))
        note = target.load(weights_file(weights), branch)
    return replace(from_demo_model(backbone_id, model), note=note)


def tower(backbone_id: BackboneId, args: dict[str, Any], preprocess: Preprocess) -> Tower:
    """Module and blocks as `build` gives them, with untrained weights."""
    from retailtag.demo.networks import build_demo_model

    model = from_demo_model(backbone_id, build_demo_model(backbone_id.model, weights=None))
    return model.module, model.layout


def licence(backbone_id: BackboneId) -> str:
    """Licence of the packaged weights."""
    return "Apache-2.0, as retailtag"


def from_demo_model(backbone_id: BackboneId, model: Any) -> LoadedModel:
    """Describe a demo model: a timm trunk and, for ``clip``, a projection and a text tower."""
    is_clip = hasattr(model, "proj")
    return LoadedModel(
        id=backbone_id,
        module=DemoTower(model),
        layout=_layout(model, is_clip),
        preprocess=with_arguments(PREPROCESS, backbone_id),
        architecture={"library": "retailtag", "model": f"demo:{backbone_id.model}"},
        output="projected, not normalised" if is_clip else "forward_head(pre_logits=True)",
        encode_text=_text_encoder(model) if hasattr(model, "text") else None,
    )


class DemoTower(nn.Module):
    """The image tower of a demo model, without its text tower."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.trunk = model.trunk
        self.proj = model.proj if hasattr(model, "proj") else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Images (n, 3, 64, 64) to embeddings (n, dim)."""
        pooled = self.trunk.forward_head(self.trunk.forward_features(x), pre_logits=True)
        embedding: Tensor = self.proj(pooled)
        return embedding


def _layout(model: Any, is_clip: bool) -> Layout | None:
    trunk = layout_of(model.trunk)
    if trunk is None:
        return None
    layout = trunk.under("trunk")
    if not is_clip:
        return layout
    return replace(layout.extended(model.proj, "proj"), family="clip")


def _text_encoder(model: Any) -> EncodeText:
    def encode(texts: list[str], device: torch.device) -> Tensor:
        text = model.text.to(device).eval()
        with torch.inference_mode():
            embedding: Tensor = text.encode_text(texts)
        return embedding

    return encode
