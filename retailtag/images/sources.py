"""Where image bytes lie: a folder, a tar or zip archive, Parquet files.

Each source is given the manifest's paths once, finds them in one pass, and then reads row i from
any thread. What it cannot serve is a fault with a reason, known before the first read.
"""

from __future__ import annotations

import os
import threading
import weakref
import zipfile
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Collection, Iterable, Sequence
from functools import cached_property, lru_cache
from pathlib import Path, PurePosixPath
from stat import S_ISLNK, S_ISREG
from typing import Any, Self

from retailtag.arrow import open_parquet
from retailtag.copies import LocalCopy, cache_folder
from retailtag.errors import DataError, UnreadableImage
from retailtag.images.header import one_image
from retailtag.images.tar import plain_tar
from retailtag.npz import ZIP_DAMAGE
from retailtag.remote import RemotePath, as_path

MAX_BYTES = 256 << 20
MISSING = "is missing"
LINK = (
    "is a link that leaves the folder; put the file itself there, or name the folder that it "
    "leads to with --allow-root"
)
LINKED = (
    "lies behind a link that leaves the folder; give the real folder as --images "
    "(paths are relative to it), or name it with --allow-root"
)
OUTSIDE = "lies outside of the folders that are named with --allow-root; name its folder too"


def clean_path(path: str) -> str:
    """A relative path without ``./`` and doubled slashes, as sources look it up; a URL as it is."""
    is_plain = "./" not in path and "//" not in path
    return path if is_plain or "://" in path else str(PurePosixPath(path))


def stamp_of(path: str | Path) -> tuple[int, int] | None:
    """Bytes and modification time (ns) of a file; None where there is none."""
    try:
        status = Path(path).stat()
    except (OSError, ValueError):
        return None
    return status.st_size, status.st_mtime_ns


_PACK = "pack the archive again"
_FIX = "fix the file or its permissions, or leave it out"


class ImageSource:
    """Where the bytes of a catalogue's images lie; safe to read from several threads.

    `root` is the folder or archive, `paths` the path of each image inside it, by row. `faults` are
    the rows that cannot be served, as far as that is known beforehand, and why. Files larger than
    `max_bytes` (`MAX_BYTES` until another is set) are refused before they are read.
    """

    def __init__(self, root: Path, paths: Sequence[str]) -> None:
        self.root = as_path(root)
        self.max_bytes = MAX_BYTES
        self.serve(paths)

    def serve(self, paths: Sequence[str]) -> None:
        """Set `paths` to these, and `faults` anew."""
        self.paths = tuple(clean_path(p) for p in paths)
        found = ((i, self.fault(path)) for i, path in enumerate(self.paths))
        self.faults = {i: fault for i, fault in found if fault}

    def fault(self, path: str) -> str:
        """Why a clean path cannot be served; empty if it can, as far as that is known."""
        return ""

    def held(self, paths: Collection[str]) -> set[str]:
        """Those of some clean paths that lie here, whether or not they can be served."""
        return {path for path in paths if self.fault(path) != MISSING}

    def names(self, folder: str) -> Collection[str]:
        """Names of what lies in one folder of this source; empty where that is unknown."""
        return ()

    def members(self) -> Iterable[str]:
        """Paths of all that lies here; empty where that is unknown."""
        return ()

    @property
    def places(self) -> tuple[Path, ...]:
        """What ``--images`` has to name to find the images again."""
        return (self.root,)

    def name(self, index: int) -> str:
        """Root and path of image `index`, for messages."""
        return f"{self.root}/{self.paths[index]}"

    def part(self, rows: Sequence[int]) -> Self:
        """Images of some rows alone, as rows 0, 1 and so on, to be pickled for another process.

        Unpickled on another machine it reads what lies at the same paths there.
        """
        part = object.__new__(type(self))
        vars(part).update(vars(self))
        part.paths = tuple(self.paths[row] for row in rows)
        part.faults = {i: self.faults[row] for i, row in enumerate(rows) if row in self.faults}
        return part

    def read(self, index: int) -> bytes:
        """Bytes of image `index` (row of the catalogue), undecoded.

        Raises
        ------
        UnreadableImage
            If they cannot be read; the message is the reason.
        """
        if index in self.faults:
            raise UnreadableImage(self.faults[index])
        with one_image():
            return self._read(index)

    def stamp(self, index: int) -> tuple[int, int] | None:
        """Bytes and modification time (ns) of the file that holds image `index`; None: unknown."""
        return None

    def _read(self, index: int) -> bytes:
        raise NotImplementedError

    def _check_size(self, size: int) -> None:
        check_size(size, self.max_bytes)


