"""Where the embeddings of a backbone lie, or of several side by side."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from retailtag.backbones import load_backbone, parts_of
from retailtag.store import EmbeddingSource, FeatureStore, join


def find_embeddings(
    features: Path,
    backbone: str,
    *,
    weights: Mapping[str, Path] | None = None,
    device: str = "cpu",
    dtype: str = "float32",
) -> EmbeddingSource:
    """Open the stores of every part of ``A+B`` under `features`, joined in that order.

    Parameters
    ----------
    features : Path
        Folder of the feature stores.
    backbone : str
        Id or preset, or several joined by ``+``.
    weights : mapping of str to Path, optional
        Local weights by part as given in `backbone`.
    device : str
        Where the models are loaded to learn their identity.
    dtype : str
        Of the stored embeddings.

    Raises
    ------
    DataError
        If a part was not extracted.
    StaleFeatures
        If it was extracted with other weights or preprocessing.
    """
    local = weights or {}
    stores = []
    for part in parts_of(backbone):
        model = load_backbone(part, weights=local.get(part), device=device)
        stores.append(FeatureStore.find(features, model.spec(dtype=dtype)))
    return join(stores)
