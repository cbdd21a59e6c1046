"""Pretrained image models from timm, open_clip and the demo, behind one `Backbone`.

Importing this package imports neither torch nor a model library; ids are parsed without them.
"""

from __future__ import annotations

from retailtag.backbones.factory import load_backbone
from retailtag.backbones.ids import canonical, components_of, resolve_id

__all__ = ["canonical", "components_of", "load_backbone", "resolve_id"]
