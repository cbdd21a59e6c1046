"""Archives and folders give the same bytes, from any thread, and nothing from outside."""

import io
import os
import tarfile
import zipfile
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from retailtag.errors import DataError, UnreadableImage
from retailtag.images import tar
from retailtag.images.opening import open_images
from retailtag.images.sources import FolderImages, ParquetImages, TarImages, ZipImages

PATHS = [f"images/{i}.jpg" for i in range(4)]


@pytest.mark.parametrize("name", [None, "images.tar", "images.tar.xz", "images.zip"])
def test_every_source_gives_the_bytes_from_any_thread(shop, pack, picture, name):
    place = pack(shop, name) if name else shop
    source = open_images(place, PATHS)
    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(source.read, [i % 4 for i in range(80)]))
    assert got == [picture(40 * (i % 4)) for i in range(80)]
    assert source.name(2).endswith("images/2.jpg")
    assert not source.faults


def test_parquet_keeps_few_row_groups(tmp_path, picture):
    table = pa.table({"image": [picture(i) for i in range(20)]})
    pq.write_table(table, tmp_path / "x.parquet", row_group_size=1)
    paths = [str(i) for i in range(20)]
    source = ParquetImages(tmp_path, paths, [tmp_path / "x.parquet"], "image")
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(source.read, range(20))) == [picture(i) for i in range(20)]
    assert len(source._groups) == source.CACHED_ROW_GROUPS


def test_a_link_out_of_the_folder_is_not_followed(shop, tmp_path, picture):
    (tmp_path / "secret.jpg").write_bytes(picture())
    (shop / "images" / "out.jpg").symlink_to(tmp_path / "secret.jpg")
    (shop / "images" / "in.jpg").symlink_to(shop / "images" / "1.jpg")
    (shop / "away").symlink_to(tmp_path)
    source = FolderImages(shop, ["images/out.jpg", "images/in.jpg", "away/secret.jpg", "nope.jpg"])
    assert "leaves" in source.faults[0]
    assert source.read(1) == picture(40)
    assert "behind a link that leaves the folder; give the real folder" in source.faults[2]
    assert source.faults[3] == "is missing"
    with pytest.raises(UnreadableImage, match="leaves"):
        source.read(0)


def test_a_folder_that_may_not_be_read_is_told_from_a_missing_one(shop, monkeypatch):
    def refuse(folder):
        raise PermissionError(13, "Permission denied", folder)

    monkeypatch.setattr(os, "scandir", refuse)
    assert "may not be read" in FolderImages(shop, PATHS).faults[0]


def test_a_file_that_becomes_a_link_later_is_not_followed(shop, tmp_path, picture):
    (tmp_path / "secret.jpg").write_bytes(picture())
    source = FolderImages(shop, PATHS)
    (shop / PATHS[0]).unlink()
    (shop / PATHS[0]).symlink_to(tmp_path / "secret.jpg")
    with pytest.raises(UnreadableImage, match="leaves"):
        source.read(0)
    (shop / PATHS[1]).unlink()
    with pytest.raises(UnreadableImage, match="cannot be opened"):
        source.read(1)


