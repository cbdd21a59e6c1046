"""Read a catalogue in any of its forms, with all its bad rows told at once."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from retailtag.catalog.catalog import SPLITS, Catalog
from retailtag.catalog.labels import TagColumn, encode_labels
from retailtag.catalog.manifest import (
    NO_TAGS,
    SEPARATOR,
    Cell,
    Manifest,
    Problems,
    csv_text,
    read_csv,
    read_json_lines,
    read_parquet,
)
from retailtag.catalog.table import POSITIVE, UNKNOWN, GroupCutoffs, TagTable
from retailtag.errors import BadCatalogue, DataError, UsageError
from retailtag.files import write_text
from retailtag.images.sources import (
    MAX_BYTES,
    MISSING,
    ParquetImages,
    PathImages,
    archives_beside,
    open_images,
)

FOLDER_MANIFEST = "catalogue.csv"
IMAGE_SUFFIXES = (
    ".jpg", ".jpeg", ".jfif", ".png", ".webp", ".gif", ".avif", ".bmp", ".tif", ".tiff", ".jp2",
    ".ppm", ".pgm",
)  # fmt: skip
MANY_ROWS = 100
SPLIT_WORDS = {name: name for name in SPLITS} | dict.fromkeys(("validation", "valid", "dev"), "val")
_SHARD = re.compile(rf"({'|'.join(SPLIT_WORDS)})(-\d+-of-\d+)?$")
_SUFFIX = re.compile(r"(?<=[^/])\.[^./]*$")
_ABSOLUTE = re.compile(r"[/\\]|[A-Za-z]:")


def read_catalog(
    path: Path,
    *,
    attributes: Sequence[str] = (),
    images: Path | None = None,
    cutoffs: GroupCutoffs | None = None,
    use_split: bool = True,
    max_bytes: int = MAX_BYTES,
) -> Catalog:
    """Read a manifest, a folder per class, or a folder that holds ``catalogue.csv``.

    Parameters
    ----------
    path : Path
        ``.csv``, ``.tsv``, ``.jsonl``/``.ndjson`` or ``.parquet`` with columns ``path`` and
        ``tags`` (joined by ``|``, or a list), optionally ``image_id``, ``split``, ``group``,
        ``title``, ``tags_unknown``; other columns are ignored. Or a folder: with a
        ``catalogue.csv``; of Parquet shards (``train-00000-of-00004.parquet``), there or in its
        ``data``; or of one folder per class, optionally under ``train``, ``val`` and ``test``.
    attributes : sequence of str
        Columns whose values become tags under their name: column ``gender`` gives
        ``gender:Men``.
    images : Path, optional
        Folder, tar or zip of the images, or Parquet with their bytes (a file, or a folder of
        shards). Default: files beside the manifest, or, where none of
        them is there, ``images.tar``, ``images.tar.xz``/``.gz``/``.bz2`` or ``images.zip``
        beside it; the bytes inside a Parquet manifest.
    cutoffs : GroupCutoffs, optional
        Where tail ends and frequent begins.
    use_split : bool
        Follow the split that is given; without, whatever it says, everything is ``train``.
    max_bytes : int
        Image files larger than this count as unreadable.

    Returns
    -------
    Catalog
        In the manifest's row order, tags sorted.

    Raises
    ------
    BadCatalogue
        With every row that cannot be used: no or unsafe path, missing file, repeated id, unknown
        split, empty tags, a tag with the separator in it, text that is not UTF-8.
    DataError
        If the manifest as a whole cannot be read.
    UsageError
        If an attribute names no column.

    Notes
    -----
    Without a ``split`` column everything is ``train``; ``validation``, ``valid`` and ``dev`` are
    other words for ``val``; an id defaults to the path without its
    suffix; an image without ``group`` is a product of its own. An image without any tag is
    written ``-``, since an empty cell is more often an oversight; in an attribute column an
    empty cell means that this attribute was not annotated. ``tags_unknown`` names the tags that
    nobody annotated in that image (-1).
    """
    path = Path(path)
    manifest = _open(path)
    if not use_split:
        manifest.columns.pop("split", None)
    problems = manifest.problems
    _check_columns(manifest, attributes)
    _check_text(manifest, attributes)
    paths = [str(c) for c in manifest.columns["path"]]
    safe = _check_paths(paths, problems)
    source = _source(manifest, safe, images)
    source.max_bytes = max_bytes
    _check_files(source, safe, manifest, problems)
    ids = _ids(manifest, paths, problems)
    split = _splits(manifest, problems)
    tags, labels = encode_labels(*_tag_columns(manifest, attributes), len(manifest), problems)
    if lines := problems.lines():
        raise BadCatalogue(str(path), lines)
    groups = [str(g) or i for g, i in zip(_column(manifest, "group"), ids, strict=True)]
    return Catalog(
        path=path,
        image_ids=np.array(ids),
        split=split,
        group=np.array(groups),
        title=np.array([" ".join(str(t).split()) for t in _column(manifest, "title")]),
        table=TagTable.build(tags, labels, split == "train", cutoffs),
        images=source,
    )


def write_catalogue(catalog: Catalog, path: Path) -> None:
    """Write the canonical CSV manifest, from which `read_catalog` makes an equal catalogue.

    Image paths are as in the catalogue's own source: relative to the folder or archive it was
    read from.

    Raises
    ------
    DataError
        If the catalogue's images have no paths.
    """
    if not isinstance(catalog.images, PathImages):
        raise DataError(f"The images of {catalog.path} have no paths that a manifest could name.")
    tags = np.array(catalog.table.tags, dtype=object)
    labels = catalog.table.labels
    rows = (
        (
            str(catalog.image_ids[i]),
            catalog.images.paths[i],
            SEPARATOR.join(tags[labels[i] == POSITIVE]) or NO_TAGS,
            SEPARATOR.join(tags[labels[i] == UNKNOWN]),
            str(catalog.split[i]),
            str(catalog.group[i]),
            str(catalog.title[i]),
        )
        for i in range(len(catalog))
    )
    header = ("image_id", "path", "tags", "tags_unknown", "split", "group", "title")
    write_text(path, csv_text(header, rows))


def _open(path: Path) -> Manifest:
    """Choose the reader by what `path` is."""
    if path.is_dir():
        if (path / FOLDER_MANIFEST).is_file():
            return read_csv(path / FOLDER_MANIFEST)
        if shards := _shards(path):
            return _with_shard_splits(read_parquet(path, shards))
        return _read_class_folders(path)
    if not path.exists():
        raise DataError(f"{path} does not exist; give a manifest or a folder of images.")
    suffix = path.suffix.lower()
    if suffix in (".csv", ".tsv"):
        return read_csv(path)
    if suffix in (".jsonl", ".ndjson"):
        return read_json_lines(path)
    if suffix in (".parquet", ".pq"):
        return read_parquet(path, [path])
    raise UsageError(
        f"{path} is none of the manifests .csv, .tsv, .jsonl and .parquet, and no folder."
    )


def _shards(folder: Path) -> list[Path]:
    """Parquet files of a folder in row order, or of its ``data``, as Hugging Face lays them."""
    return sorted(folder.glob("*.parquet")) or sorted(folder.glob("data/*.parquet"))


def _with_shard_splits(manifest: Manifest) -> Manifest:
    """Take the split from the shards' names where Hugging Face's convention gives it."""
    import pyarrow.parquet as pq

    found = [_SHARD.match(shard.stem) for shard in manifest.shards]
    if "split" in manifest.columns or not all(found):
        return manifest
    splits = [m.group(1) if m else "" for m in found]
    counts = [pq.read_metadata(shard).num_rows for shard in manifest.shards]
    manifest.columns["split"] = np.repeat(splits, counts).tolist()
    return manifest


def _read_class_folders(root: Path) -> Manifest:
    """List ``class/**/image`` or ``split/class/**/image``, without hidden files and non-images."""
    tops = sorted(e.name for e in root.iterdir() if e.is_dir() and not e.name.startswith("."))
    has_splits = bool(tops) and set(tops) <= set(SPLIT_WORDS)
    paths = []
    for folder, folders, files in os.walk(root, onerror=_refuse):
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        if linked := next((f for f in folders if (Path(folder) / f).is_symlink()), ""):
            raise DataError(
                f"{folder}/{linked} is a link to a folder, which is not followed; put the images "
                "themselves there, or move the link away."
            )
        inner = Path(folder).relative_to(root).as_posix()
        if inner.count("/") >= has_splits and inner != ".":
            paths += [f"{inner}/{name}" for name in sorted(files) if _looks_like_image(name)]
    if not paths:
        raise DataError(
            f"{root} holds neither {FOLDER_MANIFEST} nor folders of images, one per class."
        )
    parts = [p.split("/") for p in paths]
    columns: dict[str, list[Cell]] = {"path": [*paths], "tags": [(p[has_splits],) for p in parts]}
    if has_splits:
        columns["split"] = [p[0] for p in parts]
    return Manifest(root, columns, Problems(range(1, len(paths) + 1)))


def _refuse(error: OSError) -> None:
    """Stop at a folder that cannot be listed: its class would be gone without a word."""
    raise DataError(
        f"{error.filename} cannot be listed ({error.strerror}); make it readable or move it away."
    ) from error


def _looks_like_image(name: str) -> bool:
    return not name.startswith(".") and name.lower().endswith(IMAGE_SUFFIXES)


def _column(manifest: Manifest, name: str) -> Sequence[Cell]:
    return manifest.columns.get(name) or [""] * len(manifest)


def _check_columns(manifest: Manifest, attributes: Sequence[str]) -> None:
    there = manifest.columns
    listed = ", ".join(there) or "none"
    if not len(manifest):
        raise DataError(f"{manifest.path} has no rows.")
    if "path" not in there:
        raise DataError(f"{manifest.path} has no column path; its columns are {listed}.")
    if absent := [a for a in attributes if a not in there]:
        raise UsageError(
            f"--attributes {', '.join(absent)}: {manifest.path} has no such column; "
            f"its columns are {listed}."
        )
    if "tags" not in there and not attributes:
        raise DataError(
            f"{manifest.path} has no column tags; name the columns that hold tags with "
            f"--attributes (its columns are {listed})."
        )


def _check_text(manifest: Manifest, attributes: Sequence[str]) -> None:
    """Report cells that are no text: objects, wrong bytes, or a NUL (arrays of text drop it)."""
    used = {"path", "tags", "image_id", "split", "group", "title", "tags_unknown", *attributes}
    for name in manifest.columns.keys() & used:
        cells = manifest.columns[name]
        for row in manifest.nested.get(name, ()):
            manifest.problems.add(row, f"{name} holds an object where text or a list belongs")
        if _is_clean("".join("".join(c) for c in cells)):
            continue
        for row, value in enumerate(cells):
            text = "".join(value)
            if not _is_clean(text):
                fault = (
                    "holds a NUL character; remove it"
                    if "\0" in text
                    else "has the wrong encoding (not UTF-8 text)"
                )
                manifest.problems.add(row, f"{name} {fault}")


def _is_clean(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in text


def _check_paths(paths: Sequence[str], problems: Problems) -> list[str]:
    """Report paths that are empty or leave the root; returned without these, in place ''."""
    safe = []
    for row, path in enumerate(paths):
        fault = ""
        if not path:
            fault = "has no path"
        elif _ABSOLUTE.match(path):
            fault = f"path {path!r} is absolute (give it relative to the images' folder)"
        elif ".." in path and ".." in re.split(r"[/\\]", path):
            fault = f"path {path!r} leaves the images' folder by '..'"
        if fault:
            problems.add(row, fault)
        safe.append("" if fault or not _is_clean(path) else path)
    return safe


def _source(manifest: Manifest, paths: Sequence[str], images: Path | None) -> PathImages:
    """Find the images where `read_catalog` says."""
    if images is not None and images.suffix.lower() in (".parquet", ".pq"):
        return _parquet_source(images, [images], paths)
    if images is not None:
        source = open_images(images, paths)
        if len(source.faults) == len(paths) and images.is_dir() and (shards := _shards(images)):
            return _parquet_source(images, shards, paths)
        return source
    if manifest.image_column:
        return ParquetImages(manifest.path, paths, manifest.shards, manifest.image_column)
    folder = manifest.path if manifest.path.is_dir() else manifest.path.parent
    source = open_images(folder, paths)
    if len(source.faults) < len(paths):
        return source
    archives = (open_images(archive, paths) for archive in archives_beside(manifest.path))
    return next((a for a in archives if len(a.faults) < len(paths)), source)


def _parquet_source(path: Path, shards: Sequence[Path], paths: Sequence[str]) -> PathImages:
    """Serve a manifest's paths from the image bytes of Parquet files."""
    stored = read_parquet(path, shards)
    if not stored.image_column:
        raise DataError(f"{path} has no column of image bytes.")
    names = [str(p) for p in stored.columns["path"]]
    rows = {p: i for i, p in enumerate(names)}
    places = [rows.get(p, 0) for p in paths]
    source = ParquetImages(path, paths, shards, stored.image_column, places)
    source.faults = {i: MISSING for i, p in enumerate(paths) if p not in rows}
    if len(rows) < len(names):
        often = {p for p, n in Counter(names).items() if n > 1}
        source.faults |= {i: "is stored in several rows" for i, p in enumerate(paths) if p in often}
    return source


