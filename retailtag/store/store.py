"""The feature store: a folder of immutable segments under one identity.

The commit protocol: one writer at a time holds the kernel's lock on ``.lock``. It writes a block as
a segment under a temporary name, brings the bytes to the disk (fsync), renames the file, and brings
the folder to the disk. Segments never change afterwards, so a reader needs no lock and any segment
it sees is whole. An image is replaced by appending it again: the latest entry counts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retailtag.errors import ArtefactError, DamagedFile, DataError, StaleFeatures
from retailtag.files import sync_folder, write_whole
from retailtag.lock import WriterLock
from retailtag.memory import empty_rows
from retailtag.store.identity import (
    explain_stale,
    read_identity,
    store_folder,
    writable,
    write_identity,
)
from retailtag.store.journal import Journal
from retailtag.store.segment import (
    MAX_ROWS,
    Absent,
    Contents,
    Segment,
    check_segment,
    encode,
    read_segment,
)
from retailtag.store.spec import FeatureSpec
from retailtag.store.view import FeatureView

NOT_EXTRACTED = "not extracted yet"
_SEGMENT_NAME = re.compile(r"shard-\d{6,12}\.h5")


class FeatureStore:
    """Embeddings of one identity, by image id; made by `create_or_open`, `open` or `find`."""

    def __init__(self, path: Path, spec: FeatureSpec) -> None:
        self.path = path
        self.spec = spec
        self.journal = Journal(path / "journal.jsonl")
        self._lock = WriterLock(path / ".lock")
        self._contents: dict[str, Contents] = {}

    # Finding and opening

    @classmethod
    def create_or_open(cls, root: Path, spec: FeatureSpec) -> FeatureStore:
        """Open the store of `spec` for writing; make it, identity first, if there is none.

        An identity that was damaged is written again: the folder's name and every segment's header
        carry its digest. Segments are checked when they are read (see `repairing`).

        Raises
        ------
        DataError
            If `spec` is not a possible identity, or segments lie there without one.
        Unavailable
            If the folder cannot be written.
        ArtefactError
            If its format is newer or it holds another identity.
        """
        FeatureSpec.from_json(spec.to_json())
        path = store_folder(root, spec)
        if not (path / "spec.json").exists():
            if path.is_dir() and cls(path, spec).segment_paths():
                raise DataError(
                    f"{path} holds segments but no spec.json, so nothing says what they are; "
                    "delete that folder and run extract again."
                )
            write_identity(path, spec)
        try:
            return cls.identify(path, spec)
        except DamagedFile:
            write_identity(path, spec)
            return cls(path, spec)

    @classmethod
    def open(cls, path: Path, expected: FeatureSpec | None = None) -> FeatureStore:
        """Open a store for reading after checking its identity and every segment's header.

        Raises
        ------
        DataError
            If there is no store at `path`.
        StaleFeatures
            If its identity is not `expected`; every differing fact is named with both values.
        ArtefactError
            If the format is newer, or the identity or a segment is damaged or cannot be read.
        """
        store = cls.identify(path, expected)
        for segment in store.segment_paths():
            check_segment(segment, store.spec)
        return store

    @classmethod
    def identify(cls, path: Path, expected: FeatureSpec | None = None) -> FeatureStore:
        """As `open`, by the identity alone; segments are checked when they are read."""
        spec = read_identity(Path(path))
        if expected is not None and expected.digest != spec.digest:
            raise StaleFeatures(explain_stale(Path(path), spec, expected))
        return cls(Path(path), spec)

    @classmethod
    def find(cls, root: Path, spec: FeatureSpec) -> FeatureStore:
        """Open the store of exactly `spec` under `root`.

        Raises
        ------
        StaleFeatures
            If there are only stores of the same backbone under another identity.
        DataError
            If there is no store of this backbone.
        ArtefactError
            As `open`.
        """
        path = store_folder(root, spec)
        if (path / "spec.json").exists():
            return cls.open(path, spec)
        for other in list_stores(root):
            if other.spec.backbone == spec.backbone:
                raise StaleFeatures(explain_stale(other.path, other.spec, spec))
        raise DataError(
            f"{root} holds no features of {spec.backbone}; "
            f"run `retailtag extract CATALOGUE --backbone {spec.backbone}` first."
        )

    # Writing

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Be the only writer inside the block; what killed writers left half-written goes.

        Raises
        ------
        Unavailable
            If another process is writing, or the folder cannot be written.
        """
        if self._lock.held:
            yield
            return
        self._lock.acquire()
        try:
            with writable(self.path):
                for leftover in self.path.glob(".shard-*.part"):
                    leftover.unlink(missing_ok=True)
                # A writer killed after its last rename left a segment that no one had made durable.
                sync_folder(self.path)
            yield
        finally:
            self._lock.release()

    @contextmanager
    def repairing(self) -> Iterator[list[str]]:
        """Pass over damaged segments inside the block; when it succeeds, set them aside.

        Yields the names of the damaged segments; usually none.

        Raises
        ------
        Unavailable
            As `writing`.
        ArtefactError
            If a segment cannot be read or is of a newer format.

        Notes
        -----
        Readers refuse the store until the block has computed anew what was lost. Were the segment
        set aside first, they would meanwhile be served what it superseded. It is renamed to
        ``*.damaged``, not deleted.
        """
        with self.writing():
            damaged = self._damaged_segments()
            self._contents |= dict.fromkeys(damaged, Contents({}, ()))
            try:
                yield damaged
            finally:
                # Not cached any longer: a reader of this object must find the damage again.
                for name in damaged:
                    del self._contents[name]
            with writable(self.path):
                for name in damaged:
                    with suppress(FileNotFoundError):  # `prune` deletes what serves nothing
                        (self.path / name).replace(self.path / f"{name}.damaged")
                if damaged:
                    sync_folder(self.path)

    def _damaged_segments(self) -> list[str]:
        """Names of the segments that cannot be served."""
        damaged = []
        for path in self.segment_paths():
            try:
                self._read(path)
            except (DamagedFile, StaleFeatures):
                damaged.append(path.name)
        return damaged

    def append(
        self,
        image_ids: Sequence[str],
        sha256: Sequence[str],
        embeddings: NDArray[np.floating[Any]],
        absent: Sequence[Absent] = (),
    ) -> str:
        """Write one block as one segment, whole or not at all; when it returns it is on the disk.

        `image_ids` are distinct, and supersede what the store already holds of them; `sha256` are
        of each image's bytes, hexadecimal; `embeddings`, float32 (n, dim), has one row per id.
        `absent` are the images of this block that gave none; at most 4,096 with the rows together.
        Returns the file name of the new segment.

        Raises
        ------
        DataError
            If the rows do not fit together or do not fit the stored dtype.
        Unavailable
            If another process is writing, or the disk is full or read-only.
        """
        # Checked and encoded before the lock is taken and the disk is touched.
        segment = Segment.build(self.spec, image_ids, sha256, embeddings, absent)
        with self.writing():
            last = self.segment_paths()[-1:]
            number = 1 + _number(last[0]) if last else 0
            name = f"shard-{number:06d}.h5"
            with writable(self.path), write_whole(self.path / name) as handle:
                handle.write(encode(segment, self.spec))
        self._contents[name] = Contents.of(segment)
        return name

    def remove(self, segments: Sequence[str]) -> None:
        """Delete segments in the order given; each deletion is on the disk before the next."""
        with self.writing(), writable(self.path):
            for name in segments:
                (self.path / name).unlink()
                # Without this a power failure may undo deletions in any order.
                sync_folder(self.path)

    # Reading

    def segment_paths(self) -> list[Path]:
        """Files of all segments by number, which is the order they were written in."""
        return sorted(filter(_is_segment, self.path.iterdir()), key=_number)

    def known(self) -> dict[str, str]:
        """Image id to SHA-256 of its bytes, hexadecimal, for every image with an embedding."""
        return self._current()[0]

    def absent(self) -> dict[str, Absent]:
        """Image id to the record of why it has no embedding."""
        return self._current()[1]

    def load(self, image_ids: Sequence[str] | NDArray[np.str_]) -> FeatureView:
        """Read the embeddings of `image_ids`, in that order, in one pass over the segments.

        They are a memory map of a scratch file where they take half of the free memory.

        Raises
        ------
        DataError
            If an id is asked for twice.
        ArtefactError
            If a segment is damaged; the message names it.
        """
        ids = np.asarray(image_ids, dtype=np.str_)
        position = {image_id: i for i, image_id in enumerate(ids.tolist())}
        if len(position) != len(ids):
            raise DataError("The same image id was asked for twice.")
        X = empty_rows((len(ids), self.spec.dim))
        found = np.zeros(len(ids), bool)
        reasons = dict.fromkeys(position, NOT_EXTRACTED)
        # Oldest segment first, so that a later entry of an image overwrites an earlier one. Each
        # is read whole and indexed in memory: 3-6 times as fast as HDF5's fancy indexing, and the
        # checksum needs all bytes anyway.
        for path in self.segment_paths():
            segment = self._read(path)
            asked = [(r, position[i]) for r, i in enumerate(segment.image_ids) if i in position]
            rows, places = np.array(asked, np.intp).reshape(-1, 2).T
            X[places], found[places] = segment.embedding[rows], True
            for entry in segment.absent:
                if entry.image_id in position:
                    found[position[entry.image_id]] = False
                    reasons[entry.image_id] = entry.reason
        absent = {i: reasons[i] for i in ids[~found].tolist()}
        return FeatureView(ids, X if found.all() else _moved_up(X, found), found, absent)

    def digest_for(self, image_ids: Sequence[str] | NDArray[np.str_]) -> str:
        """`FeatureView.digest` of these images, for provenance."""
        return self.load(image_ids).digest

    @property
    def n_rows(self) -> int:
        """Images with an embedding."""
        return len(self.known())

    @property
    def nbytes(self) -> int:
        """Bytes of all segments on the disk."""
        return sum(path.stat().st_size for path in self.segment_paths())

    @property
    def seconds(self) -> float:
        """Wall seconds that computing the segments now here took, over all runs."""
        return self.journal.segment_seconds({path.name for path in self.segment_paths()})

    def _read(self, path: Path) -> Segment:
        segment = read_segment(path, self.spec)
        self._contents[path.name] = Contents.of(segment)
        return segment

    def contents(self) -> dict[str, Contents]:
        """Contents of every segment, oldest first; each file is read once per store object."""
        paths = self.segment_paths()
        for path in paths:
            if path.name not in self._contents:
                self._read(path)
        return {path.name: self._contents[path.name] for path in paths}

    def _current(self) -> tuple[dict[str, str], dict[str, Absent]]:
        rows: dict[str, str] = {}
        absent: dict[str, Absent] = {}
        for contents in self.contents().values():
            for image_id in contents.rows:
                absent.pop(image_id, None)
            rows.update(contents.rows)
            for entry in contents.absent:
                rows.pop(entry.image_id, None)
                absent[entry.image_id] = entry
        return rows, absent


def _moved_up(X: NDArray[np.float32], found: NDArray[np.bool_]) -> NDArray[np.float32]:
    """The rows of X that are `found`, moved to its beginning: no second matrix."""
    places = np.flatnonzero(found)
    for start in range(0, len(places), MAX_ROWS):
        some = places[start : start + MAX_ROWS]
        X[start : start + len(some)] = X[some]  # no place lies before where it goes
    return X[: len(places)]


def list_stores(root: Path) -> list[FeatureStore]:
    """Every store under `root`, by name; a folder whose identity cannot be read is passed over.

    Segments are not checked here, so that one damaged store does not hide the others.
    """
    stores = []
    for file in sorted(Path(root).glob("*/spec.json")):
        try:
            stores.append(FeatureStore.identify(file.parent))
        except (DataError, ArtefactError):
            continue
    return stores


def _is_segment(path: Path) -> bool:
    return _SEGMENT_NAME.fullmatch(path.name) is not None


def _number(segment: Path) -> int:
    return int(segment.stem.removeprefix("shard-"))
