"""Tables and records in memory are read as a manifest is, with the same checks."""

import io

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from retailtag.catalog.catalog import Catalog
from retailtag.catalog.readers import read_catalog, write_catalogue
from retailtag.errors import BadCatalogue, DataError, UsageError
from retailtag.images.decode import decode_image

RECORDS = [
    {"path": "images/0.jpg", "tags": "red|shirt", "split": "train", "group": "p1"},
    {"path": "images/1.jpg", "tags": ["blue"], "split": "val", "tags_unknown": ["red"]},
    {"path": "images/2.jpg", "tags": "-", "split": "test", "title": "Nothing"},
]


def facts(catalog):
    table = catalog.table
    return catalog.image_ids.tolist(), catalog.split.tolist(), table.tags, table.labels.tolist()


def as_text(records):
    """Records whose lists are joined, so that every column has one type."""
    return [{k: "|".join(v) if isinstance(v, list) else v for k, v in r.items()} for r in records]


def test_records_tables_and_frames_equal_the_manifest(manifest, shop, monkeypatch):
    pandas = pytest.importorskip("pandas")
    lines = [",".join(r.get(c, "") for c in COLUMNS) for r in as_text(RECORDS)]
    expected = facts(read_catalog(manifest(",".join(COLUMNS), *lines)))
    monkeypatch.chdir(shop)
    names = dict.fromkeys(COLUMNS)
    rows = [names | record for record in as_text(RECORDS)]
    columns = {name: [row[name] for row in rows] for name in COLUMNS}
    tables = (pa.Table.from_pylist(rows), pandas.DataFrame(rows), _Exports(rows))
    for source in (RECORDS, tuple(rows), columns, *tables):
        catalog = Catalog.from_table(source)
        assert facts(catalog) == expected
        assert catalog.images.read(0) == (shop / "images" / "0.jpg").read_bytes()


class _Exports:
    """What polars and others are to Arrow."""

    def __init__(self, rows):
        self.__arrow_c_stream__ = pa.Table.from_pylist(rows).__arrow_c_stream__


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        ("shop.csv", r"from_table takes a table; read shop\.csv with read_catalog"),
        ({"path": ["a.jpg"], "tags": []}, r"differ in length \(path 1, tags 0\)"),
        ({"path": "a.jpg", "tags": ["x"]}, "Column path is str; give a list of cells"),
        (3, "a dict of columns or a list of records, not int"),
    ],
)
def test_what_is_no_table_is_one_sentence(table, sentence):
    with pytest.raises((UsageError, DataError), match=sentence):
        Catalog.from_table(table)


COLUMNS = ("path", "tags", "split", "group", "title", "tags_unknown")


def test_paths_may_be_absolute_or_lie_in_a_folder(shop, picture):
    absolute = [{"image": shop / "images" / f"{i}.jpg", "tags": "red"} for i in range(2)]
    catalog = read_catalog(absolute)
    assert catalog.image_ids.tolist() == ["0", "1"]
    assert catalog.images.read(1) == picture(40)
    assert read_catalog(RECORDS, images=str(shop)).images.read(1) == picture(40)


def test_images_are_bytes_or_pil_images(picture):
    pixels = np.random.default_rng(0).integers(0, 255, (40, 30, 3), np.uint8)
    catalog = read_catalog(
        [
            {"image": picture(), "tags": "red", "image_id": "a"},
            {"image": Image.fromarray(pixels), "tags": "blue", "path": "named.png"},
            {"image": Image.fromarray(pixels).convert("CMYK"), "tags": "blue"},
        ]
    )
    assert catalog.image_ids.tolist() == ["a", "named", "row-000000003"]
    assert catalog.images.read(0) == picture()
    assert (np.asarray(decode_image(catalog.images.read(1))) == pixels).all()
    assert catalog.images.name(1) == "records/named.png"
    with pytest.raises(DataError, match="no paths"):
        write_catalogue(catalog, "out.csv")


def test_a_turned_pil_image_is_read_upright():
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 60)).save(buffer, "JPEG", exif=exif)
    opened = Image.open(io.BytesIO(buffer.getvalue()))
    catalog = read_catalog([{"image": opened, "tags": "red"}])
    assert decode_image(catalog.images.read(0)).size == (60, 40)


def test_images_inside_tables(picture):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"image": [picture(), Image.new("L", (9, 9))], "tags": ["a", "b"]})
    assert decode_image(read_catalog(frame).images.read(1)).size == (9, 9)
    table = pa.table({"image": [{"bytes": picture(), "path": "x.jpg"}], "tags": [["a"]]})
    assert read_catalog(table).images.read(0) == picture()


def test_bad_rows_are_named_by_number(picture):
    records = [
        {"image": picture(), "tags": "red"},
        {"image": 3, "tags": "red"},
        {"tags": "red"},
        {"image": picture(), "tags": ""},
        "images/4.jpg",
    ]
    with pytest.raises(BadCatalogue) as caught:
        read_catalog(records)
    assert [p.split(":")[0] for p in caught.value.problems] == ["row 2", "row 3", "row 4", "row 5"]
    assert "image is int, not a path, bytes or a PIL image" in caught.value.problems[0]
    assert "is not a dict but str" in caught.value.problems[3]


@pytest.mark.parametrize(("source", "name"), [(3, "int"), (None, "NoneType"), ({1}, "set")])
def test_other_types_are_one_sentence(source, name):
    with pytest.raises(UsageError, match=f"^read_catalog takes .*, not {name}.$"):
        read_catalog(source)


def test_no_records_at_all():
    with pytest.raises(DataError, match="records has no rows"):
        read_catalog([])
