"""Activations of the frozen part, kept on the disk: one folder for one identity.

A cache is a folder ``BACKBONE-DIGEST`` beside the feature stores. It holds

``identity.json``
    Every fact that changes an activation (`ActivationSpec`).
``rows-NNNNNN.bin``
    Rows of equal length one after the other, nothing else: activations in the stored dtype.
``rows-NNNNNN.json``
    The rows' image ids, the SHA-256 of the images' bytes, a CRC-32 of each row, and a SHA-256 of
    all that. It is written after the rows have reached the disk, and makes them count.

Both appear whole or not at all, so a kill loses at most the file being written. A row is checked
against its CRC when it is first read; rows of another identity, of changed images, or damaged ones
are never served. They are computed again: a cache holds nothing that cannot be had anew.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import weakref
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from retailtag.errors import DamagedFile, DataError, UsageError
from retailtag.files import make_folder, read_json, slug, write_json, write_whole
from retailtag.store.lock import WriterLock
from retailtag.store.spec import canonical_json

FORMAT = 1
SEGMENT_BYTES = 256 << 20  # a kill loses less than this of what was computed
_IDENTITY, _LOCK = "identity.json", "writer.lock"

Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class ActivationSpec:
    """What must be equal for two activations of the same image to be interchangeable.

    Parameters
    ----------
    backbone, weights_sha256, architecture, preprocessing : str
        As in `FeatureSpec`.
    engine : str
        ``eager-float32``, or ``autocast-`` and the dtype.
    boundary : str
        Name of the block that the activations enter.
    shape : tuple of int
        Of one image's activation as stored.
    order : str
        ``contiguous``, or ``channels-last``: (c, h, w) stored as (h, w, c).
    dtype : str
        Stored dtype, ``float32``, ``float16`` or ``bfloat16``.
    view : str
        ``plain``, or the augmentation with its seed and number.
    """

    backbone: str
    weights_sha256: str
    architecture: str
    preprocessing: str
    engine: str
    boundary: str
    shape: tuple[int, ...]
    order: str
    dtype: str
    view: str = "plain"

    def to_json(self) -> dict[str, Any]:
        """Plain dictionary of the fields and the format."""
        return {"format": FORMAT, **asdict(self), "shape": list(self.shape)}

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON of all fields, hexadecimal."""
        return hashlib.sha256(canonical_json(self.to_json()).encode()).hexdigest()

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return int(np.prod(self.shape)) * (4 if self.dtype == "float32" else 2)


@dataclass(frozen=True)
class _Place:
    """Where a row is: open file, number, hash of its image's bytes, checksum."""

    piece: int
    row: int
    sha256: str
    crc: int


