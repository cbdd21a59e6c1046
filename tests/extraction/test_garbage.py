"""Which images several catalogues use, and what a plan frees."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import pytest

from retailtag.errors import UnreadableImage
from retailtag.extraction.garbage import find_usage, plan_collection
from retailtag.store import FeatureSpec, FeatureStore


class Bytes:
    """Image i is its content; None cannot be read."""

    def __init__(self, *contents):
        self._contents = contents

    def stamp(self, index: int) -> None:
        """No file holds it."""

    def read(self, index):
        if self._contents[index] is None:
            raise UnreadableImage("no such file")
        return self._contents[index]

    def name(self, index):
        return str(index)


def sha256(content):
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def catalogs(tiny):
    """Two of three images each: b has two versions, c cannot be read in the second."""

    def of(ids, *contents):
        rows = np.arange(len(ids))
        table = replace(tiny.table, labels=tiny.table.labels[rows])
        columns = {name: getattr(tiny, name)[rows] for name in ("split", "group", "title")}
        return replace(
            tiny, image_ids=np.array(ids), table=table, images=Bytes(*contents), **columns
        )

    return [of(["a", "b"], b"a", b"b1"), of(["b", "c"], b"b2", None)]


def test_an_image_is_used_by_id_and_bytes_and_by_id_where_the_file_is_not_at_hand(catalogs):
    usage = find_usage(catalogs)
    assert usage.covers("a", sha256(b"a"))
    assert not usage.covers("a", sha256(b"other"))
    assert usage.covers("b", sha256(b"b1"))
    assert usage.covers("b", sha256(b"b2"))
    assert not usage.covers("b", sha256(b"a"))
    assert usage.covers("c", sha256(b"whatever"))
    assert usage.covers("c", None)
    assert usage.covers("a", None)  # absent without bytes, and still in the catalogue
    assert not usage.covers("d", None)
    assert not usage.covers("d", sha256(b"a"))


def test_without_catalogues_only_what_is_named_goes(catalogs, tmp_path):
    spec = FeatureSpec("demo:cnn", "ab" * 32, "{}", "avg", 2, "{}")
    stores = []
    for output in ("avg", "cls"):
        store = FeatureStore.create_or_open(tmp_path, replace(spec, output=output))
        store.append(["a", "d"], [sha256(b"a")] * 2, np.ones((2, 2), np.float32))
        stores.append(store)
    plan = plan_collection(tmp_path, [], stores[:1])
    assert (plan.waste, plan.n_bytes) == ([], stores[0].nbytes)
    plan = plan_collection(tmp_path, catalogs, stores[:1])
    ((kept, waste),) = plan.waste
    assert (kept.path, waste.n_unused, bool(plan)) == (stores[1].path, 1, True)
    assert stores[0].n_rows == 2  # planning changes nothing
    freed = plan.apply()
    assert freed > 0
    assert list(FeatureStore.open(stores[1].path).known()) == ["a"]
    assert not stores[0].path.exists()
    assert not plan_collection(tmp_path, catalogs)
