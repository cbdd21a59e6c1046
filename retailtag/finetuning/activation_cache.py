"""Activations of the frozen part, cached on the disk: one folder per identity.

A cache is a folder ``BACKBONE-DIGEST``. It holds

``identity.json``
    Every fact that changes an activation (`ActivationSpec`).
``rows-NNNNNN.bin``
    A segment: rows of equal length one after the other, activations in the stored dtype.
``rows-NNNNNN.json``
    The segment's listing: the rows' image ids, the SHA-256 of the images' bytes, a CRC-32 of each
    row, and a SHA-256 of the whole. It is written after the segment has reached the disk; a segment
    without one does not count.

Files appear whole or not at all, so a kill loses at most the segment being written. Rows of another
identity, of changed images, and damaged rows are never served; they are computed again.
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

from retailtag.errors import DamagedFile, DataError
from retailtag.files import make_folder, read_json, slug, write_json, write_whole
from retailtag.lock import WriterLock
from retailtag.store.spec import canonical_json

FORMAT = 1
SEGMENT_BYTES = 256 << 20  # a kill loses less than this of what was computed
MAX_DEFAULT_BYTES = 100_000_000_000  # 100 GB
_IDENTITY = "identity.json"
_LOCK = "writer.lock"

Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class ActivationSpec:
    """What must be equal for two activations of the same image to be interchangeable."""

    backbone: str  # these four as in `FeatureSpec`
    weights_sha256: str
    architecture: str
    preprocessing: str
    engine: str  # eager-float32, or autocast- and the dtype: both change the last bits
    boundary: str  # name of the block that the activations enter
    shape: tuple[int, ...]  # of one image's activation as stored
    order: str  # contiguous, or channels-last: (c, h, w) stored as (h, w, c)
    dtype: str  # stored: float32, float16 or bfloat16
    view: str = "plain"  # or the augmentation with its seed and number

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
    """Where a row is, the hash of its image's bytes, and its checksum."""

    segment: int
    row: int
    sha256: str
    crc: int


class ActivationCache:
    """Rows of one identity, in a folder of `root`; see the module for what is on the disk."""

    def __init__(self, root: Path, spec: ActivationSpec) -> None:
        self.spec = spec
        self.path = Path(root) / f"{slug(spec.backbone)}-{spec.digest[:12]}"
        self._places: dict[str, _Place] = {}
        # The files stay open, so that a cache that another process evicts can still be read.
        self._files: dict[int, IO[bytes]] = {}
        self._checked: set[str] = set()
        weakref.finalize(self, _close_all, self._files)
        if self._is_ours():
            os.utime(self.path / _IDENTITY)  # `make_room` evicts the least recently used first
            for path in sorted(self.path.glob("rows-*.json")):
                self._open_segment(path)

    def _is_ours(self) -> bool:
        """Whether the folder holds this identity: its name has only 12 digits of the digest."""
        try:
            return bool(read_json(self.path / _IDENTITY) == self.spec.to_json())
        except DataError:
            return False

    def _open_segment(self, path: Path) -> None:
        """Add the rows of a segment, unless it or its listing is damaged."""
        try:
            listing = read_json(path)
            listed = listing["rows"]
            if _listing_digest(listed) != listing["sha256"]:
                return
            handle = path.with_suffix(".bin").open("rb", buffering=0)
        except (DataError, OSError, KeyError, TypeError):
            return
        if os.fstat(handle.fileno()).st_size != len(listed) * self.spec.row_bytes:
            handle.close()
            return
        segment = _number(path)
        self._files[segment] = handle
        for row, (image_id, sha256, crc) in enumerate(listed):
            self._places[image_id] = _Place(segment, row, sha256, crc)

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

        Raises `DamagedFile` if a row is not what was written. All rows of its segment are then
        `missing`, and can be written again.
        """
        out = np.empty((len(image_ids), self.spec.row_bytes), np.uint8)
        for row, image_id in zip(out, image_ids, strict=True):
            place = self._places[image_id]
            whole = self._fetch(place, row)
            # The CRC is computed at the first reading alone: later epochs read the same file.
            if not whole or (image_id not in self._checked and zlib.crc32(row.data) != place.crc):
                self._forget(place.segment)
                raise DamagedFile(
                    f"{self.path} holds a damaged row of {image_id}; compute it again."
                )
            self._checked.add(image_id)
        return out

    def _fetch(self, place: _Place, out: Bytes) -> bool:
        """Read one row into `out` (row_bytes,); whether the disk gave all of it."""
        handle = self._files[place.segment]
        try:
            handle.seek(place.row * self.spec.row_bytes)
            n_read: int = handle.readinto(out.data)  # type: ignore[attr-defined]
        except OSError:
            return False
        return n_read == self.spec.row_bytes

    def _forget(self, segment: int) -> None:
        self._files.pop(segment).close()
        gone = [i for i, place in self._places.items() if place.segment == segment]
        for image_id in gone:
            del self._places[image_id]
        self._checked.difference_update(gone)
        for suffix in (".json", ".bin"):
            with suppress(OSError):
                (self.path / f"rows-{segment:06d}{suffix}").unlink(missing_ok=True)

    @contextmanager
    def writer(self) -> Iterator[ActivationWriter]:
        """Write rows; all that was added counts from the end of the block on.

        Raises `Unavailable` if another process writes this cache or the folder cannot be written,
        and `OSError` if the disk is full; segments finished before stay.
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
        """Empty a folder of another identity, and delete what a killed writer left."""
        if not self._is_ours():
            for path in self.path.glob("rows-*"):
                path.unlink()
            write_json(self.path / _IDENTITY, self.spec.to_json())
        for path in self.path.glob(".*.part"):
            path.unlink()
        for path in self.path.glob("rows-*.bin"):
            if _number(path) not in self._files:
                path.unlink()
                path.with_suffix(".json").unlink(missing_ok=True)


