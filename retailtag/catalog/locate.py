"""Find the images of a manifest: which paths may be followed, and what serves them."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from retailtag.catalog.manifest import Manifest, Problems, Wanted, is_clean, read_parquet
from retailtag.catalog.shards import numbered_files
from retailtag.errors import DataError, UsageError
from retailtag.images.memory import MemoryImages
from retailtag.images.near import NearMisses
from retailtag.images.opening import is_archive, open_images
from retailtag.images.remote import RemoteImages, is_below
from retailtag.images.several import SeveralImages
from retailtag.images.sources import (
    LINK,
    LINKED,
    MISSING,
    OUTSIDE,
    ImageSource,
    ParquetImages,
)
from retailtag.remote import RemotePath, as_path, is_remote
from retailtag.settings import CatalogSettings

ARCHIVE_NAMES = ("images.tar", "images.tar.xz", "images.tar.gz", "images.tar.bz2", "images.zip")
PARQUET = (".parquet", ".pq")
PLAIN_ARCHIVES = (".tar", ".zip")  # opened without unpacking, so that trying them costs little
MIN_ROWS_FOR_ONE_MESSAGE = 100  # above, images that are all missing are one message
TRIED_FOR_NEAR = 100  # rows of a catalogue without any of its images
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
_WINDOWS = re.compile(r"\\|[A-Za-z]:")


def check_paths(paths: Sequence[str], allowed: Sequence[Path], problems: Problems) -> list[str]:
    """Report paths that name no file of the images' folder; returned without these, in place ''.

    Absolute paths and ``..`` pass where `allowed` names local roots; the source then follows them
    into these only. URLs pass below the remote ones of `allowed`.
    """
    follows = any(not isinstance(root, RemotePath) for root in allowed)
    faulty: dict[str, list[int]] = {}
    safe = []
    for row, path in enumerate(paths):
        kind = _kind(path, follows)
        if kind == "url" and is_below(path, allowed):
            kind = ""
        if kind:
            faulty.setdefault(kind, []).append(row)
        safe.append("" if kind or not is_clean(path) else path)
    for kind, rows in faulty.items():
        problems.add_all(rows, _sentence(kind, [paths[row] for row in rows]))
    return safe


def is_relative(path: str) -> bool:
    """Whether a path may be put below a folder: it is neither absolute nor a URL."""
    return not (path.startswith("/") or _URL.match(path) or _WINDOWS.match(path))


def _kind(path: str, follows: bool) -> str:
    """What is wrong with a path; empty: nothing."""
    if not path:
        return "empty"
    if _URL.match(path):
        return "url"
    if _WINDOWS.match(path):
        return "windows"
    if path.startswith("/") and not follows:
        return "absolute"
    if ".." in path and not follows and ".." in re.split(r"[/\\]", path):
        return "up"
    return ""


def _sentence(kind: str, paths: Sequence[str]) -> str:
    """One sentence for all paths with the same fault."""
    first = repr(paths[0])
    if kind == "empty":
        return "has no path"
    if kind == "url" and all(map(is_remote, paths)):
        common = as_path(os.path.commonpath([str(as_path(path).parent) for path in paths]))
        # URLs of several servers share nothing but their scheme: then the first one's folder.
        place = common if len(common.parts) > 1 else as_path(paths[0]).parent
        return f"path {first} is a URL; name the URL that it may lead to with --allow-root {place}"
    if kind == "url":
        return f"path {first} is a URL; download the images and write the paths of the files"
    if kind == "windows":
        return f"path {first} is absolute; write it relative to the images' folder"
    if kind == "up":
        return (
            f"path {first} leaves the images' folder by '..'; give the folder above as --images, "
            "or name the one it leads to with --allow-root"
        )
    root = os.path.commonpath([Path(path).parent for path in paths])
    return (
        f"path {first} is absolute; name the folder that it may lead to with --allow-root {root}, "
        "or write it relative to the images' folder"
    )


def locate(manifest: Manifest, paths: Sequence[str], settings: CatalogSettings) -> ImageSource:
    """The source that serves the paths: the one named, the manifest's own, or what is beside it."""
    allowed = settings.allow_root
    if any(map(is_remote, paths)):
        return _at_urls(manifest, paths, settings)
    if places := settings.images or manifest.places:
        return _source_at(places, paths, allowed)
    if manifest.images:
        return MemoryImages(manifest.path, paths, manifest.images)
    if manifest.image_column:
        return ParquetImages(manifest.path, paths, manifest.files, manifest.image_column)
    return _beside(manifest, paths, allowed)


def _beside(manifest: Manifest, paths: Sequence[str], allowed: Sequence[Path]) -> ImageSource:
    """Images in the manifest's folder, or in an archive there."""
    if manifest.in_memory:
        return open_images(Path(), paths, allowed)
    folder = manifest.path if manifest.path.is_dir() else manifest.path.parent
    source = open_images(folder, paths, allowed)
    if len(source.faults) < len(paths):
        return source
    beside = [manifest.path.parent / name for name in ARCHIVE_NAMES]
    archives = (open_images(archive, paths) for archive in beside if archive.is_file())
    return next((a for a in archives if len(a.faults) < len(paths)), source)