def test_links_and_escapes_inside_a_tar_are_refused(tmp_path, picture):
    archive = tmp_path / "images.tar"
    with tarfile.open(archive, "w") as tar:
        for name in ("good.jpg", "/absolute.jpg", "../above.jpg"):
            info = tarfile.TarInfo(name)
            info.size = len(picture())
            tar.addfile(info, io.BytesIO(picture()))
        for name, kind in (("soft.jpg", tarfile.SYMTYPE), ("hard.jpg", tarfile.LNKTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "good.jpg"
            tar.addfile(info)
    names = ["good.jpg", "soft.jpg", "hard.jpg", "/absolute.jpg", "../above.jpg"]
    source = TarImages(archive, names)
    assert source.read(0) == picture()
    assert "is a link" in source.faults[1]
    assert "is a link" in source.faults[2]
    assert source.faults[3] == source.faults[4] == "is missing"


def test_a_compressed_tar_is_unpacked_once_and_repaired(shop, pack, cache, monkeypatch):
    archive = pack(shop, "images.tar.gz")
    TarImages(archive, PATHS)
    plain, index = sorted(cache.rglob("*.tar"))[0], sorted(cache.rglob("*.json"))[0]
    with monkeypatch.context() as patched:
        patched.setattr(tar, "_copy", None)  # a second unpacking would fail
        TarImages(archive, PATHS)
    index.write_text("{")
    plain.write_bytes(b"")
    assert TarImages(archive, PATHS).read(0)[:2] == b"\xff\xd8"


def test_a_bomb_leaves_nothing_behind(tmp_path, cache, shop, pack, monkeypatch):
    archive = pack(shop, "images.tar.xz")
    monkeypatch.setattr(tar, "MIN_LIMIT", 1000)
    monkeypatch.setattr(tar, "MAX_EXPANSION", 1)
    with pytest.raises(DataError, match="unpack it yourself"):
        tar.plain_tar(archive)
    assert not [p for p in cache.rglob("*") if p.is_file()]


@pytest.mark.parametrize("name", ["images.tar.xz", "images.tar.gz", "images.tar", "images.zip"])
def test_damaged_archives_name_themselves(shop, pack, cache, name):
    archive = pack(shop, name)
    archive.write_bytes(archive.read_bytes()[:300])
    if name == "images.tar":
        archive.write_bytes(b"not a tar at all")
    with pytest.raises(DataError, match=name):
        open_images(archive, PATHS)
    assert not [p for p in cache.rglob("*") if p.is_file()]


def test_a_tar_that_shrinks_after_opening_names_the_image(shop, pack):
    archive = pack(shop, "images.tar")
    source = TarImages(archive, PATHS)
    os.truncate(archive, 612)
    with pytest.raises(UnreadableImage, match="breaks off"):
        source.read(0)
    with pytest.raises(DataError, match=r"images\.tar"):
        TarImages(archive, PATHS)


def test_zip_members_are_checked(tmp_path, picture):
    path = tmp_path / "images.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("stored.jpg", picture())
        archive.writestr("lzma.jpg", picture(), zipfile.ZIP_LZMA)
        link = zipfile.ZipInfo("link.jpg")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "stored.jpg")
    source = ZipImages(path, ["stored.jpg", "lzma.jpg", "link.jpg", "none.jpg"])
    assert source.read(0) == picture()
    assert [source.faults[i].split()[0] for i in (1, 2, 3)] == ["has", "is", "is"]
    data = bytearray(path.read_bytes())
    data[60] ^= 1
    path.write_bytes(data)
    with pytest.raises(UnreadableImage, match="CRC"):
        ZipImages(path, ["stored.jpg"]).read(0)


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer, not an archive"),
        (b"<html>Sign in</html>", "a web page, not an archive"),
        (b"Rar!\x1a\7\0", "a RAR archive, not an archive of images that retailtag reads"),
        (b"PK\3\4" + bytes(90), "a zip archive that breaks off"),
    ],
)
def test_what_lies_in_place_of_an_archive_is_called_what_it_is(tmp_path, content, kind):
    path = tmp_path / "images.zip"
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"images\.zip is {kind}"):
        open_images(path, ["a.jpg"])


def test_a_zip_with_any_changed_byte_is_served_or_one_sentence(tmp_path, picture):
    path = tmp_path / "images.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("a.jpg", "é.jpg"):
            archive.writestr(name, picture())
    data = path.read_bytes()
    end = data.index(b"PK\1\2")  # the directory, in which nearly every byte counts
    for at in range(end, len(data)):
        for value in (0, 255):
            path.write_bytes(data[:at] + bytes([value]) + data[at + 1 :])
            try:
                source = ZipImages(path, ["a.jpg", "é.jpg"])
                found = [source.read(i) for i in range(2) if i not in source.faults]
            except (DataError, UnreadableImage):
                continue
            assert set(found) <= {picture()}
