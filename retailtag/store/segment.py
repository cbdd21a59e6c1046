"""Segments: immutable HDF5 files of up to 4,096 embeddings, encoded, decoded and checked.

On the disk a segment is called ``shard-000000.h5`` and its header says ``feature-shard``: names of
format 1, from before *shard* meant one machine's share of the images.

HDF5 never accesses the disk here. It updates a file in place, in many small writes, and its flush
orders none of them: a kill between two of them leaves a file that does not open. So a segment is
built in memory and written as plain bytes (see `retailtag.files.write_whole`), and it is read
whole and compared with its SHA-256 before HDF5 parses it, from memory. A full disk, a kill or a
damaged or hostile file never meets HDF5's own file handling.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
from numpy.typing import NDArray

from retailtag.errors import ArtefactError, DamagedFile, DataError, StaleFeatures
from retailtag.files import parse_json
from retailtag.store.spec import FeatureSpec

FORMAT = 1
MAX_ROWS = 4096
HEADER_BYTES = 512  # HDF5's smallest user block; readers of plain HDF5 skip it
_CHUNK_ROWS = 512
_MAX_ID_BYTES = 1024
# In place of the SHA-256 of an image's bytes: embeddings were imported without their images.
UNKNOWN_BYTES = "f" * 64
_MAX_REASON = 500
_DATASETS = {"embedding", "image_id", "image_sha256", "absent"}
_ATTRIBUTES = {"format", "identity", "data_sha256"}
_SHA256 = re.compile("[0-9a-f]{64}")
_HEADER = re.compile(
    rb"retailtag-feature-shard (\d{1,9})\nidentity ([0-9a-f]{64})\n"
    rb"body (\d{1,18})\nsha256 ([0-9a-f]{64})\n\0*"
)


class Absent(NamedTuple):
    """An image that gave no embedding: its id, the hash of its bytes if they could be read, why."""

    image_id: str
    sha256: str | None
    reason: str


@dataclass(frozen=True, eq=False)
class Segment:
    """Rows of one segment; `build` checks them."""

    image_ids: tuple[str, ...]  # n distinct ids
    sha256: NDArray[np.uint8]  # (n, 32), of each image's bytes
    embedding: NDArray[np.floating[Any]]  # (n, dim), finite, in the stored dtype
    absent: tuple[Absent, ...]  # images of the same block that could not be read

    @classmethod
    def build(
        cls,
        spec: FeatureSpec,
        image_ids: Sequence[str],
        sha256: Sequence[str],
        embeddings: NDArray[np.floating[Any]],
        absent: Sequence[Absent] = (),
    ) -> Segment:
        """Check the rows and bring them to the stored types.

        Raises
        ------
        DataError
            If counts or shapes disagree, an id repeats or cannot be stored, there are more than
            4,096 rows, or an embedding is not finite in the stored dtype.
        """
        ids = tuple(str(i) for i in image_ids)
        gone = tuple(Absent(str(i), s, reason[:_MAX_REASON]) for i, s, reason in absent)
        _check_ids([*ids, *(a.image_id for a in gone)])
        if embeddings.shape != (len(ids), spec.dim) or len(sha256) != len(ids):
            raise DataError(
                f"{len(ids)} ids with {len(sha256)} hashes and embeddings of shape "
                f"{embeddings.shape} do not make rows of ({spec.dim},)."
            )
        return cls(ids, _to_hashes(sha256), _to_stored(spec, ids, embeddings), gone)


def bytes_differ(a: str | None, b: str | None) -> bool:
    """Whether two images of these hashes certainly have other bytes; None: not readable."""
    return a != b and not {a, b} & {None, UNKNOWN_BYTES}


class Contents(NamedTuple):
    """What a segment holds besides its embeddings; safe to cache, as segments never change."""

    rows: dict[str, str]  # image id to SHA-256 of its bytes
    absent: tuple[Absent, ...]

    @classmethod
    def of(cls, segment: Segment) -> Contents:
        """Take them from a segment."""
        hashes = (row.tobytes().hex() for row in segment.sha256)
        return cls(dict(zip(segment.image_ids, hashes, strict=True)), segment.absent)


def _check_ids(ids: Sequence[str]) -> None:
    if not 0 < len(ids) <= MAX_ROWS:
        raise DataError(f"A segment holds 1 to {MAX_ROWS} images, not {len(ids)}.")
    if len(set(ids)) != len(ids):
        raise DataError("An image id appears twice in one block; ids must be unique.")
    for image_id in ids:
        try:
            length = len(image_id.encode())
        except UnicodeEncodeError:
            raise DataError(f"Image id {image_id!r} is not Unicode text; rename it.") from None
        if not 0 < length <= _MAX_ID_BYTES or "\0" in image_id:
            raise DataError(
                f"Image id {image_id[:60]!r} cannot be stored; use 1 to {_MAX_ID_BYTES} bytes "
                "without NUL."
            )


def _to_hashes(sha256: Sequence[str]) -> NDArray[np.uint8]:
    """Turn hexadecimal digests into bytes (n, 32)."""
    for digest in sha256:
        if _SHA256.fullmatch(digest) is None:
            raise DataError(f"{digest[:70]!r} is not a SHA-256; give 64 hexadecimal digits, a-f.")
    return np.frombuffer(bytes.fromhex("".join(sha256)), np.uint8).reshape(-1, 32)


def _to_stored(
    spec: FeatureSpec, ids: tuple[str, ...], embeddings: NDArray[np.floating[Any]]
) -> NDArray[np.floating[Any]]:
    """Cast (n, dim) to the stored dtype, little-endian; a value that does not fit is an error."""
    with np.errstate(over="ignore"):
        stored = np.ascontiguousarray(embeddings, dtype=_stored_dtype(spec))
    finite = np.isfinite(stored).all(axis=1)
    if not finite.all():
        worst = ids[int(np.argmin(finite))]
        half = spec.dtype == "float16"
        remedy = "use --dtype float32" if half else "check the backbone's weights"
        raise DataError(f"The embedding of image {worst} is not finite as {spec.dtype}; {remedy}.")
    return stored


def _stored_dtype(spec: FeatureSpec) -> np.dtype[Any]:
    return np.dtype(spec.dtype).newbyteorder("<")


def encode(segment: Segment, spec: FeatureSpec) -> bytes:
    """Bytes of a segment's file; equal rows give equal bytes under one HDF5 version."""
    arrays = _arrays(segment)
    buffer = io.BytesIO()
    with h5py.File(buffer, "w", userblock_size=HEADER_BYTES, libver=("v110", "v110")) as f:
        f.attrs["format"] = FORMAT
        f.attrs["identity"] = np.bytes_(spec.digest)
        f.attrs["data_sha256"] = np.bytes_(_data_sha256(arrays))
        for name, array in arrays.items():
            _write_dataset(f, name, array)
    body = buffer.getbuffer()[HEADER_BYTES:]
    digest = hashlib.sha256(body).hexdigest()
    # The first 512 bytes are HDF5's user block, left empty for our header: a plain HDF5 reader
    # skips it, and ours checks the rest of the file before any of it is parsed.
    header = (
        f"retailtag-feature-shard {FORMAT}\nidentity {spec.digest}\n"
        f"body {len(body)}\nsha256 {digest}\n"
    )
    return b"".join((header.encode().ljust(HEADER_BYTES, b"\0"), body))


