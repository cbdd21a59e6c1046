"""Very many tags or columns are counted before they are allocated, and rare tags left out."""

import json

import numpy as np
import pytest

from retailtag import memory
from retailtag.catalog.attributes import with_one_value
from retailtag.catalog.readers import read_catalog
from retailtag.errors import DataError
from retailtag.statistics.exclusive import attribute_columns

ROWS = ("images/0.jpg,red|shirt|shirt", "images/1.jpg,red|shirt", "images/2.jpg,blue|red")


@pytest.fixture
def free(monkeypatch):
    """Set the number of free bytes."""
    return lambda n: monkeypatch.setattr(memory, "free_bytes", lambda: n)


def test_labels_that_do_not_fit_are_refused_with_count_and_remedy(manifest, free, monkeypatch):
    monkeypatch.setattr("retailtag.catalog.manifest.CELL_BYTES", 0)
    rows = [f"images/{i}.jpg,red,Shirt no. {i}" for i in range(4)]
    path = manifest("path,tags,title", *rows)
    free(59)
    with pytest.raises(DataError) as error:
        read_catalog(path, attributes=["title"])
    assert f"{path}: the labels of 4 images and 5 tags (column title gives 4) need" in str(
        error.value
    )
    assert "--min-images 2 or more, or name fewer --attributes." in str(error.value)
    assert read_catalog(path, attributes=["title"], min_images=2).table.tags == ("red",)
    free(80)
    assert len(read_catalog(path, attributes=["title"]).table.tags) == 5


def test_tags_of_few_images_are_left_out_and_noted(manifest):
    path = manifest("path,tags", *ROWS)
    for least, tags in ((0, "blue red shirt"), (1, "blue red shirt"), (2, "red shirt"), (3, "red")):
        catalog = read_catalog(path, min_images=least)
        assert " ".join(catalog.table.tags) == tags
        whole = read_catalog(path).table
        kept = [whole.tags.index(tag) for tag in catalog.table.tags]
        np.testing.assert_array_equal(catalog.table.labels, whole.labels[:, kept])
        left_out = 3 - len(kept)
        assert len(catalog.notes) == bool(left_out)
        if left_out:
            expected = f"{left_out} of 3 tags left out, each of fewer than {least} images (blue"
            assert expected in catalog.notes[0]
    with pytest.raises(DataError, match="none of its 3 tags has 4 images; lower --min-images"):
        read_catalog(path, min_images=4)


def test_every_kind_of_column_counts_its_images(manifest):
    """Attributes, columns of 0 and 1, and unknown tags; unknown cells are no images."""
    rows = (
        "images/0.jpg,red,Men,1,1,",
        "images/1.jpg,blue,,0,-1,red",
        "images/2.jpg,red,Men,1,0,green",
        "images/3.jpg,-,Women,0,0,",
    )
    path = manifest("path,tags,gender,Belt,Hat,tags_unknown", *rows)
    how = {"attributes": ["gender"], "one_hot": ["Belt", "Hat"]}
    table = read_catalog(path, min_images=2, **how).table
    whole = read_catalog(path, **how).table
    assert table.tags == ("Belt", "gender:Men", "red")
    kept = [whole.tags.index(tag) for tag in table.tags]
    np.testing.assert_array_equal(table.labels, whole.labels[:, kept])


def test_records_with_a_key_each_are_refused_where_columns_do_not_fit(shop, free):
    lines = [{"file_name": f"images/{i}.jpg", "tags": "red", f"key-{i}": 1} for i in range(4)]
    path = shop / "shop.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    assert read_catalog(path).table.tags == ("red",)
    free(4 * 6 * 16)
    with pytest.raises(DataError, match="the cells of 4 rows and 6 columns need about"):
        read_catalog(path)


def test_a_wide_header_over_short_rows_is_refused(manifest, free):
    wide = ",".join(f"c{i}" for i in range(500))
    path = manifest(f"path,tags,{wide}", *["images/0.jpg,red"] * 20)
    free(20 * 502 * 16)
    with pytest.raises(DataError, match="the cells of 20 rows and 502 columns need about"):
        read_catalog(path)


def test_a_message_names_some_of_many_columns(manifest):
    path = manifest(",".join(f"c{i}" for i in range(500)))
    path.write_text(path.read_text() + ",".join("x" * 500) + "\n")
    with pytest.raises(DataError) as error:
        read_catalog(path)
    assert "and 480 more" in str(error.value)
    assert len(str(error.value)) < 500


def test_attributes_with_one_value_are_those_that_a_scan_per_attribute_finds():
    tags = ("a:1", "a:2", "b:1", "c:d:1", "c:d:2", "c:e", "red", "tags:x", "x")
    labels = np.random.default_rng(0).integers(-1, 2, (2, len(tags))).astype(np.int8)
    names = ["a", "b", "c", "c:d", "tags", "none"]
    expected = []
    for name in names:
        own = attribute_columns(tags, name)
        if len(own) > 1 and ((labels[:, own] == 1).sum(axis=1) <= 1).all():
            expected.append(name)
    assert expected
    assert with_one_value(tags, labels, names) == expected
