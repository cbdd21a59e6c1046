"""Catalogues and images on an S3-compatible store and on a web server, both real, on loopback."""

import hashlib
import importlib.util
import io
import json
import pickle
import re
import sys
import tarfile
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from retailtag import copies, remote
from retailtag.catalog.named import named_images
from retailtag.catalog.readers import read_catalog
from retailtag.errors import BadCatalogue, DataError, Unavailable, UnreadableImage, UsageError
from retailtag.files import write_text
from retailtag.images.remote import OUTSIDE, RemoteImages
from retailtag.remote import RemoteFault, RemotePath, as_path

_SPEC = importlib.util.spec_from_file_location(
    "remote_servers", Path(__file__).with_name("remote_servers.py")
)
servers = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(servers)

TAGS = ("red|shirt", "blue|shirt", "red|dress", "-")


@pytest.fixture(scope="module")
def s3():
    """An S3-compatible store with a bucket ``shop``; its ``flaky`` lets reads fail."""
    import fsspec

    flaky = servers.Flaky(servers.s3_app())
    with servers.serving(flaky) as url, pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "AWS_ENDPOINT_URL": url,
            "AWS_ACCESS_KEY_ID": "of",
            "AWS_SECRET_ACCESS_KEY": "tests",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }.items():
            patch.setenv(name, value)
        remote._file_system.cache_clear()
        system = fsspec.filesystem("s3")
        system.mkdir("shop")
        system.flaky = flaky
        yield system
        remote._file_system.cache_clear()


@pytest.fixture
def bucket(s3, request):
    """A folder of the store of this test alone: its URL."""
    yield "s3://shop/" + re.sub(r"\W+", "-", request.node.name)
    s3.flaky.every = 0


@pytest.fixture
def web(shop):
    """The folder ``shop`` over HTTP: its URL, and the application that may fail."""
    flaky = servers.Flaky(servers.folder_app(shop))
    with servers.serving(flaky) as url:
        yield url, flaky


@pytest.fixture(autouse=True)
def _at_once(monkeypatch):
    monkeypatch.setattr(remote, "FIRST_DELAY", 0.0)


@pytest.fixture
def photos(shop) -> dict[str, bytes]:
    """Images of the local shop by name."""
    return {f"images/{file.name}": file.read_bytes() for file in (shop / "images").iterdir()}


def _records(photos, prefix=""):
    return [
        {"path": prefix + name, "tags": tags, "split": split}
        for name, tags, split in zip(
            sorted(photos), TAGS, ("train", "train", "test", "train"), strict=True
        )
    ]


def _csv(records) -> bytes:
    lines = [",".join(records[0]), *(",".join(r.values()) for r in records)]
    return "\n".join(lines).encode() + b"\n"


