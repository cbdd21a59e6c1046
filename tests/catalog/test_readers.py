"""Every form of catalogue is read alike, and every bad row is told at once."""

import json
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from retailtag.catalog.readers import read_catalog, write_catalogue
from retailtag.catalog.tag_cells import EMPTY_WORDS
from retailtag.errors import BadCatalogue, DataError, UsageError

ROWS = (
    "path,tags,split,group,title,tags_unknown",
    "images/0.jpg,red|shirt,train,p1,A red shirt,",
    'images/1.jpg,blue|shirt,train,p1,"A blue, long shirt",red',
    "images/2.jpg,-,val,,,",
    "images/3.jpg,Été,test,,,blue|red",
)


def facts(catalog):
    return (
        catalog.image_ids.tolist(),
        catalog.split.tolist(),
        catalog.group.tolist(),
        catalog.title.tolist(),
        catalog.table.tags,
        catalog.table.labels.tolist(),
    )


def test_csv_gives_ids_tags_unknowns_and_defaults(manifest):
    catalog = read_catalog(manifest(*ROWS))
    assert catalog.table.tags == ("blue", "red", "shirt", "Été")
    assert catalog.table.labels.tolist() == [
        [0, 1, 1, 0],
        [1, -1, 1, 0],
        [0, 0, 0, 0],
        [-1, -1, 0, 1],
    ]
    assert catalog.image_ids[0] == "images/0"
    assert catalog.group.tolist() == ["p1", "p1", "images/2", "images/3"]
    assert catalog.title[1] == "A blue, long shirt"
    assert catalog.table.train_count.tolist() == [1, 1, 2, 0]


def test_everything_is_train_without_a_split_column(manifest):
    catalog = read_catalog(manifest("path,tags", "images/0.jpg,a"))
    assert catalog.split.tolist() == ["train"]


def test_a_folder_stands_for_its_manifest(manifest, shop):
    assert facts(read_catalog(manifest(*ROWS))) == facts(read_catalog(shop))


@pytest.mark.parametrize("as_list", [True, False])
def test_json_lines_and_parquet_equal_csv(manifest, shop, as_list):
    expected = facts(read_catalog(manifest(*ROWS)))
    header = ROWS[0].split(",")
    cells = [
        ["images/0.jpg", "red|shirt", "train", "p1", "A red shirt", ""],
        ["images/1.jpg", "blue|shirt", "train", "p1", "A blue, long shirt", "red"],
        ["images/2.jpg", "-", "val", "", "", ""],
        ["images/3.jpg", "Été", "test", "", "", "blue|red"],
    ]
    records = [dict(zip(header, row, strict=True)) for row in cells]
    if as_list:
        for record in records:
            for name in ("tags", "tags_unknown"):
                text = record[name]
                record[name] = text.split("|") if text not in ("", "-") else []
    lines = shop / "catalogue.jsonl"
    lines.write_text("\n".join(json.dumps(r) for r in records), encoding="utf-8")
    pq.write_table(pa.Table.from_pylist(records), shop / "catalogue.parquet")
    assert facts(read_catalog(lines)) == expected
    assert facts(read_catalog(shop / "catalogue.parquet")) == expected


def test_attributes_become_namespaced_tags_and_empty_means_unknown(manifest):
    path = manifest(
        "path,gender,articleType",
        "images/0.jpg,Men,Shirts",
        "images/1.jpg,,Shirts|Tops",
        "images/2.jpg,-,Tops",
    )
    catalog = read_catalog(path, attributes=["gender", "articleType"])
    assert catalog.table.tags == ("articleType:Shirts", "articleType:Tops", "gender:Men")
    assert catalog.table.labels.tolist() == [[1, 0, 1], [1, 1, -1], [0, 1, 0]]
    with pytest.raises(UsageError, match="colour"):
        read_catalog(path, attributes=["colour"])