def _arrays(segment: Segment) -> dict[str, NDArray[Any]]:
    """Give the datasets as stored; ids as fixed-length UTF-8, so that checksums cover them."""
    raw = [i.encode() for i in segment.image_ids]
    text = h5py.string_dtype("utf-8", max(map(len, raw), default=1))
    absent = json.dumps([list(a) for a in segment.absent], ensure_ascii=True)
    return {
        "embedding": segment.embedding,
        "image_id": np.array(raw, dtype=text),
        "image_sha256": segment.sha256,
        "absent": np.frombuffer(absent.encode(), np.uint8),
    }


def _write_dataset(f: h5py.File, name: str, array: NDArray[Any]) -> None:
    if not len(array):
        f.create_dataset(name, data=array)  # nothing to protect, and no chunk of zero rows
        return
    rows = len(array) if array.ndim == 1 else min(len(array), _CHUNK_ROWS)
    # Two checksums: fletcher32 serves plain HDF5 readers, the header's SHA-256 serves ours.
    f.create_dataset(name, data=array, chunks=(rows, *array.shape[1:]), fletcher32=True)


def _data_sha256(arrays: dict[str, NDArray[Any]]) -> str:
    """SHA-256 over the four datasets' bytes, in the order of `_arrays`."""
    h = hashlib.sha256()
    for array in arrays.values():
        h.update(np.ascontiguousarray(array).view(np.uint8).data if array.size else b"")
    return h.hexdigest()


