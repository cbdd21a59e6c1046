"""Second readings of images, archives, catalogues made of them, and vectors from elsewhere."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import json
import lzma
import os
import random
import tarfile
import warnings
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageOps
from reference_attack import Format
from reference_mutations import (
    Mutator,
    any_of,
    npy,
    of_bytes,
    of_encoding,
    of_json,
    of_json_lines,
    of_lines,
    of_npy,
    of_parquet,
    of_tar,
    of_zip,
    packed,
    parquet,
    tar,
)
from reference_readings import (
    IDS,
    ROWS,
    X,
    catalog_rows,
    file_of,
    is_names,
    json_lines,
    make_images,
    need,
    records,
    separated,
    small_image,
    understood,
)

from retailtag.catalog.readers import read_catalog
from retailtag.errors import UnreadableImage
from retailtag.extraction.imports import read_embeddings
from retailtag.images.decode import decode_pixels
from retailtag.images.listing import list_images

# Images

SIZE = (24, 16)


def picture(kind: str, **options: Any) -> bytes:
    x, y = np.meshgrid(np.arange(SIZE[0]) * 10, np.arange(SIZE[1]) * 15)
    pixels = np.stack([x, y, 255 - x], -1).astype(np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, kind, **options)
    return out.getvalue()


def read_image(name: str) -> Callable[[Path], Any]:
    def read(folder: Path) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of Pillow, about odd files
            return decode_pixels((folder / name).read_bytes())

    return read


def second_image(name: str) -> Callable[[Path], Any]:
    """Pillow's pixels; those of the slow path where colours need a policy."""

    def read(folder: Path) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO((folder / name).read_bytes()))
            image.load()
            plain = (
                image.mode in ("RGB", "L", "P", "1", "YCbCr") and "transparency" not in image.info
            )
            need(plain and "icc_profile" not in image.info, "colours")
            return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))

    return read


def _image(name: str, kind: str, **options: Any) -> Format:
    return Format(
        name,
        file_of(name, lambda: picture(kind, **options)),
        {name: of_bytes},
        read_image(name),
        second_image(name),
        unnamed=True,  # the reason alone; who opened the file puts its name before it
    )


IMAGES = (
    _image("a.jpg", "JPEG", quality=90),
    _image("a.progressive.jpg", "JPEG", quality=90, progressive=True),
    _image("a.png", "PNG"),
    _image("a.webp", "WEBP", quality=80),
    _image("a.gif", "GIF"),
    _image("a.bmp", "BMP"),
    _image("a.tiff", "TIFF"),
    _image("a.lzw.tiff", "TIFF", compression="tiff_lzw"),
    _image("a.jp2", "JPEG2000"),
    _image("a.ppm", "PPM"),
    _image("a.ico", "ICO", sizes=[(24, 16)]),
    _image("a.avif", "AVIF", quality=70),
)

# Archives of the images of a manifest


def members() -> dict[str, bytes]:
    return {f"images/{i}.png": small_image(30 * i) for i in range(1, 7)}


def plain_tar(files: dict[str, bytes]) -> bytes:
    return tar([(tarfile.TarInfo(name), body) for name, body in files.items()])


