"""Feature stores of embeddings that were computed elsewhere, under an identity of their own."""

from __future__ import annotations

import hashlib
import re
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retailtag.arrow import column_values, parquet_faults
from retailtag.backbones.imported import ENGINE, OUTPUT, SCHEME
from retailtag.catalog.catalog import Catalog
from retailtag.catalog.manifest import is_clean
from retailtag.errors import DataError, UsageError, named
from retailtag.images.loader import hash_images
from retailtag.npz import BAD_HEADER
from retailtag.progress import SILENT, Progress
from retailtag.store import FeatureSpec, FeatureStore, list_stores
from retailtag.store.segment import MAX_ROWS, UNKNOWN_BYTES
from retailtag.store.sources import Stamp
from retailtag.store.spec import LARGEST_DIM

FLOATS = ("float16", "float32", "float64")
ID_COLUMNS = ("image_id", "id")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")

Vectors = NDArray[np.floating[Any]]


@dataclass(frozen=True, eq=False)
class Embeddings:
    """Embeddings as they were read, checked when they are made.

    Raises
    ------
    DataError
        If their shape or dtype is another, ids are missing, empty or repeated, or a value is not
        finite.
    """

    X: Vectors  # (n_images, dim), float16 to float64; may be mapped from its file
    image_ids: tuple[str, ...]  # (n_images,)
    source: str  # where the vectors are from, for messages
    ids_source: str

    def __post_init__(self) -> None:
        X, ids = self.X, self.image_ids
        if X.dtype.name not in FLOATS:
            raise DataError(
                f"{self.source} holds {X.dtype.name} values; save embeddings as float32 or float16."
            )
        if X.ndim != 2 or not X.size or X.shape[1] > LARGEST_DIM:
            raise DataError(
                f"{self.source} has shape {X.shape}; save one row per image: (images, dim)."
            )
        if len(ids) != len(X):
            raise DataError(
                f"{self.source} has {len(X):,} vectors and {self.ids_source} {len(ids):,} ids; "
                "give one id per vector, in the same order."
            )
        if "" in ids:
            raise DataError(f"{self.ids_source} has no id in row {ids.index('') + 1}; fill it in.")
        if odd := next((row for row, i in enumerate(ids, 1) if not is_clean(i)), 0):
            raise DataError(
                f"{self.ids_source} has no UTF-8 text, or a NUL in it, as the id of row {odd}; "
                "fix it."
            )
        twice = [name for name, n in Counter(ids).items() if n > 1]
        if twice:
            rows = [row for row, name in enumerate(ids, 1) if name == twice[0]]
            raise DataError(
                f"{self.ids_source} names {len(twice):,} ids more than once ({twice[0]} in rows "
                f"{named(list(map(str, rows)))}); give each image one vector."
            )
        self._check_finite()

    @property
    def dtype(self) -> str:
        """As stored: half precision stays, everything else is float32."""
        return "float16" if self.X.dtype.name == "float16" else "float32"

    def _check_finite(self) -> None:
        bad: list[int] = []
        for start in range(0, len(self.X), MAX_ROWS):
            with np.errstate(over="ignore"):  # float64 beyond float32 becomes inf, and is refused
                block = np.asarray(self.X[start : start + MAX_ROWS], self.dtype)
            bad += (start + np.flatnonzero(~np.isfinite(block).all(axis=1))).tolist()
        if bad:
            raise DataError(
                f"{self.source} has NaN or infinite values (as {self.dtype}) in {len(bad):,} of "
                f"{len(self.X):,} vectors, the first in row {bad[0] + 1} "
                f"({self.image_ids[bad[0]]}); compute these again or leave the images out."
            )

    def digest(self) -> str:
        """SHA-256 over ids and values as stored, hexadecimal."""
        h = hashlib.sha256()
        for name in self.image_ids:
            h.update(f"{len(name)}:{name}".encode(errors="surrogateescape"))
        stored = np.dtype(self.dtype).newbyteorder("<")
        for start in range(0, len(self.X), MAX_ROWS):
            h.update(np.ascontiguousarray(self.X[start : start + MAX_ROWS], stored).data)
        return h.hexdigest()

    def spec(self, name: str) -> FeatureSpec:
        """Identity of the store: the name, and the digest in place of weights.

        Raises
        ------
        UsageError
            If the name cannot be part of an id.
        """
        if not _NAME.fullmatch(name):
            raise UsageError(
                f"--name {name} cannot be part of an id; use letters, digits, dots and hyphens, "
                "such as clip-l."
            )
        return FeatureSpec(
            backbone=f"{SCHEME}:{name}",
            weights_sha256=self.digest(),
            architecture="{}",
            output=OUTPUT,
            dim=self.X.shape[1],
            preprocessing="{}",
            engine=ENGINE,
            dtype=self.dtype,
        )