def read_segment(path: Path, spec: FeatureSpec) -> Segment:
    """Read one segment after checking its header, its size and the digest of its bytes.

    Raises
    ------
    StaleFeatures
        If its embeddings are of another identity than `spec`.
    ArtefactError
        If it is damaged, truncated, not a segment, or of a newer format; the message names it.
    """
    try:
        with path.open("rb") as handle:
            n_bytes, digest = _check_header(path, handle.read(HEADER_BYTES), spec)
            body = handle.read(n_bytes + 1)  # one more than promised shows a longer file
    except OSError as error:
        raise _unreadable(path, error) from error
    if len(body) != n_bytes or hashlib.sha256(body).hexdigest() != digest:
        raise _damaged(path, "its bytes do not match their checksum")
    try:
        with h5py.File(io.BytesIO(b"".join((bytes(HEADER_BYTES), body))), "r") as f:
            return _read_checked(f, spec)
    except (OSError, RuntimeError, KeyError, TypeError, ValueError) as error:
        raise _damaged(path, str(error)) from error


def check_segment(path: Path, spec: FeatureSpec) -> None:
    """Check header and length of a segment without reading its rows; raises as `read_segment`."""
    try:
        with path.open("rb") as handle:
            n_bytes, _ = _check_header(path, handle.read(HEADER_BYTES), spec)
        actual = path.stat().st_size - HEADER_BYTES
    except OSError as error:
        raise _unreadable(path, error) from error
    if actual != n_bytes:
        raise _damaged(path, f"it has {actual} bytes after its header instead of {n_bytes}")


def _check_header(path: Path, header: bytes, spec: FeatureSpec) -> tuple[int, str]:
    """Length and SHA-256 of the body that the header promises."""
    match = _HEADER.fullmatch(header)
    if match is None or len(header) != HEADER_BYTES:
        raise _damaged(path, "its header is not that of a feature segment")
    version, identity, n_bytes, digest = (part.decode() for part in match.groups())
    if int(version) != FORMAT:
        raise ArtefactError(
            f"{path} has format {version} and this version of retailtag reads {FORMAT}; upgrade "
            "retailtag, or delete that file and run extract again."
        )
    if identity != spec.digest:
        raise StaleFeatures(
            f"{path} holds embeddings of another identity than its store; run extract again: it "
            "sets that file aside and computes the store's images anew."
        )
    if int(n_bytes) > _largest_body(spec):
        raise _damaged(path, f"it claims {n_bytes} bytes, more than a segment can have")
    return int(n_bytes), digest


def _largest_body(spec: FeatureSpec) -> int:
    """Bound on a body's bytes, so that a hostile header cannot make us allocate at will."""
    # Every row has an embedding, a hash and an id of at most the longest length.
    row = spec.dim * _stored_dtype(spec).itemsize + 32 + _MAX_ID_BYTES
    # ASCII JSON spends up to twelve characters on one code point of an id or a reason.
    gone = 12 * (_MAX_ID_BYTES + _MAX_REASON) + 128
    return MAX_ROWS * (row + gone) + (1 << 20)


def _damaged(path: Path, reason: str) -> DamagedFile:
    return DamagedFile(
        f"{path} is damaged ({reason}); run extract again: it sets that file aside and computes "
        "its images anew."
    )


def _unreadable(path: Path, error: OSError) -> ArtefactError:
    return ArtefactError(  # and not a damaged file, which extract would set aside
        f"{path} cannot be read ({error.strerror or error}); fix that and run the same command "
        "again, or delete that file and run extract again."
    )


