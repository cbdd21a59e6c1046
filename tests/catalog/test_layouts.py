"""Layouts of other tools: metadata beside images, tar shards, JSON tables, compressed tables."""

import gzip
import io
import json
import tarfile

import pytest

from retailtag.catalog import manifest as manifests
from retailtag.catalog.readers import read_catalog, write_catalogue
from retailtag.errors import BadCatalogue, DataError, UsageError


def facts(catalog):
    return catalog.image_ids.tolist(), catalog.table.tags, catalog.table.labels.tolist()


@pytest.fixture
def metadata(tmp_path, picture):
    """Write images and a metadata.jsonl into folders below the root, as Hugging Face does."""

    def write(**folders):
        for place, lines in folders.items():
            folder = tmp_path / "set" / place.replace("root", "")
            folder.mkdir(parents=True, exist_ok=True)
            for i, line in enumerate(lines):
                (folder / f"{i}.jpg").write_bytes(picture(i))
                lines[i] = line if isinstance(line, str) else json.dumps(line)
            (folder / "metadata.jsonl").write_text("\n".join(lines))
        return tmp_path / "set"

    return write


def row(i, *tags, **more):
    return {"file_name": f"{i}.jpg", "tags": list(tags), **more}


def test_metadata_beside_images_with_splits(metadata, picture):
    root = metadata(train=[row(0, "a"), row(1, "a", "b")], Validation=[row(0, "b")])
    catalog = read_catalog(root)
    assert facts(catalog)[:2] == (["Validation/0", "train/0", "train/1"], ("a", "b"))
    assert catalog.split.tolist() == ["val", "train", "train"]
    assert catalog.images.read(2) == picture(1)
    assert catalog.notes == ()


def test_metadata_in_the_root_and_named_directly(metadata):
    root = metadata(root=[row(0, "a", split="test"), row(1, "b", split="train")])
    catalog = read_catalog(root)
    assert catalog.split.tolist() == ["test", "train"]
    assert facts(catalog) == facts(read_catalog(root / "metadata.jsonl"))


def test_metadata_names_what_it_leaves_out(metadata, picture):
    root = metadata(train=[row(0, "a")], extra=[row(0, "b")])
    (root / "train" / "more.jpg").write_bytes(picture(9))
    assert [note.partition(": ")[2] for note in read_catalog(root).notes] == [
        "extra/metadata.jsonl left out; its folder is no split.",
        "images that train/metadata.jsonl does not name left out: 1, such as more.jpg.",
    ]


def test_faults_of_metadata_name_file_and_row(metadata):
    root = metadata(train=[row(0, "a"), "no json"], test=[row(7, "a")])
    with pytest.raises(BadCatalogue) as caught:
        read_catalog(root)
    test, train = caught.value.problems
    assert test == "row 1 of test/metadata.jsonl: test/7.jpg is missing"
    assert train.startswith("row 2 of train/metadata.jsonl: is not JSON")
    (root / "train" / "metadata.csv").write_text("file_name,tags\n0.jpg,a\n")
    with pytest.raises(DataError, match="several metadata files in one folder"):
        read_catalog(root)


def test_paths_of_metadata_stay_below_its_folder(metadata):
    rows = [{"file_name": name, "tags": ["a"]} for name in ("/etc/x", "https://x/1", "../../y")]
    with pytest.raises(BadCatalogue) as caught:
        read_catalog(metadata(train=rows))
    faults = ("path '/etc/x' is absolute", "'https://x/1' is a URL", "'train/../../y' leaves")
    for line, words in zip(caught.value.problems, faults, strict=True):
        assert words in line


def test_metadata_names_its_images_in_path_in_any_case(metadata):
    lines = [{"Path": "0.jpg", "tags": ["a"]}, {"Path": "1.jpg", "tags": ["b"]}]
    assert read_catalog(metadata(train=lines)).image_ids.tolist() == ["train/0", "train/1"]


@pytest.fixture
def shard(tmp_path, picture):
    """Write a tar of samples: {key: {suffix: text, bytes or an object}}, each with an image."""
    (tmp_path / "shards").mkdir()

    def write(name, samples, *, images=True):
        with tarfile.open(tmp_path / "shards" / name, "w") as archive:
            for i, (key, members) in enumerate(samples.items()):
                image = {"jpg": picture(i)} if images else {}
                for suffix, value in {**image, **members}.items():
                    text = value if isinstance(value, str) else json.dumps(value, default=repr)
                    data = value if isinstance(value, bytes) else text.encode()
                    info = tarfile.TarInfo(f"{key}.{suffix}")
                    info.size = len(data)
                    archive.addfile(info, io.BytesIO(data))
        return tmp_path / "shards"

    return write


def test_shards_are_read_as_a_folder_and_as_one_file(shard, picture):
    shard("train-000000.tar", {"0001": {"json": {"tags": ["a", "b"]}, "txt": "words"}})
    root = shard("test-000000.tar", {"0002": {"json": {"tags": ["b"], "url": "https://x.example"}}})
    (root / "00000.parquet").write_bytes(b"what img2dataset writes beside is not looked at")
    catalog = read_catalog(root)
    assert facts(catalog) == (["0002", "0001"], ("a", "b"), [[0, 1], [1, 1]])
    assert catalog.split.tolist() == ["test", "train"]
    assert catalog.images.read(1) == picture(0)
    assert read_catalog(root / "test-000000.tar").image_ids.tolist() == ["0002"]


