"""Every file of the corpus gets its verdict, alone and in a catalogue, and no name leads out."""

import csv
import io
import json
import logging
import os
import re
import socket
import subprocess
import sys
import tarfile
import unicodedata
import zipfile
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from retailtag.backbones.preprocess import Preprocess
from retailtag.catalog.readers import read_catalog
from retailtag.errors import BadCatalogue, UnreadableImage
from retailtag.images import header as image_header
from retailtag.images.decode import decode_image
from retailtag.images.loader import load_batches
from retailtag.images.sources import FolderImages, ParquetImages, TarImages, ZipImages

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # of Pillow, about odd files

CLASSES = (
    "plain", "modes", "transparency", "orientation", "metadata", "frames", "declared", "extremes",
    "inside", "cut_off", "flips", "not_images",
)  # fmt: skip
REMEDY = re.compile(r"; (fetch|convert|scale|install|save|pack|mend|put|update)")


def decoded(data, **limits):
    """Pixels (h, w, 3), or the reason of the refusal."""
    try:
        return np.asarray(decode_image(data, **limits))
    except UnreadableImage as error:
        return str(error)


def verdict_missed(case, got) -> str:
    """What is wrong with a decoded image or a reason; empty if it is as the case says."""
    if isinstance(got, str):
        if case.size is not None and not case.may_refuse:
            return f"refused: {got}"
        return "" if re.search(case.reason, got) and REMEDY.search(got) else f"reason: {got}"
    if case.size != got.shape[1::-1]:
        return f"decoded to {got.shape[1::-1]}, not {case.size}"
    if case.pixels is not None:
        difference = np.abs(got.astype(int) - case.pixels).max()
        return f"differs by {difference}" if difference > case.within else ""
    return ""


@pytest.mark.parametrize("name", CLASSES)
def test_every_file_gets_its_verdict(corpus, name):
    missed = {case.name: verdict_missed(case, decoded(case.data)) for case in corpus[name]}
    assert not {name: what for name, what in missed.items() if what}


def test_the_corpus_is_large_and_made_from_its_seed(corpus, make_corpus):
    assert set(corpus) == set(CLASSES)
    cases = [case for name in CLASSES for case in corpus[name]]
    assert len(cases) >= 500
    assert len({case.name for case in cases}) == len(cases)
    made = make_corpus()
    again = [case for name in CLASSES for case in made[name]]
    for one, two in zip(cases, again, strict=True):
        timed = one.name == "two frames AVIF"  # which says when it was made
        assert one.data == two.data or timed, one.name


def test_a_catalogue_of_all_of_it_is_read_to_its_end(corpus, tmp_path):
    """Other processes come to the verdicts of this one, and the run goes on past each."""
    cases = [case for name in CLASSES for case in corpus[name]]
    for i, case in enumerate(cases):
        (tmp_path / f"{i}.jpg").write_bytes(case.data)  # the name tells nothing of the format
    manifest(tmp_path, [f"{i}.jpg" for i in range(len(cases))])
    catalog = read_catalog(tmp_path / "catalogue.csv")
    last_step = Preprocess((8, 8))
    rows = range(len(cases))
    batches = list(load_batches(catalog.images, rows, last_step, batch_size=64, workers=2))
    failures = {f.row: f.reason for b in batches for f in b.failures}
    pixels = {r: p for b in batches for r, p in zip(b.rows.tolist(), b.pixels, strict=True)}
    for row, case in enumerate(cases):
        here = decoded(case.data)
        if isinstance(here, str):
            assert failures[row] == here, case.name
        else:
            assert (pixels[row] == last_step(decode_image(case.data))).all(), case.name


def manifest(folder, paths):
    with (folder / "catalogue.csv").open("w", newline="", encoding="utf-8") as handle:
        csv.writer(handle).writerows([["path", "tags"], *([p, "red"] for p in paths)])


