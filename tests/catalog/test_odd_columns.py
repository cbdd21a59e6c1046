"""Columns that nobody uses do no harm, whatever they hold; a used one is refused by its name."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from retailtag.catalog.readers import read_catalog, read_columns
from retailtag.errors import BadCatalogue, DataError


def _not_utf8(kind=None):
    raw = pa.array([b"\xff", b"a"], pa.binary())
    return pa.Array.from_buffers(kind or pa.string(), 2, raw.buffers())


def _nested(depth):
    array = pa.array([1, 2])
    for _ in range(depth):
        array = pa.FixedSizeListArray.from_arrays(array, 1)
    return array


ODD = {
    "far timestamp": pa.array([2**62, 0], pa.timestamp("us")),
    "unknown zone": pa.array([1, 2], pa.timestamp("us", "Mars/Olympus")),
    "zone of no text": pa.array([1, 2], pa.timestamp("us", "\x1b[31m")),
    "far duration": pa.array([2**62, 0], pa.duration("s")),
    "dictionary not UTF-8": _not_utf8().dictionary_encode(),
    "list not UTF-8": pa.ListArray.from_arrays([0, 1, 2], _not_utf8()),
    "binary": pa.array([b"red", b"blue"]),
    "binary of fixed size": pa.array([b"red", b"two"], pa.binary(3)),
    "list of binary": pa.array([[b"red"], []]),
    "dictionary of binary": pa.array([b"red", b"blue"]).dictionary_encode(),
}
HARMLESS = {
    **ODD,
    "text not UTF-8": _not_utf8(),
    "struct": pa.array([{"a": 1}, None]),
    "struct with a name twice": pa.StructArray.from_arrays([pa.array([1, 2])] * 2, ["a", "a"]),
    "map": pa.array([[("a", 1)], []], pa.map_(pa.string(), pa.int64())),
    "deep list": _nested(20),
    "vector": pa.array([[0.5], [1.5]]),
}
PATHS = [f"images/{i}.jpg" for i in range(2)]


def written(shop, columns, names=None, **metadata):
    arrays = [pa.array(c) if isinstance(c, list) else c for c in columns.values()]
    table = pa.Table.from_arrays(arrays, names=names or list(columns))
    if metadata:
        table = table.replace_schema_metadata(metadata)
    pq.write_table(table, shop / "x.parquet")
    return shop / "x.parquet"


def facts(catalog):
    return catalog.image_ids.tolist(), catalog.table.tags, catalog.table.labels.tolist()


@pytest.mark.parametrize("kind", HARMLESS)
@pytest.mark.parametrize("one_hot", [False, True])
def test_a_column_that_nobody_uses_may_hold_anything(shop, kind, one_hot):
    tags = {"red": [1, 0], "blue": [0, 1]} if one_hot else {"tags": ["red", "blue"]}
    plain = read_catalog(written(shop, {"path": PATHS, **tags}))
    odd = HARMLESS[kind]
    catalog = read_catalog(written(shop, {"path": PATHS, "odd": odd, **tags, "more": odd}))
    if catalog.images.root == shop / "x.parquet":  # bytes are images
        assert "binary" in kind
        assert catalog.table.tags == plain.table.tags
    else:
        assert facts(catalog) == facts(plain)


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize("name", ["tags", "title", "Group", "season"])
def test_a_used_column_that_cannot_be_read_is_refused_by_name(shop, kind, name):
    columns = {"path": PATHS, "tags": ["red", "blue"], "season": ["a", "b"], name: ODD[kind]}
    path = written(shop, columns)
    with pytest.raises(DataError, match=rf"x\.parquet: column {name} .*(write it as|cast it)"):
        read_catalog(path, attributes=["season"])
    if name == "season":
        with pytest.raises(DataError, match=r"x\.parquet: column season "):
            read_columns(path, None, ["season"])


def test_text_that_is_not_utf8_is_a_bad_row(shop):
    for kind in (pa.string(),):
        path = written(shop, {"path": PATHS, "tags": _not_utf8(kind)})
        with pytest.raises(BadCatalogue) as caught:
            read_catalog(path)
        assert caught.value.problems == ("row 1: tags has the wrong encoding (not UTF-8 text)",)


def test_a_column_that_is_there_twice_is_refused_if_it_is_used(shop):
    columns = dict(zip("abcd", (PATHS, ["red", "blue"], ["x", "y"], ["y", "x"]), strict=True))
    catalog = read_catalog(written(shop, columns, ["path", "tags", "more", "more"]))
    assert catalog.table.tags == ("blue", "red")
    path = written(shop, columns, ["path", "tags", "more", "tags"])
    with pytest.raises(DataError, match=r"x\.parquet has 2 columns tags; rename all but one"):
        read_catalog(path)


def test_odd_columns_of_tables_in_memory_do_no_harm(shop):
    pandas = pytest.importorskip("pandas")
    paths = [str(shop / path) for path in PATHS]
    frame = pandas.DataFrame({"path": paths, "tags": ["red", "blue"]})
    expected = facts(read_catalog(frame))
    odd = {"mixed": [1, "a"], "objects": [object(), 2], "sets": [{1}, {2}]}
    assert facts(read_catalog(frame.assign(**odd))) == expected
    twice = pandas.concat([frame, pandas.DataFrame([[1, 2], [3, 4]], columns=["a", "a"])], axis=1)
    assert facts(read_catalog(twice)) == expected
    with pytest.raises(DataError, match=r"DataFrame cannot be read as a table: .*mixed"):
        read_catalog(frame.assign(**odd), attributes=["mixed"])
    twice.columns = ["path", "tags", "a", "tags"]
    with pytest.raises(DataError, match="DataFrame cannot be read as a table: Duplicate column"):
        read_catalog(twice)
    table = pa.table({"path": paths, "tags": ["red", "blue"], "odd": ODD["far timestamp"]})
    assert facts(read_catalog(table)) == expected


CLASSES = {"info": {"features": {"tags": {"names": ["red", "blue"], "_type": "ClassLabel"}}}}


@pytest.mark.parametrize(
    "note",
    [
        b"",
        b"[" * 100_000,
        b"[]",
        b'{"info": 5}',
        b'{"info": {"features": []}}',
        b'{"info": {"features": 5}}',
        b"\xff",
    ],
)
def test_hugging_face_metadata_of_another_form_is_noted(shop, note):
    path = written(shop, {"path": PATHS, "tags": [0, 1]}, huggingface=note)
    catalog = read_catalog(path)
    assert catalog.table.tags == ("0", "1")
    assert catalog.notes == (
        f"{path}: its Hugging Face metadata cannot be read; class numbers stay so.",
    )


def test_class_numbers_without_a_name_are_refused(shop):
    note = json.dumps(CLASSES).encode()
    columns = {"path": PATHS, "tags": [[0, 1], [1]]}
    assert read_catalog(written(shop, columns, huggingface=note)).table.tags == ("blue", "red")
    columns["tags"] = [[0], [2]]
    path = written(shop, columns, huggingface=note)
    with pytest.raises(DataError, match=r"x\.parquet: column tags holds class 2.* 2 classes"):
        read_catalog(path)
    CLASSES["info"]["features"]["tags"]["names"] = [{"a": 1}, 5]  # no names at all
    path = written(shop, columns, huggingface=json.dumps(CLASSES).encode())
    assert read_catalog(path).table.tags == ("0", "2")


def test_a_damaged_parquet_file_is_one_sentence(shop):
    path = written(shop, {"path": PATHS, "tags": ["red", "blue"]})
    data = path.read_bytes()
    rng = np.random.default_rng(0)
    n_refused = 0
    for _ in range(60):
        changed = bytearray(data)
        for at in rng.integers(0, len(data), 3):
            changed[at] = rng.integers(256)
        path.write_bytes(bytes(changed[: rng.integers(len(data) // 2, len(data) * 2)]))
        try:
            read_catalog(path)
        except DataError as error:
            n_refused += "x.parquet" in str(error)
    assert n_refused > 10