class ActivationCache:
    """Rows of one identity, found by image id; see the module for what is on the disk.

    Parameters
    ----------
    root : Path
        Folder of all caches.
    spec : ActivationSpec

    Notes
    -----
    The files stay open: a cache that another process removes to make room serves on. A folder whose
    identity is damaged or another is emptied.
    """

    def __init__(self, root: Path, spec: ActivationSpec) -> None:
        self.spec = spec
        self.path = cache_folder(root, spec)
        self._places: dict[str, _Place] = {}
        self._files: dict[int, IO[bytes]] = {}
        self._checked: set[str] = set()
        weakref.finalize(self, _close_all, self._files)
        if self._is_ours():
            os.utime(self.path / _IDENTITY)  # the least recently used goes first
            for path in sorted(self.path.glob("rows-*.json")):
                self._open_piece(path)

    def _is_ours(self) -> bool:
        try:
            return bool(read_json(self.path / _IDENTITY) == self.spec.to_json())
        except DataError:
            return False

    def _open_piece(self, path: Path) -> None:
        """Take the rows of one piece in; a piece that does not fit its description has none."""
        try:
            listed = _read_listing(path)
            handle = path.with_suffix(".bin").open("rb", buffering=0)
        except (DamagedFile, DataError, OSError):
            return
        if os.fstat(handle.fileno()).st_size != len(listed) * self.spec.row_bytes:
            handle.close()
            return
        piece = int(path.stem.removeprefix("rows-"))
        self._files[piece] = handle
        for row, (image_id, sha256, crc) in enumerate(listed):
            self._places[image_id] = _Place(piece, row, sha256, crc)

    def __len__(self) -> int:
        return len(self._places)

    def close(self) -> None:
        """Close the files; nothing can be read after."""
        _close_all(self._files)
        self._places.clear()

    def missing(self, sha256: Mapping[str, str]) -> list[str]:
        """Images, given with the hash of their bytes, of which there is no row of these bytes."""
        return [
            i for i, s in sha256.items() if i not in self._places or self._places[i].sha256 != s
        ]

    def read(self, image_ids: Sequence[str]) -> Bytes:
        """Rows of the images as bytes (n, row_bytes), in the order asked for.

        Raises
        ------
        DamagedFile
            If a row is not what was written. The cache has forgotten all rows of its piece then:
            `missing` tells them, and they can be written anew.
        """
        out = np.empty((len(image_ids), self.spec.row_bytes), np.uint8)
        for row, image_id in zip(out, image_ids, strict=True):
            self._read_one(image_id, row)
        return out

    def _read_one(self, image_id: str, out: Bytes) -> None:
        place = self._places[image_id]
        whole = self._fetch(place, out)
        whole = whole and (image_id in self._checked or zlib.crc32(out.data) == place.crc)
        if not whole:
            self._forget(place.piece)
            raise DamagedFile(f"{self.path} holds a damaged row of {image_id}; compute it again.")
        self._checked.add(image_id)

    def _fetch(self, place: _Place, out: Bytes) -> bool:
        """Read one row into `out` (row_bytes,); whether the disk gave all of it."""
        handle = self._files[place.piece]
        try:
            handle.seek(place.row * self.spec.row_bytes)
            n_read: int = handle.readinto(out.data)  # type: ignore[attr-defined]
        except OSError:
            return False
        return n_read == self.spec.row_bytes

    def _forget(self, piece: int) -> None:
        self._files.pop(piece).close()
        gone = [i for i, place in self._places.items() if place.piece == piece]
        for image_id in gone:
            del self._places[image_id]
        self._checked.difference_update(gone)
        for suffix in (".json", ".bin"):
            with suppress(OSError):
                (self.path / f"rows-{piece:06d}{suffix}").unlink(missing_ok=True)

    @contextmanager
    def writer(self) -> Iterator[ActivationWriter]:
        """Write rows; what was added counts from the end of the block on.

        Raises
        ------
        Unavailable
            If another process writes this cache, or the folder cannot be written.
        OSError
            If the disk is full; pieces finished before stay.
        """
        make_folder(self.path)
        lock = WriterLock(self.path / _LOCK)
        lock.acquire()
        try:
            self._prepare()
            writer = ActivationWriter(self)
            yield writer
            writer.finish()
        finally:
            lock.release()

    def _prepare(self) -> None:
        """Empty a folder of another identity, and drop what a killed writer left."""
        if not self._is_ours():
            for path in self.path.glob("rows-*"):
                path.unlink()
            write_json(self.path / _IDENTITY, self.spec.to_json())
        for path in (*self.path.glob("rows-*.bin"), *self.path.glob(".*.part")):
            if path.suffix == ".part" or int(path.stem.removeprefix("rows-")) not in self._files:
                path.unlink()
                path.with_suffix(".json").unlink(missing_ok=True)


