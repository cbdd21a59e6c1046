"""Ids of imported embeddings (``own:NAME``): stored features without a model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from retailtag.errors import UsageError

if TYPE_CHECKING:
    from retailtag.backbones.backbone import LoadedModel
    from retailtag.backbones.ids import BackboneId

SCHEME = "own"
OUTPUT = "vectors"
ENGINE = "imported-float32"  # as the name of an engine: no arithmetic of ours reduced them


def build(
    backbone_id: BackboneId, weights: Path | None = None, *, random_weights: bool = False
) -> LoadedModel:
    """Raise `UsageError`: there is no model to build."""
    refuse_imported(backbone_id)
    raise AssertionError("an id of another scheme has another family")


def refuse_imported(backbone_id: BackboneId) -> None:
    """Raise `UsageError` for an id of imported embeddings, where a model is needed."""
    if backbone_id.scheme != SCHEME:
        return
    raise UsageError(
        f"{backbone_id} names imported embeddings, and retailtag has no model that computes them: "
        "they can be probed, scored and compared; extract, finetune, bakeoff and predict need a "
        "backbone of timm or open_clip."
    )
