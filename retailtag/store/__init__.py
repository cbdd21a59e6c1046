"""Frozen embeddings in HDF5: identity, append, resume, verify."""

from retailtag.store.joint import EmbeddingSource, Identity, JointSpec, JointStore, join
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
    "Identity",
    "JointSpec",
    "JointStore",
    "join",
    "list_stores",
]
