"""Columns of 0 and 1 give one tag each, whatever they are written as; other columns do not."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from retailtag.catalog.indicators import is_index
from retailtag.catalog.readers import read_catalog, write_catalogue
from retailtag.errors import BadCatalogue, DataError, UsageError

BELT, SCARF = (1, 0, -1, 1), (0, 0, 1, -1)
EXPECTED = (("Belt", "Scarf"), [[1, 0], [0, 0], [-1, 1], [1, -1]])
WORDS = {
    "integers": {1: "1", 0: "0", -1: "-1"},
    "floats": {1: "1.0", 0: "0.0", -1: "-1.0"},
    "booleans": {1: "True", 0: "False", -1: ""},
    "lower case": {1: "true", 0: "false", -1: "nan"},
    "words": {1: "yes", 0: "no", -1: ""},
    "capitals": {1: "YES", 0: "No", -1: "-1"},
}


def facts(catalog):
    return catalog.table.tags, catalog.table.labels.tolist()


def rows(words, more=("", "", "", "")):
    cells = zip(BELT, SCARF, more, strict=True)
    return [f"images/{i}.jpg,{words[b]},{words[s]}{m}" for i, (b, s, m) in enumerate(cells)]


@pytest.mark.parametrize("words", WORDS.values(), ids=WORDS.keys())
@pytest.mark.parametrize(
    "how", [{}, {"one_hot": ["Belt", "S*"]}, {"attributes": ["Belt", "Scarf"]}]
)
def test_columns_of_0_and_1_are_a_tag_each(manifest, words, how):
    catalog = read_catalog(manifest("path,Belt,Scarf", *rows(words)), **how)
    assert facts(catalog) == EXPECTED
    assert bool(catalog.notes) == ("one_hot" not in how)


@pytest.mark.parametrize("values", [{1: 1, 0: 0, -1: None}, {1: True, 0: False, -1: None},
                                    {1: 1.0, 0: 0.0, -1: -1.0}])  # fmt: skip
def test_real_numbers_and_booleans_too(shop, values):
    records = [
        {"path": f"images/{i}.jpg", "Belt": values[b], "Scarf": values[s]}
        for i, (b, s) in enumerate(zip(BELT, SCARF, strict=True))
    ]
    (shop / "a.jsonl").write_text("\n".join(map(json.dumps, records)))
    pq.write_table(pa.Table.from_pylist(records), shop / "a.parquet")
    for name in ("a.jsonl", "a.parquet"):
        assert facts(read_catalog(shop / name)) == EXPECTED


def test_other_columns_are_left_out_and_said(manifest):
    words = WORDS["integers"]
    header = "path,Belt,Scarf,Unnamed: 0,width"
    path = manifest(header, *rows(words, (",0,64", ",1,32", ",2,64", ",3,64")))
    catalog = read_catalog(path)
    assert facts(catalog) == EXPECTED
    assert "left out: 'Unnamed: 0' (an index of pandas), width" in catalog.notes[0]
    assert facts(read_catalog(path, one_hot=["Belt", "Scarf"])) == EXPECTED
    with pytest.raises(DataError, match=r"and width holds '64' \(row 2\); leave them out"):
        read_catalog(path, one_hot=["*"])
    with pytest.raises(UsageError, match=r"--one-hot Hat: .* has no such column"):
        read_catalog(path, one_hot=["Hat"])


def test_a_matrix_beside_tags_is_read_only_by_option(manifest):
    lines = rows(WORDS["integers"], (",a", ",b", ",a|b", ",-"))
    path = manifest("path,Belt,Scarf,tags", *lines)
    assert read_catalog(path).table.tags == ("a", "b")
    catalog = read_catalog(path, one_hot=["Scarf"])
    assert facts(catalog) == (("Scarf", "a", "b"), [[0, 1, 0], [0, 0, 1], [1, 1, 1], [-1, 0, 0]])
    write_catalogue(catalog, path.with_name("out.csv"))
    assert read_catalog(path.with_name("out.csv")).digest == catalog.digest


def test_a_contradiction_of_tags_and_column_is_refused(manifest):
    path = manifest("path,Belt,tags", "images/0.jpg,0,Belt", "images/1.jpg,1,Belt|a")
    with pytest.raises(BadCatalogue, match=r"row 2: tag 'Belt' is among the tags, and its own"):
        read_catalog(path, one_hot=["Belt"])


def test_an_attribute_with_more_values_stays_one(manifest):
    path = manifest("path,pockets", *[f"images/{i}.jpg,{i}" for i in range(4)])
    assert read_catalog(path, attributes=["pockets"]).table.tags == tuple(
        f"pockets:{i}" for i in range(4)
    )
    with pytest.raises(DataError, match="has no column tags"):
        read_catalog(
            manifest("path,pockets,price", *[f"images/{i}.jpg,{i + 2},9" for i in range(4)])
        )


def test_a_typing_error_does_not_drop_a_tag(manifest):
    lines = ["images/0.jpg,1,1", "images/1.jpg,0,2", "images/2.jpg,1,0", "images/3.jpg,0,0"]
    path = manifest("path,Belt,Scarf", *lines)
    with pytest.raises(DataError, match=r"Scarf holds '2' \(row 3\); fix it, or name .* --one-hot"):
        read_catalog(path)
    assert read_catalog(path, one_hot=["Belt"]).table.tags == ("Belt",)


def test_names_that_no_tag_can_have_are_refused(manifest):
    path = manifest("path,a|b", "images/0.jpg,1", "images/1.jpg,0")
    with pytest.raises(DataError, match="its name cannot be a tag's"):
        read_catalog(path)


def test_names_of_pandas_indexes():
    assert all(map(is_index, ("Unnamed: 0", "Unnamed: 0.1", "index", "__index_level_0__", "")))
    assert not any(map(is_index, ("indexed", "red", "Unnamed", "level")))


LONG = (
    "image_id,path,tags,split,group",
    "x,images/0.jpg,red,train,p1",
    "y,images/1.jpg,blue,test,p2",
    "x,images/0.jpg,shirt,train,p1",
    "y,images/1.jpg,blue,test,p2",
    "x,images/0.jpg,\"['long, wide']\",train,p1",
    "z,images/2.jpg,-,test,p2",
)


def test_one_row_per_image_and_tag_is_read_as_the_union(manifest):
    catalog = read_catalog(manifest(*LONG))
    assert catalog.image_ids.tolist() == ["x", "y", "z"]
    assert catalog.group.tolist() == ["p1", "p2", "p2"]
    assert facts(catalog) == (
        ("blue", "long, wide", "red", "shirt"),
        [[0, 1, 1, 1], [1, 0, 0, 0], [0, 0, 0, 0]],
    )
    assert "6 rows hold one tag each" in catalog.notes[0]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("x,images/0.jpg,shirt,train", "x,images/0.jpg,shirt,test"),  # rows disagree
        ("shirt", "shirt|wide"),  # not one tag a row
    ],
)
def test_repeated_rows_of_another_kind_are_refused(manifest, old, new):
    with pytest.raises(BadCatalogue, match="image id 'x' repeats that of row 2"):
        read_catalog(manifest(*(line.replace(old, new) for line in LONG)))


def test_repeated_rows_with_several_tags_each_are_not_joined(manifest):
    """In any notation: joined, "red, blue" would silently be one tag."""
    pairs = ("red, blue", "blue, green", "green, red")
    lines = [f'images/{i}.jpg,"{pairs[(i + k) % 3]}"' for i in range(4) for k in range(2)]
    with pytest.raises(DataError, match="did you mean --tag-separator ','"):
        read_catalog(manifest("path,tags", *lines))
    with pytest.raises(BadCatalogue, match=r"image id .* repeats that of row 2"):
        read_catalog(manifest("path,tags", *lines), tag_separator=",")
    kept = read_catalog(manifest("path,tags", *lines), tag_separator="|")
    assert set(kept.table.tags) == set(pairs)


def test_a_single_repeated_row_is_an_oversight(manifest):
    lines = [f"images/{i}.jpg,a" for i in range(4)]
    with pytest.raises(BadCatalogue, match=r"row 6: image id .* repeats that of row 2"):
        read_catalog(manifest("path,tags", *lines, "images/0.jpg,b"))


def test_faults_of_a_joined_row_keep_their_number(manifest):
    lines = (*LONG[:2], "w,images/9.jpg,red,train,p1", *LONG[2:-1], "too,few")
    with pytest.raises(BadCatalogue) as said:
        read_catalog(manifest(*lines))
    assert [line.partition(":")[0] for line in said.value.problems] == ["row 3", "row 8"]
