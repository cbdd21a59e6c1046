"""Tar archives: what lies where inside, and a plain copy of a compressed one in the cache."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
import tarfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, Any

from retailtag.errors import DataError
from retailtag.files import file_sha256, write_json, write_whole

GIB = 1 << 30
# Photographs hardly compress: what unpacks to a hundred times its size does not hold images.
MAX_EXPANSION = 100
_OPENERS: dict[bytes, Callable[[Path, str], Any]] = {
    b"\xfd7zXZ\x00": lzma.open,
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
}
_DAMAGE = (OSError, EOFError, lzma.LZMAError, zlib.error, tarfile.TarError)


@dataclass(frozen=True)
class Members:
    """What a plain tar holds.

    Parameters
    ----------
    spans : dict of str to (int, int)
        Offset and size in bytes of each regular file, by clean name.
    refused : dict of str to str
        Why a named member is not served: links, devices, sparse files.
    """

    spans: dict[str, tuple[int, int]] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)


def cache_folder() -> Path:
    """``$RETAILTAG_CACHE``, else ``$XDG_CACHE_HOME/retailtag``, else ``~/.cache/retailtag``."""
    if own := os.environ.get("RETAILTAG_CACHE"):
        return Path(own)
    if xdg := os.environ.get("XDG_CACHE_HOME"):
        return Path(xdg) / "retailtag"
    return Path.home() / ".cache" / "retailtag"


def plain_tar(archive: Path, *, max_bytes: int | None = None) -> tuple[Path, Members]:
    """A tar with random access to the members of `archive`, and where each lies.

    Parameters
    ----------
    archive : Path
        A tar, plain or compressed with xz, gzip or bzip2 (recognised by its first bytes).
    max_bytes : int, optional
        Largest unpacked size; default: a hundred times the archive's size, at least 1 GiB.

    Returns
    -------
    tuple of Path and Members
        `archive` itself where it is plain; else a copy in `cache_folder`, named by the archive's
        SHA-256 and therefore never stale, written whole or not at all.

    Raises
    ------
    DataError
        If the archive cannot be read, or unpacks to more than `max_bytes`.
    """
    try:
        with archive.open("rb") as handle:
            head = handle.read(6)
    except OSError as error:
        raise DataError(f"{archive} cannot be opened: {error.strerror}.") from error
    opener = next((o for magic, o in _OPENERS.items() if head.startswith(magic)), None)
    if opener is None:
        return archive, scan_tar(archive)
    plain = cache_folder() / "archives" / f"{file_sha256(archive)}.tar"
    index = plain.with_suffix(".json")
    members = _read_index(plain, index)
    if members is not None:
        return plain, members
    limit = max_bytes or max(GIB, MAX_EXPANSION * archive.stat().st_size)
    try:
        with opener(archive, "rb") as stream, write_whole(plain) as out:
            _copy(stream, out, limit, archive)
    except _DAMAGE as error:
        raise DataError(f"{archive} cannot be unpacked into {plain.parent}: {error}.") from error
    members = scan_tar(plain, named=archive)
    write_json(
        index,
        {"bytes": plain.stat().st_size, "spans": members.spans, "refused": members.refused},
    )
    return plain, members


def _copy(stream: IO[bytes], out: IO[bytes], limit: int, archive: Path) -> None:
    """Copy at most `limit` bytes, and no more than the disk takes."""
    done = 0
    while block := stream.read(1 << 22):
        done += len(block)
        if done > limit:
            raise DataError(
                f"{archive} unpacks to over {limit / GIB:.1f} GiB, far more than images do; "
                "if that is right, unpack it yourself and give the folder as --images."
            )
        out.write(block)


def _read_index(plain: Path, index: Path) -> Members | None:
    """The index written beside an unpacked tar; None where either is missing or damaged."""
    try:
        value = json.loads(index.read_bytes())
        if value["bytes"] != plain.stat().st_size:
            return None
        spans = {name: (int(start), int(size)) for name, (start, size) in value["spans"].items()}
        return Members(spans, dict(value["refused"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def scan_tar(path: Path, *, named: Path | None = None) -> Members:
    """Find the members of a plain tar by reading its headers.

    Raises
    ------
    DataError
        If it is not a tar; the message names `named` or `path`.
    """
    members = Members()
    try:
        with tarfile.open(path, "r:") as archive:
            while (info := archive.next()) is not None:
                name = PurePosixPath(info.name)
                if name.is_absolute() or ".." in name.parts:
                    continue
                # As in unpacking, the last member of a name counts.
                if info.isreg() and not info.issparse():
                    members.spans[str(name)] = (info.offset_data, info.size)
                    members.refused.pop(str(name), None)
                elif not info.isdir():
                    what = "a link" if info.issym() or info.islnk() else "no plain file"
                    members.refused[str(name)] = f"is {what} inside the archive"
                    members.spans.pop(str(name), None)
    except _DAMAGE as error:
        raise DataError(f"{named or path} cannot be read as a tar archive: {error}.") from error
    return members
