"""Columns are found by option, by their names in any case, and by names other tools write."""

import pytest

from retailtag.catalog.readers import read_catalog
from retailtag.errors import DataError, UsageError


@pytest.mark.parametrize("header", ["Path,Tags", "file_name,labels", "FileName,TAGS", "image,tags"])
def test_known_names_need_no_option(manifest, header):
    catalog = read_catalog(manifest(header, "images/0.jpg,a|b"))
    assert catalog.table.tags == ("a", "b")
    assert catalog.image_ids.tolist() == ["images/0"]


def test_a_name_of_another_tool_is_noted_and_gives_way_to_the_usual_one(manifest):
    path = manifest("file_name,path,labels,tags", "x,images/0.jpg,no,a")
    assert read_catalog(path).notes == ()
    assert read_catalog(path).table.tags == ("a",)
    path = manifest("filename,labels,Split", "images/0.jpg,a,Testing")
    assert [note.partition(": ")[2] for note in read_catalog(path).notes] == [
        "path is read from the column filename.",
        "tags is read from the column labels.",
    ]
    assert read_catalog(path).split.tolist() == ["test"]


def test_options_name_columns(manifest):
    path = manifest("path,where,words,sku,model", "x,images/0.jpg,a|b,7,m")
    catalog = read_catalog(
        path, path_column="where", tags_column="words", id_column="sku", group_column="model"
    )
    assert catalog.image_ids.tolist() == ["7"]
    assert catalog.group.tolist() == ["m"]
    assert catalog.table.tags == ("a", "b")
    with pytest.raises(UsageError, match=r"--tags-column word: .* its columns are path, where"):
        read_catalog(path, path_column="where", tags_column="word")


def test_attributes_keep_labels_for_themselves(manifest):
    path = manifest("path,labels,season", "images/0.jpg,a,summer")
    assert read_catalog(path, attributes=["labels"]).table.tags == ("labels:a",)


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ("filename,image,tags", "may hold path .filename, image.; choose with --path-column"),
        ("path,Tags,TAGS", "choose with --tags-column"),
        ("path,tags,image_id,IMAGE_ID", "may hold image_id .image_id, IMAGE_ID.; choose with --id"),
        ("Path,path,tags", "may hold path .Path, path.; choose with --path-column"),
        ("path,tags,Split,SPLIT", "rename one"),
    ],
)
def test_two_candidates_are_refused(manifest, header, words):
    with pytest.raises(UsageError, match=words):
        read_catalog(manifest(header, ",".join(["images/0.jpg"] * (header.count(",") + 1))))


def test_missing_columns_name_the_option(manifest):
    with pytest.raises(DataError, match=r"--path-column .its columns are url, tags"):
        read_catalog(manifest("url,tags", "images/0.jpg,a"))
    with pytest.raises(DataError, match="--tags-column"):
        read_catalog(manifest("path,label", "images/0.jpg,a"))
