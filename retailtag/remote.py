"""Files on object stores and web servers: ``s3://``, ``gs://``, ``az://``, ``https://``, read-only.

A `RemotePath` is a path whose text is its URL. fsspec's file systems do the work; they are imported
at the first read. Every read is tried several times: a failure that may pass never counts as a
missing or unreadable file.
"""

from __future__ import annotations

import fnmatch
import hashlib
import io
import os
import random
import re
import time
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path, PosixPath
from typing import Any, NamedTuple, TypeVar
from urllib.parse import quote

from retailtag.errors import DataError, RetailtagError, Unavailable

Result = TypeVar("Result")

_EXTRAS = {
    "s3": "s3", "gs": "gs", "gcs": "gs", "az": "az", "abfs": "az", "abfss": "az",
    "http": "http", "https": "http",
}  # fmt: skip
_WEB = ("http", "https")
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+")

ATTEMPTS = 8
FIRST_DELAY = 0.2  # seconds before the second attempt, doubled before each further one: 25 in all
_BUFFER = 1 << 16  # bytes read at least where a file is read in parts
# Answers of a web server that say "later", beside 500 and above
_LATER = (408, 425, 429)


class RemoteFault(DataError):
    """A remote file that cannot be read however often it is tried; `reason` says why."""

    def __init__(self, url: str, reason: str, *, is_missing: bool = False) -> None:
        super().__init__(f"{url} {reason}.")
        self.reason = reason
        self.is_missing = is_missing


class Entry(NamedTuple):
    """What a store says of a file or folder."""

    is_folder: bool
    size: int | None  # bytes; None: unknown
    version: str  # another one means other bytes; empty: unknown

    @property
    def stamp(self) -> tuple[int, int] | None:
        """Bytes and a number for the version, as `ImageSource.stamp` gives them; None: unknown."""
        if self.size is None or not self.version:
            return None
        return self.size, int.from_bytes(hashlib.sha256(self.version.encode()).digest()[:7])


def is_remote(text: str) -> bool:
    """Whether a text is a URL of a scheme that is read here."""
    found = _URL.match(text)
    return found is not None and found[1].lower() in _EXTRAS


def as_path(value: str | Path) -> Path:
    """A path, remote if it is a URL.

    Examples
    --------
    >>> str(as_path("s3://shop/train") / "a.csv"), str(as_path("shop//a.csv"))
    ('s3://shop/train/a.csv', 'shop/a.csv')
    """
    if isinstance(value, RemotePath):
        return value
    # A Path made of a URL has lost one of its slashes; nothing local begins so.
    text = _URL.sub(r"\1://", str(value), count=1)
    return RemotePath(text) if is_remote(text) else Path(value)


class RemotePath(PosixPath):
    """A URL as a path: its parts are those of any path, and its files are read over the network.

    Folders are common beginnings of names, as stores have them; web servers have none.
    """

    def __str__(self) -> str:
        scheme, _, rest = super().__str__().partition(":/")
        return f"{scheme}://{rest.lstrip('/')}"

    @property
    def scheme(self) -> str:
        """Scheme in lower case, such as ``s3``."""
        return str(self).partition(":")[0].lower()

    @property
    def is_listed(self) -> bool:
        """Whether folders can be listed."""
        return self.scheme not in _WEB

    def below(self, path: str) -> str:
        """URL of a file below this folder; `path` is not encoded."""
        return f"{self}/{path if self.is_listed else quote(path)}"

    def entry(self) -> Entry | None:
        """What the store says of it; None where there is nothing."""
        url = str(self)
        try:
            return _entry(attempt(url, lambda system: _fresh(system).info(url)))
        except RemoteFault as fault:
            if fault.is_missing:
                return None
            raise

    def entries(self) -> dict[str, Entry]:
        """What lies in this folder, by name; raises `RemoteFault` where nothing can be listed."""
        url = str(self)
        if not self.is_listed:
            raise RemoteFault(url, "is on a web server, which lists no folders; name the files")
        try:
            found = attempt(url, lambda system: _fresh(system).ls(url, detail=True))
        except RemoteFault as fault:
            if fault.is_missing:
                return {}
            raise
        named = ((info["name"].rstrip("/").rpartition("/")[2], info) for info in found)
        # A store may list the folder itself: a marker of no bytes.
        return {n: _entry(i) for n, i in named if n and not url.endswith(i["name"].rstrip("/"))}

    def files_below(self) -> Iterator[str]:
        """Paths of all files below this folder, relative to it; hidden ones are left out."""
        for name, found in sorted(self.entries().items()):
            if name.startswith("."):
                continue
            if found.is_folder:
                yield from (f"{name}/{inner}" for inner in (self / name).files_below())
            else:
                yield name

    def exists(self, **_: Any) -> bool:
        """Whether there is a file or a folder."""
        return self.entry() is not None

    def is_dir(self, **_: Any) -> bool:
        """Whether names of files begin with it."""
        found = self.entry() if self.is_listed else None
        return found is not None and found.is_folder

    def is_file(self, **_: Any) -> bool:
        """Whether there is a file."""
        found = self.entry()
        return found is not None and not found.is_folder

    def iterdir(self) -> Iterator[RemotePath]:  # type: ignore[override]
        """Yield what lies in this folder."""
        for name in self.entries():
            yield self / name

    def glob(self, pattern: str, **_: Any) -> Iterator[RemotePath]:  # type: ignore[override]
        """Yield what matches a pattern with ``*`` in its parts."""
        part, _slash, rest = pattern.partition("/")
        if not rest:
            if "*" not in part:
                yield from [self / part] * (self / part).is_file()
                return
            yield from (self / name for name in fnmatch.filter(self.entries(), part))
            return
        inside = (n for n, e in self.entries().items() if e.is_folder and fnmatch.fnmatch(n, part))
        for name in inside:
            yield from (self / name).glob(rest)

    def open(self, *_: Any, **__: Any) -> Any:
        """Open for reading bytes at any place, each part fetched when it is read."""
        found = self.entry()
        if found is None:
            raise FileNotFoundError(2, "there is no such file", str(self))
        if found.size is None:
            return io.BytesIO(self.read_bytes())
        return io.BufferedReader(_Ranges(str(self), found.size), _BUFFER)

    def read_bytes(self) -> bytes:
        """All bytes."""
        return read_url(str(self))