def test_folder_per_class_with_and_without_splits(tmp_path, picture):
    for place in ("red/0.jpg", "red/deep/1.PNG", "blue/0.jpg", "blue/.hidden.jpg", "blue/note.txt"):
        for root in ("flat", "split/train", "split/test"):
            file = tmp_path / root / place
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(picture())
    flat = read_catalog(tmp_path / "flat")
    assert flat.image_ids.tolist() == ["blue/0", "red/0", "red/deep/1"]
    assert flat.table.labels.tolist() == [[1, 0], [0, 1], [0, 1]]
    split = read_catalog(tmp_path / "split")
    assert split.table.tags == ("blue", "red")
    assert split.split.tolist() == ["test"] * 3 + ["train"] * 3


def hugging_face(path, picture, n, labels, row_group=2, name="{}.jpg"):
    """Write Parquet as `datasets` does: image structs, class labels as numbers, a note."""
    features = {
        "image": {"_type": "Image"},
        "tags": {"feature": {"names": ["red", "blue"], "_type": "ClassLabel"}, "_type": "Sequence"},
    }
    table = pa.table(
        {
            "image": [{"bytes": picture(30 * i), "path": name.format(i)} for i in range(n)],
            "tags": labels,
        }
    )
    note = {"huggingface": json.dumps({"info": {"features": features}})}
    pq.write_table(table.replace_schema_metadata(note), path, row_group_size=row_group)


def test_hugging_face_parquet_with_bytes_and_class_names(tmp_path, picture):
    hugging_face(tmp_path / "data.parquet", picture, 5, [[0], [1], [0, 1], [], [1]])
    catalog = read_catalog(tmp_path / "data.parquet")
    assert catalog.table.tags == ("blue", "red")
    assert catalog.table.labels.tolist() == [[0, 1], [1, 0], [1, 1], [0, 0], [1, 0]]
    assert catalog.image_ids.tolist() == list("01234")
    assert [catalog.images.read(i) for i in (4, 0, 3)] == [picture(120), picture(0), picture(90)]


def test_a_downloaded_dataset_keeps_its_shards_in_data(tmp_path, picture):
    (tmp_path / "data").mkdir()
    hugging_face(tmp_path / "data/train-00000-of-00001.parquet", picture, 2, [[0], [1]])
    hugging_face(tmp_path / "data/validation-00000-of-00001.parquet", picture, 1, [[0]], name="v{}")
    catalog = read_catalog(tmp_path)
    assert catalog.split.tolist() == ["train", "train", "val"]
    write_catalogue(catalog, tmp_path / "out" / "s.csv")
    again = read_catalog(tmp_path / "out" / "s.csv", images=tmp_path)
    assert again.digest == catalog.digest
    assert [again.images.read(i) for i in range(3)] == [picture(0), picture(30), picture(0)]


def test_stored_names_that_repeat_give_way_to_row_numbers(tmp_path, picture):
    hugging_face(tmp_path / "data.parquet", picture, 3, [[0], [1], []], name="same.jpg")
    catalog = read_catalog(tmp_path / "data.parquet")
    assert catalog.image_ids.tolist() == [f"row-{i:09d}" for i in (1, 2, 3)]
    write_catalogue(catalog, tmp_path / "s.csv")
    again = read_catalog(tmp_path / "s.csv", images=tmp_path / "data.parquet")
    assert again.images.read(2) == picture(60)


def test_a_path_of_several_parquet_rows_serves_none(manifest, tmp_path, picture):
    table = {"path": ["a.jpg", "a.jpg"], "image": [picture(1), picture(2)], "tags": ["x", "y"]}
    pq.write_table(pa.table(table), tmp_path / "x.parquet")
    with pytest.raises(BadCatalogue, match=r"a\.jpg is stored in several rows"):
        read_catalog(manifest("path,tags", "a.jpg,x"), images=tmp_path / "x.parquet")