def _check_files(
    source: PathImages, paths: Sequence[str], manifest: Manifest, problems: Problems
) -> None:
    faults = {row: why for row, why in source.faults.items() if paths[row]}
    if len(faults) == len(paths) > MANY_ROWS:
        told = next((f": {paths[r]} {why}." for r, why in faults.items() if why != MISSING), None)
        raise DataError(
            f"None of the {len(paths):,} images of {manifest.path} is in {source.root}"
            + (told or "; give the folder or archive that holds them as --images.")
        )
    for row, why in faults.items():
        problems.add(row, f"{paths[row]} {why}")


def _ids(manifest: Manifest, paths: Sequence[str], problems: Problems) -> list[str]:
    """Image ids; the path without suffix where none is given."""
    given = _column(manifest, "image_id")
    ids = [str(g) or _SUFFIX.sub("", p) for g, p in zip(given, paths, strict=True)]
    first: dict[str, int] = {}
    for row, name in enumerate(ids):
        if name and first.setdefault(name, row) != row:
            earlier = problems.row_numbers[first[name]]
            problems.add(row, f"image id '{name}' repeats that of row {earlier}")
    return ids


def _splits(manifest: Manifest, problems: Problems) -> NDArray[np.str_]:
    if "split" not in manifest.columns:
        return np.full(len(manifest), "train")
    words = [str(s) for s in manifest.columns["split"]]
    split = np.array([SPLIT_WORDS.get(w, w) for w in words])
    for row in np.flatnonzero(~np.isin(split, SPLITS)):
        problems.add(int(row), f"unknown split '{split[row]}' (expected {', '.join(SPLITS)})")
    return split


def _tag_columns(
    manifest: Manifest, attributes: Sequence[str]
) -> tuple[list[TagColumn], TagColumn | None]:
    columns = manifest.columns
    present = [TagColumn("tags", columns["tags"])] if "tags" in columns else []
    present += [TagColumn(name, columns[name], f"{name}:") for name in attributes]
    unknown = columns.get("tags_unknown")
    return present, TagColumn("tags_unknown", unknown) if unknown else None
