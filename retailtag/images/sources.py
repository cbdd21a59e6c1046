"""Where image bytes lie: a folder, a tar or zip archive, Parquet files.

Each source is given the manifest's paths once, finds them in one pass, and then reads row i from
any thread. What it cannot serve is a fault with a reason, known before the first read.
"""

from __future__ import annotations

import os
import struct
import threading
import weakref
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from stat import S_ISREG
from typing import Any, Protocol

from retailtag.errors import DataError, UnreadableImage
from retailtag.images.tar import Members, plain_tar

MAX_BYTES = 256 << 20
MISSING = "is missing"
LINK = "is a link that leaves the folder; put the file itself there"
LINKED = (
    "lies behind a link that leaves the folder; give the real folder as --images "
    "(paths are relative to it)"
)
ARCHIVE_NAMES = ("images.tar", "images.tar.xz", "images.tar.gz", "images.tar.bz2", "images.zip")


def clean_path(path: str) -> str:
    """A relative path without ``./`` and doubled slashes, as sources look it up."""
    return str(PurePosixPath(path)) if "./" in path or "//" in path else path


_PACK = "pack the archive again"
_FIX = "fix the file or its permissions, or leave it out"


class ImageSource(Protocol):
    """Where the bytes of a catalogue's images lie; safe to read from several threads."""

    def read(self, index: int) -> bytes:
        """Bytes of image `index` (row of the catalogue), undecoded.

        Raises
        ------
        UnreadableImage
            If they cannot be read; the message is the reason.
        """
        ...

    def name(self, index: int) -> str:
        """Name of image `index` for messages: a path, or archive and member."""
        ...


class PathImages:
    """What the sources share: paths by row, and faults known beforehand.

    Parameters
    ----------
    root : Path
        The folder or archive.
    paths : sequence of str
        Path of each image inside it, by row.

    Attributes
    ----------
    max_bytes : int
        Larger files are refused before they are read; `MAX_BYTES` until another is set.
    """

    def __init__(self, root: Path, paths: Sequence[str]) -> None:
        self.root = Path(root)
        self.paths = tuple(clean_path(p) for p in paths)
        self.faults: dict[int, str] = {}
        self.max_bytes = MAX_BYTES

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, index: int) -> str:
        """Root and path of image `index`, for messages."""
        return f"{self.root}/{self.paths[index]}"

    def read(self, index: int) -> bytes:
        """Bytes of image `index`.

        Raises
        ------
        UnreadableImage
            If they cannot be read; the message is the reason.
        """
        if index in self.faults:
            raise UnreadableImage(self.faults[index])
        return self._read(index)

    def _read(self, index: int) -> bytes:
        raise NotImplementedError

    def _check_size(self, size: int) -> None:
        if size > self.max_bytes:
            raise UnreadableImage(
                f"has {size:,} bytes, above the limit of {self.max_bytes:,}; scale it down or "
                "raise --max-bytes"
            )


class FolderImages(PathImages):
    """Files under a folder; a symbolic link that leaves it is never followed.

    Notes
    -----
    Existence is settled by one scan of each folder that the paths name, not by a call per file.
    """

    def __init__(self, root: Path, paths: Sequence[str]) -> None:
        super().__init__(root, paths)
        # Links are resolved once here and again at every read: a manifest is not trusted, and a
        # link out of the folder would serve any file of this machine.
        self._real = os.path.realpath(self.root)
        listings: dict[str, tuple[dict[str, str], str]] = {}
        for i, path in enumerate(self.paths):
            folder, _, name = path.rpartition("/")
            if folder not in listings:
                listings[folder] = self._scan(folder)
            faults, otherwise = listings[folder]
            fault = faults.get(name, otherwise)
            if fault:
                self.faults[i] = fault

    def _scan(self, folder: str) -> tuple[dict[str, str], str]:
        """Name to fault (empty: none) of every entry of one folder, and the fault of the rest."""
        if not self._inside(folder):
            return {}, LINKED
        try:
            with os.scandir(f"{self._real}/{folder}") as entries:
                return {entry.name: self._fault(entry, folder) for entry in entries}, MISSING
        except PermissionError:
            return {}, "lies in a folder that may not be read; fix its permissions"
        except (OSError, ValueError):
            return {}, MISSING

    def _fault(self, entry: os.DirEntry[str], folder: str) -> str:
        if entry.is_symlink() and not self._inside(f"{folder}/{entry.name}"):
            return LINK
        try:
            return "" if entry.is_file() else "is not a file"
        except OSError as error:  # a link to itself, say
            return f"cannot be opened ({error.strerror})"

    def _inside(self, path: str) -> bool:
        try:
            real = os.path.realpath(f"{self._real}/{path}")
        except ValueError:
            return False
        return real == self._real or real.startswith(self._real.rstrip("/") + "/")

    def _read(self, index: int) -> bytes:
        path = self.paths[index]
        if not self._inside(path):
            raise UnreadableImage(LINK)
        try:
            # O_NONBLOCK: opening a named pipe would wait for a writer for ever.
            fd = os.open(f"{self._real}/{path}", os.O_RDONLY | os.O_NONBLOCK)
        except OSError as error:
            raise UnreadableImage(f"cannot be opened ({error.strerror}); {_FIX}") from error
        with os.fdopen(fd, "rb") as handle:
            status = os.fstat(handle.fileno())
            if not S_ISREG(status.st_mode):
                raise UnreadableImage("is not a file; put an image there or leave it out")
            self._check_size(status.st_size)
            try:
                data = handle.read(self.max_bytes + 1)  # it may grow meanwhile
            except OSError as error:
                raise UnreadableImage(f"cannot be read ({error.strerror}); {_FIX}") from error
        self._check_size(len(data))
        return data