def _tar(files: dict[str, bytes], mode="w") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def _zip(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return out.getvalue()


def _parquet(photos, **more) -> bytes:
    table = pa.table(
        {
            "image": [{"bytes": photos[name], "path": name} for name in sorted(photos)],
            "tags": list(TAGS),
            **more,
        }
    )
    out = io.BytesIO()
    pq.write_table(table, out, row_group_size=2)
    return out.getvalue()


def _shard(photos, number) -> bytes:
    """A shard as img2dataset writes it: image, JSON and caption of each sample."""
    files = {}
    for i, name in enumerate(sorted(photos)):
        key = f"{number:05d}{i:04d}"
        note = {"key": key, "status": "success", "tags": TAGS[i]}
        files |= {f"{key}.jpg": photos[name], f"{key}.json": json.dumps(note).encode()}
        files[f"{key}.txt"] = b"a caption"
    return _tar(files)


def _put(s3, url: str, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        s3.pipe_file(f"{url}/{name}", data)


def _bytes(catalog):
    return [catalog.images.read(row) for row in range(len(catalog))]


def _extracted(catalog, features):
    """Embeddings by demo:cnn in a store below a folder."""
    from retailtag.backbones import load_backbone
    from retailtag.context import RunContext
    from retailtag.extraction.extract import extract
    from retailtag.settings import ComputeSettings

    compute = ComputeSettings(device="cpu", features=features)
    return extract(RunContext(catalog, compute=compute), load_backbone("demo:cnn")).store


MANIFESTS = {
    "catalogue.csv": _csv,
    "catalogue.jsonl": lambda rows: "\n".join(map(json.dumps, rows)).encode(),
    "catalogue.json": lambda rows: json.dumps(rows).encode(),
    "catalogue.csv.gz": lambda rows: __import__("gzip").compress(_csv(rows)),
}


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_manifest_on_s3_is_the_catalogue_that_the_local_one_is(s3, bucket, shop, photos, name):
    text = MANIFESTS[name](_records(photos))
    (shop / name).write_bytes(text)
    _put(s3, bucket, {**photos, name: text})
    here, there = read_catalog(shop / name), read_catalog(f"{bucket}/{name}")
    assert there.digest == here.digest
    assert _bytes(there) == _bytes(here)
    assert str(there.path) == f"{bucket}/{name}"
    assert there.images.name(0) == f"{bucket}/images/0.jpg"


def test_missing_objects_are_named_with_their_rows_and_the_file_that_may_be_meant(
    s3, bucket, photos
):
    rows = _records(photos)
    rows[1]["path"] = "images/1.JPG"
    rows[2]["path"] = "elsewhere/2.jpg"
    _put(s3, bucket, {**photos, "catalogue.csv": _csv(rows)})
    with pytest.raises(BadCatalogue) as caught:
        read_catalog(f"{bucket}/catalogue.csv")
    assert caught.value.problems == (
        "row 3: images/1.JPG is missing; images/1.jpg is there (differs in case)",
        "row 4: elsewhere/2.jpg is missing",
    )


@pytest.mark.parametrize("name", ["images.tar", "images.tar.gz", "images.zip"])
def test_images_come_from_an_archive_on_s3(s3, bucket, manifest, photos, name):
    pack = {"tar": _tar, "gz": lambda files: _tar(files, "w:gz"), "zip": _zip}
    _put(s3, bucket, {name: pack[name.rpartition(".")[2]](photos)})
    path = manifest(*_csv(_records(photos)).decode().splitlines())
    catalog = read_catalog(path, images=[f"{bucket}/{name}"])
    assert _bytes(catalog) == [photos[name] for name in sorted(photos)]
    assert catalog.images.stamp(0) is not None
    assert str(catalog.images.root) == f"{bucket}/{name}"


@pytest.mark.parametrize("name", ["", "images.tar", "images.tar.gz", "images.zip", "x.parquet"])
def test_a_part_of_remote_images_is_read_on_another_machine(
    s3, bucket, manifest, photos, cache, monkeypatch, name
):
    sizes = {key: data + b"-" * i for i, (key, data) in enumerate(sorted(photos.items()))}
    if name.endswith("parquet"):
        _put(s3, bucket, {name: _parquet(sizes)})
        source = read_catalog(f"{bucket}/{name}").images
    else:
        pack = {"tar": _tar, "gz": lambda files: _tar(files, "w:gz"), "zip": _zip}
        _put(s3, bucket, {name: pack[name.rpartition(".")[2]](sizes)} if name else sizes)
        path = manifest(*_csv(_records(photos)).decode().splitlines())
        source = read_catalog(path, images=[f"{bucket}/{name}" if name else bucket]).images
    data = pickle.dumps(source.part([2, 0]))
    monkeypatch.setenv("RETAILTAG_CACHE", str(cache / "of-another-machine"))
    part = pickle.loads(data)  # noqa: S301
    assert [part.read(i) for i in range(2)] == [source.read(2), source.read(0)]
    assert part.stamp(0) == source.stamp(2)


def test_parquet_on_s3_is_read_by_the_parts_that_are_used(s3, bucket, photos, cache):
    _put(s3, bucket, {"data/train-00000-of-00001.parquet": _parquet(photos)})
    catalog = read_catalog(bucket)
    assert catalog.split.tolist() == ["train"] * 4
    assert _bytes(catalog) == [photos[name] for name in sorted(photos)]
    assert catalog.images.stamp(3) == catalog.images.stamp(0) is not None
    assert not (cache / "remote").exists()  # nothing was copied whole


def test_shards_on_s3_are_read_through_a_cache_that_stays_within_its_bound(
    s3, bucket, photos, cache, monkeypatch
):
    shards = {f"{n:05d}.tar": _shard(photos, n) for n in range(3)}
    _put(s3, bucket, {**shards, "00000_stats.json": b"{}", "00000.parquet": _parquet(photos)})
    room = 1.5 * len(shards["00000.tar"])
    monkeypatch.setenv(copies.LIMIT, str(room / 2**30))
    catalog = read_catalog(bucket)
    assert len(catalog) == 12
    for row in (0, 4, 8, 3, 11, 1):
        assert catalog.images.read(row) == photos[f"images/{row % 4}.jpg"]
        held = [file.stat().st_size for file in (cache / "remote").iterdir()]
        assert sum(held) <= room


def test_an_archive_larger_than_the_cache_is_refused_with_the_remedy(
    s3, bucket, photos, monkeypatch
):
    _put(s3, bucket, {"0.tar": _shard(photos, 0)})
    monkeypatch.setenv(copies.LIMIT, "0.000001")
    with pytest.raises(DataError, match=r"0\.tar has 0\.00 GiB, more than .* with RETAILTAG_CACHE"):
        read_catalog(bucket)


def test_a_shard_that_is_replaced_is_never_read_at_the_places_of_the_earlier_one(
    s3, bucket, photos, cache
):
    _put(s3, bucket, {"0.tar": _shard(photos, 0)})
    catalog = read_catalog(f"{bucket}/0.tar")
    before = catalog.images.stamp(0)
    _put(s3, bucket, {"0.tar": _shard(dict(list(photos.items())[:3]), 7)})
    for file in (cache / "remote").iterdir():
        file.unlink()
    with pytest.raises(DataError, match=r"0\.tar has changed while it was read"):
        catalog.images.read(0)
    assert read_catalog(f"{bucket}/0.tar").images.stamp(0) != before


def test_urls_in_a_manifest_lead_only_where_they_may(s3, bucket, manifest, photos):
    _put(s3, bucket, photos)
    path = manifest(*_csv(_records(photos, f"{bucket}/")).decode().splitlines())
    with pytest.raises(BadCatalogue) as caught:
        read_catalog(path)
    assert caught.value.problems == (
        f"rows 2, 3, 4 and 1 more: path '{bucket}/images/0.jpg' is a URL; name the URL that it may "
        f"lead to with --allow-root {bucket}/images",
    )
    catalog = read_catalog(path, allow_root=[bucket])
    assert _bytes(catalog) == [photos[name] for name in sorted(photos)]
    assert catalog.images.name(0) == f"{bucket}/images/0.jpg"
    path.write_bytes(_csv(_records(photos, f"{bucket}/../other/")))
    with pytest.raises(BadCatalogue, match="is a URL; name"):
        read_catalog(path, allow_root=[bucket])


def test_features_of_a_local_catalogue_are_those_of_the_same_images_on_s3(
    s3, bucket, small_csv, small_store, tmp_path
):
    s3.put(f"{small_csv.parent}/", f"{bucket}/", recursive=True)
    s3.flaky.every = 20
    catalog = read_catalog(f"{bucket}/catalogue.csv")
    made = _extracted(catalog, tmp_path)
    assert s3.flaky.n_failed > 3
    assert made.spec.digest == small_store.spec.digest
    assert made.known() == small_store.known()  # the hash of every image's bytes


def test_an_object_that_changes_is_seen_by_its_stamp(s3, bucket, photos):
    _put(s3, bucket, {**photos, "catalogue.csv": _csv(_records(photos))})
    before = read_catalog(f"{bucket}/catalogue.csv").images
    _put(s3, bucket, {"images/2.jpg": photos["images/1.jpg"]})
    after = read_catalog(f"{bucket}/catalogue.csv").images
    changed = [row for row in range(4) if before.stamp(row) != after.stamp(row)]
    assert changed == [2]


def test_a_web_server_serves_manifest_images_archive_and_parquet(web, shop, photos):
    url, _ = web
    (shop / "catalogue.csv").write_bytes(_csv(_records(photos)))
    (shop / "some.tar").write_bytes(_shard(photos, 0))
    (shop / "all.parquet").write_bytes(_parquet(photos))
    expected = [photos[name] for name in sorted(photos)]
    for name in ("catalogue.csv", "some.tar", "all.parquet"):
        there = read_catalog(f"{url}/{name}")
        assert there.digest == read_catalog(shop / name).digest
        assert _bytes(there) == expected


def test_numbered_shards_are_named_by_a_range(web, shop, photos, manifest):
    url, _ = web
    for number in (9, 10):
        (shop / f"train-{number:03d}.tar").write_bytes(_shard(photos, number))
        (shop / f"part-{number}.parquet").write_bytes(_parquet(photos))
    expected = [photos[name] for name in sorted(photos)] * 2
    for place in (url, shop):
        catalog = read_catalog(f"{place}/train-{{009..010}}.tar")
        assert _bytes(catalog) == expected
        assert catalog.split.tolist() == ["train"] * 8
        # The folder names them as well, where it is listed.
        assert len(catalog.images.places) == (2 if place == url else 1)
    path = manifest("path,tags", "000090000.jpg,red", "000100003.jpg,blue")
    catalog = read_catalog(path, images=[f"{url}/train-{{009..010}}.tar"])
    assert _bytes(catalog) == [photos["images/0.jpg"], photos["images/3.jpg"]]
    with pytest.raises(DataError, match=r"train-011\.tar does not exist"):
        read_catalog(f"{url}/train-{{009..011}}.tar")


def test_a_missing_image_of_a_web_server_is_an_unreadable_image(web, shop, photos):
    url, _ = web
    rows = _records(photos)
    rows[2]["path"] = "images/not here.jpg"
    (shop / "catalogue.csv").write_bytes(_csv(rows))
    catalog = read_catalog(f"{url}/catalogue.csv")
    assert catalog.images.name(2) == f"{url}/images/not%20here.jpg"
    with pytest.raises(UnreadableImage, match=r"^is missing$"):
        catalog.images.read(2)
    (shop / "images" / "not here.jpg").write_bytes(b"some bytes")
    assert catalog.images.read(2) == b"some bytes"
    catalog.images.max_bytes = 5
    with pytest.raises(UnreadableImage, match="above the limit of 5"):
        catalog.images.read(2)


def test_reads_that_fail_now_and_then_lose_nothing(web, shop, photos):
    url, flaky = web
    (shop / "catalogue.csv").write_bytes(_csv(_records(photos)))
    (shop / "some.tar").write_bytes(_shard(photos, 0))
    flaky.every = 3
    catalog = read_catalog(f"{url}/catalogue.csv")
    assert [_bytes(catalog) for _ in range(5)] == [[photos[name] for name in sorted(photos)]] * 5
    assert _bytes(read_catalog(f"{url}/some.tar")) == [photos[name] for name in sorted(photos)]
    assert flaky.n_failed > 5


def test_a_server_that_stays_away_ends_the_run_and_makes_no_image_unreadable(web, shop, photos):
    url, flaky = web
    (shop / "catalogue.csv").write_bytes(_csv(_records(photos)))
    catalog = read_catalog(f"{url}/catalogue.csv")
    flaky.every = 1
    with pytest.raises(
        Unavailable, match=r"images/0\.jpg could not be read in 8 attempts \(.*what is"
    ):
        catalog.images.read(0)


def test_an_extraction_that_a_server_ended_is_continued_and_lacks_nothing(
    small_csv, small_store, tmp_path
):
    flaky = servers.Flaky(servers.folder_app(small_csv.parent))
    with servers.serving(flaky) as url:
        catalog = read_catalog(f"{url}/catalogue.csv")
        flaky.every, flaky.spared = 1, 30  # images, after which the server is gone
        with pytest.raises(Unavailable, match="what is done is kept"):
            _extracted(catalog, tmp_path)
        flaky.every = 0
        assert _extracted(catalog, tmp_path).known() == small_store.known()


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (FileNotFoundError(), "is missing"),
        (PermissionError("Forbidden"), r"may not be read \(Forbidden\); check the credentials"),
        (type("HttpError", (Exception,), {"code": 403})("no"), "may not be read"),
        (type("AzureError", (Exception,), {"status_code": 404})(), "is missing"),
        (type("NoCredentialsError", (Exception,), {})("none"), r"cannot .*; set the credentials"),
        (ValueError("Invalid bucket name"), r"cannot be read \(Invalid bucket name\)"),
        (type("ClientError", (Exception,), {"status": 503})("later"), r"in 8 attempts \(later\)"),
        (TimeoutError("too slow"), r"in 8 attempts \(too slow\)"),
    ],
)
def test_what_can_pass_is_tried_again_and_what_cannot_is_told_at_once(error, told, monkeypatch):
    tried = []

    class System:
        def cat_file(self, url):
            tried.append(url)
            raise error

    monkeypatch.setattr(remote, "_file_system", lambda *_: System())
    with pytest.raises((RemoteFault, Unavailable), match=f"^gs://shop/a {told}|could not.* {told}"):
        remote.read_url("gs://shop/a")
    assert len(tried) == (8 if "attempts" in told else 1)


