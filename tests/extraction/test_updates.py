"""Stores share blocks where they lack the same, and each gets its own order."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from retailtag.extraction.updates import StoreUpdate, shared_blocks

N = 40


def update(missing: set[int], unread: set[int]) -> StoreUpdate:
    """A store that lacks the rows `missing`, of which it could not read `unread` before."""
    ids = np.array([str(i) for i in range(N)])
    store = SimpleNamespace(absent=lambda: {str(i): None for i in unread})
    images = SimpleNamespace(stamp=lambda row: None)
    made = StoreUpdate(SimpleNamespace(image_ids=ids, images=images), store, object(), {})
    made.plan(np.arange(N), np.array([i not in missing for i in range(N)]))
    return made


rows = st.sets(st.integers(0, N - 1))


@given(st.lists(st.tuples(rows, rows), min_size=1, max_size=4), st.integers(1, 12))
def test_every_store_gets_its_own_blocks_in_its_own_order(wanted, n_rows):
    updates = [update(missing, missing & unread) for missing, unread in wanted]
    requests = list(shared_blocks(updates, n_rows))
    for one, (missing, unread) in zip(updates, wanted, strict=True):
        lists = (sorted(missing - unread), sorted(missing & unread))
        alone = [todo[i : i + n_rows] for todo in lists for i in range(0, len(todo), n_rows)]
        assert [w.rows.tolist() for w in requests if one.model in w.models] == alone


@given(rows, st.integers(1, 4), st.integers(1, 12), st.integers(0, 3))
def test_stores_that_lack_the_same_share_every_block(missing, n_stores, n_rows, n_done):
    """One of them is some blocks ahead, as after a kill."""
    ahead = set(sorted(missing)[n_done * n_rows :])
    updates = [update(missing, set()) for _ in range(n_stores)] + [update(ahead, set())]
    requests = list(shared_blocks(updates, n_rows))
    assert len(requests) == -(-len(missing) // n_rows)
    for piece in requests[n_done:]:
        assert piece.models == tuple(one.model for one in updates)
