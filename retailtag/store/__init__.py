"""Feature stores: frozen embeddings in immutable HDF5 files under one identity."""

from retailtag.store.joint import EmbeddingSource, JointSpec, JointStore, join
from retailtag.store.segment import Absent
from retailtag.store.spec import FeatureSpec
from retailtag.store.store import NOT_EXTRACTED, FeatureStore, list_stores
from retailtag.store.view import FeatureView

__all__ = [
    "NOT_EXTRACTED",
    "Absent",
    "EmbeddingSource",
    "FeatureSpec",
    "FeatureStore",
    "FeatureView",
    "JointSpec",
    "JointStore",
    "join",
    "list_stores",
]