@pytest.mark.parametrize("path", ["/0.jpg", "..", "../0.jpg", "images/..", "s3://other/0.jpg"])
def test_paths_below_a_url_never_lead_out_of_it(s3, bucket, photos, path):
    _put(s3, bucket, {**photos, "0.jpg": b""})
    source = RemoteImages(as_path(f"{bucket}/images"), [path, "0.jpg"])
    assert source.faults == {0: OUTSIDE}


def test_a_store_without_its_package_says_what_to_install(monkeypatch):
    remote._file_system.cache_clear()
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(
        Unavailable, match=r"^gs:// needs .* run `pip install \"retailtag\[gs\]\"`\.$"
    ):
        read_catalog("gs://shop/catalogue.csv")


def test_results_are_written_to_local_folders_only():
    from retailtag.settings import ComputeSettings

    with pytest.raises(UsageError, match="--features s3://shop/features is a URL; give a local"):
        ComputeSettings(features="s3://shop/features")
    with pytest.raises(UsageError, match="s3://shop/a is a URL; results are written to local"):
        write_text(Path("s3://shop/a/pairs.csv"), "")


def test_catalog_check_takes_a_url(s3, bucket, photos):
    from retailtag.cli.main import app

    _put(s3, bucket, {**photos, "catalogue.csv": _csv(_records(photos))})
    result = CliRunner().invoke(app, ["catalog", "check", f"{bucket}/catalogue.csv", "--json"])
    assert json.loads(result.stdout)["path"] == f"{bucket}/catalogue.csv", result.output
    missing = CliRunner().invoke(app, ["catalog", "check", f"{bucket}/none.csv"]).exception
    assert isinstance(missing, DataError)
    assert str(missing).startswith(f"{bucket}/none.csv does not exist; ")


