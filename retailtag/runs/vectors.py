"""Stored embeddings as one Parquet file, for vector databases and other tools."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retailtag.catalog.table import POSITIVE
from retailtag.errors import UsageError
from retailtag.files import write_whole
from retailtag.neighbours import mean_embedding
from retailtag.runs.predict import utf8
from retailtag.runs.similar import Gallery

ROWS = 4096  # of a row group
SUFFIXES = (".parquet", ".pq")


@dataclass(frozen=True)
class ExportedVectors:
    """A file of vectors."""

    path: Path
    backbone: str
    identity: str  # digest of what the embeddings depend on
    n_images: int
    dim: int
    n_absent: int  # images of the catalogue without an embedding

    def to_json(self) -> dict[str, Any]:
        """Plain dictionary for ``--json``."""
        return {**vars(self), "path": str(self.path)}


def check_ending(path: Path) -> None:
    """Raise `UsageError` unless a path ends as a Parquet file does."""
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(f"--out {path} must end in .parquet.")


def write_vectors(gallery: Gallery, path: Path) -> ExportedVectors:
    """Write a row for each image with an embedding, whole or not at all.

    Columns are ``image_id``, ``product``, ``split``, ``path``, ``title``, ``tags`` and ``vector``,
    float32 as stored, neither centred nor normalised. The file's metadata hold, under ``retailtag``
    as JSON, the backbone, the identity of the embeddings and their mean.
    """
    import pyarrow as pa
    from pyarrow import parquet

    check_ending(path)
    catalog, spec = gallery.context.catalog, gallery.source.spec
    X = gallery.source.load(gallery.ids).X
    about = {
        "backbone": spec.backbone,
        "identity": spec.digest,
        "mean": mean_embedding(X).tolist(),
    }
    schema = pa.schema(
        {
            **dict.fromkeys(("image_id", "product", "split", "path", "title"), pa.string()),
            "tags": pa.list_(pa.string()),
            "vector": pa.list_(pa.float32(), spec.dim),
        },
        metadata={"retailtag": json.dumps(about)},
    )
    names = np.array([utf8(tag) for tag in catalog.table.tags], object)
    with write_whole(path) as handle, parquet.ParquetWriter(handle, schema) as writer:
        for start in range(0, len(X), ROWS):
            rows = gallery.rows[start : start + ROWS]
            flat = pa.array(np.ascontiguousarray(X[start : start + ROWS]).reshape(-1))
            columns = {
                "image_id": _texts(catalog.image_ids[rows]),
                "product": _texts(catalog.group[rows]),
                "split": _texts(catalog.split[rows]),
                "path": [utf8(catalog.images.paths[row]) for row in rows.tolist()],
                "title": _texts(catalog.title[rows]),
                "tags": [names[own].tolist() for own in catalog.table.labels[rows] == POSITIVE],
                "vector": pa.FixedSizeListArray.from_arrays(flat, spec.dim),
            }
            writer.write_table(pa.table(columns, schema))
    return ExportedVectors(path, spec.backbone, spec.digest, len(X), spec.dim, gallery.n_absent)


def _texts(column: NDArray[np.str_]) -> list[str]:
    return [utf8(text) for text in column.tolist()]