def remote_roots(manifest: Manifest, settings: CatalogSettings) -> tuple[Path, ...]:
    """``allow_root``, and the remote folder of the images, which URLs may lead to as well."""
    folder = manifest.path if manifest.path.is_dir() else manifest.path.parent
    own = settings.images or (folder,)
    return (*settings.allow_root, *(r for r in own if isinstance(r, RemotePath)))


def _at_urls(manifest: Manifest, paths: Sequence[str], settings: CatalogSettings) -> ImageSource:
    """The source of paths of which some are URLs."""
    roots = [r for r in remote_roots(manifest, settings) if isinstance(r, RemotePath)]
    own = next((r for r in roots if r not in settings.allow_root), None)
    base = None if own is None or is_archive(own) else own
    files = [path for path in paths if path and not is_remote(path)]
    if files and base is None:
        raise DataError(
            f"{manifest.path} names URLs and files such as {files[0]}; use one kind of path."
        )
    return RemoteImages(base or roots[0], paths, roots)


def _source_at(
    places: Sequence[Path], paths: Sequence[str], allowed: Sequence[Path]
) -> ImageSource:
    """Open the folders, archives or Parquet files that hold the images."""
    places = [file for place in places for file in numbered_files(place) or [place]]
    first = places[0]
    parquet = [place for place in places if place.suffix.lower() in PARQUET]
    if len(parquet) == len(places):
        return _parquet_source(first, parquet, paths)
    if parquet:
        raise UsageError(
            f"--images {parquet[0]} is Parquet and others are not; give only one kind."
        )
    if len(places) > 1:
        return SeveralImages(_common(places), places, paths, allowed)
    source = open_images(first, paths, allowed)
    if len(source.faults) == len(paths) and first.is_dir():
        archives = [p for p in sorted(first.iterdir()) if p.suffix.lower() in PLAIN_ARCHIVES]
        if archives:
            return SeveralImages(first, archives, paths)
        if files := parquet_files(first):
            return _parquet_source(first, files, paths)
    return source


def _common(places: Sequence[Path]) -> Path:
    """The folder that holds several places, for messages; of URLs the first one's."""
    is_local = not any(isinstance(place, RemotePath) for place in places)
    return Path(os.path.commonpath(places)) if is_local else places[0].parent


def parquet_files(folder: Path) -> list[Path]:
    """Parquet files of a folder in row order, or of its ``data``, as Hugging Face lays them."""
    return sorted(folder.glob("*.parquet")) or sorted(folder.glob("data/*.parquet"))


def _parquet_source(path: Path, files: Sequence[Path], paths: Sequence[str]) -> ImageSource:
    """Serve a manifest's paths from the image bytes of Parquet files."""
    stored = read_parquet(path, files, lambda _: Wanted(("path",)))
    if not stored.image_column:
        raise DataError(f"{path} has no column of image bytes.")
    names = [str(p) for p in stored.columns["path"]]
    rows = {p: i for i, p in enumerate(names)}
    places = [rows.get(p, 0) for p in paths]
    source = ParquetImages(path, paths, files, stored.image_column, places)
    source.faults = {i: MISSING for i, p in enumerate(paths) if p not in rows}
    if len(rows) < len(names):
        often = {p for p, n in Counter(names).items() if n > 1}
        source.faults |= {i: "is stored in several rows" for i, p in enumerate(paths) if p in often}
    return source


def check_files(
    source: ImageSource, paths: Sequence[str], manifest: Manifest, problems: Problems
) -> None:
    """Report images that the source cannot serve, with the file that a missing one may mean.

    Raises
    ------
    DataError
        If a catalogue of some size has none of its images there.
    """
    faults = {row: why for row, why in source.faults.items() if paths[row]}
    near = NearMisses(source)
    if len(faults) == len(paths) > MIN_ROWS_FOR_ONE_MESSAGE:
        told = next((f": {paths[r]} {why}." for r, why in faults.items() if why != MISSING), "")
        tried = (f": {_missing(paths[r], near)}." for r in islice(faults, TRIED_FOR_NEAR))
        told = told or next((text for text in tried if " is there " in text), "")
        raise DataError(
            f"None of the {len(paths):,} images of {manifest.path} is in {source.root}"
            + (told or "; give the folder or archive that holds them as --images.")
        )
    outward: dict[str, list[int]] = {}
    for row, why in faults.items():
        if why in (LINK, LINKED, OUTSIDE):
            outward.setdefault(why, []).append(row)
        else:
            problems.add(
                row, _missing(paths[row], near) if why == MISSING else f"{paths[row]} {why}"
            )
    for why, rows in outward.items():
        problems.add_all(rows, f"{paths[rows[0]]} {why}")


def _missing(path: str, near: NearMisses) -> str:
    found = near.find(path)
    return f"{path} {MISSING}" + (f"; {found}" if found else "")