def test_a_folder_of_images_comes_before_a_parquet_file_in_it(manifest, shop, picture):
    pq.write_table(pa.table({"path": ["images/1.jpg"], "tags": ["a"]}), shop / "catalogue.parquet")
    path = manifest("path,tags", "images/1.jpg,a", name="other.csv")
    assert read_catalog(path, images=shop).images.read(0) == picture(40)


@pytest.mark.parametrize("word", ["validation", "valid", "dev"])
def test_other_words_for_val(manifest, word):
    assert read_catalog(manifest("path,tags,split", f"images/0.jpg,a,{word}")).split[0] == "val"


def test_a_split_that_is_not_used_is_not_looked_at(manifest):
    path = manifest("path,tags,split", "images/0.jpg,a,", "images/1.jpg,a,holdout")
    assert read_catalog(path, use_split=False).split.tolist() == ["train", "train"]
    with pytest.raises(BadCatalogue, match="holdout"):
        read_catalog(path)


def test_parquet_shards_carry_their_split(tmp_path, picture):
    pq.write_table(
        pa.table({"image": [picture(1), picture(2)], "tags": ["a", "b"]}),
        tmp_path / "train-00000-of-00001.parquet",
    )
    pq.write_table(
        pa.table({"image": [picture(3)], "tags": ["a"]}),
        tmp_path / "test-00000-of-00001.parquet",
    )
    catalog = read_catalog(tmp_path)
    assert catalog.split.tolist() == ["test", "train", "train"]
    assert catalog.images.read(0) == picture(3)


@pytest.mark.parametrize(
    "name", ["images.tar", "images.tar.xz", "images.tar.gz", "images.tar.bz2", "images.zip"]
)
def test_an_archive_beside_the_manifest_serves_it(manifest, shop, pack, picture, name):
    path = manifest(*ROWS)
    archive = pack(shop, name)
    catalog = read_catalog(path)
    assert catalog.images.read(3) == picture(120)
    assert str(archive) in catalog.images.name(3)


def test_images_may_lie_elsewhere(manifest, shop, tmp_path, picture):
    path = manifest(*ROWS)
    (shop / "images").rename(tmp_path / "images")
    assert read_catalog(path, images=tmp_path).images.read(1) == picture(40)
    with pytest.raises(DataError, match="does not exist"):
        read_catalog(path, images=tmp_path / "nowhere")


def test_every_kind_of_bad_row_is_told_at_once(shop, tmp_path, picture):
    (tmp_path / "outside.jpg").write_bytes(picture())
    (shop / "images" / "link.jpg").symlink_to(tmp_path / "outside.jpg")
    lines = [
        b"image_id,path,tags,split,tags_unknown",
        b"a,images/0.jpg,red,train,",
        b"b,images/none.jpg,red,train,",
        b"c,/etc/passwd,red,train,",
        b"d,../outside.jpg,red,train,",
        b"a,images/1.jpg,red,train,",
        b"f,images/1.jpg,,train,",
        b"g,images/1.jpg,red,holdout,",
        b"h,images/1.jpg,red||blue,train,",
        b"i,images/1.jpg,r\xe9d,train,",
        b"j,images/1.jpg,red,train,red",
        b"k,,red,train,",
        b"l,images/1.jpg,red",
        b"m,images/link.jpg,red,train,",
        b"n,images,red,train,",
        b"o,images/1.jpg,red|-,,",
        b"p,images/2.jpg,red,test,",
    ]
    path = shop / "catalogue.csv"
    path.write_bytes(b"\n".join(lines))
    with pytest.raises(BadCatalogue) as caught:
        read_catalog(path)
    expected = {
        3: "is missing",
        4: "is absolute",
        5: "leaves the images' folder",
        6: "image id 'a' repeats that of row 2",
        7: "empty tags",
        8: "unknown split 'holdout'",
        9: "empty tag",
        10: "wrong encoding",
        11: "both present and unknown",
        12: "has no path",
        13: "has 3 cells where the header has 5",
        14: "link that leaves",
        15: "is not a file",
        16: "cannot be combined with other tags",
    }
    problems = caught.value.problems
    assert [int(p.split()[1].rstrip(":")) for p in problems] == list(expected)
    for problem, words in zip(problems, expected.values(), strict=True):
        assert words in problem
    assert str(path) in str(caught.value)