@dataclass(frozen=True, eq=False)
class Imported:
    """What one import did."""

    store: FeatureStore
    n_added: int  # 0 if the same vectors were there
    # Ids of the catalogue without a vector, and ids of vectors that are not in it; empty if no
    # catalogue was given.
    without_vector: tuple[str, ...] = ()
    not_in_catalogue: tuple[str, ...] = ()

    @property
    def backbone(self) -> str:
        """Id under which probes find the embeddings."""
        return self.store.spec.backbone

    def to_json(self) -> dict[str, Any]:
        """Plain dictionary for ``--json``."""
        return {
            "backbone": self.backbone,
            "store": str(self.store.path),
            "identity": self.store.spec.digest,
            "dim": self.store.spec.dim,
            "dtype": self.store.spec.dtype,
            "n_rows": self.store.n_rows,
            "n_added": self.n_added,
            "without_vector": list(self.without_vector),
            "not_in_catalogue": list(self.not_in_catalogue),
        }


def read_embeddings(vectors: Any, ids: Any = None, column: str | None = None) -> Embeddings:
    """Read vectors and ids.

    Parameters
    ----------
    vectors : path or array
        ``.npy`` or array of shape (n_images, dim); or Parquet with a column of vectors.
    ids : path or sequence of str, optional
        A text file with one id per line, or the ids. Needed unless Parquet has a column
        ``image_id`` or ``id``.
    column : str, optional
        Parquet's column of vectors, if it has several.

    Raises
    ------
    UsageError
        If there are no ids, or the column is none or several.
    DataError
        As `Embeddings`, or if a file cannot be read.
    """
    is_path = isinstance(vectors, str | Path)
    source, path = (str(vectors), Path(vectors)) if is_path else ("The array", Path())
    given = None if ids is None else _read_ids(ids)
    ids_source = str(ids) if isinstance(ids, str | Path) else "ids"
    if is_path and path.suffix.lower() in (".parquet", ".pq"):
        X, stored = _read_parquet(path, column, needs_ids=given is None)
        if given is None:
            return Embeddings(X, stored, source, source)
        return Embeddings(X, given, source, ids_source)
    if given is None:
        raise UsageError(f"{source} names no images; give their ids with --ids, one per line.")
    X = _read_npy(path) if is_path else np.asarray(vectors)
    return Embeddings(X, given, source, ids_source)


def import_embeddings(
    features: Path,
    embeddings: Embeddings,
    name: str,
    catalog: Catalog | None = None,
    *,
    workers: int = 2,
    progress: Progress = SILENT,
) -> Imported:
    """Store `embeddings` in the folder of stores `features` as ``own:NAME``.

    With a `catalog` the bytes of its images are hashed, so that later changes of them are noticed.
    The same call continues an interrupted one, and does nothing after a finished one.

    Raises
    ------
    UsageError
        If the name is taken by other vectors, or cannot be part of an id.
    DataError
        If no id is one of the catalogue's.
    Unavailable
        If the folder cannot be written.
    """
    spec = embeddings.spec(name)
    for other in list_stores(features):
        if other.spec.backbone == spec.backbone and other.spec.digest != spec.digest:
            raise UsageError(
                f"{other.path} holds other vectors under the name {name} ({other.n_rows:,} of "
                f"{other.spec.dim} values); choose another --name, or delete them with retailtag "
                f"features gc --stores {spec.backbone}."
            )
    without, unknown = _compare(embeddings, catalog) if catalog else ((), ())
    store = FeatureStore.create_or_open(features, spec)
    with store.repairing():
        known = store.known()
        missing = [row for row, i in enumerate(embeddings.image_ids) if i not in known]
        stamps, hashes = _hash_bytes(embeddings, catalog, missing, workers)
        with progress.task(f"import {spec.backbone}", len(missing), "vectors") as advance:
            for start in range(0, len(missing), MAX_ROWS):
                rows = missing[start : start + MAX_ROWS]
                _append(store, embeddings, rows, hashes, stamps)
                advance(len(rows))
    return Imported(store, len(missing), without, unknown)


def _append(
    store: FeatureStore,
    embeddings: Embeddings,
    rows: Sequence[int],
    hashes: dict[str, str],
    stamps: dict[str, Stamp],
) -> None:
    ids = [embeddings.image_ids[row] for row in rows]
    name = store.append(
        ids,
        [hashes.get(i, UNKNOWN_BYTES) for i in ids],
        np.asarray(embeddings.X[np.array(rows, np.intp)], np.float32),
    )
    run = {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "source": embeddings.source,
        "versions": {"numpy": np.__version__},
    }
    sources = {i: stamps[i] for i in ids if i in stamps}
    store.journal.append(
        {"kind": "shard", "shard": name, "seconds": 0.0, "run": run, "sources": sources}
    )


def _hash_bytes(
    embeddings: Embeddings, catalog: Catalog | None, missing: Sequence[int], workers: int
) -> tuple[dict[str, Stamp], dict[str, str]]:
    """Stamp of the file and SHA-256 of the bytes by id, of the `missing` rows, where known."""
    if catalog is None:
        return {}, {}
    wanted = {embeddings.image_ids[row] for row in missing}
    rows = [row for row, i in enumerate(catalog.image_ids.tolist()) if i in wanted]
    ids = catalog.image_ids[rows].tolist()
    stamps = {i: s for i, row in zip(ids, rows, strict=True) if (s := catalog.images.stamp(row))}
    hashes = zip(ids, hash_images(catalog.images, rows, workers=workers), strict=True)
    return stamps, {image_id: sha256 for image_id, sha256 in hashes if sha256}