class ActivationWriter:
    """Appends rows to a cache, a piece at a time."""

    def __init__(self, cache: ActivationCache) -> None:
        self._cache = cache
        self._limit = max(1, SEGMENT_BYTES // cache.spec.row_bytes)
        self._listed: list[tuple[str, str, int]] = []
        self._rows: list[Bytes] = []

    def add(self, image_ids: Sequence[str], sha256: Sequence[str], rows: Bytes) -> None:
        """Add rows (n, row_bytes) of images whose bytes have these hashes."""
        for image_id, digest, row in zip(image_ids, sha256, rows, strict=True):
            self._listed.append((image_id, digest, zlib.crc32(row.data)))
            self._rows.append(row)
            if len(self._rows) >= self._limit:
                self.finish()

    def finish(self) -> None:
        """Bring what was added to the disk and let it count."""
        if not self._rows:
            return
        cache = self._cache
        piece = max(cache._files, default=-1) + 1
        path = cache.path / f"rows-{piece:06d}.json"
        with write_whole(path.with_suffix(".bin")) as handle:
            for row in self._rows:
                handle.write(row.data)
        listed = [list(entry) for entry in self._listed]
        write_json(path, {"rows": listed, "sha256": _listing_digest(listed)})
        self._listed, self._rows = [], []
        cache._open_piece(path)


def _close_all(files: dict[int, IO[bytes]]) -> None:
    while files:
        files.popitem()[1].close()


def cache_folder(root: Path, spec: ActivationSpec) -> Path:
    """Folder of one cache: the backbone's id and 12 digits of the digest."""
    return Path(root) / f"{slug(spec.backbone)}-{spec.digest[:12]}"


def _read_listing(path: Path) -> list[tuple[str, str, int]]:
    """Image id, hash and checksum of each row of a piece, checked against their own digest."""
    value = read_json(path)
    if not isinstance(value, dict) or set(value) != {"rows", "sha256"}:
        raise DamagedFile(f"{path} is no list of rows; the next fine-tune computes them again.")
    if _listing_digest(value["rows"]) != value["sha256"]:
        raise DamagedFile(f"{path} is damaged; the next fine-tune computes its rows again.")
    return [(str(i), str(s), int(crc)) for i, s, crc in value["rows"]]


def _listing_digest(rows: Any) -> str:
    return hashlib.sha256(json.dumps(rows, ensure_ascii=True).encode()).hexdigest()


def make_room(root: Path, budget: int, keep: Sequence[Path], needed: int) -> bool:
    """Remove the least recently used caches until `needed` more bytes keep within `budget`.

    Parameters
    ----------
    root : Path
        Folder of all caches.
    budget : int
        Bytes that all of them together may take.
    keep : sequence of Path
        Folders of caches that stay.
    needed : int
        Bytes to come.

    Returns
    -------
    bool
        Whether they fit; if not, nothing was removed.
    """
    kept = sum(_folder_bytes(path) for path in keep)
    if kept + needed > budget:
        return False
    others = [p.parent for p in Path(root).glob(f"*/{_IDENTITY}") if p.parent not in keep]
    others.sort(key=lambda path: (path / _IDENTITY).stat().st_mtime)
    total = kept + sum(map(_folder_bytes, others))
    for path in others:
        if total + needed <= budget:
            break
        total -= _folder_bytes(path)
        shutil.rmtree(path, ignore_errors=True)
    return True


def parse_budget(gigabytes: float | None, root: Path) -> int:
    """Bytes that caches may take: `gigabytes`, or half of what is free, at most 100 GB.

    Raises
    ------
    UsageError
        If the number is negative.
    """
    if gigabytes is not None:
        if not gigabytes >= 0:
            raise UsageError(f"--cache-gb {gigabytes} must be 0 (no cache) or more.")
        return int(min(gigabytes, 1e9) * 1e9)
    place = next(p for p in (Path(root).absolute(), *Path(root).absolute().parents) if p.exists())
    return min(100_000_000_000, shutil.disk_usage(place).free // 2)


def _folder_bytes(path: Path) -> int:
    return sum(f.stat().st_size for f in Path(path).glob("rows-*"))