def test_bad_json_lines_and_tags_with_the_separator(shop):
    path = shop / "catalogue.jsonl"
    path.write_text(
        '{"path": "images/0.jpg", "tags": ["a|b"]}\n\nnot json\n[1]\n'
        '{"path": "images/1.jpg", "tags": ["a", ""]}\n{"path": "images/2.jpg", "tags": null}\n'
    )
    with pytest.raises(BadCatalogue) as caught:
        read_catalog(path)
    rows = [p.partition(": ")[::2] for p in caught.value.problems]
    assert [row for row, _ in rows] == ["row 1", "row 3", "row 4", "row 5", "row 6"]
    assert "separator" in rows[0][1]
    assert "not JSON" in rows[1][1]
    assert "empty tags" in rows[4][1]


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_objects_are_no_tags_and_do_no_harm_elsewhere(shop, kind):
    records = [
        {"path": "images/0.jpg", "tags": {"a": 1}, "meta": {"x": 1}},
        {"path": "images/1.jpg", "tags": {"a": 2}, "meta": {"x": 2}},
    ]
    path = shop / f"x.{kind}"
    if kind == "jsonl":
        records[1]["tags"] = ["fine", ["deep"]]
        path.write_text("\n".join(json.dumps(r) for r in records))
    else:
        pq.write_table(pa.Table.from_pylist(records), path)
    with pytest.raises(BadCatalogue) as caught:
        read_catalog(path)
    said = "tags holds an object or bytes instead of text or a list"
    assert [p.endswith(said) for p in caught.value.problems] == [True, True]


def test_a_nul_is_called_by_its_name(manifest):
    with pytest.raises(BadCatalogue, match="row 2: tags holds a NUL character; remove it"):
        read_catalog(manifest("path,tags", "images/0.jpg,a\0b"))


def test_a_catalogue_without_any_of_its_images_says_so_once(manifest):
    path = manifest("path,tags", *(f"elsewhere/{i}.jpg,a" for i in range(200)))
    with pytest.raises(DataError, match="None of the 200 images") as caught:
        read_catalog(path)
    assert "--images" in str(caught.value)


def test_images_behind_a_link_say_so_rather_than_missing(manifest, shop, tmp_path):
    (shop / "away").symlink_to(tmp_path)
    path = manifest("path,tags", *(f"away/{i}.jpg,a" for i in range(200)))
    with pytest.raises(DataError, match=r"None of the 200 images .* behind a link"):
        read_catalog(path)


def test_a_class_folder_that_cannot_be_listed_stops_the_reading(tmp_path, picture, monkeypatch):
    for name in ("red", "blue"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "0.jpg").write_bytes(picture())
    scandir = os.scandir

    def refuse(folder):
        if str(folder).endswith("blue"):
            raise PermissionError(13, "Permission denied", str(folder))
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match=r"blue cannot be listed \(Permission denied\)"):
        read_catalog(tmp_path)


