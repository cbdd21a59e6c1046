"""Files, folders and lists of paths name images; what is left out is said."""

from pathlib import Path

import pytest

from retailtag.errors import DataError
from retailtag.images.listing import list_images


@pytest.fixture
def here(tmp_path, monkeypatch, picture):
    """Three images under two folders, one without a suffix, and files that are none."""
    monkeypatch.chdir(tmp_path)
    for name in ("shop/b.jpg", "shop/a/c.PNG", "shop/a/raw", "shop/.hidden.jpg", "shop/.git/x.jpg"):
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture())
    Path("shop/notes.md").write_text("none")
    return tmp_path


ALL = ["shop/b.jpg", "shop/a/c.PNG", "shop/a/raw"]


def names(*places):
    files, notes = list_images([Path(place) for place in places])
    return [path.as_posix() for path in files], notes


def test_a_folder_is_its_images(here):
    files, (note,) = names("shop")
    assert files == ALL
    assert note == "1 files of shop are no images and are left out (notes.md)."


def test_a_list_is_its_paths_in_order(here):
    Path("paths.TXT").write_text("shop/a/raw\r\n\n shop/b.jpg\nmissing.jpg\n")
    assert names("paths.TXT") == (["shop/a/raw", "shop/b.jpg", "missing.jpg"], [])


def test_every_file_is_taken_once(here):
    files, (_, note) = names("shop/b.jpg", "shop", "no/such.jpg")
    assert files == [*ALL, "no/such.jpg"]
    assert note == "1 images are named more than once."


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("\n", r"list\.txt lists no images"),
        ("b.jpg\nc.jpg", r"None of the 2 paths of list\.txt is there \(b\.jpg\)"),
        (None, r"list\.txt cannot be read: No such file"),
        (b"\xff\xfe", r"list\.txt is not UTF-8"),
        ("shop/b.jpg\na\0b.jpg", r"list\.txt is not UTF-8 text"),
    ],
)
def test_a_list_that_names_nothing_is_one_sentence(here, text, sentence):
    if text is not None:
        Path("list.txt").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError, match=sentence):
        names("list.txt")


def test_a_folder_without_images_is_one_sentence(here):
    Path("empty").mkdir()
    with pytest.raises(DataError, match="empty holds no images"):
        names("empty")