def _read_checked(f: h5py.File, spec: FeatureSpec) -> Segment:
    """Read the rows; anything but the known layout is a ValueError, before it is allocated."""
    # Shapes and types are compared before reading, because reading allocates what they declare.
    if set(f) != _DATASETS or set(f.attrs) != _ATTRIBUTES:
        raise ValueError("it holds other datasets or attributes than a feature segment")
    if _text_attribute(f, "identity") != spec.digest:
        raise ValueError("its attribute identity is not that of its header")
    shape = _open_dataset(f, "embedding").shape
    if len(shape) != 2 or shape[0] > MAX_ROWS or shape[1] != spec.dim:
        raise ValueError(f"its embeddings have shape {shape}, not (n, {spec.dim})")
    n = shape[0]
    width = _open_dataset(f, "image_id").dtype.itemsize
    if not 0 < width <= _MAX_ID_BYTES:
        raise ValueError("its ids are longer than ids can be")
    length = _open_dataset(f, "absent").shape[:1]
    arrays = {
        "embedding": _read_dataset(f, "embedding", (n, spec.dim), _stored_dtype(spec)),
        "image_id": _read_dataset(f, "image_id", (n,), np.dtype(f"S{width}")),
        "image_sha256": _read_dataset(f, "image_sha256", (n, 32), np.dtype(np.uint8)),
        "absent": _read_dataset(f, "absent", length, np.dtype(np.uint8)),
    }
    if _data_sha256(arrays) != _text_attribute(f, "data_sha256"):
        raise ValueError("its data do not match their checksum")
    if not np.isfinite(arrays["embedding"]).all():
        raise ValueError("it holds an embedding that is not finite")
    ids = tuple(raw.decode() for raw in arrays["image_id"].tolist())
    absent = tuple(map(_read_absent, parse_json(arrays["absent"].tobytes())))
    return Segment(ids, arrays["image_sha256"], arrays["embedding"], absent)


def _text_attribute(f: h5py.File, name: str) -> str:
    attribute = f.attrs.get_id(name)
    if attribute.shape != () or attribute.dtype != np.dtype("S64"):
        raise ValueError(f"its attribute {name} is not a digest")
    return str(f.attrs[name].decode())


def _read_absent(entry: Any) -> Absent:
    image_id, sha256, reason = entry
    is_text = isinstance(image_id, str) and isinstance(reason, str)
    if not (is_text and isinstance(sha256, str | None)):
        raise ValueError("its list of absent images is malformed")
    return Absent(image_id, sha256, reason)


def _open_dataset(f: h5py.File, name: str) -> h5py.Dataset:
    # The link is looked at before it is followed: an external one would open another file.
    if not isinstance(f.get(name, getlink=True), h5py.HardLink):
        raise ValueError(f"its {name} is a link to somewhere else")
    dataset = f[name]
    if not isinstance(dataset, h5py.Dataset) or dataset.is_virtual or dataset.external:
        raise ValueError(f"its {name} is not stored in the file itself")
    return dataset


def _read_dataset(
    f: h5py.File, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]
) -> NDArray[Any]:
    dataset = _open_dataset(f, name)
    if dataset.shape != shape or dataset.dtype != dtype:
        raise ValueError(f"its {name} is {dataset.dtype} {dataset.shape}, not {dtype} {shape}")
    # Size 0 is contiguous and has nothing to read; the rest must be present to the last chunk,
    # for HDF5 serves a missing one as zeros.
    if dataset.size and not _is_stored_in_full(dataset):
        raise ValueError(f"its {name} is not stored as whole fletcher32 chunks")
    return dataset[()]


def _is_stored_in_full(dataset: h5py.Dataset) -> bool:
    plist = dataset.id.get_create_plist()
    chunk = dataset.chunks
    if chunk is None or chunk[1:] != dataset.shape[1:] or chunk[0] > dataset.shape[0]:
        return False
    if plist.get_nfilters() != 1 or plist.get_filter(0)[0] != h5py.h5z.FILTER_FLETCHER32:
        return False
    n_chunks = -(-dataset.shape[0] // chunk[0])
    n_bytes = int(np.prod(chunk)) * dataset.dtype.itemsize + 4  # fletcher32 adds 4 bytes
    return bool(dataset.id.get_storage_size() == n_chunks * n_bytes)
