"""Garbage collection and merging: segments are written anew, never changed in place.

Every step leaves a store that opens. A new segment is on the disk before an old one is deleted, and
old ones are deleted oldest first: were a newer one deleted before, the entries that it superseded
would count again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from retailtag.errors import ArtefactError, StaleFeatures
from retailtag.progress import SILENT, Progress
from retailtag.store.segment import Contents, bytes_differ, read_segment
from retailtag.store.spec import explain_differences
from retailtag.store.store import FeatureStore

IsUsed = Callable[[str, str | None], bool]  # image id and SHA-256 of its bytes, if there were any


class Entry(NamedTuple):
    """What a store says of one image."""

    segment: str
    sha256: str | None  # None: absent, and there were no bytes
    embedded: bool


class Index(NamedTuple):
    """Entries of a store, from one reading of its segments."""

    latest: dict[str, Entry]  # image id to the entry that counts
    sizes: dict[str, int]  # segment to its entries, superseded ones included; oldest first

    @classmethod
    def of(cls, store: FeatureStore) -> Index:
        """Read every segment; raises `ArtefactError` where one is damaged."""
        latest: dict[str, Entry] = {}
        sizes: dict[str, int] = {}
        for name, contents in store.contents().items():
            for image_id, sha256 in contents.rows.items():
                latest[image_id] = Entry(name, sha256, True)
            for absent in contents.absent:
                latest[absent.image_id] = Entry(name, absent.sha256, False)
            sizes[name] = len(contents.rows) + len(contents.absent)
        return cls(latest, sizes)

    def by_segment(self, image_ids: Iterable[str]) -> dict[str, set[str]]:
        """For every segment, those of `image_ids` whose entry in it counts."""
        ids: dict[str, set[str]] = {name: set() for name in self.sizes}
        for image_id in image_ids:
            ids[self.latest[image_id].segment].add(image_id)
        return ids


@dataclass(frozen=True)
class Waste:
    """What can go from a store."""

    n_unused: int  # images that are not used any more
    n_superseded: int  # entries that a later one of the same image replaces
    n_leftovers: int  # temporary files of killed writers, damaged files that were set aside
    n_bytes: int  # on the disk; of a rewritten segment, in proportion to its entries

    def __bool__(self) -> bool:
        return bool(self.n_unused or self.n_superseded or self.n_leftovers)

    def to_json(self) -> dict[str, int]:
        """Plain dictionary for ``--json``."""
        return asdict(self)


def find_waste(store: FeatureStore, is_used: IsUsed) -> Waste:
    """Count what `collect` would drop; raises `ArtefactError` where a segment is damaged."""
    index = Index.of(store)
    kept = _kept(index, is_used)
    n_kept = sum(map(len, kept.values()))
    sizes = {path.name: path.stat().st_size for path in store.segment_paths()}
    freed = sum(sizes[s] * (n - len(kept[s])) // n for s, n in index.sizes.items())
    leftovers = _leftovers(store)
    return Waste(
        n_unused=len(index.latest) - n_kept,
        n_superseded=sum(index.sizes.values()) - len(index.latest),
        n_leftovers=len(leftovers),
        n_bytes=freed + _n_bytes(leftovers),
    )


def collect(store: FeatureStore, is_used: IsUsed) -> int:
    """Drop what is not used, superseded entries and leftovers; returns the bytes freed.

    `is_used` says whether an image of this id and these bytes is used.

    Raises
    ------
    ArtefactError
        If a segment is damaged; nothing was dropped then.
    Unavailable
        If another process is writing, or the disk is full or read-only.

    Notes
    -----
    Killed at any point, the store holds every used image once or twice, with equal content; the
    next call drops the doubles. The store's seconds keep the share of the entries that stay.
    """
    leftovers = _leftovers(store)
    before = store.nbytes + _n_bytes(leftovers)
    with store.writing():
        # Read anew under the lock: since the store object cached a segment's contents, another
        # process may have deleted it and given its name to a new one.
        index = Index.of(FeatureStore(store.path, store.spec))
        copier = _Copier(store, store)
        # Oldest first: an entry is deleted only after every entry that it superseded.
        for name, ids in _kept(index, is_used).items():
            if len(ids) == index.sizes[name]:
                continue
            if ids:
                copier.copy(name, ids)  # on the disk before the old segment is removed
            store.remove([name])
        for path in leftovers:
            path.unlink(missing_ok=True)
    return before - store.nbytes


def _kept(index: Index, is_used: IsUsed) -> dict[str, set[str]]:
    return index.by_segment(i for i, entry in index.latest.items() if is_used(i, entry.sha256))


def prune(store: FeatureStore) -> None:
    """Delete the segments of which every entry has been superseded.

    Raises
    ------
    Unavailable
        If another process is writing, or the folder cannot be written.
    """
    with store.writing():
        index = Index.of(store)
        live = {entry.segment for entry in index.latest.values()}
        store.remove([name for name in index.sizes if name not in live])


def _leftovers(store: FeatureStore) -> list[Path]:
    return sorted([*store.path.glob(".*.part"), *store.path.glob("*.damaged")])


def _n_bytes(files: Iterable[Path]) -> int:
    """Bytes of files, any of which a living writer may rename meanwhile."""
    total = 0
    for path in files:
        with suppress(FileNotFoundError):
            total += path.stat().st_size
    return total


def delete_store(store: FeatureStore) -> None:
    """Delete a whole store: segments oldest first, its identity last; files of others stay.

    Raises
    ------
    Unavailable
        If another process is writing, or the folder cannot be written.
    """
    with store.writing():
        store.remove([path.name for path in store.segment_paths()])
        for path in [*_leftovers(store), store.path / "journal.jsonl", store.path / "spec.json"]:
            path.unlink(missing_ok=True)
    (store.path / ".lock").unlink(missing_ok=True)
    with suppress(OSError):  # what is not ours is left, and the folder with it
        store.path.rmdir()


class Merged(NamedTuple):
    """What one merge did."""

    store: FeatureStore  # where everything now is
    n_added: int  # images that were not there before, or had no embedding there
    n_present: int  # images of the inputs that were there, or came from an earlier input

    def to_json(self) -> dict[str, Any]:
        """Plain dictionary for ``--json``."""
        return {
            "store": str(self.store.path),
            "backbone": self.store.spec.backbone,
            "identity": self.store.spec.digest,
            "n_added": self.n_added,
            "n_present": self.n_present,
            "n_rows": self.store.n_rows,
            "n_absent": len(self.store.absent()),
        }


def merge(features: Path, inputs: Sequence[Path], *, progress: Progress = SILENT) -> Merged:
    """Join stores of one identity in the store of that identity under `features`.

    The store is made in the folder of stores `features`, or added to there. `inputs`, one at least,
    are stores or folders of such stores; they are only read.

    Raises
    ------
    StaleFeatures
        If the inputs differ in identity; every differing fact is named with both values.
    ArtefactError
        If two stores hold an image with other bytes, or a segment is damaged; nothing is written.
    DataError
        If an input is not a store.
    Unavailable
        If another process writes the store, or the disk is full or read-only.

    Notes
    -----
    Of each store the entries that count are joined. An image that several hold with the same
    bytes is taken from the first, the store under `features` before all; an embedding goes before
    an absence. Segments are added in the order of the inputs, each whole, so a killed merge
    is continued by the same call, and shards 1 to N of an extraction give the segments that one
    process would have written.
    """
    stores = list(chain.from_iterable(map(_open_all, inputs)))
    for other in stores[1:]:
        _check_same(stores[0], other)
    read = [(store, Index.of(store)) for store in stores]
    _choose(read)  # refuses before anything is made
    target = FeatureStore.create_or_open(features, stores[0].spec)
    read = [(s, index) for s, index in read if s.path.resolve() != target.path.resolve()]
    n_segments = sum(len(index.sizes) for _, index in read)
    with target.writing():
        owners = _choose([(target, Index.of(target)), *read])
        with progress.task(f"merge {target.spec.backbone}", n_segments, unit="segments") as advance:
            for i, (source, index) in enumerate(read, 1):
                own = [image_id for image_id, owner in owners.items() if owner == i]
                copier = _Copier(source, target)
                for name, ids in index.by_segment(own).items():
                    if ids:
                        copier.copy(name, ids)
                    advance(1)
    n_read = sum(len(index.latest) for _, index in read)
    n_added = sum(owner > 0 for owner in owners.values())
    return Merged(target, n_added, n_read - n_added)


def _open_all(path: Path) -> list[FeatureStore]:
    """Open the store at `path`, or every store in it where it is a folder of stores."""
    inner = sorted(file.parent for file in Path(path).glob("*/spec.json"))
    if inner and not (Path(path) / "spec.json").exists():
        return list(map(FeatureStore.open, inner))
    return [FeatureStore.open(path)]


def _check_same(first: FeatureStore, other: FeatureStore) -> None:
    if first.spec.digest != other.spec.digest:
        names = (str(first.path), str(other.path))
        raise StaleFeatures(
            f"{other.path} is of another identity than {first.path}: "
            f"{explain_differences(first.spec, other.spec, names)}. "
            "Merge stores of one identity; extract the others again with the same settings."
        )


def _choose(stores: Sequence[tuple[FeatureStore, Index]]) -> dict[str, int]:
    """Image id to the position of the store whose entry is taken."""
    owners: dict[str, int] = {}
    for i, (store, index) in enumerate(stores):
        for image_id, entry in index.latest.items():
            first, held_by = stores[owners.setdefault(image_id, i)]
            held = held_by.latest[image_id]
            if bytes_differ(entry.sha256, held.sha256):
                raise ArtefactError(
                    f"Image {image_id} has other bytes in {store.path} than in {first.path}; run "
                    "extract again where the image is out of date, or leave that store out, and "
                    "merge again."
                )
            if entry.embedded and not held.embedded:
                owners[image_id] = i
    return owners


class _Copier:
    """Copies entries of one store to another, or to new segments of its own."""

    def __init__(self, source: FeatureStore, target: FeatureStore) -> None:
        self._source, self._target = source, target
        journal = source.journal.entries()
        self._costs = {e["shard"]: e for e in journal if "shard" in e and "seconds" in e}

    def copy(self, name: str, ids: set[str]) -> None:
        """Append the entries `ids` of the segment `name`, and their share of its seconds."""
        segment = read_segment(self._source.path / name, self._source.spec)
        rows = [row for row, image_id in enumerate(segment.image_ids) if image_id in ids]
        hashes = Contents.of(segment).rows
        new = self._target.append(
            [segment.image_ids[row] for row in rows],
            [hashes[segment.image_ids[row]] for row in rows],
            segment.embedding[np.array(rows, np.intp)],
            [absent for absent in segment.absent if absent.image_id in ids],
        )
        if name in self._costs:
            share = len(ids) / (len(segment.image_ids) + len(segment.absent))
            seconds = share * float(self._costs[name]["seconds"])
            self._target.journal.append({**self._costs[name], "shard": new, "seconds": seconds})
