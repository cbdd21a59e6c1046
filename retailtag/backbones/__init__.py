"""Pretrained image models from timm, open_clip and the demo, behind one `Backbone`.

`load_backbone` and `Backbone` need torch and are imported on first use; ids are parsed without it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from retailtag.backbones.ids import BackboneId, canonical, components_of, resolve_id
from retailtag.backbones.registry import PRESETS

if TYPE_CHECKING:
    from retailtag.backbones.backbone import Backbone
    from retailtag.backbones.factory import load_backbone

__all__ = [
    "PRESETS",
    "Backbone",
    "BackboneId",
    "canonical",
    "components_of",
    "load_backbone",
    "resolve_id",
]


def __getattr__(name: str) -> Any:
    if name == "load_backbone":
        from retailtag.backbones.factory import load_backbone

        return load_backbone
    if name == "Backbone":
        from retailtag.backbones.backbone import Backbone

        return Backbone
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