DECLARED = """
import json, resource, sys
from pathlib import Path
from retailtag.images.decode import decode_image
from retailtag.errors import UnreadableImage
decode_image(Path(sys.argv[1], "sound").read_bytes())
size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + (64 << 20),) * 2)
reasons = {}
for path in Path(sys.argv[1]).glob("*.bin"):
    try:
        decode_image(path.read_bytes())
    except UnreadableImage as error:
        reasons[path.stem] = str(error)
print(json.dumps(reasons))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits its memory as Linux does")
def test_a_bomb_costs_no_memory(corpus, picture, tmp_path):
    """Headers that declare 900 megapixels are refused with 64 MiB to spare."""
    bombs = [case for case in corpus["declared"] if case.reason.startswith("declares")]
    assert {c.name.split()[0] for c in bombs} >= {"PNG", "WebP", "GIF", "TIFF", "JPEG", "icon"}
    (tmp_path / "sound").write_bytes(picture())
    for i, case in enumerate(bombs):
        (tmp_path / f"{i}.bin").write_bytes(case.data)
    program = [sys.executable, "-W", "ignore", "-c", DECLARED, str(tmp_path)]
    done = subprocess.run(program, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    reasons = json.loads(done.stdout)
    for i, case in enumerate(bombs):
        assert re.search(case.reason, reasons[str(i)]), case.name


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "group4"])
def test_libtiff_and_the_log_of_pillow_print_nothing(compression, capfd):
    """Both write past Python's streams, and neither knows the name of the file."""
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (60, 60, 3), np.uint8))
    buffer = io.BytesIO()
    image.convert("1" if compression == "group4" else "RGB").save(
        buffer, "TIFF", compression=compression
    )
    for at in range(8, len(buffer.getvalue()) - 8, 97):
        data = bytearray(buffer.getvalue())
        data[at : at + 6] = rng.bytes(6)
        decoded(bytes(data))
    logging.getLogger("PIL.TiffImagePlugin").error("More samples per pixel than can be decoded")
    assert capfd.readouterr() == ("", "")


def test_the_limit_on_pixels_holds_below_pillows_own(corpus):
    for name in ("plain", "extremes"):
        for case in corpus[name]:
            n = case.size[0] * case.size[1]
            assert "declares" in decoded(case.data, max_pixels=n - 1), case.name
            assert not isinstance(decoded(case.data, max_pixels=n), str), case.name


def test_what_there_is_of_a_jpeg_is_decoded_where_that_is_allowed(corpus):
    for case in corpus["cut_off"]:
        got = decoded(case.data, allow_truncated=True)
        if case.name.startswith("JPEG cut") and b"\xff\xda" in case.data[:-14]:
            assert got.shape == (40, 48, 3), case.name
        elif case.name.startswith(("GIF", "WEBP", "BMP", "TIFF", "JPEG2000", "PPM", "AVIF")):
            assert isinstance(got, str), case.name
        elif not isinstance(got, str):  # a progressive JPEG, or a PNG without its end
            assert got.shape == (40, 48, 3), case.name


@pytest.mark.parametrize(
    ("missing", "head", "sentence"),
    [
        ("HEIF", b"ftypheic", "HEIF, which needs the package pillow-heif; install that or convert"),
        ("AVIF", b"ftypavif", r"AVIF, which Pillow reads from 11\.3 on; update it or convert"),
    ],
)
def test_a_format_without_its_decoder_says_what_it_needs(monkeypatch, missing, head, sentence):
    formats = tuple(f for f in image_header.known_formats() if f != missing)
    monkeypatch.setattr(image_header, "known_formats", lambda: formats)
    with pytest.raises(UnreadableImage, match=sentence):
        decode_image(b"\0\0\0\x18" + head + bytes(40))


def test_heif_is_read_where_its_package_is_there(monkeypatch):
    def register():
        Image.register_open(
            "HEIF",
            lambda *_: Image.new("RGB", (3, 2), (9, 8, 7)),
            lambda head: head[4:12] == b"ftypheic",
        )

    monkeypatch.setitem(sys.modules, "pillow_heif", SimpleNamespace(register_heif_opener=register))
    image_header.known_formats.cache_clear()
    try:
        assert decoded(b"\0\0\0\x18ftypheic" + bytes(40)).shape == (2, 3, 3)
    finally:
        image_header.known_formats.cache_clear()
        Image.OPEN.pop("HEIF")
        Image.ID.remove("HEIF")


NAMES = [
    unicodedata.normalize("NFC", "robe-été.jpg"),
    unicodedata.normalize("NFD", "robe-été.jpg"),
    "👗🏽‍♀️.jpg", "שמלה.jpg", "a\u202egpj.exe", "two\nlines.jpg", "-rf.jpg", "--help",
    'quo"te, and comma.jpg', "back\\slash.jpg", "...jpg", "*?[x].jpg", "~", "%2e%2e.jpg", "#1.jpg",
    "CON.jpg", "ß.jpg", "ẞ.jpg", "x" * 251 + ".jpg", "深" * 83 + ".jpg",
]  # fmt: skip


