"""Open the stored embeddings of a backbone or of several side by side, and embed tag names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from retailtag.backbones import components_of, load_backbone
from retailtag.backbones.ids import local_weights, resolve_id
from retailtag.backbones.imported import SCHEME
from retailtag.context import RunContext
from retailtag.extraction.embedder import identity
from retailtag.extraction.stores import EngineRequest, find_imported, find_store
from retailtag.probes.heads.text_prior import text_embeddings
from retailtag.runs.heads import competing
from retailtag.settings import ExtractSettings
from retailtag.store import EmbeddingSource, FeatureStore, join

if TYPE_CHECKING:
    from retailtag.backbones.backbone import Backbone


def find_embeddings(
    context: RunContext, backbone: str, settings: ExtractSettings | None = None
) -> EmbeddingSource:
    """Open the stores of every component of ``A+B``, joined in that order.

    `settings` say which engines are allowed, and the stored dtype.

    Raises
    ------
    DataError
        If a component was not extracted.
    StaleFeatures
        If it was extracted with other weights or preprocessing, or by other engines.
    """
    return open_embeddings(context, backbone, settings)[0]


def open_embeddings(
    context: RunContext, backbone: str, settings: ExtractSettings | None = None
) -> tuple[EmbeddingSource, list[Backbone]]:
    """As `find_embeddings`, with the model of every component; imported ones have none."""
    settings = settings or ExtractSettings()
    request = EngineRequest.to_read(settings)
    compute, is_lenient = context.compute, context.reading.allow_truncated
    local = local_weights(compute.weights, [backbone])
    stores: list[FeatureStore] = []
    models: list[Backbone] = []
    for component in components_of(backbone):
        if resolve_id(component).scheme == SCHEME:
            stores.append(find_imported(compute.features, component))
            continue
        model = load_backbone(component, weights=local.get(component), device=context.device)
        # The identity holds the weights' hash: features of other weights are refused, not read.
        spec = identity(model, settings.dtype, allow_truncated=is_lenient)
        stores.append(find_store(compute.features, spec, request, progress=context.progress))
        models.append(model)
    return join(stores), models


def find_texts(
    heads: str,
    backbone: str,
    tags: Sequence[str],
    *,
    weights: Mapping[str, Path] | None = None,
    device: str = "cpu",
) -> NDArray[np.float32] | None:
    """Embed the names of tags for the head ``text``: float32 (n_tags, dim).

    None unless ``text`` of `heads` competes and the backbone is a single one with a text tower that
    embeds into the space of its images.
    """
    components = components_of(backbone)
    if "text" not in competing(heads, 0, len(tags)) or len(components) > 1:
        return None
    if resolve_id(components[0]).scheme in ("timm", SCHEME):  # without texts: none needs loading
        return None
    model = load_backbone(components[0], weights=(weights or {}).get(components[0]), device=device)
    if not model.has_text:
        return None
    texts = text_embeddings(tags, lambda asked: model.encode_text(asked).cpu().numpy())
    # A tower without the joint projection embeds texts elsewhere than images: no common space.
    return texts if texts.shape[1] == model.dim else None
