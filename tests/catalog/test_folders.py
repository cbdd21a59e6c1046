"""Folders of tags: splits by name, what is left out, files by content, links by permission."""

import pytest

from retailtag.catalog.readers import read_catalog
from retailtag.errors import DataError


@pytest.fixture
def tree(tmp_path, picture):
    """Write images to the given places below a folder; text where the name ends in .txt."""

    def write(*places):
        for i, place in enumerate(places):
            file = tmp_path / "shop" / place
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(b"text" if place.endswith(".txt") else picture(i))
        return tmp_path / "shop"

    return write


@pytest.mark.parametrize(
    ("splits", "beside"),
    [
        (("train", "test"), "__MACOSX/train/hat/._0.jpg"),
        (("Train", "TEST"), "docs/how/note.txt"),
        (("training", "testing"), "unlabeled/hat/0.jpg"),
        (("Training", "val", "test"), "extra/0.jpg"),
        (("train", "valid"), "validated/deep/er/0.jpg"),
        (("train",), "unlabeled/hat/0.jpg"),
    ],
)
def test_folders_named_like_splits_are_never_tags(tree, splits, beside):
    catalog = read_catalog(
        tree(*(f"{s}/{t}/0.jpg" for s in splits for t in ("hat", "bag")), beside)
    )
    assert catalog.table.tags == ("bag", "hat")
    assert len(catalog) == 2 * len(splits)
    assert len(set(catalog.split)) == len(splits)
    assert beside.split("/")[0] in catalog.notes[0]


def test_everything_left_out_is_named(tree):
    root = tree(
        "train/hat/0.jpg", "test/bag/0.jpg", "test/1.jpg", "2.jpg", "train/hat/a.txt", "docs/b.txt"
    )
    notes = " ".join(read_catalog(root).notes)
    assert "folders left out: docs (no images in them)" in notes
    assert "images in no tag's folder left out: test/1.jpg, 2.jpg" in notes
    assert "files that are no images left out: .txt 1" in notes


def test_a_plain_tree_has_no_notes(tree):
    assert read_catalog(tree("hat/0.jpg", "bag/0.jpg", "bag/.DS_Store")).notes == ()


@pytest.mark.parametrize("split", ["", "train/"])
def test_folders_below_a_tag_are_no_tags_and_that_is_said(tree, split):
    catalog = read_catalog(
        tree(
            f"{split}pet/dog/0.jpg",
            f"{split}pet/cat/1.jpg",
            f"{split}pet/2.jpg",
            f"{split}hat/3.jpg",
        )
    )
    assert catalog.table.tags == ("hat", "pet")
    (note,) = catalog.notes
    assert f"are not tags: 2; {split}pet/cat/1.jpg has the tag pet alone" in note


def test_odd_suffixes_are_read_by_content_or_named(tree):
    root = tree("hat/0.jpe", "hat/1.jpg_large", "hat/2", "hat/3.heic", "bag/0.jpg")
    (root / "bag" / "notes").write_text("no image")
    (root / "bag" / "logo.svg").write_text("<svg/>")
    (root / "bag" / "raw.nef").write_bytes(b"II*\0" + bytes(60))
    catalog = read_catalog(root)
    assert [p.split("/")[1] for p in catalog.images.paths[1:]] == [
        "0.jpe", "1.jpg_large", "2", "3.heic",
    ]  # fmt: skip
    assert catalog.notes == (
        f"{root}: files that are no images left out: .svg 1, no suffix 1, .nef 1.",
    )


@pytest.mark.parametrize(
    ("places", "words"),
    [
        (("train/0.jpg", "test/0.jpg"), "no folders of tags in them"),
        (("train/0.jpg", "car/0.jpg"), "if it is a tag, rename it"),
        (("train/steam/0.jpg", "car/0.jpg"), "if it is a tag, rename it"),
        (("train/train/hat/0.jpg", "train/test/hat/0.jpg"), "give .*/train itself"),
        (("hat/train/0.jpg", "bag/train/0.jpg"), r"put splits above tags, as in train/bag/1\.jpg"),
        (("data/train/hat/0.jpg", "data/test/hat/0.jpg"), "give .*/data itself"),
    ],
)
def test_a_split_that_may_be_a_tag_is_refused(tree, places, words):
    with pytest.raises(DataError, match=words):
        read_catalog(tree(*places))


def test_links_to_folders_are_followed_into_allowed_roots_only(tree, tmp_path, picture):
    root = tree("hat/0.jpg")
    (tmp_path / "disk" / "bag").mkdir(parents=True)
    (tmp_path / "disk" / "bag" / "0.jpg").write_bytes(picture(9))
    (root / "bag").symlink_to(tmp_path / "disk" / "bag")
    with pytest.raises(DataError, match=r"name .*/disk/bag with --allow-root"):
        read_catalog(root)
    catalog = read_catalog(root, allow_root=tmp_path / "disk")
    assert catalog.table.tags == ("bag", "hat")
    (root / "loop").symlink_to(tmp_path / "disk")
    (tmp_path / "disk" / "again").symlink_to(tmp_path / "disk")
    with pytest.raises(DataError, match="was read already"):
        read_catalog(root, allow_root=tmp_path / "disk")
