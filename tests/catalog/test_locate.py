"""Images are found where the user says, never elsewhere, and what nearly fits is named."""

import tarfile
import unicodedata
import zipfile

import pytest

from retailtag.catalog.readers import read_catalog
from retailtag.errors import BadCatalogue, DataError, UnreadableImage, UsageError


def problems(path, **options):
    with pytest.raises(BadCatalogue) as caught:
        read_catalog(path, **options)
    return list(caught.value.problems)


@pytest.mark.parametrize(
    ("written", "there", "differs"),
    [
        ("images/shoe.jpg", "images/Shoe.JPG", "case"),
        ("Images/0.jpg", "images/0.jpg", "case"),
        ("images/café.jpg", unicodedata.normalize("NFD", "images/café.jpg"), "Unicode form"),
        (unicodedata.normalize("NFD", "images/café.jpg"), "images/café.jpg", "Unicode form"),
        (r"images\0.jpg", "images/0.jpg", "backslashes"),
        ("images/a%20b%23.jpg", "images/a b#.jpg", "percent-encoding"),
        ("images/0", "images/0.jpg", "suffix"),
        ("images/0.jpeg", "images/0.jpg", "suffix"),
        (r"Images\SHOE", "images/Shoe.JPG", "backslashes and suffix and case"),
    ],
)
@pytest.mark.parametrize("archive", [None, "images.zip"])
def test_a_path_that_misses_by_its_form_names_the_file(
    manifest, shop, pack, picture, written, there, differs, archive
):
    (shop / there).write_bytes(picture(7))
    path = manifest("path,tags", f"{written},a", "images/1.jpg,a")
    if archive:
        pack(shop, archive)
    (line,) = problems(path)
    assert line.startswith(f"row 2: {written} is missing; {there} is there (differs in {differs}")


def test_a_path_of_nothing_is_only_missing(manifest, shop):
    (shop / "images" / "9.txt").write_text("no image")
    rows = ["path,tags", "images/7.jpg,a", "images/1.jpg,a", "images/9,a"]
    assert problems(manifest(*rows)) == [
        "row 2: images/7.jpg is missing",
        "row 4: images/9 is missing",
    ]


def test_a_catalogue_that_misses_by_form_says_so_once(manifest):
    path = manifest("path,tags", *(f"Images/{i}.jpg,a" for i in range(101)))
    with pytest.raises(
        DataError, match=r"None of the 101 .* images/0\.jpg is there .differs in case"
    ):
        read_catalog(path)


def test_urls_and_absolute_paths_are_one_line_each(manifest, shop):
    lines = [f"https://shop.example/{i}.jpg,a" for i in range(4)]
    lines += ["s3://bucket/1.jpg,a", "/data/x/1.jpg,a", "/data/y/1.jpg,a", r"C:\x\1.jpg,a"]
    urls, absolute, windows = problems(manifest("path,tags", *lines))
    assert urls.startswith(
        "rows 2, 3, 4 and 2 more: path 'https://shop.example/0.jpg' is a URL; name the URL"
    )
    assert absolute.startswith("rows 7, 8: path '/data/x/1.jpg' is absolute")
    assert "--allow-root /data," in absolute
    assert windows.startswith(r"row 9: path 'C:\\x\\1.jpg' is absolute; write it relative")


def test_the_head_counts_rows_not_lines(manifest):
    path = manifest("path,tags", "/a/1.jpg,a", "/a/2.jpg,a", "images/0.jpg,a")
    with pytest.raises(BadCatalogue, match="has 2 rows that cannot be used"):
        read_catalog(path)


@pytest.fixture
def disk(tmp_path, picture):
    """A folder beside the shop, with two images, and a secret outside of both."""
    (tmp_path / "disk" / "deep").mkdir(parents=True)
    for i, name in enumerate(("a.jpg", "deep/b.jpg")):
        (tmp_path / "disk" / name).write_bytes(picture(100 + i))
    (tmp_path / "secret.jpg").write_bytes(picture(200))
    return tmp_path / "disk"