def test_images_to_predict_are_named_by_url_folder_or_archive(s3, bucket, photos, tmp_path):
    _put(
        s3,
        bucket,
        {**photos, "images/deep/x.jpg": b"x", "images/notes.md": b"", "0.zip": _zip(photos)},
    )
    urls = [f"{bucket}/{name}" for name in sorted(photos)]
    (tmp_path / "list.txt").write_text("\n".join(urls), encoding="utf-8")
    below = named_images([f"{bucket}/images"])
    assert [image.image_id for image in below] == [*urls, f"{bucket}/images/deep/x.jpg"]
    assert below.notes == [f"1 files of {bucket}/images are no images and are left out (notes.md)."]
    for sources in ([tmp_path / "list.txt"], urls, [f"{bucket}/0.zip"]):
        assert [i.read() for i in named_images(sources)] == [photos[n] for n in sorted(photos)]
    with pytest.raises(UnreadableImage, match=r"^is missing$"):
        next(iter(named_images([f"{bucket}/none.jpg"]))).read()


def test_a_remote_source_is_pickled_for_other_processes(s3, bucket, photos):
    _put(s3, bucket, {**photos, "catalogue.csv": _csv(_records(photos))})
    images = pickle.loads(pickle.dumps(read_catalog(f"{bucket}/catalogue.csv").images))  # noqa: S301
    assert [images.read(row) for row in range(4)] == [photos[name] for name in sorted(photos)]
    assert images.stamp(0) is not None


