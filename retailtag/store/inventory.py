"""List the feature stores of a folder, find one by name, and describe it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from retailtag.errors import ArtefactError, DataError, UsageError
from retailtag.store.spec import FeatureSpec, open_facts
from retailtag.store.store import FeatureStore

_MACHINE_SHARD = re.compile(r"(shard|part)-\d+-of-\d+")  # part-: the name until November 2026


@dataclass(frozen=True)
class StoreFacts:
    """One folder of a features folder, as far as it could be read."""

    name: str  # its path below the features folder
    path: Path
    state: str  # whole; damaged: its identity or a segment cannot be read; foreign: not a store
    problem: str = ""  # what is damaged and the remedy; empty for a whole store
    spec: FeatureSpec | None = None
    n_segments: int = 0
    n_bytes: int = 0  # of the segments
    n_rows: int | None = None  # images with an embedding; None unless the store is whole
    n_absent: int | None = None  # images that could not be read; None unless it is whole
    last_written: str | None = None  # the newest segment, UTC in ISO 8601

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

    Shards of an extraction (``shard-I-of-N``) are looked into. Raises `DataError` if `features` is
    not a folder.
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
    """Folders under `features` that are stores, damaged ones included, by name."""
    return [path for _, path in _folders(features) if not _is_foreign(path)]


def _is_foreign(path: Path) -> bool:
    return not (path / "spec.json").exists() and next(path.glob("shard-*.h5"), None) is None


def examine(path: Path, name: str | None = None) -> StoreFacts:
    """Facts of one folder; damage is a value here, never an exception."""
    name = name or path.name
    if _is_foreign(path):
        return StoreFacts(name, path, "foreign", "it has no spec.json, so it is no feature store")
    found = StoreFacts(name, path, "damaged")
    try:
        store = FeatureStore.identify(path)
        found = _with_sizes(found, store)
        n_rows, n_absent = len(store.known()), len(store.absent())
    except (DataError, ArtefactError) as error:
        return replace(found, problem=str(error))
    return replace(found, state="whole", n_rows=n_rows, n_absent=n_absent)


def _with_sizes(facts: StoreFacts, store: FeatureStore) -> StoreFacts:
    """Add identity, number and bytes of the segments, and when the newest was written."""
    stats = [path.stat() for path in store.segment_paths()]
    times = [datetime.fromtimestamp(stat.st_mtime, UTC) for stat in stats]
    return replace(
        facts,
        spec=store.spec,
        n_segments=len(stats),
        n_bytes=sum(stat.st_size for stat in stats),
        last_written=max(times).isoformat(timespec="seconds") if times else None,
    )


def describe(store: FeatureStore) -> dict[str, Any]:
    """Everything that is known of a store, JSON-able; raises `ArtefactError` for a damaged one."""
    journal = {e.get("shard"): e for e in store.journal.entries() if e.get("kind") == "shard"}
    segments = [
        {
            "name": name,
            "rows": len(contents.rows),
            "absent": len(contents.absent),
            "bytes": (store.path / name).stat().st_size,
            "seconds": journal.get(name, {}).get("seconds"),
            "run": journal.get(name, {}).get("run"),
        }
        for name, contents in store.contents().items()
    ]
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
    """Folder of the one store that `name` means: its folder's name, backbone or digest's beginning.

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


def only_store(path: Path) -> FeatureStore:
    """Open the store at `path`, or the only one below it.

    Raises `UsageError` if it holds none or several, and as `FeatureStore.open`.
    """
    if not _is_foreign(path):
        return FeatureStore.open(path)
    found = store_folders(path)
    if len(found) != 1:
        names = ", ".join(folder.name for folder in found) or "none"
        raise UsageError(f"{path} is not a feature store and holds {names}; name one store.")
    return FeatureStore.open(found[0])


def _is_meant(path: Path, name: str) -> bool:
    try:
        spec = FeatureStore.identify(path).spec
    except (DataError, ArtefactError):
        return False
    return name == spec.backbone or (bool(name) and spec.digest.startswith(name.lower()))