def test_shards_without_split_names_and_their_split_manifest(shard, tmp_path, picture):
    shard("00000.tar", {"a/0": {"json": {"labels": ["x"]}}, "a/1": {"json": {"labels": ["y"]}}})
    root = shard("00001.tar", {"b/0": {"json": {"labels": ["y"]}}})
    catalog = read_catalog(root)
    assert catalog.split.tolist() == ["train"] * 3
    write_catalogue(catalog, tmp_path / "out.csv")
    assert facts(read_catalog(tmp_path / "out.csv", images=catalog.images.places)) == facts(catalog)


def test_texts_of_shards_are_columns(shard):
    root = shard("0.tar", {"0": {"cls": "hat\n"}, "1": {"cls": "bag"}})
    assert read_catalog(root, tags_column="cls").table.tags == ("bag", "hat")
    with pytest.raises(DataError, match=r"no column tags; name it with --tags-column.*cls, path"):
        read_catalog(root)


def test_faults_of_shards_name_shard_and_key(shard, picture):
    bad = {"0": {"json": "[1]"}, "1": {"json": {"tags": ["a"]}, "png": picture(3)}}
    root = shard("0.tar", {**bad, "2": {"json": {"tags": ["a"]}}})
    shard("1.tar", {"2": {"json": {"tags": ["a"]}}})
    shard("2.tar", {"9": {"json": {"tags": ["a"]}}}, images=False)
    with pytest.raises(BadCatalogue) as caught:
        read_catalog(root)
    lines = caught.value.problems
    assert lines[0].startswith("row 0.tar/0: 0.json is no JSON object")
    assert lines[1] == "row 0.tar/1: has several images (1.jpg, 1.png)"
    assert lines[2].startswith(f"row 0.tar/2: 2.jpg is in both {root}/0.tar and {root}/1.tar")


def test_deep_json_of_a_shard_is_one_bad_row(shard):
    deep = '{"tags": ["a"], "meta": ' + "[" * 600 + "]" * 600 + "}"
    with pytest.raises(BadCatalogue, match=r"row 0\.tar/0: 0\.json is no JSON object \(its lists"):
        read_catalog(shard("0.tar", {"0": {"json": deep}, "1": {"json": {"tags": ["a"]}}}))


TABLE = [{"path": f"images/{i}.jpg", "tags": tags} for i, tags in enumerate(("a|b", "b", "-"))]
COLUMNS = {name: [record[name] for record in TABLE] for name in ("path", "tags")}


@pytest.mark.parametrize(
    "value",
    [
        TABLE,
        COLUMNS,
        {name: dict(zip("012", cells, strict=True)) for name, cells in COLUMNS.items()},
        {
            "columns": ["path", "tags"],
            "index": [0, 1, 2],
            "data": [list(r.values()) for r in TABLE],
        },
        {"schema": {"fields": []}, "data": TABLE},
    ],
)
def test_json_tables(shop, manifest, value):
    expected = facts(read_catalog(manifest("path,tags", *(",".join(r.values()) for r in TABLE))))
    (shop / "x.json").write_text(json.dumps(value))
    assert facts(read_catalog(shop / "x.json")) == expected


def test_json_lines_under_the_name_json(shop):
    (shop / "x.json").write_text("\n".join(map(json.dumps, TABLE)))
    assert len(read_catalog(shop / "x.json")) == 3


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"images": [{"id": 1}], "annotations": []}', "its keys are images, annotations"),
        ('{"images/0.jpg": ["a"], "images/1.jpg": ["a", "b"]}', "no list of objects"),
        ("[1, 2", "is not JSON"),
        ("7", "no list of objects"),
        ('[{"path": "images/0.jpg", "tags": "a"}, 3]', "row 2: is not a JSON object"),
    ],
)
def test_other_json_is_refused(shop, text, words):
    (shop / "x.json").write_text(text)
    with pytest.raises(DataError, match=words):
        read_catalog(shop / "x.json")


@pytest.mark.parametrize("name", ["x.csv.gz", "x.tsv.gz", "x.jsonl.gz", "x.json.gz"])
def test_compressed_tables(shop, manifest, name):
    expected = facts(read_catalog(manifest("path,tags", *(",".join(r.values()) for r in TABLE))))
    mark = "\t" if "tsv" in name else ","
    text = "\n".join([mark.join(TABLE[0]), *(mark.join(r.values()) for r in TABLE)])
    text = "\n".join(map(json.dumps, TABLE)) if "json" in name else text
    (shop / name).write_bytes(gzip.compress(text.encode()))
    assert facts(read_catalog(shop / name)) == expected


def test_compressed_tables_that_are_none(shop, monkeypatch):
    path = shop / "x.csv.gz"
    path.write_bytes(gzip.compress(b"path,tags\nimages/0.jpg,a\n")[:-9])
    with pytest.raises(DataError, match="cannot be unpacked"):
        read_catalog(path)
    path.write_text("path,tags\nimages/0.jpg,a\n")  # unpacked on the way, as browsers do
    assert len(read_catalog(path)) == 1
    monkeypatch.setattr(manifests, "MIN_UNPACKED", 1000)
    path.write_bytes(gzip.compress(b"a" * 10_000_000))
    with pytest.raises(DataError, match="unpacks to over"):
        read_catalog(path)
    with pytest.raises(UsageError, match="neither a folder nor a manifest"):
        read_catalog(shop / "images" / "0.jpg")