def test_a_class_folder_that_is_a_link_is_not_dropped_silently(shop, tmp_path):
    (tmp_path / "classes" / "red").mkdir(parents=True)
    (shop / "images" / "0.jpg").rename(tmp_path / "classes" / "red" / "0.jpg")
    (tmp_path / "classes" / "blue").symlink_to(shop / "images")
    with pytest.raises(DataError, match="blue is a link to a folder"):
        read_catalog(tmp_path / "classes")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "names each column once"),
        (b"path,tags\n", "no rows"),
        (b"file,tags\na,b\n", "no column path"),
        (b"path,label\na,b\n", "--attributes"),
        (b'path,tags\n"a,b\n', "breaks off as CSV at line 2: .* a quote that is not closed"),
        (b'path,tags\na,"' + b"b" * 200_000 + b'"\n', "at line 2: field larger than field limit"),
        (b"path,im\xe1ge_id,tags\na,b,c\n", r"the column name 'im\\udce1ge_id' is no UTF-8 text"),
        (b"path,tags,a\xff\na,b,c\n", r"the column name 'a\\udcff' is no UTF-8 text"),
        (
            b"path,tags\nimages/0.jpg,\xe9\nimages/1.jpg,\xc3\xa9\n",
            "2: tags has the wrong encoding",
        ),
        ("path,tags\na,b\n".encode("utf-16"), "NUL bytes in its first line, as UTF-16"),
        ("path,tags\na,b\n".encode("utf-32"), "NUL bytes in its first line, as UTF-16 and UTF-32"),
        ("path,tags\na,b\n".encode("utf-16-le"), "NUL bytes in its first line"),
        ("path,tags\na,b\n".encode("utf-16-be"), "NUL bytes in its first line"),
        (b"pa;th\na;b\n", "no column path"),
        (b'image_id;"path"\na;b\n', "by semicolons where commas are expected"),
        (b"path\ttags\na\tb\n", "by tabs where commas are expected"),
    ],
)
def test_a_manifest_that_is_none_names_itself(shop, content, words):
    path = shop / "catalogue.csv"
    path.write_bytes(content)
    with pytest.raises(DataError, match=words) as caught:
        read_catalog(path)
    assert str(path) in str(caught.value)


def test_other_files_are_refused_by_name(tmp_path):
    (tmp_path / "x.xlsx").write_bytes(b"PK")
    (tmp_path / "x.parquet").write_bytes(b"not parquet")
    with pytest.raises(UsageError, match=r"x\.xlsx"):
        read_catalog(tmp_path / "x.xlsx")
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        read_catalog(tmp_path / "x.parquet")
    with pytest.raises(DataError, match="does not exist"):
        read_catalog(tmp_path / "nowhere.csv")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="neither"):
        read_catalog(tmp_path / "empty")


words = st.text(
    st.characters(categories=("L", "N", "P", "S", "Zs"), exclude_characters="|"), max_size=8
)
tags = words.map(str.strip).filter(lambda w: w not in ("", "-", *EMPTY_WORDS))


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    rows=st.lists(
        st.tuples(st.sets(tags, max_size=3), st.sets(tags, max_size=2), words),
        min_size=1,
        max_size=4,
    )
)
def test_what_is_written_reads_back_equal(shop, rows):
    records = [
        {
            "path": f"images/{i}.jpg",
            "tags": sorted(present - unknown),
            "tags_unknown": sorted(unknown),
            "title": title,
        }
        for i, (present, unknown, title) in enumerate(rows)
    ]
    source = shop / "in.jsonl"
    source.write_text("\n".join(json.dumps(r) for r in records), encoding="utf-8")
    catalog = read_catalog(source)
    write_catalogue(catalog, shop / "out.csv")
    again = read_catalog(shop / "out.csv")
    assert facts(again) == facts(catalog)
    assert again.digest == catalog.digest


def test_the_real_catalogue(fashion):
    catalog = read_catalog(fashion)
    assert len(catalog) == 43_294
    assert len(catalog.table.tags) == 250
    assert np.unique(catalog.table.group, return_counts=True)[1].tolist() == [98, 64, 88]
    assert catalog.images.read(len(catalog) - 1)[:2] == b"\xff\xd8"


@pytest.mark.parametrize("name", ["c.csv", "c.tsv", "c.jsonl", "c.parquet"])
@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a Git LFS pointer"),
        (b"<!DOCTYPE html><html>Sign in</html>", "a web page"),
        (b"PK\3\4" + bytes(60), "a zip archive"),
    ],
)
def test_what_lies_in_place_of_a_manifest_is_called_what_it_is(tmp_path, name, content, kind):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=rf"{name} is {kind}, not a (table|Parquet file); "):
        read_catalog(tmp_path / name)