def test_a_remote_path_keeps_its_url_through_every_operation_of_a_path():
    path = as_path("s3://shop/a/train.csv.gz")
    assert isinstance(path, RemotePath)
    assert isinstance(path, Path)
    assert str(path.parent / "b.csv") == "s3://shop/a/b.csv"
    assert (path.name, path.suffix, str(path.with_suffix(".x"))) == (
        "train.csv.gz", ".gz", "s3://shop/a/train.csv.x",
    )  # fmt: skip
    assert as_path(Path("s3://shop/a")) == as_path("s3://shop/a") == path.parent
    assert hash(as_path("s3://shop/a")) == hash(path.parent)
    assert not isinstance(as_path("ftp://shop/a"), RemotePath)


def test_ranges_of_a_remote_file_are_the_bytes_of_the_file(s3, bucket):
    data = bytes(range(256)) * 1000
    _put(s3, bucket, {"bytes": data})
    with as_path(f"{bucket}/bytes").open("rb") as handle:
        assert handle.read(10) == data[:10]
        assert handle.seek(-20, io.SEEK_END) == len(data) - 20
        assert handle.read() == data[-20:]
        handle.seek(70_000)
        assert (
            hashlib.sha256(handle.read(150_000)).digest()
            == hashlib.sha256(data[70_000:220_000]).digest()
        )
