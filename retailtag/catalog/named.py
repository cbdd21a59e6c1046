"""Images that somebody names, one after another: files, folders, patterns, archives, manifests."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, Any, NamedTuple

from retailtag.catalog.manifest import table_suffix
from retailtag.catalog.readers import read_images
from retailtag.errors import DataError, UsageError
from retailtag.images.header import IMAGE_SUFFIXES
from retailtag.images.listing import (
    LIST_SUFFIX,
    images_below,
    left_out,
    listed_images,
    without_images,
)
from retailtag.images.memory import MemoryImages
from retailtag.images.opening import is_archive, open_images
from retailtag.images.remote import read_remote
from retailtag.images.sources import MAX_BYTES, ImageSource, read_file
from retailtag.remote import RemotePath, as_path, is_remote
from retailtag.settings import CatalogSettings

STDIN = "-"
MANIFESTS = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet", ".pq")
_BLOCK = 1 << 16  # bytes of stdin at a time


class NamedImage(NamedTuple):
    """One image: its id, its path as named or within its archive or manifest, and its bytes."""

    image_id: str
    path: str
    read: Callable[[], bytes]  # raises `UnreadableImage`


@dataclass
class NamedImages:
    """Images in the order named, each once; to be read through a single time.

    Only the images under way are held, and the names of those that have gone by where a name could
    come again.
    """

    groups: list[_Group] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # what was left out
    is_manifest: bool = False  # whether a single manifest or table names them
    n_repeated: int = 0  # named before, and left out; known once all have gone by

    @property
    def total(self) -> int | None:
        """Number of images named; None: unknown beforehand."""
        sizes = [group.size for group in self.groups]
        return None if None in sizes else sum(size for size in sizes if size is not None)

    def __iter__(self) -> Iterator[NamedImage]:
        may_repeat = len(self.groups) > 1 or any(group.may_repeat for group in self.groups)
        seen: set[str] = set()
        for group in self.groups:
            for image in group.images:
                if may_repeat:
                    if image.image_id in seen:
                        self.n_repeated += 1
                        continue
                    seen.add(image.image_id)
                yield image


class _Group(NamedTuple):
    """What one source names."""

    images: Iterable[NamedImage]
    size: int | None
    may_repeat: bool = False


def named_images(
    sources: Sequence[Any],
    settings: CatalogSettings | None = None,
    *,
    max_bytes: int = MAX_BYTES,
    stdin: IO[bytes] | None = None,
) -> NamedImages:
    """Images that sources name.

    Parameters
    ----------
    sources : sequence
        Paths or URLs: an image file; a folder, for the images below it; a pattern such as
        ``shop/**/*.jpg``; a ``.txt`` file of paths; a tar or zip archive, for the images inside;
        ``-`` for paths on `stdin`, ended by line feeds or NUL characters. Or bytes of image files
        and PIL images. Or a single manifest or table, which needs no tags.
    settings : CatalogSettings, optional
        How a manifest is read.
    max_bytes : int
        Larger files are not read.

    Notes
    -----
    The id of a file is its path as named, that of a member ``ARCHIVE/MEMBER``, and that of a
    manifest's row the manifest's. A name that exists is never taken for a pattern.

    Raises
    ------
    UsageError
        If a manifest is not the only source, or a source is of another type.
    DataError
        If a source names no image or cannot be read.
    """
    found = NamedImages()
    if any(map(_is_table, sources)):
        if len(sources) > 1:
            raise UsageError(
                "A manifest is the only source of its call; its ids could be those of other "
                "images. Give the others to a call of their own."
            )
        ids, images, found.notes = read_images(sources[0], settings, max_bytes=max_bytes)
        found.groups = [_Group(_rows(ids, images), len(ids))]
        found.is_manifest = True
        return found
    for number, source in enumerate(sources):
        found.groups.append(_group(source, number, max_bytes, stdin, found.notes))
    if not found.groups:
        raise DataError("No images are named; give files, folders, archives or a manifest.")
    return found


def _is_table(source: Any) -> bool:
    if isinstance(source, str | Path):
        is_manifest = table_suffix(Path(source)) in MANIFESTS
        return is_manifest and str(source) != STDIN and not Path(source).is_dir()
    return hasattr(source, "__arrow_c_stream__") or isinstance(source, dict)


def _group(
    source: Any, number: int, max_bytes: int, stdin: IO[bytes] | None, notes: list[str]
) -> _Group:
    if not isinstance(source, str | Path):
        return _Group([_in_memory(source, number, max_bytes)], 1)
    if str(source) == STDIN:
        if stdin is None:
            raise UsageError("- stands for paths on stdin, which only the command reads.")
        named = (_file(path, max_bytes) for path in _paths_of(stdin))
        return _Group(named, None, may_repeat=True)
    place = as_path(source)
    if isinstance(place, RemotePath):
        # A text keeps what a path loses, such as doubled slashes in the query of a web page.
        url = source if isinstance(source, str) else str(place)
        return _remote(place, url, max_bytes, notes)
    return _local(str(source), max_bytes, notes)


def _local(name: str, max_bytes: int, notes: list[str]) -> _Group:
    """The images of a folder, a list, a pattern or an archive, or one file."""
    place = Path(name)
    as_file = partial(_file, max_bytes=max_bytes)
    if place.is_dir():
        return _folder(place, as_file, notes)
    is_list = place.suffix.lower() == LIST_SUFFIX
    if is_list or (not place.exists() and glob.has_magic(name)):
        paths = [*map(str, listed_images(place))] if is_list else _matched(name)
        return _Group(map(as_file, paths), len(paths), may_repeat=is_list)
    if place.is_file() and place.suffix.lower() not in IMAGE_SUFFIXES and is_archive(place):
        return _archive(place, max_bytes, notes)
    return _Group([as_file(name)], 1)


def _file(path: str, max_bytes: int) -> NamedImage:
    read = read_remote if is_remote(path) else read_file
    return NamedImage(path, path, partial(read, path, max_bytes))


def _remote(place: RemotePath, url: str, max_bytes: int, notes: list[str]) -> _Group:
    """The images of a remote archive or folder, or one file."""
    if is_archive(place):
        return _archive(place, max_bytes, notes)
    if not place.is_dir():
        return _Group([_file(url, max_bytes)], 1)
    files = list(place.files_below())
    inside = [name for name in files if name.lower().endswith(IMAGE_SUFFIXES)]
    if not inside:
        raise without_images(place)
    notes += left_out(place, [name for name in files if not name.lower().endswith(IMAGE_SUFFIXES)])
    return _Group((_file(place.below(name), max_bytes) for name in inside), len(inside))


def _rows(ids: Sequence[str], images: ImageSource) -> Iterator[NamedImage]:
    for row, image_id in enumerate(ids):
        yield NamedImage(image_id, images.paths[row], partial(images.read, row))


def _in_memory(image: Any, number: int, max_bytes: int) -> NamedImage:
    """Bytes of a file, or a PIL image."""
    is_bytes = isinstance(image, bytes | bytearray | memoryview)
    if not (is_bytes or hasattr(image, "getdata")):
        raise UsageError(
            f"Image {number} is of type {type(image).__name__}; give a path, bytes or a PIL image."
        )
    name = f"image-{number:09d}"
    held = MemoryImages(Path(), [name], [image])
    held.max_bytes = max_bytes
    return NamedImage(name, "", partial(held.read, 0))


def _folder(folder: Path, as_file: Callable[[str], NamedImage], notes: list[str]) -> _Group:
    others: list[str] = []
    # A walk of its own counts and checks: the paths of a million images need not be held.
    size = sum(1 for _ in images_below(folder, others))
    if not size:
        raise without_images(folder)
    notes += left_out(folder, others)
    return _Group(map(as_file, map(str, images_below(folder))), size)


def _matched(pattern: str) -> list[str]:
    """Files that match a pattern, and the images below folders that do, sorted."""
    paths: list[str] = []
    # Not Path.glob, which knows no absolute patterns.
    for path in sorted(glob.iglob(pattern, recursive=True)):  # noqa: PTH207
        paths += [path] if not Path(path).is_dir() else map(str, images_below(Path(path)))
    paths = list(dict.fromkeys(paths))
    if not paths:
        raise DataError(f"No file matches {pattern}; quote the pattern, and see what is there.")
    return paths


def _archive(archive: Path, max_bytes: int, notes: list[str]) -> _Group:
    source = open_images(archive, ())
    members = [m for m in source.members() if not source.fault(m)]
    inside = [m for m in members if m.lower().endswith(IMAGE_SUFFIXES)]
    if not inside:
        raise DataError(f"{archive} holds no images; their names end in .jpg, .png and the like.")
    notes += left_out(archive, [m for m in members if not m.lower().endswith(IMAGE_SUFFIXES)])
    source.serve(inside)
    source.max_bytes = max_bytes
    names = [f"{archive}/{member}" for member in inside]
    return _Group(_rows(names, source), len(inside))


def _paths_of(stream: IO[bytes]) -> Iterator[str]:
    """Paths of a stream, ended by NUL characters if its first block has one, else by lines."""
    rest = b""
    end = b""
    n = 0
    while block := stream.read1(_BLOCK) if hasattr(stream, "read1") else stream.read(_BLOCK):
        end = end or (b"\0" if b"\0" in block else b"\n")
        *whole, rest = (rest + block).split(end)
        for name in _decoded(whole, end):
            n += 1
            yield name
    last = list(_decoded([rest], end))
    if not n + len(last):
        raise DataError("stdin names no images; write one path per line.")
    yield from last


def _decoded(parts: Iterable[bytes], end: bytes) -> Iterator[str]:
    """Names as the file system has them, of any bytes; empty ones are left out."""
    for part in parts:
        name = part if end == b"\0" else part.removesuffix(b"\r")
        if name:
            yield os.fsdecode(name)
