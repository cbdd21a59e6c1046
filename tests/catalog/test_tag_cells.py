"""Tags in any notation are read as the same tags, or refused with the option that decides."""

import csv
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from retailtag.catalog.readers import read_catalog, write_catalogue
from retailtag.catalog.tag_cells import as_list, better_separator, holds_vectors, parse_cell
from retailtag.errors import BadCatalogue, DataError

TAGS = [["red", "Jeans, skinny"], ["blue"], ["blue", "Levi's", "Été"], []]
UNKNOWN = [["blue"], [], ["red"], ["Levi's", "red"]]

LISTS = {
    "python": repr,
    "json": json.dumps,
    "json, plain": lambda tags: json.dumps(tags, ensure_ascii=False),
    "tuple": lambda tags: repr(tuple(tags)),
    "set": lambda tags: repr(set(tags)),
    "numpy": lambda tags: str(np.array(tags, dtype=object)),
    "numpy, repr": lambda tags: repr(np.array(tags, dtype=object)),
    "numpy, wide": lambda tags: str(np.array(tags)) if tags else "[]",
    "numpy 2": lambda tags: "[" + ", ".join(f"np.str_({t!r})" for t in tags) + "]",
}


def write(folder, kind, tags, unknown):
    """A manifest of four images with text in both columns of tags."""
    path = folder / f"in.{kind}"
    rows = [
        {"path": f"images/{i}.jpg", "tags": t, "tags_unknown": u}
        for i, (t, u) in enumerate(zip(tags, unknown, strict=True))
    ]
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif kind == "jsonl":
        path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    else:
        with path.open("w", encoding="utf-8", newline="") as handle:
            writer = csv.DictWriter(handle, list(rows[0]), delimiter=",\t"[kind == "tsv"])
            writer.writeheader()
            writer.writerows(rows)
    return path


def labels(catalog):
    return catalog.table.tags, catalog.table.labels.tolist()


@pytest.fixture
def expected(shop):
    """Labels of the same tags as real lists."""
    return labels(read_catalog(write(shop, "jsonl", TAGS, UNKNOWN)))


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet"])
@pytest.mark.parametrize("notation", LISTS.values(), ids=LISTS.keys())
def test_lists_as_text_are_read_as_lists(shop, expected, notation, kind):
    path = write(shop, kind, [notation(t) for t in TAGS], [notation(u) for u in UNKNOWN])
    assert labels(read_catalog(path)) == expected


@pytest.mark.parametrize(
    ("text", "items"),
    [
        (r'["a\"b", "\u00e9", "\ud83d\ude00"]', ('a"b', "é", "😀")),
        (r"['a\'b', 'c\\d', '\x41\u00e9\d']", ("a'b", "c\\d", r"Aé\d")),
        ("['a'\n 'b  c']", ("a", "b  c")),
        ("('a',)", ("a",)),
        ("[1, 2.0, -3]", ("1", "2", "-3")),
        ("[1 22]", ("1", "22")),
        ("[]", ()),
        ("array([], dtype=object)", ()),
        ("[brand]", "[brand]"),
        ("(red)", "(red)"),
        ("'red'", "'red'"),
        ("[", "["),
    ],
)
def test_only_unmistakable_lists_are_lists(text, items):
    assert as_list(text) == (items, "")


@pytest.mark.parametrize(
    "text",
    ["['a' 'b' ... 'z']", "['a', 'b", "[red, blue]", "{red,blue}", '{"a": 1}', "[['a'], ['b']]"],
)
def test_a_broken_list_is_refused_by_row(manifest, text):
    path = manifest("path\ttags", "images/0.jpg\tred", f"images/1.jpg\t{text}", name="a.tsv")
    with pytest.raises(BadCatalogue, match=r"row 3: tags: looks like a list but cannot be read"):
        read_catalog(path)


@pytest.mark.parametrize("separator", [",", ";", " ", ", ", " ; "])
@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet"])
def test_another_separator_is_named_and_then_followed(shop, separator, kind):
    texts = [separator.join(t) for t in (["a", "b"], ["b", "c", "d"], ["d", "a"], ["c"])]
    path = write(shop, kind, texts, ["", "", "", separator.join(["a", "b"])])
    option = separator.strip() or separator
    with pytest.raises(DataError) as said:
        read_catalog(path)
    assert "no cell of column tags holds the separator '|'" in str(said.value)
    assert f"did you mean --tag-separator '{option}': 4 tags instead of 4?" in str(said.value)
    catalog = read_catalog(path, tag_separator=option)
    assert catalog.table.tags == ("a", "b", "c", "d")
    assert catalog.table.labels.tolist()[3] == [-1, -1, 1, 0]
    assert len(read_catalog(path, tag_separator="|").table.tags) == 4


def test_unknown_tags_and_attributes_are_judged_too(manifest):
    rows = [f"images/{i}.jpg,{t},\"{u}\",\"{s}\"" for i, (t, u, s) in enumerate(
        [("a|b", "", "S, M"), ("a|c", "b, c", "M, L"), ("c", "a, b", "L, S"), ("b", "", "S")]
    )]  # fmt: skip
    path = manifest("path,tags,tags_unknown,size", *rows)
    with pytest.raises(DataError, match=r"column tags_unknown holds .* --tag-separator ','"):
        read_catalog(path)
    path = manifest("path,tags,other,size", *rows)
    assert read_catalog(path).table.tags == ("a", "b", "c")
    with pytest.raises(DataError, match=r"column size holds .* --tag-separator ','"):
        read_catalog(path, attributes=["size"])


