"""What of the feature stores no catalogue uses any more, and freeing it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from retailtag.catalog.catalog import Catalog
from retailtag.errors import ArtefactError, DataError
from retailtag.images.loader import hash_images
from retailtag.progress import SILENT, Progress
from retailtag.store import FeatureStore
from retailtag.store.inventory import store_folders
from retailtag.store.maintenance import Waste, collect, delete_store, find_waste


@dataclass(frozen=True)
class Usage:
    """Images that catalogues use.

    Parameters
    ----------
    hashes : dict of str to set of str
        Image id to the SHA-256 of its bytes in each catalogue that has it.
    unseen : set of str
        Ids whose file some catalogue could not read: they count as used, whatever their bytes.
    """

    hashes: dict[str, set[str]] = field(default_factory=dict)
    unseen: set[str] = field(default_factory=set)

    def covers(self, image_id: str, sha256: str | None) -> bool:
        """Whether an image of this id and these bytes (None: none could be read) is used."""
        if image_id in self.unseen or (sha256 is None and image_id in self.hashes):
            return True
        return sha256 in self.hashes.get(image_id, ())


def find_usage(
    catalogs: Sequence[Catalog], *, workers: int = 2, progress: Progress = SILENT
) -> Usage:
    """Hash every image of the catalogues, as far as they can be read.

    Parameters
    ----------
    catalogs : sequence of Catalog
    workers : int
        Reading threads.
    progress : Progress
        Told of every image.
    """
    usage = Usage()
    for catalog in catalogs:
        with progress.task(f"hash {catalog.path}", len(catalog)) as advance:
            hashes = hash_images(catalog.images, range(len(catalog)), workers=workers)
            for image_id, sha256 in zip(catalog.image_ids.tolist(), hashes, strict=True):
                if sha256 is None:
                    usage.unseen.add(image_id)
                else:
                    usage.hashes.setdefault(image_id, set()).add(sha256)
                advance(1)
    return usage


@dataclass(frozen=True, eq=False)
class Plan:
    """What can be freed under one features folder; nothing is changed before `carry_out`.

    Parameters
    ----------
    usage : Usage
        What stays.
    waste : list of (FeatureStore, Waste)
        Stores that lose something.
    doomed : list of FeatureStore
        Stores that go as a whole.
    skipped : dict of str to str
        Damaged stores, which are left as they are, and what is wrong with them.
    n_bytes : int
        Bytes that it frees, about.
    """

    usage: Usage
    waste: list[tuple[FeatureStore, Waste]]
    doomed: list[FeatureStore]
    skipped: dict[str, str]
    n_bytes: int

    def __bool__(self) -> bool:
        return bool(self.waste or self.doomed)

    def carry_out(self) -> int:
        """Free it; returns the bytes freed.

        Raises
        ------
        Unavailable
            If another process writes one of the stores, or the disk is full or read-only; stores
            before it are done, and the same call continues.
        """
        freed = sum(collect(store, self.usage.covers) for store, _ in self.waste)
        for store in self.doomed:
            freed += store.nbytes
            delete_store(store)
        return freed

    def to_json(self) -> dict[str, Any]:
        """Plain dictionary for ``--json``."""
        return {
            "stores": [{"path": str(s.path), **waste.to_json()} for s, waste in self.waste],
            "whole_stores": [str(store.path) for store in self.doomed],
            "skipped": self.skipped,
            "bytes": self.n_bytes,
        }


def plan_collection(
    features: Path,
    catalogs: Sequence[Catalog],
    doomed: Sequence[FeatureStore] = (),
    *,
    workers: int = 2,
    progress: Progress = SILENT,
) -> Plan:
    """Find what none of the catalogues uses in the stores under `features`.

    Parameters
    ----------
    features : Path
        Folder of the feature stores.
    catalogs : sequence of Catalog
        What is in use; with none, only `doomed` goes.
    doomed : sequence of FeatureStore
        Stores to delete as a whole.
    workers : int
        Threads that read the catalogues' images.
    progress : Progress
        Told of every image.

    Raises
    ------
    DataError
        If `features` is no folder.
    """
    going = {store.path for store in doomed}
    usage = find_usage(catalogs, workers=workers, progress=progress)
    waste, skipped = [], {}
    for path in store_folders(features) if catalogs else []:
        if path in going:
            continue
        try:
            store = FeatureStore.identify(path)
            found = find_waste(store, usage.covers)
        except (DataError, ArtefactError) as error:
            skipped[str(path)] = str(error)
            continue
        if found:
            waste.append((store, found))
    n_bytes = sum(found.n_bytes for _, found in waste) + sum(store.nbytes for store in doomed)
    return Plan(usage, waste, list(doomed), skipped, n_bytes)
