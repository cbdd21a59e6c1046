"""Sources name images: files, folders, patterns, lists, archives, manifests, stdin, memory."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest
from PIL import Image

from retailtag.catalog.named import named_images
from retailtag.errors import BadCatalogue, DataError, UnreadableImage, UsageError
from retailtag.settings import CatalogSettings


@pytest.fixture
def here(shop, monkeypatch):
    """The working directory: a folder of four images below images/."""
    monkeypatch.chdir(shop)
    return shop


ALL = [f"images/{i}.jpg" for i in range(4)]


def ids(*sources, **options):
    return [one.image_id for one in named_images(sources, **options)]


def test_files_folders_and_patterns(here):
    assert ids("images/2.jpg", "images") == ["images/2.jpg", *ALL[:2], ALL[3]]
    assert ids("images/*.jpg") == ids("**/*.jpg") == ids("im*") == ALL
    found = named_images(["images/2.jpg", "images"])
    assert found.total == 5
    assert len(list(found)) == 4
    assert found.n_repeated == 1
    with pytest.raises(DataError, match=r"^No file matches images/\*\.bmp; quote the pattern"):
        named_images(["images/*.bmp"])


def test_a_name_that_exists_is_no_pattern(here, picture):
    Path("images/[1].jpg").write_bytes(picture())
    assert ids("images/[1].jpg") == ["images/[1].jpg"]
    assert ids("images/[12].jpg") == ["images/1.jpg", "images/2.jpg"]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\0"])
@pytest.mark.parametrize("trailing", [True, False])
def test_paths_on_stdin(here, end, trailing):
    text = end.join(["images/1.jpg", "", "images/3.jpg"]) + end * trailing
    found = named_images(["-"], stdin=io.BytesIO(text.encode()))
    assert found.total is None
    assert [one.image_id for one in found] == ["images/1.jpg", "images/3.jpg"]


def test_names_of_any_bytes_come_through_stdin(here, picture):
    name = b"images/a\nb \xff|,.jpg"
    Path(os.fsdecode(name)).write_bytes(picture(9))
    (one,) = named_images(["-"], stdin=io.BytesIO(name + b"\0"))
    assert os.fsencode(one.path) == name
    assert one.read() == picture(9)


def test_a_stream_is_split_at_the_same_places_however_it_arrives(here):
    names = [f"{'x' * (i % 70)}-{i}.jpg" for i in range(4000)]

    class Slow(io.BytesIO):
        def read1(self, size=-1):
            return super().read1(min(size, 7))

    data = "\n".join(names).encode()
    assert ids("-", stdin=io.BytesIO(data)) == ids("-", stdin=Slow(data)) == names


@pytest.mark.parametrize("name", ["images.tar", "images.zip", "images.tar.gz"])
def test_members_of_an_archive(here, pack, name, picture):
    Path("images/notes.md").write_text("none")
    pack(here, name)
    found = named_images([name])
    assert [one.image_id for one in found] == [f"{name}/{path}" for path in ALL]
    assert found.notes == [f"1 files of {name} are no images and are left out (images/notes.md)."]
    assert [one.path for one in named_images([name])] == ALL
    assert next(iter(named_images([name]))).read() == picture(0)


def test_an_archive_without_images_is_one_sentence(here, pack):
    for path in ALL:
        Path(path).rename(Path(path).with_suffix(".dat"))
    pack(here, "images.zip")
    with pytest.raises(DataError, match=r"^images\.zip holds no images"):
        named_images(["images.zip"])


def test_a_manifest_needs_no_tags_and_tells_its_ids(here, manifest):
    manifest("image_id,path", "a,images/0.jpg", "b,images/gone.jpg")
    found = named_images(["catalogue.csv"])
    assert found.total == 2
    first, second = found
    assert (first.image_id, first.path, second.image_id) == ("a", "images/0.jpg", "b")
    with pytest.raises(UnreadableImage, match="is missing"):
        second.read()


def test_a_table_of_a_row_per_tag_names_each_image_once(here, manifest):
    manifest("path,tags", *(f"{path},{tag}" for path in ALL for tag in ("red", "blue")))
    assert ids("catalogue.csv") == [path.removesuffix(".jpg") for path in ALL]


def test_bad_rows_of_a_manifest_are_told_at_once(here, manifest):
    manifest("path", "images/0.jpg", "/etc/passwd", "images/0.jpg")
    with pytest.raises(BadCatalogue) as caught:
        named_images(["catalogue.csv"])
    assert len(caught.value.problems) == 2


def test_a_manifest_without_any_of_its_images_or_paths_is_refused(here, manifest):
    manifest("path", "0.jpg")
    with pytest.raises(BadCatalogue, match=r"0\.jpg is missing"):
        named_images(["catalogue.csv"])
    assert ids("catalogue.csv", settings=CatalogSettings(images=("images",))) == ["0"]
    manifest("name,tags", "images/0.jpg,red")
    with pytest.raises(DataError, match=r"has no column path.*columns are name, tags"):
        named_images(["catalogue.csv"])


def test_a_manifest_is_named_alone(here, manifest):
    manifest("path", "images/0.jpg")
    with pytest.raises(UsageError, match="A manifest is the only source"):
        named_images(["catalogue.csv", "images"])


def test_a_table_in_memory_is_a_manifest(here):
    assert ids({"path": ["images/0.jpg"], "image_id": ["a"]}) == ["a"]


def test_bytes_and_pil_images(here, picture):
    data = picture(3)
    opened = Image.open(io.BytesIO(data))
    first, second = named_images([data, opened])
    assert (first.image_id, second.image_id) == ("image-000000000", "image-000000001")
    assert first.read() == data
    assert second.read().startswith(b"\x89PNG")
    with pytest.raises(UsageError, match="Image 0 is of type int; give a path"):
        named_images([3])


def test_what_cannot_be_read_is_said_when_it_is_read(here):
    Path("pipe.jpg").touch()
    Path("pipe.jpg").unlink()
    os.mkfifo("pipe.jpg")
    reasons = []
    for one in named_images(["gone.jpg", "pipe.jpg", "a\0b.jpg"]):
        with pytest.raises(UnreadableImage) as caught:
            one.read()
        reasons.append(str(caught.value))
    assert [reason.split(";")[0] for reason in reasons] == [
        "cannot be opened (No such file or directory)",
        "is not a file",
        "cannot be opened (embedded null byte)",
    ]
    (small,) = named_images(["images/0.jpg"], max_bytes=10)
    with pytest.raises(UnreadableImage, match="above the limit of 10"):
        small.read()


def test_nothing_named_is_refused(here):
    with pytest.raises(DataError, match="No images are named"):
        named_images([])
    with pytest.raises(UsageError, match="- stands for paths on stdin"):
        named_images(["-"])
    with pytest.raises(DataError, match=r"^stdin names no images; write one path per line"):
        ids("-", stdin=io.BytesIO(b"\n\n"))