def nested(depth, inner="a"):
    for _ in range(depth):
        inner = [inner]
    return inner


@pytest.mark.parametrize("column", ["tags", "meta"])
@pytest.mark.parametrize("kind", ["jsonl", "json", "records", "tuples"])
def test_lists_within_lists_are_no_tags_and_take_no_memory(shop, column, kind):
    rows = [{"path": f"images/{i}.jpg", "tags": ["a"], column: nested(40)} for i in range(2)]
    source = rows
    if kind == "tuples":
        rows[1][column] = (("a",), "b")
    elif kind != "records":
        source = shop / f"x.{kind}"
        lines = [json.dumps(row) for row in rows]
        source.write_text("\n".join(lines) if kind == "jsonl" else f"[{','.join(lines)}]")
    for row in rows:
        row["path"] = str(shop / row["path"])
    if column == "meta":
        assert read_catalog(source).table.tags == ("a",)
        return
    with pytest.raises(BadCatalogue) as caught:
        read_catalog(source)
    said = "tags holds an object or bytes instead of text or a list"
    assert caught.value.problems == (f"row 1: {said}", f"row 2: {said}")


@pytest.mark.parametrize("depth", [101, 600, 100_000])
def test_deep_nesting_in_any_column_is_one_bad_row(manifest, depth):
    deep = '{"path": "images/1.jpg", "tags": "a", "meta": ' + "[" * depth + "]" * depth + "}"
    lines = ['{"path": "images/0.jpg", "tags": "a"}', deep]
    said = r"is not JSON \(its lists and objects are nested more than 100 deep\)"
    with pytest.raises(BadCatalogue, match=f"row 2: {said}"):
        read_catalog(manifest(*lines, name="x.jsonl"))
    with pytest.raises(DataError, match=r"x\.json is not JSON: its lists and objects are nested"):
        read_catalog(manifest(f"[{','.join(lines)}]", name="x.json"))


def test_a_key_that_is_twice_in_a_row_is_named(manifest):
    line = '{"path": "images/0.jpg", "tags": "a", "tags": "b"}'
    with pytest.raises(BadCatalogue, match=r"row 1: is not JSON \(the key 'tags' is twice"):
        read_catalog(manifest(line, name="x.jsonl"))


def test_bytes_are_no_tags(shop):
    for tags in (b"red", [b"red"], bytearray(b"red")):
        rows = [{"path": str(shop / "images/0.jpg"), "tags": tags}]
        with pytest.raises(BadCatalogue, match="tags holds an object or bytes instead of text"):
            read_catalog(rows)


@pytest.mark.parametrize(
    "text",
    [
        '{"columns": 5, "data": 5}',
        '{"columns": [["path"], "tags"], "data": [["images/0.jpg", "a"]]}',
        '{"columns": ["path", "path"], "data": [["images/0.jpg", "a"]]}',
        '{"columns": ["path", "tags"], "data": [5]}',
        '{"schema": {}, "data": 5}',
        '{"path": {"0": "images/0.jpg"}, "tags": ["a"]}',
        "{}",
        "5",
    ],
)
def test_a_json_value_that_is_no_table_is_one_sentence(manifest, text):
    with pytest.raises(DataError, match=r"x\.json is no list of objects, one per image"):
        read_catalog(manifest(text, name="x.json"))


@pytest.mark.parametrize("name", ["path", "image_id", "split", "group", "title"])
def test_a_list_is_no_text(shop, name):
    rows = [{"path": f"images/{i}.jpg", "tags": ["a"], "split": "train"} for i in range(2)]
    rows[1][name] = ["images/1.jpg", "train"]
    path = shop / "x.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(BadCatalogue, match=f"row 2: {name} holds a list instead of text"):
        read_catalog(path)
