"""List the feature stores of a folder, find one by name, and describe it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from retailtag.errors import ArtefactError, DataError, UsageError
from retailtag.store.segment import read_segment
from retailtag.store.spec import FeatureSpec, open_facts
from retailtag.store.store import FeatureStore

FOREIGN = "foreign"
DAMAGED = "damaged"
WHOLE = "whole"
SHORT_DIGEST = 12  # digits of a digest in a folder's name
_MACHINE_SHARD = re.compile(r"(shard|part)-\d+-of-\d+")  # part-: the name until November 2026


@dataclass(frozen=True)
class StoreFacts:
    """One folder of a features folder, as far as it could be read.

    Parameters
    ----------
    name : str
        Its path below the features folder.
    path : Path
    state : str
        ``whole``; ``damaged``: its identity or a segment cannot be read; ``foreign``: not a store.
    problem : str
        What is damaged and the remedy; empty for a whole store.
    spec : FeatureSpec or None
        Its identity, where that could be read.
    n_segments, n_bytes : int
        Segments, and their bytes on the disk.
    n_rows, n_absent : int or None
        Images with an embedding, and images that could not be read; None unless it is whole.
    last_written : str or None
        When the newest segment was written, UTC in ISO 8601; None without segments.
    """

    name: str
    path: Path
    state: str
    problem: str = ""
    spec: FeatureSpec | None = None
    n_segments: int = 0
    n_bytes: int = 0
    n_rows: int | None = None
    n_absent: int | None = None
    last_written: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain dictionary for ``--json``."""
        return {
            "name": self.name,
            "path": str(self.path),
            "state": self.state,
            "problem": self.problem,
            "backbone": self.spec.backbone if self.spec else None,
            "dtype": self.spec.dtype if self.spec else None,
            "identity": self.spec.digest if self.spec else None,
            "segments": self.n_segments,
            "bytes": self.n_bytes,
            "rows": self.n_rows,
            "absent": self.n_absent,
            "last_written": self.last_written,
        }


def survey(features: Path) -> list[StoreFacts]:
    """Facts of every folder under `features`, by name; every segment is read and checked.

    Raises
    ------
    DataError
        If `features` is not a folder.

    Notes
    -----
    Rows are counted from the segments themselves, superseded entries left out, so the cost is one
    reading of all bytes. Shards of an extraction (``shard-I-of-N``) are looked into.
    """
    return [examine(path, name) for name, path in _folders(features)]


def _folders(features: Path) -> Iterator[tuple[str, Path]]:
    """Name and path of every folder that should be a store."""
    if not Path(features).is_dir():
        raise DataError(f"{features} is not a folder; name the features folder with --features.")
    for path in sorted(p for p in Path(features).iterdir() if p.is_dir()):
        if _MACHINE_SHARD.fullmatch(path.name):
            for inner in sorted(p for p in path.iterdir() if p.is_dir()):
                yield f"{path.name}/{inner.name}", inner
        else:
            yield path.name, path


def store_folders(features: Path) -> list[Path]:
    """Folders under `features` that are stores, damaged ones included, by name.

    Raises
    ------
    DataError
        If `features` is not a folder.
    """
    return [path for _, path in _folders(features) if not _is_foreign(path)]


def _is_foreign(path: Path) -> bool:
    return not (path / "spec.json").exists() and next(path.glob("shard-*.h5"), None) is None


def examine(path: Path, name: str | None = None) -> StoreFacts:
    """Facts of one folder; damage is a value here, never an exception."""
    name = name or path.name
    if _is_foreign(path):
        return StoreFacts(name, path, FOREIGN, "it has no spec.json, so it is not a feature store")
    spec, store = None, None
    try:
        store = FeatureStore.identify(path)
        spec = store.spec
        rows, absent = len(store.known()), len(store.absent())
    except (DataError, ArtefactError) as error:
        size = _size(store) if store else (0, 0, None)
        return StoreFacts(name, path, DAMAGED, str(error), spec, *size[:2], last_written=size[2])
    segments, n_bytes, written = _size(store)
    return StoreFacts(name, path, WHOLE, "", spec, segments, n_bytes, rows, absent, written)


def _size(store: FeatureStore) -> tuple[int, int, str | None]:
    """Segments, their bytes, and when the newest was written."""
    stats = [path.stat() for path in store.segment_paths()]
    newest = max((stat.st_mtime for stat in stats), default=None)
    written = None
    if newest is not None:
        written = datetime.fromtimestamp(newest, UTC).isoformat(timespec="seconds")
    return len(stats), sum(stat.st_size for stat in stats), written


def describe(store: FeatureStore) -> dict[str, Any]:
    """Everything that is known of a store, JSON-able: identity, segments, cost, versions.

    Raises
    ------
    ArtefactError
        If a segment is damaged.
    """
    journal = {e.get("shard"): e for e in store.journal.entries() if e.get("kind") == "shard"}
    segments = []
    for path in store.segment_paths():
        segment, entry = read_segment(path, store.spec), journal.get(path.name, {})
        segments.append(
            {
                "name": path.name,
                "rows": len(segment.image_ids),
                "absent": len(segment.absent),
                "bytes": path.stat().st_size,
                "seconds": entry.get("seconds"),
                "run": entry.get("run"),
            }
        )
    return {
        **examine(store.path).to_json(),
        "spec": open_facts(store.spec),
        "seconds": store.seconds,
        "versions": _versions(journal[s["name"]] for s in segments if s["name"] in journal),
        "segment_files": segments,
    }


def _versions(entries: Iterable[dict[str, Any]]) -> dict[str, list[str]]:
    """Library to the versions that wrote the segments."""
    found: dict[str, set[str]] = {}
    for entry in entries:
        for name, version in entry.get("run", {}).get("versions", {}).items():
            if version is not None:
                found.setdefault(name, set()).add(str(version))
    return {name: sorted(versions) for name, versions in sorted(found.items())}


def find_named(features: Path, name: str) -> Path:
    """Folder of the one store that `name` means.

    Parameters
    ----------
    features : Path
        Folder of the feature stores.
    name : str
        Name of the store's folder, the id of its backbone, or the beginning of its digest.

    Raises
    ------
    UsageError
        If no store is meant, or more than one.
    """
    folders = dict(_folders(features))
    if name in folders:
        return folders[name]
    meant = [place for place, path in folders.items() if _is_meant(path, name)]
    if len(meant) == 1:
        return folders[meant[0]]
    if meant:
        raise UsageError(
            f"{name} means {len(meant)} stores of {features}: {', '.join(meant)}; give one of "
            "these names."
        )
    raise UsageError(
        f"{features} has no store {name}; it has {', '.join(folders) or 'none'} "
        "(see retailtag features ls)."
    )


def _is_meant(path: Path, name: str) -> bool:
    try:
        spec = FeatureStore.identify(path).spec
    except (DataError, ArtefactError):
        return False
    return name == spec.backbone or (bool(name) and spec.digest.startswith(name.lower()))
