"""Find what no catalogue uses in the feature stores any more, and delete it."""

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
from retailtag.store.segment import UNKNOWN_BYTES


@dataclass(frozen=True)
class Usage:
    """Images that catalogues use."""

    # By image id: the SHA-256 of its bytes in each catalogue that has it.
    hashes: dict[str, set[str]] = field(default_factory=dict)
    unreadable: set[str] = field(default_factory=set)  # ids whose file some catalogue cannot read

    def covers(self, image_id: str, sha256: str | None) -> bool:
        """Whether an image of this id and these bytes (None: unreadable) is used."""
        # A file that cannot be read now may be back tomorrow (an unmounted disk): whatever is
        # stored of it counts as used, since deleting it would cost more than keeping it.
        is_unknown = sha256 in (None, UNKNOWN_BYTES)
        if image_id in self.unreadable or (is_unknown and image_id in self.hashes):
            return True
        return sha256 in self.hashes.get(image_id, ())


def find_usage(
    catalogs: Sequence[Catalog], *, workers: int = 2, progress: Progress = SILENT
) -> Usage:
    """Hash every image of the catalogues that can be read, in `workers` threads."""
    usage = Usage()
    for catalog in catalogs:
        with progress.task(f"hash {catalog.path}", len(catalog)) as advance:
            hashes = hash_images(catalog.images, range(len(catalog)), workers=workers)
            for image_id, sha256 in zip(catalog.image_ids.tolist(), hashes, strict=True):
                if sha256 is None:
                    usage.unreadable.add(image_id)
                else:
                    usage.hashes.setdefault(image_id, set()).add(sha256)
                advance(1)
    return usage


@dataclass(frozen=True, eq=False)
class CollectionPlan:
    """What can be freed in one features folder; nothing changes before `apply`."""

    usage: Usage  # what stays
    waste: list[tuple[FeatureStore, Waste]]  # stores that lose some of their rows or files
    whole_stores: list[FeatureStore]  # stores that are deleted entirely
    skipped: dict[str, str]  # damaged stores, which are left alone, and what is wrong with each
    n_bytes: int  # estimate of the bytes freed

    def __bool__(self) -> bool:
        return bool(self.waste or self.whole_stores)

    def apply(self) -> int:
        """Delete it; returns the bytes freed.

        Raises
        ------
        Unavailable
            If another process writes one of the stores, or the disk is full or read-only.
        """
        # An interrupted call has finished the stores before; the same call continues with the rest.
        freed = sum(collect(store, self.usage.covers) for store, _ in self.waste)
        for store in self.whole_stores:
            freed += store.nbytes
            delete_store(store)
        return freed

    def to_json(self) -> dict[str, Any]:
        """Plain dictionary for ``--json``."""
        return {
            "stores": [{"path": str(s.path), **waste.to_json()} for s, waste in self.waste],
            "whole_stores": [str(store.path) for store in self.whole_stores],
            "skipped": self.skipped,
            "bytes": self.n_bytes,
        }


def plan_collection(
    features: Path,
    catalogs: Sequence[Catalog],
    whole_stores: Sequence[FeatureStore] = (),
    *,
    workers: int = 2,
    progress: Progress = SILENT,
) -> CollectionPlan:
    """Find what none of `catalogs` uses in the stores of `features`, read in `workers` threads.

    Without catalogues only `whole_stores` are deleted.

    Raises
    ------
    DataError
        If `features` is not a folder.
    """
    excluded = {store.path for store in whole_stores}
    usage = find_usage(catalogs, workers=workers, progress=progress)
    waste: list[tuple[FeatureStore, Waste]] = []
    skipped: dict[str, str] = {}
    for path in store_folders(features) if catalogs else []:
        if path in excluded:
            continue
        try:
            store = FeatureStore.identify(path)
            found = find_waste(store, usage.covers)
        except (DataError, ArtefactError) as error:
            skipped[str(path)] = str(error)
            continue
        if found:
            waste.append((store, found))
    n_bytes = sum(found.n_bytes for _, found in waste)
    n_bytes += sum(store.nbytes for store in whole_stores)
    return CollectionPlan(usage, waste, list(whole_stores), skipped, n_bytes)