def zip_of(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, body in files.items():
            archive.writestr(zipfile.ZipInfo(name), body, zipfile.ZIP_DEFLATED)
    return out.getvalue()


def read_archive(folder: Path) -> Any:
    """SHA-256 of every image's bytes, or None for an image that cannot be read."""
    with mock.patch.dict(os.environ, RETAILTAG_CACHE=f"{folder}/cache"):
        catalog = read_catalog(folder / "shop.csv")
        return {str(i): _served(catalog, row) for row, i in enumerate(catalog.image_ids)}


def _served(catalog: Any, row: int) -> str | None:
    try:
        return hashlib.sha256(catalog.images.read(row)).hexdigest()
    except UnreadableImage:
        return None


def _clean(name: str) -> str:
    return str(PurePosixPath(name))


def _by_id(files: dict[str, bytes]) -> dict[str, str]:
    found = {_clean(name): hashlib.sha256(body).hexdigest() for name, body in files.items()}
    return {row[0]: found[row[1]] for row in ROWS if row[1] in found}


def tar_members(data: bytes) -> dict[str, bytes]:
    """Plain files of a tar; what is no plain file hides an earlier one of its name."""
    found: dict[str, bytes | None] = {}
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as archive:
        for info in archive:
            if info.isdir():
                continue
            plain = info.isreg() and not info.issparse()
            body = archive.extractfile(info).read() if plain else None
            found[info.name] = body
    return {name: body for name, body in found.items() if body is not None}


def zip_members(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {info.filename: archive.read(info) for info in archive.infolist()}


def served_in_part(answer: Any, expected: Any) -> bool:
    """Whether every image that is served has the expected bytes."""
    return all(value is None or expected.get(key) == value for key, value in answer.items())


def _archive(name: str, pack: Callable[[], bytes], mutate: Mutator, unpack: Any) -> Format:
    def make(folder: Path) -> None:
        (folder / "shop.csv").write_bytes(separated(",")())
        (folder / name).write_bytes(pack())

    def second(folder: Path) -> Any:
        return _by_id(unpack((folder / name).read_bytes()))

    return Format(name, make, {name: mutate}, read_archive, second, agree=served_in_part)


def _packed_tar(suffix: str, pack: Callable[[bytes], bytes], unpack: Any) -> Format:
    return _archive(
        f"images.tar.{suffix}",
        lambda: pack(plain_tar(members())),
        packed(pack, unpack, of_tar()),
        lambda data: tar_members(unpack(data)),
    )


def of_index(rng: random.Random, data: bytes) -> bytes:
    """Another listing behind the digest of the sound one, or other bytes."""
    digest, _, text = data.partition(b"\n")
    return of_bytes(rng, data) if rng.random() < 0.3 else digest + b"\n" + of_json(rng, text)


def make_index(folder: Path) -> None:
    (folder / "shop.csv").write_bytes(separated(",")())
    (folder / "images.tar.gz").write_bytes(gzip.compress(plain_tar(members()), mtime=0))
    read_archive(folder)


ARCHIVES = (
    _archive("images.tar", lambda: plain_tar(members()), of_tar(), tar_members),
    _packed_tar("gz", partial(gzip.compress, mtime=0), gzip.decompress),
    _packed_tar("xz", partial(lzma.compress, preset=0), lzma.decompress),
    _packed_tar("bz2", bz2.compress, bz2.decompress),
    _archive("images.zip", lambda: zip_of(members()), of_zip(), zip_members),
    Format(
        "index of a tar", make_index, {"cache/archives/*.json": of_index}, read_archive,
        agree=lambda answer, sound: answer == sound,
    ),
)  # fmt: skip

# Catalogues of which the images are a part


def shard() -> bytes:
    files: dict[str, bytes] = {}
    for row in records():
        key = row["path"].removeprefix("images/").removesuffix(".png")
        files[f"{key}.png"] = small_image(30 * int(key))
        files[f"{key}.json"] = json.dumps({k: v for k, v in row.items() if k != "path"}).encode()
    return plain_tar(files)


def of_sample(rng: random.Random, data: bytes) -> bytes:
    return (of_json if data.startswith(b"{") else of_bytes)(rng, data)


def read_with_bytes(name: str) -> Callable[[Path], Any]:
    def read(folder: Path) -> Any:
        catalog = read_catalog(folder / name)
        rows = catalog_rows(catalog)
        return {"rows": rows, "bytes": [_served(catalog, i) for i in range(len(rows))]}

    return read


def rows_and_bytes(answer: Any, expected: Any) -> bool:
    """Whether all rows are as expected, and the bytes of every image that is served."""
    pairs = zip(answer["bytes"], expected["bytes"], strict=False)
    return answer["rows"] == expected["rows"] and all(a is None or a == b for a, b in pairs)


def second_shard(folder: Path) -> Any:
    samples: dict[str, dict[str, tuple[str, bytes]]] = {}
    for name, body in tar_members((folder / "shard.tar").read_bytes()).items():
        path = PurePosixPath(name)
        stem, point, suffix = path.name.partition(".")
        # A name that leads out of the archive, or without a stem, is that of no sample.
        if stem and not path.is_absolute() and ".." not in path.parts:
            inner = samples.setdefault(str(path.with_name(stem)), {})
            inner[f"{point}{suffix}".lower()] = str(path), body
    rows, hashes = [], []
    for sample in samples.values():
        if ".png" in sample:
            value = json.loads(sample.get(".json", ("", b"{}"))[1])
            need(isinstance(value, dict))
            # the member's name is the path, whatever the JSON says
            lower = {k: v for k, v in value.items() if k.lower() != "path"}
            place, body = sample[".png"]
            rows.append({**lower, "path": place})
            hashes.append(hashlib.sha256(body).hexdigest())
    return {"rows": understood(rows, {row["path"] for row in rows}), "bytes": hashes}


def image_table() -> bytes:
    rows = records()
    names = [name for name in rows[0] if name not in ("path", "extra")]
    images = [{"bytes": small_image(30 * i), "path": rows[i - 1]["path"]} for i in range(1, 7)]
    return parquet(pa.table({**{n: [r[n] for r in rows] for n in names}, "image": images}))


def second_image_table(folder: Path) -> Any:
    table = pq.read_table(folder / "images.parquet")
    table.validate(full=True)
    need(len({*table.column_names}) == table.num_columns)
    rows = table.to_pylist()
    images = [row.pop("image") for row in rows]
    need(all(isinstance(i, dict) and i.keys() == {"bytes", "path"} for i in images))
    paths = [(image["path"] or "").strip() for image in images]
    given = [path for path in paths if path]
    numbers = [f"row-{i:09d}" for i in range(1, len(paths) + 1)]
    # the numbers of the rows name the images where a name is there twice
    kept = paths if len({*given}) == len(given) else [""] * len(paths)
    paths = [path or number for path, number in zip(kept, numbers, strict=True)]
    hashes = [hashlib.sha256(image["bytes"] or b"").hexdigest() for image in images]
    named = [{**row, "path": path} for row, path in zip(rows, paths, strict=True)]
    return {"rows": understood(named, {*paths}), "bytes": hashes}


def make_image_folder(folder: Path) -> None:
    for split in ("train", "test"):
        make_images(folder / split)
        rows = [{**row, "file_name": row["path"]} for row in records()]
        for row in rows:
            del row["path"], row["split"]
            row["image_id"] = f"{split}-{row['image_id']}"
        (folder / split / "metadata.jsonl").write_bytes(json_lines(rows))


def second_image_folder(folder: Path) -> Any:
    rows = []
    for split in ("test", "train"):
        text = (folder / split / "metadata.jsonl").read_bytes().decode("utf-8-sig")
        for line in text.split("\n"):
            if line.strip():
                row = json.loads(line)
                need(isinstance(row, dict))
                path = row.pop("file_name", row.get("path"))
                need(isinstance(path, str) and "path" not in {k.lower() for k in row})
                rows.append({"split": split, **row, "path": f"{split}/{path.strip()}"})
    known = {f"{split}/{row[1]}" for split in ("train", "test") for row in ROWS}
    return understood(rows, known)


OF_IMAGES = (
    Format(
        "shard.tar",
        file_of("shard.tar", shard),
        {"shard.tar": of_tar(of_sample)},
        read_with_bytes("shard.tar"),
        second_shard,
        agree=rows_and_bytes,
    ),
    Format(
        "images.parquet",
        file_of("images.parquet", image_table),
        {"images.parquet": of_parquet},
        read_with_bytes("images.parquet"),
        second_image_table,
        agree=rows_and_bytes,
    ),
    Format(
        "metadata.jsonl",
        make_image_folder,
        {"*/metadata.jsonl": of_json_lines},
        lambda folder: catalog_rows(read_catalog(folder)),
        second_image_folder,
    ),
)

# Vectors from elsewhere, and lists of images


def make_vectors(folder: Path) -> None:
    (folder / "vectors.npy").write_bytes(npy(X))
    (folder / "ids.txt").write_text("".join(f"{i}\n" for i in IDS), encoding="utf-8")


def read_vectors(folder: Path) -> Any:
    found = read_embeddings(folder / "vectors.npy", folder / "ids.txt")
    return found.image_ids, np.array(found.X), found.dtype


def _vectors(array: np.ndarray, ids: list[str]) -> Any:
    need(array.dtype.name in ("float16", "float32", "float64") and array.ndim == 2)
    need(array.size > 0 and len(array) == len(ids) and is_names(ids))
    kept = "float16" if array.dtype.name == "float16" else "float32"
    with np.errstate(over="ignore"):
        need(bool(np.isfinite(array.astype(kept)).all()))
    return ids, array, kept


def second_vectors(folder: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        array = np.load(folder / "vectors.npy", allow_pickle=False)
    text = (folder / "ids.txt").read_bytes().decode("utf-8-sig")
    return _vectors(array, [line.strip() for line in text.rstrip().splitlines()])


def vector_table() -> bytes:
    return parquet(pa.table({"image_id": list(IDS), "vector": X.tolist()}))


def read_vector_table(folder: Path) -> Any:
    found = read_embeddings(folder / "vectors.parquet")
    return found.image_ids, np.array(found.X, np.float64), found.dtype


def second_vector_table(folder: Path) -> Any:
    table = pq.read_table(folder / "vectors.parquet")
    table.validate(full=True)
    need(len({*table.column_names}) == table.num_columns)
    lists = [f for f in table.schema if pa.types.is_list(f.type)]
    need(len(lists) == 1 and pa.types.is_floating(lists[0].type.value_type))
    kind = lists[0].type.value_type
    rows = table.column(lists[0].name).to_pylist()
    need(all(row is not None and len(row) == len(rows[0]) and None not in row for row in rows))
    name = "image_id" if "image_id" in table.column_names else "id"
    ids = table.column(name)
    need(ids.null_count == 0 and not pa.types.is_binary(ids.type))
    found = _vectors(np.array(rows, kind.to_pandas_dtype()), [str(i) for i in ids.to_pylist()])
    return found[0], found[1].astype(np.float64), found[2]


def make_list(folder: Path) -> None:
    make_images(folder)
    lines = [f"{folder}/images/{i}.png\n" for i in range(1, 7)]
    (folder / "list.txt").write_text("".join(lines), encoding="utf-8")


def read_list(folder: Path) -> Any:
    return sorted(str(path) for path in list_images([folder / "list.txt"])[0])


def second_list(folder: Path) -> Any:
    text = (folder / "list.txt").read_bytes().decode("utf-8-sig")
    return sorted({str(Path(line.strip())) for line in text.splitlines() if line.strip()})


_TEXT = any_of(of_lines, of_encoding, of_bytes)
ELSEWHERE = (
    Format(
        "vectors.npy", make_vectors, {"*.npy": of_npy, "*.txt": _TEXT}, read_vectors, second_vectors
    ),
    Format(
        "vectors.parquet",
        file_of("vectors.parquet", vector_table),
        {"*.parquet": of_parquet},
        read_vector_table,
        second_vector_table,
    ),
    Format("list.txt", make_list, {"list.txt": _TEXT}, read_list, second_list),
)
FORMATS = (*IMAGES, *ARCHIVES, *OF_IMAGES, *ELSEWHERE)
