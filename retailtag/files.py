"""Write files whole or not at all, read JSON that a user may have damaged, tell kinds of files."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from stat import S_ISREG
from typing import IO, Any

from retailtag.errors import DataError, UsageError
from retailtag.remote import as_path, is_remote


@contextmanager
def write_whole(path: Path) -> Iterator[IO[bytes]]:
    """Yield a binary handle whose content appears under `path` only if the block succeeds.

    The bytes go to a temporary name in the same folder, reach the disk (fsync), and are renamed;
    a kill, a full disk or an exception leaves what was at `path` before. The umask sets who may
    read the file.
    """
    path = Path(path)
    make_folder(path.parent)
    temporary = str(temporary_beside(path, "part"))
    try:
        # Not by tempfile, which makes files private whatever the umask.
        fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
    except OSError as error:
        error.filename = str(path)
        raise
    try:
        with os.fdopen(fd, "wb") as handle:
            yield handle
            handle.flush()
            # The bytes must be on the disk before the name: a file system may write the rename
            # first, and a power failure would then leave an empty file under the final name.
            os.fsync(handle.fileno())
        Path(temporary).replace(path)  # atomic: readers see the old file or the new one
        # The name is data of the folder, which has an fsync of its own.
        sync_folder(path.parent)
    except BaseException as error:
        with suppress(OSError):  # a failing disk must not hide what failed first
            Path(temporary).unlink(missing_ok=True)
        # A full disk names no file, a refused rename the temporary one; the user knows `path`.
        if isinstance(error, OSError) and error.errno and error.filename in (None, temporary):
            error.filename, error.filename2 = str(path), None
        raise


def temporary_beside(path: Path, suffix: str) -> Path:
    """A hidden name in the folder of `path` that nothing has yet."""
    return path.parent / f".{path.name}.{secrets.token_hex(4)}.{suffix}"


def make_folder(folder: Path) -> None:
    """Make `folder` and its missing parents, each durable before the next."""
    folder = Path(folder)
    if is_remote(str(folder)):
        raise UsageError(f"{as_path(folder)} is a URL; results are written to local folders.")
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    """Make the names inside `folder` durable where the file system allows it."""
    # Some network file systems refuse it (EINVAL), and a folder that may not be listed cannot be
    # opened for it; PostgreSQL (fsync_fname_ext) ignores the same.
    try:
        fd = os.open(folder, os.O_RDONLY)
    except PermissionError:
        return
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno != errno.EINVAL:
            error.filename = str(folder)
            raise
    finally:
        os.close(fd)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text whole or not at all."""
    with write_whole(path) as handle:
        handle.write(text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write indented, key-sorted JSON whole or not at all; non-finite numbers are refused."""
    with write_whole(path) as handle:
        handle.write(json_bytes(value))


def json_bytes(value: Any) -> bytes:
    """What `write_json` writes."""
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return f"{text}\n".encode()


def write_together(folder: Path, files: Mapping[str, bytes]) -> None:
    """Replace several files of a folder, each whole, the first of `files` last.

    All are on the disk before one is renamed, so that a full disk leaves all that was there. A kill
    between two renames leaves some of either; readers must be able to tell.
    """
    with ExitStack() as stack:
        # A stack closes in reverse order, and closing is what renames.
        handles = [stack.enter_context(write_whole(folder / name)) for name in files]
        for handle, body in zip(handles, files.values(), strict=True):
            handle.write(body)
            handle.flush()
            os.fsync(handle.fileno())


MAX_JSON_DEPTH = 100  # objects and lists within one another; no file of ours has ten
MAX_JSON_BYTES = 1 << 30  # scorecards of 20,000 tags and twenty models have a third of it


def parse_json(text: str | bytes, *, strict: bool = False) -> Any:
    """Value of JSON text of any origin; `strict`: of what retailtag writes.

    Every reader of the package calls this function: what Python makes of deep nesting depends on
    the stack that is left, and of two equal keys it would keep the last.

    Raises
    ------
    ValueError
        If it is not JSON, nests deeper than `MAX_JSON_DEPTH`, or an object has a key twice. If
        `strict`, also for infinite numbers and NaN, and for text that cannot be encoded.
    """
    if isinstance(text, bytes):
        text = text.decode(json.detect_encoding(text))
    try:
        value = json.loads(text, object_pairs_hook=_object)
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    # Nearly every text has too few brackets to nest deeply, and is not looked at twice.
    if text.count("[") + text.count("{") > MAX_JSON_DEPTH:
        _check_depth(value)
    if strict:
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    return value


_TOO_DEEP = f"its lists and objects are nested more than {MAX_JSON_DEPTH} deep"


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"the key {twice!r} is twice in one object")
    return value


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(MAX_JSON_DEPTH):
        inner = [v.values() if isinstance(v, dict) else v for v in level]
        level = [item for v in inner for item in v if isinstance(item, dict | list)]
        if not level:
            return
    raise ValueError(_TOO_DEEP)


def read_json(path: Path, max_bytes: int = MAX_JSON_BYTES) -> Any:
    """Value of a JSON file.

    Raises `DataError` if the file is missing, larger than `max_bytes`, or not strict JSON (see
    `parse_json`).
    """
    try:
        status = Path(path).stat()
        if not S_ISREG(status.st_mode):  # reading a named pipe would wait for ever
            raise DataError(f"{path} cannot be read as JSON: it is not a file.")
        if status.st_size > max_bytes:
            raise DataError(
                f"{path} cannot be read as JSON: it has {status.st_size:,} bytes, above the limit "
                f"of {max_bytes:,}."
            )
        return parse_json(Path(path).read_text(encoding="utf-8"), strict=True)
    except FileNotFoundError:
        raise DataError(f"{path} does not exist.") from None
    except (ValueError, OSError) as error:
        raise DataError(f"{path} cannot be read as JSON: {error}.") from error


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, hexadecimal."""
    with Path(path).open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


HEAD_BYTES = 512  # enough for the magic of every kind, the last at byte 257 (tar)
_TEXTS = {
    b"version https://git-lfs": "a Git LFS pointer", b"<!doctype": "a web page",
    b"<html": "a web page", b"<?xml": "XML", b"{": "JSON",
}  # fmt: skip
_MAGICS = {
    b"PK\3\4": "a zip archive", b"\x1f\x8b": "a gzip archive", b"\xfd7zXZ\0": "an xz archive",
    b"\x28\xb5\x2f\xfd": "a Zstandard archive", b"Rar!\x1a\7": "a RAR archive",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive", b"PAR1": "a Parquet file", b"\x89HDF": "an HDF5 file",
    b"SQLite format 3\0": "an SQLite database", b"%PDF": "PDF",
}  # fmt: skip


def kind_of(head: bytes) -> str:
    """Name the kind of a file that begins with `head`, where that is unmistakable; else empty."""
    if head[257:262] == b"ustar":
        return "a tar archive"
    if head.startswith(b"BZh") and head[4:10] == b"1AY&SY":
        return "a bzip2 archive"
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    found = [what for start, what in _TEXTS.items() if text.startswith(start)]
    found += [what for magic, what in _MAGICS.items() if head.startswith(magic)]
    return found[0] if found else ""


def other_kind(head: bytes, expected: str, *, but: Sequence[str] = ()) -> str:
    """``is A, not EXPECTED; REMEDY`` if `head` begins a file of a kind not in `but`; else empty.

    Examples
    --------
    >>> other_kind(b"<html>", "an image")
    'is a web page, not an image; fetch it again'
    """
    what = kind_of(head)
    if not what or what in (expected, *but):
        return ""
    remedy = "fetch it with git lfs pull" if "LFS" in what else "fetch it again"
    return f"is {what}, not {expected}; {remedy}"


def check_kind(path: Path, expected: str, *, but: Sequence[str] = ()) -> None:
    """Raise `DataError` if a file is of another kind than `expected`; see `other_kind`."""
    if kind := other_kind(head_of(path), expected, but=but):
        raise DataError(f"{path} {kind}.")


def head_of(path: Path) -> bytes:
    """First bytes of a file, for `kind_of`; raises `DataError` if it cannot be read."""
    try:
        with path.open("rb") as handle:
            return handle.read(HEAD_BYTES)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from error


def slug(name: str) -> str:
    """Name as a file or folder name of at most 120 characters; longer ones end in a digest.

    Examples
    --------
    >>> slug("timm:resnet50.a1_in1k · probe")
    'timm-resnet50.a1_in1k-probe'
    """
    text = re.sub(r"[^A-Za-z0-9_.+=-]+", "-", name).strip("-.") or "model"
    if len(text) <= 120:
        return text
    return f"{text[:107]}-{hashlib.sha256(name.encode()).hexdigest()[:12]}"