class ActivationWriter:
    """Appends rows to a cache, a segment at a time."""

    def __init__(self, cache: ActivationCache) -> None:
        self._cache = cache
        self._limit = max(1, SEGMENT_BYTES // cache.spec.row_bytes)
        self._listed: list[list[Any]] = []
        self._rows: list[Bytes] = []

    def add(self, image_ids: Sequence[str], sha256: Sequence[str], rows: Bytes) -> None:
        """Add rows (n, row_bytes) of images whose bytes have these hashes."""
        for image_id, digest, row in zip(image_ids, sha256, rows, strict=True):
            self._listed.append([image_id, digest, zlib.crc32(row.data)])
            self._rows.append(row)
        # Only between batches: what a continued run computes is then batched as in a whole one,
        # and a row's last digits may depend on its batch.
        if len(self._rows) >= self._limit:
            self.finish()

    def finish(self) -> None:
        """Write what was added as a segment, then its listing, which makes it count."""
        if not self._rows:
            return
        cache = self._cache
        path = cache.path / f"rows-{max(cache._files, default=-1) + 1:06d}.json"
        with write_whole(path.with_suffix(".bin")) as handle:
            for row in self._rows:
                handle.write(row.data)
        write_json(path, {"rows": self._listed, "sha256": _listing_digest(self._listed)})
        self._listed = []
        self._rows = []
        cache._open_segment(path)


def _close_all(files: dict[int, IO[bytes]]) -> None:
    while files:
        files.popitem()[1].close()


def _number(path: Path) -> int:
    return int(path.stem.removeprefix("rows-"))


def _listing_digest(rows: Any) -> str:
    return hashlib.sha256(json.dumps(rows, ensure_ascii=True).encode()).hexdigest()


def make_room(root: Path, budget: int, keep: Sequence[Path], needed: int) -> bool:
    """Remove the least recently used caches until `needed` more bytes fit into `budget`.

    `budget` is what all caches in `root` may take together, in bytes; those in `keep` stay. Returns
    whether the bytes fit; if not, nothing was removed.
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
    """Bytes that caches may take: `gigabytes`, or half of what is free, at most 100 GB."""
    if gigabytes is not None:
        return int(min(gigabytes, 1e9) * 1e9)
    place = next(p for p in (Path(root).absolute(), *Path(root).absolute().parents) if p.exists())
    return min(MAX_DEFAULT_BYTES, shutil.disk_usage(place).free // 2)


def _folder_bytes(path: Path) -> int:
    return sum(f.stat().st_size for f in Path(path).glob("rows-*"))