def test_names_in_any_script_are_read_as_written(tmp_path, picture):
    for i, name in enumerate(NAMES):
        (tmp_path / name).write_bytes(picture(10 * i))
    manifest(tmp_path, NAMES)
    images = read_catalog(tmp_path / "catalogue.csv").images
    assert [images.read(i) for i in range(len(NAMES))] == [
        picture(10 * i) for i in range(len(NAMES))
    ]


def test_paths_out_of_the_root_are_refused_by_row(tmp_path, picture):
    (tmp_path / "secret.jpg").write_bytes(picture())
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "link.jpg").symlink_to("../secret.jpg")
    (tmp_path / "shop" / "loop.jpg").symlink_to("loop.jpg")
    (tmp_path / "shop" / "good.jpg").write_bytes(picture())
    wicked = ["../secret.jpg", "x/../../secret.jpg", "..\\secret.jpg", str(tmp_path / "secret.jpg")]
    wicked += ["link.jpg", "loop.jpg", "x" * 300 + ".jpg"]
    manifest(tmp_path / "shop", ["good.jpg", *wicked])
    with pytest.raises(BadCatalogue) as caught:
        read_catalog(tmp_path / "shop" / "catalogue.csv")
    rows = [re.match(r"rows? ([\d, ]+): ", p)[1] for p in caught.value.problems]
    assert rows == ["3, 4, 5", "6", "7", "8", "9"]
    for words in ("leaves", "absolute", "is a link that leaves the folder; put the file itself"):
        assert any(words in problem for problem in caught.value.problems)


def test_what_is_no_file_is_never_opened_for_long(tmp_path, picture):
    """A pipe without a writer, and a device without an end, would hold a reader for ever."""
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "endless.jpg").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as listener:
        cwd = os.open(".", os.O_RDONLY)
        os.chdir(tmp_path)  # the path of a socket is short
        listener.bind("socket.jpg")
        os.fchdir(cwd)
        os.close(cwd)
        names = ["pipe.jpg", "folder.jpg", "endless.jpg", "socket.jpg", "good.jpg"]
        (tmp_path / "good.jpg").write_bytes(picture())
        source = FolderImages(tmp_path, names)
    assert sorted(source.faults) == [0, 1, 2, 3]
    (tmp_path / "good.jpg").unlink()
    os.mkfifo(tmp_path / "good.jpg")  # after the folder was looked at
    with pytest.raises(UnreadableImage, match="is not a file; put an image there"):
        source.read(4)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_says_so(tmp_path, picture):
    (tmp_path / "x.jpg").write_bytes(picture())
    (tmp_path / "x.jpg").chmod(0)
    with pytest.raises(UnreadableImage, match=r"Permission denied.*; fix the file"):
        FolderImages(tmp_path, ["x.jpg"]).read(0)


@pytest.fixture
def every_source(tmp_path):
    """Make a folder, a tar, a zip and a Parquet file that hold one image."""

    def make(data):
        (tmp_path / "x.jpg").write_bytes(data)
        with tarfile.open(tmp_path / "x.tar", "w") as tar:
            tar.add(tmp_path / "x.jpg", "x.jpg")
        with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("x.jpg", data)
        pq.write_table(pa.table({"image": [data]}), tmp_path / "x.parquet")
        return [
            FolderImages(tmp_path, ["x.jpg"]),
            TarImages(tmp_path / "x.tar", ["x.jpg"]),
            ZipImages(tmp_path / "x.zip", ["x.jpg"]),
            ParquetImages(tmp_path, ["x.jpg"], [tmp_path / "x.parquet"], "image"),
        ]

    return make


def test_the_limit_on_bytes_holds_in_every_source(every_source):
    for source in every_source(bytes(5000)):
        source.max_bytes = 5000
        assert source.read(0) == bytes(5000)
        source.max_bytes = 4999
        with pytest.raises(UnreadableImage, match=r"5,000 bytes.*4,999; .*--max-bytes"):
            source.read(0)


def test_the_limit_on_bytes_is_an_option_of_the_catalogue(tmp_path, picture):
    (tmp_path / "x.jpg").write_bytes(picture())
    manifest(tmp_path, ["x.jpg"])
    images = read_catalog(tmp_path / "catalogue.csv", max_bytes=100).images
    with pytest.raises(UnreadableImage, match="above the limit of 100"):
        images.read(0)


def test_a_file_of_gigabytes_is_refused_unread(tmp_path):
    (tmp_path / "x.jpg").touch()
    os.truncate(tmp_path / "x.jpg", 1 << 40)  # no machine could hold it
    with pytest.raises(UnreadableImage, match="scale it down or raise --max-bytes"):
        FolderImages(tmp_path, ["x.jpg"]).read(0)
