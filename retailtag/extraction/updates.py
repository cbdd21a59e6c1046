"""What each store of an extraction lacks, which blocks they share, and how a block is stored."""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from operator import itemgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retailtag.catalog.catalog import Catalog
from retailtag.extraction.costs import ExtractCost
from retailtag.extraction.embed import Block, BlockRequest
from retailtag.extraction.forward import Forward
from retailtag.images.sources import ImageSource
from retailtag.progress import Advance
from retailtag.store import Absent, FeatureStore
from retailtag.store.sources import Stamp, recorded_stamps

Rows = NDArray[np.intp]
Hashes = Callable[[ImageSource, Rows], Iterator[str | None]]
"""SHA-256 of the bytes of some rows in order, hexadecimal; None where unreadable."""


@dataclass(eq=False)
class StoreUpdate:
    """A store, the backbone that fills it, and the rows that it lacks."""

    catalog: Catalog
    store: FeatureStore
    model: Forward
    environment: dict[str, Any]  # what the journal records of the run
    # Rows to compute: new or changed images, and images that could not be read before.
    missing: Rows = field(default_factory=lambda: np.empty(0, np.intp))
    retried: Rows = field(default_factory=lambda: np.empty(0, np.intp))
    cost: ExtractCost = field(default_factory=ExtractCost)  # of the blocks stored so far

    def __post_init__(self) -> None:
        self._recorded: dict[str, Absent] = {}
        self._stamps: dict[str, Stamp] = {}  # of images that are being embedded

    def plan(self, rows: Rows, is_current: NDArray[np.bool_]) -> None:
        """List those of `rows` (n,) that are not current as missing or retried."""
        self._recorded = self.store.absent()
        ids = self.catalog.image_ids[rows].tolist()
        was_absent = np.array([image_id in self._recorded for image_id in ids], bool)
        # Retried images get blocks of their own. Mixed into the missing ones they would shift
        # the bounds of every block, and a run that continues a killed one would not form the
        # blocks that a single run forms.
        self.missing = rows[~is_current & ~was_absent]
        self.retried = rows[~is_current & was_absent]
        # Files that were copied or touched have a new stamp and the bytes that were just compared.
        stamps = self._stamps_of(rows[is_current])
        recorded = recorded_stamps(self.store) if stamps else {}
        new = {i: stamp for i, stamp in stamps.items() if recorded.get(i) != stamp}
        if new:
            self.store.journal.append({"kind": "sources", "sources": new})

    def _stamps_of(self, rows: Rows) -> dict[str, Stamp]:
        """Stamps of files by id, where they have one."""
        catalog = self.catalog
        found = ((str(catalog.image_ids[row]), catalog.images.stamp(int(row))) for row in rows)
        return {image_id: stamp for image_id, stamp in found if stamp is not None}

    def blocks(self, block_size: int) -> Iterator[tuple[tuple[bool, int], Rows, Forward]]:
        """Yield (key, rows, model) for each block; the keys ascend."""
        for is_retry, rows in ((False, self.missing), (True, self.retried)):
            for start in range(0, len(rows), block_size):
                key = (is_retry, int(rows[start]))
                block = rows[start : start + block_size]
                # Before the files are read: one that changes meanwhile has another stamp then.
                self._stamps |= self._stamps_of(block)
                yield key, block, self.model

    def commit(self, block: Block) -> None:
        """Store a block as one segment, unless it holds nothing new."""
        start = time.perf_counter()
        ids = self.catalog.image_ids
        absent = [Absent(str(ids[f.row]), f.sha256, f.reason) for f in block.failures]
        # Images that fail as they did before are not recorded again: a repeated extraction of a
        # catalogue with broken files adds no segment.
        absent = [entry for entry in absent if self._recorded.get(entry.image_id) != entry]
        name = None
        row_ids = ids[block.rows].tolist()
        if len(block.rows) or absent:
            name = self.store.append(row_ids, block.sha256, block.embeddings, absent)
        cost = replace(block.cost, write_seconds=time.perf_counter() - start)
        if name is not None:
            run = self.environment | {"batch_size": self.model.size}
            stamps = {i: self._stamps.pop(i) for i in row_ids if i in self._stamps}
            self.store.journal.append(
                {"kind": "shard", "shard": name, **cost.to_json(), "run": run, "sources": stamps}
            )
        self.cost += cost


def find_current(
    catalog: Catalog, rows: Rows, stores: Sequence[FeatureStore], hashes: Hashes, advance: Advance
) -> NDArray[np.bool_]:
    """Whether each store has an embedding of each of `rows` made from its present bytes.

    Shape (n_stores, n_rows). The bytes of an image are read and hashed once, by `hashes`, and not
    at all if no store has it.
    """
    # Hashed bytes decide, not path, size or modification time: files are copied, touched and
    # replaced in place, and an embedding of other bytes would silently enter every later stage.
    ids = catalog.image_ids[rows].tolist()
    stored = [[known.get(image_id) for image_id in ids] for known in (s.known() for s in stores)]
    held = [i for i in range(len(ids)) if any(of_store[i] is not None for of_store in stored)]
    is_current = np.zeros((len(stores), len(ids)), bool)
    for i, sha256 in zip(held, hashes(catalog.images, rows[held]), strict=True):
        if sha256 is not None:
            is_current[:, i] = [of_store[i] == sha256 for of_store in stored]
            advance(int(is_current[:, i].sum()))
    return is_current


def shared_blocks(updates: Sequence[StoreUpdate], block_size: int) -> Iterator[BlockRequest]:
    """Yield the blocks of all updates; a block that several need is one request.

    Each store receives its own blocks in its own order, as if it were extracted alone.
    """
    # Each update's keys ascend, so the merge keeps its order; equal keys are blocks that start
    # at the same row. They are one request only if all their rows agree: two stores may lack
    # different rows from the same start.
    keyed = heapq.merge(*(update.blocks(block_size) for update in updates), key=itemgetter(0))
    for _, same_start in groupby(keyed, key=itemgetter(0)):
        requests: list[BlockRequest] = []
        for _, rows, model in same_start:
            for i, request in enumerate(requests):
                if np.array_equal(request.rows, rows):
                    requests[i] = BlockRequest(rows, (*request.models, model))
                    break
            else:
                requests.append(BlockRequest(rows, (model,)))
        yield from requests