class _Ranges(io.RawIOBase):
    """A remote file of known size, read in parts."""

    def __init__(self, url: str, size: int) -> None:
        self._url = url
        self._size = size
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = max(0, start + offset)
        return self._at

    def readinto(self, buffer: Any) -> int:
        end = min(self._at + len(buffer), self._size)
        if end <= self._at:
            return 0
        data = read_range(self._url, self._at, end, self._size)
        buffer[: len(data)] = data
        self._at = end
        return len(data)


def read_url(url: str) -> bytes:
    """All bytes of a remote file.

    Raises
    ------
    RemoteFault
        If it is missing or may not be read.
    Unavailable
        If it could not be read in `ATTEMPTS` attempts, or a package is missing.
    """
    data: bytes = attempt(url, lambda system: system.cat_file(url))
    return data


def read_range(url: str, start: int, end: int, size: int) -> bytes:
    """Bytes from `start` to before `end` of a remote file of `size` bytes; raises as `read_url`."""

    def read(system: Any) -> bytes:
        data: bytes = system.cat_file(url, start=start, end=end)
        if len(data) == size:  # a web server without ranges answers with the whole file
            data = data[start:end]
        if len(data) != end - start:
            raise OSError(f"{len(data):,} bytes came instead of {end - start:,}")
        return data

    return attempt(url, read)


def attempt(url: str, call: Callable[[Any], Result]) -> Result:
    """What `call` returns, given the file system of `url`; tried again while a failure may pass."""
    for number in range(ATTEMPTS):
        if number:  # at random, so that many readers do not come back at the same time
            time.sleep(FIRST_DELAY * 2 ** (number - 1) * random.uniform(0.75, 1.25))
        try:
            scheme, _, host, *_ = url.split("/", 3)
            return call(_file_system(os.getpid(), scheme.removesuffix(":").lower(), host))
        except RetailtagError:
            raise
        except Exception as error:
            failure = _cause(error)
            if fault := _fault(url, failure):
                raise fault from error
    raise Unavailable(
        f"{url} could not be read in {ATTEMPTS} attempts ({_line(failure)}); check the network and "
        "start again: what is done is kept. If only this file fails, leave it out."
    ) from failure


@lru_cache(maxsize=64)
def _file_system(process: int, scheme: str, host: str) -> Any:
    """The file system of a bucket or web server; raises `Unavailable` without its package.

    A forked process has none of the threads that the connections of its parent need, hence
    `process`.
    """
    import fsspec

    options: dict[str, Any] = {}
    if scheme in _WEB:  # proxies as other programs use them; the bytes as they lie there
        headers = {"Accept-Encoding": "identity", "User-Agent": "retailtag"}
        options["client_kwargs"] = {"trust_env": True, "headers": headers}
    try:
        return fsspec.url_to_fs(f"{scheme}://{host}/", **options)[0]
    except ImportError as error:
        raise Unavailable(
            f"{scheme}:// needs a package that is not installed ({_line(error)}); run "
            f'`pip install "retailtag[{_EXTRAS[scheme]}]"`.'
        ) from error


def _fresh(system: Any) -> Any:
    """The file system without the listings that it remembers: a store may change while we run."""
    system.invalidate_cache()
    return system


def _entry(info: dict[str, Any]) -> Entry:
    """What fsspec's description of a file or folder says, whichever store it is of."""
    marks = ("ETag", "etag", "LastModified", "last_modified", "updated", "mtime", "Last-Modified")
    version = next((str(info[mark]) for mark in marks if info.get(mark)), "")
    return Entry(info.get("type") == "directory", info.get("size"), version)


def _cause(error: Exception) -> BaseException:
    """What went wrong: fsspec calls whatever goes wrong with a web server a missing file."""
    cause = error.__cause__
    is_hidden = cause is not None and type(cause).__module__.startswith(("aiohttp", "asyncio"))
    return cause if isinstance(error, FileNotFoundError) and cause and is_hidden else error


def _fault(url: str, error: BaseException) -> RemoteFault | None:
    """Why another attempt would fail as well; None: it may succeed."""
    # as aiohttp, Google's and Azure's clients call it
    found = (getattr(error, name, None) for name in ("status", "code", "status_code"))
    status = next((code for code in found if isinstance(code, int)), 0)
    if isinstance(error, FileNotFoundError) or status in (404, 410):
        return RemoteFault(url, "is missing", is_missing=True)
    if isinstance(error, PermissionError) or status in (401, 403):
        return RemoteFault(url, f"may not be read ({_line(error)}); check the credentials")
    if "Credential" in type(error).__name__:
        return RemoteFault(
            url,
            f"cannot be read ({_line(error)}); set the credentials as the store's own tools take "
            "them, or FSSPEC_S3_ANON=true for a public bucket",
        )
    is_final = 400 <= status < 500 and status not in _LATER
    if is_final or isinstance(error, ValueError | TypeError | IsADirectoryError):
        return RemoteFault(url, f"cannot be read ({_line(error)})")
    return None


def _line(error: BaseException) -> str:
    """The first line of what an exception says."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