def check_size(size: int, max_bytes: int) -> None:
    """Raise `UnreadableImage` for more bytes than are accepted."""
    if size > max_bytes:
        raise UnreadableImage(
            f"has {size:,} bytes, above the limit of {max_bytes:,}; scale it down or raise "
            "--max-bytes"
        )


class FolderImages(ImageSource):
    """Files under a folder, and under the roots that `allowed` names.

    An absolute path, one with ``..`` and a symbolic link are followed into these, and nowhere else.
    """

    def __init__(self, root: Path, paths: Sequence[str], allowed: Sequence[Path] = ()) -> None:
        # Links are resolved once here and again at every read: a manifest is not trusted, and a
        # link out of the folder would serve any file of this machine.
        self._real = os.path.realpath(root)
        self._allowed = tuple(os.path.realpath(folder) for folder in (root, *allowed))
        # One scan of each folder that the paths name, not a call per file.
        self._listings: dict[str, tuple[dict[str, str], str]] = {}
        super().__init__(root, paths)

    def serve(self, paths: Sequence[str]) -> None:
        """Look the paths up, and forget the listings, which may name far more files."""
        super().serve(paths)
        self._listings.clear()

    def fault(self, path: str) -> str:
        """Why a path cannot be served: it is missing, no file, or leads out of the folder."""
        folder, name = os.path.split(path)
        faults, otherwise = self._listing(folder)
        return faults.get(name, otherwise)

    def names(self, folder: str) -> Collection[str]:
        """Names of files and folders in one folder."""
        return self._listing(folder)[0]

    def _listing(self, folder: str) -> tuple[dict[str, str], str]:
        if folder not in self._listings:
            self._listings[folder] = self._scan(folder)
        return self._listings[folder]

    def _scan(self, folder: str) -> tuple[dict[str, str], str]:
        """Name to fault (empty: none) of every entry of one folder, and the fault of the rest."""
        if not self._inside(folder):
            outward = folder.startswith("/") or ".." in folder.split("/")
            return {}, OUTSIDE if outward else LINKED
        try:
            with os.scandir(self._place(folder)) as entries:
                return {entry.name: self._fault(entry, folder) for entry in entries}, MISSING
        except PermissionError:
            return {}, "lies in a folder that may not be read; fix its permissions"
        except (OSError, ValueError):
            return {}, MISSING

    def _fault(self, entry: os.DirEntry[str], folder: str) -> str:
        if entry.is_symlink() and not self._inside(str(PurePosixPath(folder, entry.name))):
            return LINK
        try:
            return "" if entry.is_file() else "is not a file"
        except OSError as error:  # a link to itself, say
            return f"cannot be opened ({error.strerror})"

    def _place(self, path: str) -> str:
        return path if path.startswith("/") else f"{self._real}/{path}"

    def _inside(self, path: str) -> bool:
        try:
            real = os.path.realpath(self._place(path))
        except ValueError:
            return False
        return any(real == a or real.startswith(a.rstrip("/") + "/") for a in self._allowed)

    def stamp(self, index: int) -> tuple[int, int] | None:
        """Of the file itself."""
        return stamp_of(self._place(self.paths[index]))

    def _read(self, index: int) -> bytes:
        path = self.paths[index]
        if not self._inside(path):
            raise UnreadableImage(LINK)
        return read_file(self._place(path), self.max_bytes)


def read_file(place: str, max_bytes: int = MAX_BYTES) -> bytes:
    """Bytes of a file; `UnreadableImage` if it is none, cannot be read or is too large."""
    try:
        # O_NONBLOCK: opening a named pipe would wait for a writer for ever.
        fd = os.open(place, os.O_RDONLY | os.O_NONBLOCK)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = getattr(error, "strerror", None) or error
        raise UnreadableImage(f"cannot be opened ({reason}); {_FIX}") from error
    with os.fdopen(fd, "rb") as handle:
        status = os.fstat(handle.fileno())
        if not S_ISREG(status.st_mode):
            raise UnreadableImage("is not a file; put an image there or leave it out")
        check_size(status.st_size, max_bytes)
        try:
            data = handle.read(max_bytes + 1)  # it may grow meanwhile
        except OSError as error:
            raise UnreadableImage(f"cannot be read ({error.strerror}); {_FIX}") from error
    check_size(len(data), max_bytes)
    return data


