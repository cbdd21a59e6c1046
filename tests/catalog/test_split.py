"""A catalogue is split by numbers or fractions, and written where that is asked for."""

import numpy as np
import pytest

from retailtag import api
from retailtag.catalog.catalog import Catalog
from retailtag.catalog.readers import read_catalog
from retailtag.catalog.split import split
from retailtag.catalog.table import TagTable
from retailtag.errors import UsageError


@pytest.fixture
def catalog(tmp_path):
    rng = np.random.default_rng(0)
    labels = (rng.random((400, 12)) < 0.1).astype(np.int8)
    groups = np.array([f"p{i}" for i in rng.integers(0, 300, 400)])
    ids = np.array([f"{i:05d}" for i in range(400)])
    train = np.full(400, "train")
    table = TagTable.build([f"t{i}" for i in range(12)], labels, train == "train")
    return Catalog(tmp_path, ids, train, groups, np.full(400, ""), table, images=None)


def test_amounts_are_numbers_or_fractions(catalog):
    by_number = split(catalog, test=40, val=20, seed=3)
    by_share = split(catalog, test=0.1, val=0.05, seed=3)
    assert (by_number.catalog.split == by_share.catalog.split).all()
    assert by_number.sizes == {"train": 340, "val": 20, "test": 40}
    assert by_number.catalog.table.train_count.sum() < catalog.table.train_count.sum()
    assert by_number.unsatisfied == ()
    assert (split(catalog, test=40, seed=4).catalog.split != by_number.catalog.split).any()


def test_a_path_is_read_and_the_split_is_written(manifest, shop):
    rows = [f"images/{i}.jpg,{'red' if i % 2 else 'blue'},holdout" for i in range(4)]
    out = shop / "split.csv"
    found = split(str(manifest("path,tags,split", *rows)), test=2, out=str(out))
    assert found.out == out
    assert read_catalog(out).digest == found.catalog.digest
    with pytest.raises(UsageError, match="exists"):
        split(found.catalog, test=1, out=out)
    assert split(found.catalog, test=1, out=out, force=True).sizes["test"] == 1
    with pytest.raises(UsageError, match="CSV"):
        split(found.catalog, test=1, out=shop / "split.parquet")


def test_the_api_finds_products_and_gives_what_was_found(picture):
    records = [
        {"image": picture(40 * (i // 2)), "image_id": f"p{i // 2}_{i % 2}", "tags": f"t{i // 4}"}
        for i in range(8)
    ]
    by_name = api.split(records, test=2, group_by="id:^[^_]+")
    assert np.unique(by_name.catalog.group).tolist() == ["p0", "p1", "p2", "p3"]
    similar = api.split(records, test=2, group_by="similar", workers=1)
    assert similar.product_sizes == (4, 2)
    assert similar.to_json()["similar"] == {
        "images": 8,
        "clusters": 4,
        "by_tags": False,
        "not_compared": 0,
    }
    with pytest.raises(UsageError, match="no column brand"):
        api.split(by_name.catalog, test=2, group_by="brand")
    for ways, words in ((("",), "names nothing"), (("a,similar",), "repeat the option")):
        with pytest.raises(UsageError, match=words):
            api.split(records, test=2, group_by=ways)


@pytest.mark.parametrize(
    ("test", "val"), [(0, 0), (400, 0), (1.0, 0), (-1, 0), (0.5, 0.5), (10, -0.1)]
)
def test_impossible_amounts_are_refused(catalog, test, val):
    with pytest.raises(UsageError):
        split(catalog, test=test, val=val)
