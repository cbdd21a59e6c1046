"""Local copies of remote archives, in a cache of bounded size.

Archives are read at random places, one image after another: a copy is fetched whole, and what was
used least recently makes room for it.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import IO

from retailtag.errors import DataError, UsageError
from retailtag.files import write_whole
from retailtag.remote import RemotePath, read_range, read_url

LIMIT = "RETAILTAG_CACHE_GIB"
DEFAULT_GIB = 50.0
PART_BYTES = 16 << 20  # fetched at a time: what fails is fetched again, not the whole archive
_ABANDONED = 24 * 3600.0  # seconds after which an unfinished copy is nobody's

_locks: dict[Path, threading.Lock] = {}


def cache_folder() -> Path:
    """``$RETAILTAG_CACHE``, else ``$XDG_CACHE_HOME/retailtag``, else ``~/.cache/retailtag``."""
    if own := os.environ.get("RETAILTAG_CACHE"):
        return Path(own)
    if xdg := os.environ.get("XDG_CACHE_HOME"):
        return Path(xdg) / "retailtag"
    return Path.home() / ".cache" / "retailtag"


class LocalCopy:
    """A copy of one version of a remote file, fetched when it is opened and not there (any more).

    Raises
    ------
    DataError
        If there is no such file, or it is larger than the cache may be.
    """

    def __init__(self, place: RemotePath) -> None:
        found = place.entry()
        if found is None or found.is_folder:
            raise DataError(f"{place} does not exist; give the URL of a file.")
        self.place = place
        self._entry = found
        # Without a version nothing tells an old copy from a new one: each process fetches its own.
        version = found.version or secrets.token_hex(8)
        text = f"{place}\n{version}\n{found.size}"
        self._name = hashlib.sha256(text.encode()).hexdigest()[:32]

    @property
    def path(self) -> Path:
        """Where the copy lies on this machine; another one that unpickles this has its own."""
        return cache_folder() / "remote" / self._name

    @property
    def stamp(self) -> tuple[int, int] | None:
        """Stamp of the remote file."""
        return self._entry.stamp

    def fetched(self) -> Path:
        """Path of the copy, which is there now."""
        self.open().close()
        return self.path

    def open(self) -> IO[bytes]:
        """Open the copy; it can be read to its end even if the cache drops it meanwhile."""
        while True:
            try:
                handle = self.path.open("rb")
            except FileNotFoundError:
                self._fetch()
                continue
            with suppress(OSError):
                os.utime(self.path)  # used just now
            return handle

    def _fetch(self) -> None:
        with _locks.setdefault(self.path, threading.Lock()):
            if self.path.exists():  # another thread was faster
                return
            url, size = str(self.place), self._entry.size
            if size is None:
                data = read_url(url)
                _make_room(self.path.parent, url, len(data))
                with write_whole(self.path) as out:
                    out.write(data)
                return
            _make_room(self.path.parent, url, size)
            with write_whole(self.path) as out:
                for start in range(0, size, PART_BYTES):
                    out.write(read_range(url, start, min(start + PART_BYTES, size), size))
                # Before the copy gets its name: parts of two versions are no archive, and places
                # found in an earlier version are wrong in a later one.
                if self.place.entry() != self._entry:
                    raise DataError(f"{url} has changed while it was read; start again.")


def _limit() -> int:
    """Bytes that copies may take together."""
    text = os.environ.get(LIMIT) or str(DEFAULT_GIB)
    try:
        limit = float(text)
    except ValueError:
        limit = 0.0
    if not 0 < limit < float("inf"):
        raise UsageError(f"{LIMIT}={text} is not a number of GiB above 0.")
    return int(limit * 2**30)


def _make_room(folder: Path, url: str, size: int) -> None:
    """Delete the copies used least recently until `size` bytes fit beside the others."""
    limit = _limit()
    if size > limit:
        raise DataError(
            f"{url} has {size / 2**30:.2f} GiB, more than the local copies of remote archives may "
            f"take ({limit / 2**30:.2f}); raise it with {LIMIT}."
        )
    copies = []
    for file in folder.iterdir() if folder.is_dir() else ():
        with suppress(FileNotFoundError):  # another process made room as well
            status = file.stat()
            if file.name.startswith(".") and time.time() - status.st_mtime > _ABANDONED:
                file.unlink()
            else:
                copies.append((status.st_mtime, file, status.st_size))
    taken = sum(bytes_ for _, _, bytes_ in copies)
    for _, file, bytes_ in sorted(copies):
        if taken + size <= limit:
            return
        if not file.name.startswith("."):
            file.unlink(missing_ok=True)
            taken -= bytes_