class _RandomAccess:
    """A file read by offset from any thread; pickles as its path."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._fd = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise DataError(f"{path} cannot be opened: {error.strerror}.") from error
        weakref.finalize(self, os.close, self._fd)

    def __reduce__(self) -> tuple[type[_RandomAccess], tuple[Path]]:
        return type(self), (self.path,)

    def read(self, offset: int, size: int) -> bytes:
        """Bytes at `offset`; raises `UnreadableImage` if there are fewer than `size`."""
        try:
            # pread has no file position to share, so that threads need no lock.
            data = os.pread(self._fd, size, offset)
        except OSError as error:
            raise UnreadableImage(f"cannot be read ({error.strerror}); {_FIX}") from error
        if len(data) != size:
            raise UnreadableImage("breaks off: the archive ends inside it; fetch the archive again")
        return data


class TarImages(PathImages):
    """Members of a tar archive, plain or compressed (xz, gz, bz2).

    Notes
    -----
    A compressed tar has no random access: it is unpacked once into the cache folder (see
    `retailtag.images.tar.plain_tar`) and read by offset there. Links and members that are
    absolute or hold ``..`` are refused.
    """

    def __init__(self, root: Path, paths: Sequence[str]) -> None:
        super().__init__(root, paths)
        plain, members = plain_tar(self.root)
        self._file = _RandomAccess(plain)
        self._spans, self.faults = _locate(self.paths, members)

    def _read(self, index: int) -> bytes:
        offset, size = self._spans[index]
        self._check_size(size)
        return self._file.read(offset, size)


def _locate(paths: Sequence[str], members: Members) -> tuple[list[tuple[int, int]], dict[int, str]]:
    """Offset and size of each path, and the reason for each that has none."""
    spans, faults = [], {}
    for i, path in enumerate(paths):
        span = members.spans.get(path)
        if span is None:
            faults[i] = members.refused.get(path, MISSING)
        spans.append(span or (0, 0))
    return spans, faults


class ZipImages(PathImages):
    """Members of a zip archive, stored or deflated, checked against their CRC."""

    def __init__(self, root: Path, paths: Sequence[str]) -> None:
        super().__init__(root, paths)
        try:
            with zipfile.ZipFile(self.root) as archive:
                infos = {clean_path(info.filename): info for info in archive.infolist()}
        except (OSError, zipfile.BadZipFile, NotImplementedError) as error:
            raise DataError(f"{self.root} cannot be read as a zip archive: {error}.") from error
        self._file = _RandomAccess(self.root)
        self._infos: dict[int, zipfile.ZipInfo] = {}
        for i, path in enumerate(self.paths):
            info = infos.get(path)
            fault = MISSING if info is None else _zip_fault(info)
            if fault:
                self.faults[i] = fault
            elif info is not None:
                self._infos[i] = info

    def _read(self, index: int) -> bytes:
        info = self._infos[index]
        self._check_size(max(info.file_size, info.compress_size))
        header = self._file.read(info.header_offset, 30)
        if header[:4] != b"PK\x03\x04":
            raise UnreadableImage(f"is damaged (no local header in the archive); {_PACK}")
        # The local header repeats the name and has its own extra field, of its own length.
        name, extra = struct.unpack("<HH", header[26:30])
        data = self._file.read(info.header_offset + 30 + name + extra, info.compress_size)
        if info.compress_type == zipfile.ZIP_DEFLATED:
            data = _inflate(data, info.file_size)
        if len(data) != info.file_size or zlib.crc32(data) != info.CRC:
            raise UnreadableImage(f"is damaged (checksum of the archive differs); {_PACK}")
        return data


def _inflate(data: bytes, size: int) -> bytes:
    """Inflate to at most one byte more than declared, so that a lie costs nothing."""
    try:
        return zlib.decompressobj(-15).decompress(data, size + 1)
    except zlib.error as error:
        raise UnreadableImage(f"is damaged ({error}); {_PACK}") from error


def _zip_fault(info: zipfile.ZipInfo) -> str:
    """Why a member cannot be served; empty if it can."""
    if (info.external_attr >> 16) & 0o170000 == 0o120000:
        return "is a link inside the archive"
    if info.is_dir():
        return "is not a file"
    if info.flag_bits & 0x1:
        return "is encrypted"
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return "has a compression other than deflate"
    return ""


class ParquetImages(PathImages):
    """Image bytes in a column of Parquet files, as Hugging Face datasets write them.

    Parameters
    ----------
    root : Path
        The file or folder; for messages.
    paths : sequence of str
        Name of each image, by row.
    files : sequence of Path
        Parquet files in row order.
    column : str
        Column of bytes, or of structs with a field ``bytes``.
    rows : sequence of int, optional
        Row of each image in these files; default: the first, the second and so on.

    Notes
    -----
    Parquet is read a row group at a time, and the last few are cached: reading in row order costs
    one pass, reading in random order costs one row group per image. For many passes in random
    order put the images into a tar.
    """

    CACHED_ROW_GROUPS = 8

    def __init__(
        self,
        root: Path,
        paths: Sequence[str],
        files: Sequence[Path],
        column: str,
        rows: Sequence[int] | None = None,
    ) -> None:
        super().__init__(root, paths)
        self.files = tuple(files)
        self.column = column
        self.rows = tuple(range(len(paths)) if rows is None else rows)
        self._starts, self._places = _row_groups(self.files)
        self._groups: OrderedDict[int, Any] = OrderedDict()
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in vars(self).items() if k not in ("_groups", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _groups=OrderedDict(), _lock=threading.Lock())

    def _read(self, index: int) -> bytes:
        from bisect import bisect_right

        row = self.rows[index]
        group = bisect_right(self._starts, row) - 1
        value = self._group(group)[row - self._starts[group]].as_py()
        if isinstance(value, dict):
            value = value["bytes"]
        if not isinstance(value, bytes):
            raise UnreadableImage("has no bytes in the Parquet file; fill the row or leave it out")
        self._check_size(len(value))
        return value

    def _group(self, number: int) -> Any:
        """The image column of one row group, from the few that are cached."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        with self._lock:
            if number not in self._groups:
                path, group = self._places[number]
                try:
                    with pq.ParquetFile(path) as file:
                        table = file.read_row_group(group, columns=[self.column])
                except (OSError, pa.ArrowException) as error:
                    raise UnreadableImage(
                        f"cannot be read from {path.name} ({error}); fetch that file again"
                    ) from error
                self._groups[number] = table.column(0).combine_chunks()
            self._groups.move_to_end(number)
            while len(self._groups) > self.CACHED_ROW_GROUPS:
                self._groups.popitem(last=False)
            return self._groups[number]


def _row_groups(files: Sequence[Path]) -> tuple[list[int], list[tuple[Path, int]]]:
    """First row, and (file, number), of every row group of `files` in order."""
    import pyarrow.parquet as pq

    starts, places, row = [], [], 0
    for path in files:
        metadata = pq.read_metadata(path)
        for group in range(metadata.num_row_groups):
            starts.append(row)
            places.append((path, group))
            row += metadata.row_group(group).num_rows
    return starts, places


def open_images(place: Path, paths: Sequence[str]) -> PathImages:
    """The source that serves `paths` out of a folder, a tar or a zip.

    Raises
    ------
    DataError
        If `place` does not exist or is none of these.
    """
    place = Path(place)
    if place.is_dir():
        return FolderImages(place, paths)
    if not place.exists():
        raise DataError(f"{place} does not exist; give the folder or archive of the images.")
    return ZipImages(place, paths) if zipfile.is_zipfile(place) else TarImages(place, paths)


def archives_beside(manifest: Path) -> Iterator[Path]:
    """Archives that may hold the images of a manifest, in the order in which they are tried."""
    return (p for name in ARCHIVE_NAMES if (p := manifest.parent / name).is_file())