class _ArchiveImages(ImageSource):
    """Members of an archive; `_members` are the names of all, set before the paths are served."""

    _members: Collection[str]
    _copy: LocalCopy | None = None  # of a remote archive

    def members(self) -> Iterable[str]:
        """Names of all members."""
        return self._members

    def held(self, paths: Collection[str]) -> set[str]:
        """Those of some paths that are members."""
        return set(self._members) & set(paths)

    def stamp(self, index: int) -> tuple[int, int] | None:
        """Of the archive."""
        return self._copy.stamp if self._copy else stamp_of(self.root)

    def names(self, folder: str) -> Collection[str]:
        """Names of members and folders in one folder of the archive."""
        return self._tree.get(folder, ())

    @cached_property
    def _tree(self) -> dict[str, set[str]]:
        """Names in every folder; made only where a path is missing."""
        tree: dict[str, set[str]] = {}
        for member in self._members:
            inner = member
            while inner:
                folder, _, name = inner.rpartition("/")
                tree.setdefault(folder, set()).add(name)
                inner = folder
        return tree


class TarImages(_ArchiveImages):
    """Members of a tar archive, plain or compressed (xz, gz, bz2).

    A compressed tar has no random access: it is unpacked once into the cache folder (see
    `retailtag.images.tar.plain_tar`) and read by offset there. Of a remote one a copy is read.
    """

    def __init__(self, root: Path, paths: Sequence[str]) -> None:
        root = as_path(root)
        file = root
        if isinstance(root, RemotePath):
            self._copy = LocalCopy(root)
            file = self._copy.fetched()
        plain, members = plain_tar(file, named=root)
        self._unpacked = "" if plain == file else plain.name  # in the cache
        self._open(plain)
        self._spans = members.spans
        self._refused = members.refused
        self._members = members.spans.keys() | members.refused.keys()
        super().__init__(root, paths)

    def _open(self, plain: Path) -> None:
        # The cache may drop a copy, so that it is opened for every image: there are more shards
        # than a process may hold open, and an open file takes its room on the disk.
        self._fd = None if self._copy and not self._unpacked else os.open(plain, os.O_RDONLY)
        if self._fd is not None:
            weakref.finalize(self, os.close, self._fd)

    def _plain(self) -> Path:
        """The tar that is read, on this machine."""
        if not self._unpacked:
            return self.root
        plain = cache_folder() / "archives" / self._unpacked
        if plain.exists():
            return plain
        return plain_tar(self._copy.fetched() if self._copy else self.root, named=self.root)[0]

    def part(self, rows: Sequence[int]) -> Self:
        """Images of some rows alone, with the places of these members."""
        part = super().part(rows)
        part._spans = {path: self._spans[path] for path in part.paths if path in self._spans}
        part._refused = {}
        part._members = part._spans.keys()
        return part

    def __getstate__(self) -> dict[str, Any]:
        return _without(self, "_fd", "_members") | {"root": _from_anywhere(self.root)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._members = self._spans.keys() | self._refused.keys()
        try:
            self._open(self._plain())
        except OSError as error:
            raise DataError(f"{self.root} cannot be opened: {error.strerror}.") from error

    def members(self) -> Iterable[str]:
        """Names of the plain files in the archive, in its order."""
        return self._spans

    def fault(self, path: str) -> str:
        """Why a path cannot be served: it is missing, or no plain file."""
        return "" if path in self._spans else self._refused.get(path, MISSING)

    def _read(self, index: int) -> bytes:
        return self.member(self.paths[index])

    def member(self, name: str) -> bytes:
        """Bytes of one member; `UnreadableImage` if they cannot be read."""
        offset, size = self._spans[name]
        self._check_size(size)
        try:
            # pread has no file position to share, so that threads need no lock.
            data = self._pread(size, offset)
        except OSError as error:
            raise UnreadableImage(f"cannot be read ({error.strerror}); {_FIX}") from error
        if len(data) != size:
            raise UnreadableImage("breaks off: the archive ends inside it; fetch the archive again")
        return data

    def _pread(self, size: int, offset: int) -> bytes:
        if self._fd is not None:
            return os.pread(self._fd, size, offset)
        assert self._copy is not None
        with self._copy.open() as handle:
            return os.pread(handle.fileno(), size, offset)


class ZipImages(_ArchiveImages):
    """Members of a zip archive, stored or deflated, checked against their CRC."""

    def __init__(self, root: Path, paths: Sequence[str]) -> None:
        self.root = as_path(root)
        if isinstance(self.root, RemotePath):
            self._copy = LocalCopy(self.root)
        self._archive = _opened_zip(self.root, self._copy)
        self._infos = {clean_path(info.filename): info for info in self._archive.infolist()}
        self._members = self._infos.keys()
        super().__init__(root, paths)

    def part(self, rows: Sequence[int]) -> Self:
        """Images of some rows alone, with the records of these members."""
        part = super().part(rows)
        part._infos = {path: self._infos[path] for path in part.paths if path in self._infos}
        part._members = part._infos.keys()
        return part

    def __getstate__(self) -> dict[str, Any]:
        return _without(self, "_archive", "_members") | {"root": _from_anywhere(self.root)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._members = self._infos.keys()
        self._archive = _kept_zip(self._copy.fetched() if self._copy else self.root)

    def fault(self, path: str) -> str:
        """Why a path cannot be served: it is missing, no plain file, encrypted or packed oddly."""
        return _zip_fault(self._infos.get(path))

    def _read(self, index: int) -> bytes:
        info = self._infos[self.paths[index]]
        self._check_size(max(info.file_size, info.compress_size))
        try:
            with self._archive.open(info) as member:
                # No more than declared is inflated, so that a lie costs nothing.
                data = member.read(info.file_size)
                member.read(1)  # the end, where the checksum is compared
        except ZIP_DAMAGE as error:
            raise UnreadableImage(f"is damaged in the archive ({error}); {_PACK}") from error
        if len(data) != info.file_size:
            raise UnreadableImage(f"is damaged in the archive (it ends early); {_PACK}")
        return data


def _opened_zip(place: Path, copy: LocalCopy | None = None) -> zipfile.ZipFile:
    """Archive; threads take turns at reading its file, and inflate side by side."""
    try:
        handle = copy.open() if copy else place.open("rb")
    except OSError as error:
        raise DataError(f"{place} cannot be opened: {error.strerror}.") from error
    try:
        archive = zipfile.ZipFile(handle)
    except ZIP_DAMAGE as error:
        handle.close()
        raise DataError(f"{place} cannot be read as a zip archive: {error}.") from error
    weakref.finalize(archive, handle.close)
    return archive


# Its directory is read once, not for every part that is unpickled.
_kept_zip = lru_cache(maxsize=8)(_opened_zip)


def _from_anywhere(path: Path) -> Path:
    """A path that leads to the same file from another working directory."""
    return path if isinstance(path, RemotePath) else path.absolute()


def _without(source: ImageSource, *names: str) -> dict[str, Any]:
    """State of a source without what cannot be pickled."""
    return {name: value for name, value in vars(source).items() if name not in names}


def _zip_fault(info: zipfile.ZipInfo | None) -> str:
    """Why a member cannot be served; empty if it can."""
    if info is None:
        return MISSING
    if S_ISLNK(info.external_attr >> 16):
        return "is a link inside the archive"
    if info.is_dir():
        return "is not a file"
    if info.flag_bits & 0x1:
        return "is encrypted"
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return "has a compression other than deflate"
    return ""


class ParquetImages(ImageSource):
    """Image bytes in a column of Parquet files, as Hugging Face datasets write them.

    `root`, the file or folder, is for messages; `paths` are the names of the images, by row.
    `files` are in row order; `column` holds bytes, or structs with a field ``bytes``; `rows` is the
    row of each image in these files, by default the first, the second and so on.

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
        self._column = column
        self._rows = range(len(paths)) if rows is None else rows
        self._starts, self._places = _row_groups(files)
        self._groups: OrderedDict[int, Any] = OrderedDict()
        self._lock = threading.Lock()
        self._stamps: dict[Path, tuple[int, int] | None] = {}  # of remote files

    def part(self, rows: Sequence[int]) -> Self:
        """Images of some rows alone, with the row groups that hold them."""
        part = super().part(rows)
        part._rows = [self._rows[row] for row in rows]
        # rows keep their numbers, so that the first row of each group that is left still finds it
        groups = sorted({bisect_right(self._starts, row) - 1 for row in part._rows})
        part._starts = [self._starts[group] for group in groups]
        part._places = [self._places[group] for group in groups]
        part._groups, part._lock = OrderedDict(), threading.Lock()
        return part

    def __getstate__(self) -> dict[str, Any]:
        places = [(_from_anywhere(path), group) for path, group in self._places]
        return _without(self, "_lock", "_groups") | {"_places": places}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._groups, self._lock = OrderedDict(), threading.Lock()

    def stamp(self, index: int) -> tuple[int, int] | None:
        """Of the Parquet file."""
        group = bisect_right(self._starts, self._rows[index]) - 1
        file = self._places[group][0]
        if not isinstance(file, RemotePath):
            return stamp_of(file)
        if file not in self._stamps:  # not a request for each of its images
            found = file.entry()
            self._stamps[file] = found.stamp if found else None
        return self._stamps[file]

    def _read(self, index: int) -> bytes:
        row = self._rows[index]
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

        with self._lock:
            if number not in self._groups:
                path, group = self._places[number]
                try:
                    with open_parquet(path) as file:
                        table = file.read_row_group(group, columns=[self._column])
                except (OSError, ValueError, pa.ArrowException) as error:
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
    starts, places, row = [], [], 0
    for path in files:
        with open_parquet(path) as file:
            metadata = file.metadata
        for group in range(metadata.num_row_groups):
            starts.append(row)
            places.append((path, group))
            row += metadata.row_group(group).num_rows
    return starts, places