def _compare(embeddings: Embeddings, catalog: Catalog) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Ids of the catalogue without a vector, and ids of vectors that the catalogue lacks."""
    there, here = dict.fromkeys(embeddings.image_ids), dict.fromkeys(catalog.image_ids.tolist())
    unknown = tuple(name for name in there if name not in here)
    if len(unknown) == len(there):
        raise DataError(
            f"None of the {len(there):,} ids of {embeddings.ids_source} is in {catalog.path}: "
            f"they are like {named(list(there), 2)}, and the catalogue's like "
            f"{named(list(here), 2)}; write the catalogue's ids (its column image_id, or else the "
            "path without suffix)."
        )
    return tuple(name for name in here if name not in there), unknown


def _read_ids(ids: Any) -> tuple[str, ...]:
    if not isinstance(ids, str | Path):
        return tuple(str(name) for name in ids)
    try:
        text = Path(ids).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"{ids} cannot be read: {error.strerror or error}.") from error
    except UnicodeDecodeError:
        raise DataError(f"{ids} is not UTF-8 text; write one id per line.") from None
    return tuple(line.strip() for line in text.rstrip().splitlines())


def _read_npy(path: Path) -> Vectors:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of headers of Python 2, and of absurd shapes
            # Mapped, not read: vectors may be larger than the memory. No pickle, which runs code.
            found = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from error
    except (EOFError, *BAD_HEADER):
        raise DataError(
            f"{path} is not a plain array of numbers; write one with numpy.save, or Parquet with a "
            "column of vectors."
        ) from None
    if not isinstance(found, np.ndarray):  # an .npz
        raise DataError(f"{path} holds several arrays; save the vectors alone with numpy.save.")
    return found


def _read_parquet(
    path: Path, column: str | None, *, needs_ids: bool
) -> tuple[Vectors, tuple[str, ...]]:
    import pyarrow.parquet as pq

    with parquet_faults(path):
        file = pq.ParquetFile(path)
        wanted = _vector_column(path, file.schema_arrow, column)
        id_column = next((c for c in ID_COLUMNS if c in file.schema_arrow.names), "")
        if needs_ids and not id_column:
            raise UsageError(
                f"{path} has no column {' or '.join(ID_COLUMNS)}; give the ids with --ids, one per "
                "line."
            )
        table = file.read(columns=[wanted, *([id_column] if needs_ids else [])])
        for name in table.column_names:
            if table.column_names.count(name) > 1:
                raise DataError(f"{path} has several columns {name}; rename all but one.")
        vectors = table.column(wanted).combine_chunks()
    ids = column_values(path, id_column, table.column(id_column)) if needs_ids else []
    return _matrix(path, wanted, vectors), tuple("" if i is None else str(i) for i in ids)


def _vector_column(path: Path, schema: Any, column: str | None) -> str:
    """Name of the one column of lists of numbers, or of the one asked for."""
    import pyarrow as pa

    def is_list(kind: Any) -> bool:
        kinds = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
        return any(is_kind(kind) for is_kind in kinds)

    lists = [field for field in schema if is_list(field.type)]
    found = [field.name for field in lists]
    if column is not None and column in found:
        return column
    # lists of texts, such as tags, stand beside vectors; alone they are refused with their type
    numbers = [field.name for field in lists if pa.types.is_floating(field.type.value_type)]
    for names in (numbers, found):
        if column is None and len(names) == 1:
            return names[0]
    has = f"its columns of lists are {', '.join(found)}" if found else "it has no column of lists"
    what = f"no column of vectors {column}" if column else "several columns of vectors"
    raise UsageError(
        f"{path} has {what if found or column else 'no column of vectors'} ({has}); name one with "
        "--column."
    )


def _matrix(path: Path, column: str, vectors: Any) -> Vectors:
    """Array (n_images, dim) of a column of lists; `DataError` unless all have one length."""
    import pyarrow as pa
    import pyarrow.compute as pc

    lengths = pc.list_value_length(vectors).fill_null(0).to_numpy(zero_copy_only=False)
    values = vectors.flatten()
    dim = int(lengths[0]) if len(lengths) else 0
    if values.null_count or not dim or (lengths != dim).any():
        row = int(np.argmax(lengths != dim)) + 1 if dim else 1
        raise DataError(
            f"{path}, column {column}: row {row} has {lengths[row - 1] if len(lengths) else 0} "
            f"values where the first has {dim}, or a value is missing; give every image one vector "
            "of the same length."
        )
    if not (pa.types.is_floating(values.type)):
        raise DataError(
            f"{path}, column {column} holds {values.type} values; save embeddings as float32 or "
            "float16."
        )
    return np.asarray(values.to_numpy(zero_copy_only=False)).reshape(-1, dim)