def test_allowed_roots_open_absolute_paths_dots_and_links(manifest, shop, disk, picture):
    (shop / "images" / "link.jpg").symlink_to(disk / "a.jpg")
    (shop / "away").symlink_to(disk)
    places = [
        f"{disk}/a.jpg",
        "../disk/deep/b.jpg",
        "images/link.jpg",
        "away/a.jpg",
        "images/1.jpg",
    ]
    path = manifest("path,tags", *(f"{place},a" for place in places))
    assert len(problems(path)) == 4
    images = read_catalog(path, allow_root=disk).images
    shades = [100, 101, 100, 100, 40]
    assert [images.read(i) for i in range(5)] == [picture(shade) for shade in shades]
    assert images.paths[0] == f"{disk}/a.jpg"


def test_allowed_roots_open_nothing_else(manifest, shop, disk, tmp_path):
    (disk / "out.jpg").symlink_to(tmp_path / "secret.jpg")
    (tmp_path / "disk2").mkdir()
    (tmp_path / "disk2" / "a.jpg").write_bytes(b"x")
    places = [
        f"{tmp_path}/secret.jpg", f"{disk}/../secret.jpg", f"{disk}/out.jpg", "../secret.jpg",
        f"{tmp_path}/disk2/a.jpg", "/etc/passwd", f"{disk}/a.jpg",
    ]  # fmt: skip
    path = manifest("path,tags", *(f"{place},a" for place in places))
    outside, link = problems(path, allow_root=[disk])
    assert outside.startswith("rows 2, 3, 5 and 2 more: ")
    assert "outside of the folders that are named with --allow-root" in outside
    assert link.startswith("row 4: ")


def test_a_file_of_an_allowed_root_that_becomes_a_link_is_not_followed(manifest, disk, tmp_path):
    images = read_catalog(manifest("path,tags", f"{disk}/a.jpg,a"), allow_root=disk).images
    (disk / "a.jpg").unlink()
    (disk / "a.jpg").symlink_to(tmp_path / "secret.jpg")
    with pytest.raises(UnreadableImage, match="leaves"):
        images.read(0)


def archives(shop):
    """The shop's images in a zip and a tar, two each, and the files gone."""
    files = sorted((shop / "images").iterdir())
    with zipfile.ZipFile(shop / "a.zip", "w") as packed:
        packed.write(files[0], "images/0.jpg")
        packed.write(files[1], "images/1.jpg")
    with tarfile.open(shop / "b.tar", "w") as packed:
        packed.add(files[2], "images/2.jpg")
        packed.add(files[3], "images/3.jpg")
    for file in files:
        file.unlink()
    return [shop / "a.zip", shop / "b.tar"]


def test_several_archives_serve_one_catalogue(manifest, shop, picture):
    path = manifest("path,tags", *(f"images/{i}.jpg,a" for i in (3, 0, 2, 1)))
    places = archives(shop)
    for images in (places, [shop]):
        found = read_catalog(path, images=images).images
        assert [found.read(i) for i in range(4)] == [picture(40 * i) for i in (3, 0, 2, 1)]
        assert found.name(0) == f"{shop}/b.tar/images/3.jpg"
    found = read_catalog(path, images=places, max_bytes=10).images
    with pytest.raises(UnreadableImage, match="above the limit of 10"):
        found.read(0)


def test_a_path_in_two_archives_or_in_none_is_a_fault(manifest, shop, picture):
    places = archives(shop)
    with zipfile.ZipFile(places[0], "a") as packed:
        packed.writestr("images/2.jpg", picture(1))
    path = manifest("path,tags", "images/0.jpg,a", "images/2.jpg,a", "images/4.jpg,a")
    both, none = problems(path, images=places)
    assert both.endswith(f"images/2.jpg is in both {places[0]} and {places[1]}; leave one out")
    assert none == "row 4: images/4.jpg is missing"


def test_parquet_and_other_places_do_not_mix(manifest, shop):
    (shop / "x.parquet").write_bytes(b"")
    path = manifest("path,tags", "images/0.jpg,a")
    with pytest.raises(UsageError, match=r"x\.parquet is Parquet and others are not"):
        read_catalog(path, images=[shop / "x.parquet", shop])


def test_roots_are_compared_by_whole_names(manifest, shop, disk):
    (shop / "alias").symlink_to(disk)
    path = manifest("path,tags", f"{shop}/alias/a.jpg,a", "images/0.jpg,a")
    assert "is absolute" in problems(path)[0]
    assert len(read_catalog(path, allow_root=shop / "alias")) == 2
