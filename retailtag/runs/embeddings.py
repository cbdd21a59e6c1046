"""Open the stored embeddings of a backbone or of several side by side, and embed tag names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from retailtag.backbones import components_of, load_backbone
from retailtag.backbones.ids import resolve_id
from retailtag.extraction.embedder import identity
from retailtag.extraction.stores import ANY, EngineRequest, find_store
from retailtag.probes.heads.text_prior import text_embeddings
from retailtag.progress import SILENT, Progress
from retailtag.runs.heads import parse_heads
from retailtag.store import EmbeddingSource, join


def find_embeddings(
    features: Path,
    backbone: str,
    *,
    weights: Mapping[str, Path] | None = None,
    device: str = "cpu",
    dtype: str = "float32",
    allow_truncated: bool = False,
    request: EngineRequest = ANY,
    progress: Progress = SILENT,
) -> EmbeddingSource:
    """Open the stores of every component of ``A+B`` in `features`, joined in that order.

    Parameters
    ----------
    features : Path
        Folder of the feature stores.
    backbone : str
        Id or preset, or several joined by ``+``.
    weights : mapping of str to Path, optional
        Local weights by component as given in `backbone`.
    device : str
        Where the models are loaded to compute their identity.
    dtype : str
        Dtype of the stored embeddings.
    allow_truncated : bool
        Whether files that end early were accepted in the extraction.
    request : EngineRequest
        Which engines are allowed; see `retailtag.extraction.stores.find_store`.
    progress : Progress
        Says which store is read if there are several.

    Raises
    ------
    DataError
        If a component was not extracted.
    StaleFeatures
        If it was extracted with other weights or preprocessing, or by other engines.
    """
    local = weights or {}
    stores = []
    for component in components_of(backbone):
        model = load_backbone(component, weights=local.get(component), device=device)
        # The identity holds the weights' hash: features of other weights are refused, not read.
        spec = identity(model, dtype, allow_truncated=allow_truncated)
        stores.append(find_store(features, spec, request, progress=progress))
    return join(stores)


def find_texts(
    heads: str,
    backbone: str,
    tags: Sequence[str],
    *,
    weights: Mapping[str, Path] | None = None,
    device: str = "cpu",
) -> NDArray[np.float32] | None:
    """Embed the names of tags for the head ``text``.

    Parameters
    ----------
    heads : str
        Heads of the probe settings.
    backbone, weights, device
        As in `find_embeddings`.
    tags : sequence of str, length n_tags
        Names to embed.

    Returns
    -------
    ndarray of float32, shape (n_tags, dim), or None
        None unless `heads` includes ``text`` and the backbone is a single one with a text tower
        that embeds into the space of its images.
    """
    components = components_of(backbone)
    if "text" not in parse_heads(heads) or len(components) > 1:
        return None
    if resolve_id(components[0]).scheme == "timm":  # image models only: none needs loading
        return None
    model = load_backbone(components[0], weights=(weights or {}).get(components[0]), device=device)
    if not model.has_text:
        return None
    texts = text_embeddings(tags, lambda asked: model.encode_text(asked).cpu().numpy())
    # A tower without the joint projection embeds texts elsewhere than images: no common space.
    return texts if texts.shape[1] == model.dim else None