@pytest.mark.parametrize(
    "cells",
    [
        ["Jeans, skinny", "Shirt, slim", "Dress, long"],  # nothing recurs
        ["Jeans, skinny", "Jeans, wide", "Shirt", "Dress", "Belt"],  # a few of many
        ["a, b|c", "a, b", "b, c", "c, a"],  # the separator is there
        ["Casual Shoes", "Sports Shoes", "Formal Shirts", "Flip Flops"],
        [("Jeans, skinny",), ("Jeans, wide",), ("Shirt, wide",)],  # lists
        ["-", "", "nan"],
    ],
)
def test_commas_and_spaces_of_tags_stay(cells):
    assert better_separator(cells, "|") is None


def test_few_cells_that_split_into_tags_known_alone_are_enough():
    alone = list("abcdefgh")
    assert better_separator([*alone, "a,b", "c,d", "e,f,g"], "|") == (",", 8, 11)


def test_a_separator_that_no_cell_holds_is_no_answer(manifest):
    path = manifest("path;tags", 'images/0.jpg,"a,b"', name="x.txt").with_name("catalogue.csv")
    path.write_text('path,tags\nimages/0.jpg,"a,b"\nimages/1.jpg,"b,c"\nimages/2.jpg,"c,a"\n')
    with pytest.raises(DataError, match="separator ';'; did you mean --tag-separator ','"):
        read_catalog(path, tag_separator=";")


@pytest.mark.parametrize("word", ["nan", "NaN", "<NA>", "null"])
def test_the_text_nan_is_no_tag(manifest, word):
    path = manifest("path,tags", f"images/0.jpg,{word}", f"images/1.jpg,red|{word}")
    with pytest.raises(BadCatalogue) as said:
        read_catalog(path)
    assert "row 2: has empty tags or nan" in str(said.value)
    assert f"row 3: tags: holds {word}, which is no tag" in str(said.value)
    lines = [f"images/0.jpg,{word},S,{word}", f"images/1.jpg,red,S,{word}"]
    path = manifest("path,colour,size,group", *lines)
    catalog = read_catalog(path, attributes="colour,size")
    assert labels(catalog) == (("colour:red", "size:S"), [[-1, 1], [1, 1]])
    assert catalog.group.tolist() == catalog.image_ids.tolist()


def test_none_is_a_value(manifest):
    path = manifest("path,pattern", "images/0.jpg,None", "images/1.jpg,Striped")
    assert read_catalog(path, attributes=["pattern"]).table.tags == (
        "pattern:None",
        "pattern:Striped",
    )


def test_vectors_of_0_and_1_are_not_lists_of_tags(shop):
    vectors = [[0, 1, 0], [1, 1, 0], [0, 0, 0], [1, 0, 1]]
    assert not holds_vectors([("0",), ("0", "1"), ("1",), ""])
    assert not holds_vectors([("0", "0"), "0"])
    assert not holds_vectors([("0", "0", "2")])
    for cells in (vectors, [str(v) for v in vectors], [str(np.array(v)) for v in vectors]):
        path = write(shop, "jsonl", cells, [""] * 4)
        with pytest.raises(DataError, match="column tags holds lists of 0 and 1"):
            read_catalog(path)


def test_what_would_be_misread_is_written_as_lists(shop):
    tags = [["Jeans, skinny"], ["Jeans, wide"], ["Shirt, wide"], ["Shirt, skinny"]]
    catalog = read_catalog(write(shop, "jsonl", tags, [[]] * 4))
    write_catalogue(catalog, shop / "out.csv")
    assert '"[""Jeans, skinny""]"' in (shop / "out.csv").read_text()
    assert read_catalog(shop / "out.csv").digest == catalog.digest


def test_other_separators_are_stripped_of_space_and_empty_pieces_named():
    assert parse_cell(" a ;b ", ";") == (["a", "b"], "")
    assert parse_cell("a  b", " ") == (["a", "b"], "")
    assert parse_cell("a;;b", ";") == ([], "holds an empty tag")
    assert parse_cell("a|b;c", ";") == ([], "tag 'a|b' has the separator | in it")


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        "[" * 50_000 + "]" * 50_000,
        "['a', " * 20_000 + "]" * 20_000,
        "array(" + ",dtype=" * 15_000 + "x",
        "array(['a']," + " " * 100_000 + "dtype=",
        '["' + "\\" * 100_000,
        "['" + "\\'" * 50_000 + "]",
        "[" + "1" * 100_000 + "x]",
        "[" + "-" * 100_000 + "]",
        "[np.str_('a'" + ")" * 100_000 + "]",
    ],
)
def test_a_long_cell_that_is_no_list_is_said_to_be_none_at_once(text):
    cell, fault = as_list(text)
    assert cell == text
    assert parse_cell(text, "|") == ([] if fault else [text], fault)
