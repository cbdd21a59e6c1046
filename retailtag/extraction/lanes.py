"""What each store of an extraction still lacks, which blocks they share, and how one is stored."""

from __future__ import annotations

import heapq
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from operator import itemgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retailtag.catalog.catalog import Catalog
from retailtag.extraction.costs import Cost
from retailtag.extraction.embed import Block, Work
from retailtag.extraction.forward import Forward
from retailtag.images.loader import hash_images
from retailtag.progress import Advance
from retailtag.store import Absent, FeatureStore

Rows = NDArray[np.intp]


@dataclass(eq=False)
class Lane:
    """A backbone and the store that it fills.

    Parameters
    ----------
    catalog : Catalog
    store : FeatureStore
        Open for writing.
    model : Forward
    environment : dict
        What the journal records of the run.
    first, again : ndarray of intp
        Rows to compute: new or changed ones, and those that could not be read the last time.
    cost : Cost
        Of the blocks stored so far.
    """

    catalog: Catalog
    store: FeatureStore
    model: Forward
    environment: dict[str, Any]
    first: Rows = field(default_factory=lambda: np.empty(0, np.intp))
    again: Rows = field(default_factory=lambda: np.empty(0, np.intp))
    cost: Cost = field(default_factory=Cost)

    def __post_init__(self) -> None:
        self._recorded: dict[str, Absent] = {}

    def plan(self, rows: Rows, is_current: NDArray[np.bool_]) -> None:
        """Put on the lists those of `rows` (n,) that are not current.

        What could not be read before has blocks of its own: so a run that continues a killed one
        forms the blocks that a single run would have formed.
        """
        self._recorded = self.store.absent()
        ids = self.catalog.image_ids[rows].tolist()
        was_absent = np.array([image_id in self._recorded for image_id in ids], bool)
        self.first, self.again = rows[~is_current & ~was_absent], rows[~is_current & was_absent]

    def blocks(self, n_rows: int) -> Iterator[tuple[tuple[bool, int], Rows, Forward]]:
        """Blocks of `n_rows`, each with the model and a key that grows from one to the next."""
        for is_again, todo in ((False, self.first), (True, self.again)):
            for at in range(0, len(todo), n_rows):
                yield (is_again, int(todo[at])), todo[at : at + n_rows], self.model

    def commit(self, block: Block) -> Cost:
        """Store a block as one segment, unless there is nothing new to say of its images."""
        start = time.perf_counter()
        ids = self.catalog.image_ids
        absent = [Absent(str(ids[f.row]), f.sha256, f.reason) for f in block.failures]
        absent = [entry for entry in absent if self._recorded.get(entry.image_id) != entry]
        name = None
        if len(block.rows) or absent:
            embeddings = block.embeddings
            name = self.store.append(ids[block.rows].tolist(), block.sha256, embeddings, absent)
        cost = replace(block.cost, write_seconds=time.perf_counter() - start)
        if name is not None:
            run = self.environment | {"batch_size": self.model.size}
            self.store.journal.append(
                {"kind": "shard", "shard": name, **cost.to_json(), "run": run}
            )
        self.cost += cost
        return cost


def current(
    catalog: Catalog, rows: Rows, stores: Sequence[FeatureStore], workers: int, advance: Advance
) -> NDArray[np.bool_]:
    """Whether each store has an embedding of each of `rows` made from its bytes of now.

    Returns
    -------
    ndarray of bool, shape (n_stores, n)
        The bytes of an image are read and hashed once, and not at all if no store has it.
    """
    ids = catalog.image_ids[rows].tolist()
    stored = [[known.get(image_id) for image_id in ids] for known in (s.known() for s in stores)]
    held = [i for i in range(len(ids)) if any(hashes[i] is not None for hashes in stored)]
    result = np.zeros((len(stores), len(ids)), bool)
    hashed = hash_images(catalog.images, rows[held], workers=workers)
    for i, sha256 in zip(held, hashed, strict=True):
        if sha256 is not None:
            result[:, i] = [hashes[i] == sha256 for hashes in stored]
            advance(int(result[:, i].sum()))
    return result


def shared_work(lanes: Sequence[Lane], n_rows: int) -> Iterator[Work]:
    """Yield the blocks of all lanes in an order that is each one's own, equal ones together.

    Parameters
    ----------
    lanes : sequence of Lane
        As planned.
    n_rows : int
        Rows of a block.
    """
    keyed = heapq.merge(*(lane.blocks(n_rows) for lane in lanes), key=itemgetter(0))
    for _, same_start in groupby(keyed, key=itemgetter(0)):
        pieces: list[Work] = []
        for _, rows, model in same_start:
            for i, piece in enumerate(pieces):
                if np.array_equal(piece.rows, rows):
                    pieces[i] = Work(rows, (*piece.models, model))
                    break
            else:
                pieces.append(Work(rows, (model,)))
        yield from pieces
