"""Feature stores: frozen embeddings in immutable HDF5 files under one identity."""

from retailtag.store.joint import EmbeddingSource, JointSpec, JointStore, join
from retailtag.store.segment import MAX_ROWS, Absent
from retailtag.store.spec import DTYPES, FeatureSpec
from retailtag.store.store import NOT_EXTRACTED, FeatureStore, list_stores
from retailtag.store.view import FeatureView

__all__ = [
    "DTYPES",
    "MAX_ROWS",
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
