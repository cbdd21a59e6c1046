"""Tar archives: what lies where inside, and a plain copy of a compressed one in the cache."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import json
import lzma
import os
import zlib
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple

from retailtag.copies import cache_folder
from retailtag.errors import NO_ROOM, DataError
from retailtag.files import file_sha256, parse_json, write_text, write_whole
from retailtag.images.tar_headers import TarDamage, entries

MIN_LIMIT = 1 << 30  # bytes that an archive may unpack to however small it is
# Photographs hardly compress: what unpacks to a hundred times its size does not hold images.
MAX_EXPANSION = 100
_OPENERS: dict[bytes, Callable[[Path, str], Any]] = {
    b"\xfd7zXZ\x00": lzma.open,
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
}
_DAMAGE = (OSError, EOFError, lzma.LZMAError, zlib.error)


class Members(NamedTuple):
    """What a plain tar holds, by clean name."""

    spans: dict[str, tuple[int, int]]  # offset and size in bytes of each regular file
    refused: dict[str, str]  # why a member is not served: links, devices, sparse files


def plain_tar(archive: Path, *, named: Path | None = None) -> tuple[Path, Members]:
    """A tar with random access to the members of `archive`, and where each lies.

    It is `archive` itself where that is plain; else (xz, gzip or bzip2, recognised by the first
    bytes) a copy in `cache_folder`, named by the archive's SHA-256 and therefore never stale,
    written whole or not at all. Messages call the archive `named`, by default by its path.

    Raises
    ------
    DataError
        If the archive cannot be read, or unpacks to far more than images do.
    """
    named = named or archive
    try:
        with archive.open("rb") as handle:
            head = handle.read(6)
    except OSError as error:
        raise DataError(f"{named} cannot be opened: {error.strerror}.") from error
    opener = next((o for magic, o in _OPENERS.items() if head.startswith(magic)), None)
    if opener is None:
        return archive, scan_tar(archive, named=named)
    plain = cache_folder() / "archives" / f"{file_sha256(archive)}.tar"
    index = plain.with_suffix(".json")
    members = _read_index(plain, index)
    if members is not None:
        return plain, members
    limit = max(MIN_LIMIT, MAX_EXPANSION * archive.stat().st_size)
    try:
        with opener(archive, "rb") as stream, write_whole(plain) as out:
            _copy(stream, out, limit, named)
    except _DAMAGE as error:
        if isinstance(error, OSError) and error.errno in NO_ROOM:
            raise  # it is not the archive that is at fault
        raise DataError(f"{named} cannot be unpacked into {plain.parent}: {error}.") from error
    members = scan_tar(plain, named=named)
    listing = {"bytes": plain.stat().st_size, "spans": members.spans, "refused": members.refused}
    text = json.dumps(listing)  # names may be no UTF-8, and escapes hold them
    write_text(index, f"{_digest(text.encode())}\n{text}")
    return plain, members


def _copy(stream: IO[bytes], out: IO[bytes], limit: int, archive: Path) -> None:
    """Copy at most `limit` bytes, and no more than the disk takes."""
    done = 0
    while block := stream.read(1 << 22):
        done += len(block)
        if done > limit:
            raise DataError(
                f"{archive} unpacks to over {limit / 2**30:.1f} GiB, far more than images do; "
                "if that is right, unpack it yourself and give the folder as --images."
            )
        out.write(block)


def _read_index(plain: Path, index: Path) -> Members | None:
    """The index written beside an unpacked tar; None where either is missing or damaged."""
    # Worth its file: reading the headers of 44,000 members takes seconds in every command.
    try:
        digest, _, text = index.read_bytes().partition(b"\n")
        value = parse_json(text)
        if digest.decode() != _digest(text) or value["bytes"] != plain.stat().st_size:
            return None
        spans = {name: (int(start), int(size)) for name, (start, size) in value["spans"].items()}
        is_inside = all(0 <= at <= at + size <= value["bytes"] for at, size in spans.values())
        return Members(spans, dict(value["refused"])) if is_inside else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError):
        return None


def _digest(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()


def scan_tar(path: Path, *, named: Path | None = None) -> Members:
    """Find the members of a plain tar by its headers; raises `DataError` if it is not a tar."""
    try:
        status = path.stat()
    except OSError as error:
        raise DataError(f"{named or path} cannot be opened: {error.strerror}.") from error
    return _scan(path, named or path, (status.st_ino, status.st_size, status.st_mtime_ns))


# Shards are told to be such, read as a table, and opened for their images: one pass is enough.
@lru_cache(maxsize=256)
def _scan(path: Path, named: Path, state: tuple[int, ...]) -> Members:
    """Members of a tar in the given state of its file."""
    members = Members({}, {})
    try:
        with path.open("rb") as handle:
            for entry in entries(handle, os.fstat(handle.fileno()).st_size):
                name = PurePosixPath(entry.name)
                if name.is_absolute() or ".." in name.parts:
                    continue
                # As in unpacking, the last member of a name counts.
                if entry.kind == "file":
                    members.spans[str(name)] = (entry.offset, entry.size)
                    members.refused.pop(str(name), None)
                elif entry.kind != "folder":
                    what = "a link" if entry.kind == "link" else "no plain file"
                    members.refused[str(name)] = f"is {what} inside the archive"
                    members.spans.pop(str(name), None)
    except (OSError, TarDamage) as error:
        raise DataError(
            f"{named} cannot be read as a tar archive: {error}; fetch or pack it again."
        ) from error
    return members
