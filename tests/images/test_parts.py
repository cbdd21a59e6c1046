"""A part of a source, pickled for another process, reads what the whole source reads."""

import os
import pickle
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from retailtag.errors import DataError, UnreadableImage
from retailtag.images.memory import MemoryImages
from retailtag.images.opening import open_images
from retailtag.images.several import SeveralImages
from retailtag.images.sources import ParquetImages

PATHS = [f"images/{i}.jpg" for i in range(4)]
ROWS = [3, 5, 0, 2]  # 5 is missing


def read(source, row):
    try:
        return source.read(row), source.name(row)
    except UnreadableImage as error:
        return str(error), source.name(row)


def check(source, rows, relative=None):
    """The pickled part gives what the source gives, here and in another working directory."""
    source.max_bytes = 12_345
    data, none = pickle.dumps(source.part(rows)), pickle.dumps(source.part([]))
    expected = [read(source, row) for row in rows]
    if relative:
        os.chdir(relative)
    part = pickle.loads(data)  # noqa: S301
    assert (len(part.paths), part.max_bytes) == (len(rows), 12_345)
    found = [read(part, i) for i in range(len(rows))]
    assert [content for content, _ in found] == [content for content, _ in expected]
    names = [[Path(name).name for _, name in pairs] for pairs in (found, expected)]
    assert names[0] == names[1]
    assert pickle.loads(none).paths == ()  # noqa: S301


@pytest.mark.parametrize("name", [None, "images.tar", "images.tar.xz", "images.zip"])
def test_a_part_of_a_folder_or_archive(shop, pack, cache, monkeypatch, name):
    place = pack(shop, name) if name else shop
    monkeypatch.chdir(place.parent)
    source = open_images(Path(place.name), [*PATHS, "no.jpg", "images/no.jpg"])
    check(source, ROWS, relative="/")


def test_a_part_of_a_compressed_tar_is_unpacked_where_it_is_not_yet(shop, pack, cache, monkeypatch):
    source = open_images(pack(shop, "images.tar.xz"), PATHS)
    data = pickle.dumps(source.part([1]))
    monkeypatch.setenv("RETAILTAG_CACHE", str(cache / "elsewhere"))
    assert pickle.loads(data).read(0) == source.read(1)  # noqa: S301
    assert list((cache / "elsewhere").glob("archives/*.tar"))


@pytest.mark.parametrize("name", ["images.tar", "images.zip"])
def test_an_archive_that_another_machine_lacks_is_named(shop, pack, name):
    place = pack(shop, name)
    data = pickle.dumps(open_images(place, PATHS).part([1]))
    place.unlink()
    with pytest.raises(DataError, match=name):
        pickle.loads(data)  # noqa: S301


def test_a_part_of_parquet_reads_its_row_groups_alone(tmp_path, picture):
    table = pa.table({"image": [picture(i) for i in range(20)]})
    pq.write_table(table, tmp_path / "x.parquet", row_group_size=3)
    paths = [str(i) for i in range(10)]
    rows = list(range(19, 9, -1))
    source = ParquetImages(tmp_path, paths, [tmp_path / "x.parquet"], "image", rows)
    check(source, [9, 0, 4])
    assert len(source.part([0, 3])._places) == 2


def test_a_part_of_several_places_takes_those_that_hold_its_rows(shop, pack, tmp_path, picture):
    for name, inside in (("a", "x.jpg"), ("b", "y.jpg"), ("c", "z.jpg")):
        (tmp_path / name).mkdir()
        (tmp_path / name / inside).write_bytes(picture(ord(name)))
    archive = pack(shop, "images.tar")
    places = [tmp_path / "a", tmp_path / "b", archive, tmp_path / "c"]
    source = SeveralImages(tmp_path, places, ["y.jpg", "x.jpg", *PATHS, "no.jpg", "z.jpg"])
    check(source, [7, 3, 6, 0, 2])
    check(source, [6])
    assert [p.name for p in source.part([7, 2])._places] == ["a", "c", "images.tar"]


def test_a_part_of_images_in_memory_holds_these_alone(picture):
    images = [picture(i) for i in range(3)] + [None]
    source = MemoryImages(Path("table"), list("abcd"), images)
    check(source, [3, 1])
    assert len(source.part([1])._files) == 1
