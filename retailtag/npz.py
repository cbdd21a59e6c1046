"""Read the arrays of an NPZ file that anybody may have written.

Every array is checked by its header before memory is taken for it, and nothing is unpickled.
"""

from __future__ import annotations

import io
import lzma
import math
import struct
import tokenize
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from retailtag.errors import DataError, named

# Deflate packs zeros 1,000 times; scores and ids, less than 20 times.
MAX_RATIO = 100
ALWAYS_UNPACKED = 64 << 20  # bytes; an archive that unpacks to less may have any ratio
# The longest header that NumPy reads: magic, version and length, then 10,000 characters.
HEADER_BYTES = 12 + 10_000
# What zipfile and its decompressors raise on damaged, encrypted or unknown members.
ZIP_DAMAGE = (
    zipfile.BadZipFile, zlib.error, lzma.LZMAError, RuntimeError, EOFError, OSError, ValueError,
    LookupError, OverflowError, struct.error,
)  # fmt: skip
# What NumPy raises on a header, which is Python text: its parser's errors are among them.
BAD_HEADER = (
    ValueError, TypeError, LookupError, AttributeError, ArithmeticError, SyntaxError, MemoryError,
    RecursionError, tokenize.TokenError,
)  # fmt: skip
_KINDS = {
    "b": "Booleans", "i": "integers", "u": "integers", "f": "floating-point numbers",
    "c": "complex numbers", "m": "time differences", "M": "dates", "O": "Python objects",
    "S": "bytes", "U": "text", "V": "records",
}  # fmt: skip


@dataclass(frozen=True)
class Form:
    """What an array must be."""

    kinds: str  # of its dtype, as `numpy.dtype.kind` names them
    shape: tuple[int | None, ...]  # None: any length

    @property
    def what(self) -> str:
        """The kinds in words, such as ``text or integers``."""
        return " or ".join(dict.fromkeys(_KINDS[kind] for kind in self.kinds))


class NpzFile:
    """An open NPZ file; `DataError` names the file and the array that cannot be used."""

    def __init__(self, path: Path, archive: zipfile.ZipFile, claim: str, remedy: str) -> None:
        self._archive = archive
        self._members = {i.filename.removesuffix(".npy"): i for i in archive.infolist()}
        self._place = (path, claim, remedy)
        if fault := archive_fault(archive, path.stat().st_size):
            raise self.error(fault)
        # Where a name is damaged, an array would be missed instead.
        for name, member in self._members.items():
            with self._opened(member, name):
                pass

    def __contains__(self, name: object) -> bool:
        return name in self._members

    def error(self, fault: str) -> DataError:
        """The error for a fault of this file."""
        path, claim, remedy = self._place
        return DataError(f"{path} {claim}: {fault}; {remedy}.")

    def shape(self, name: str, form: Form) -> tuple[int, ...]:
        """Shape of an array, from its header; `DataError` unless it is of `form`."""
        if name not in self._members:
            raise self.error(f"it lacks the array {name}")
        member = self._members[name]
        with self._opened(member, name) as handle:
            header = io.BytesIO(handle.read(HEADER_BYTES))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about files of Python 2
                shape, dtype = _parsed(header)
        except BAD_HEADER as error:
            raise self.error(f"the header of its array {name} is damaged") from error
        is_empty = 0 in shape and dtype.kind in "bfiu"  # NumPy makes any empty list float64
        if dtype.kind not in form.kinds and not is_empty:
            kind = _KINDS.get(dtype.kind, "something else")
            raise self.error(f"its array {name} holds {kind} instead of {form.what}")
        if len(shape) != len(form.shape) or any(
            want not in (None, n) for n, want in zip(shape, form.shape, strict=True)
        ):
            found, wanted = _listed(shape), _listed(form.shape)
            raise self.error(f"its array {name} has shape {found} instead of {wanted}")
        size = math.prod(shape) * dtype.itemsize
        if min(shape) < 0 or header.tell() + size != member.file_size:
            raise self.error(f"its array {name} is not as long as its header says")
        return shape

    def read(self, name: str, form: Form) -> NDArray[Any]:
        """An array, text as valid Unicode; `DataError` unless it is of `form`."""
        self.shape(name, form)
        member = self._members[name]
        with self._opened(member, name) as handle, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            array: NDArray[Any] = npy.read_array(handle, allow_pickle=False)
        if not array.size:
            return array.astype(np.str_) if "U" in form.kinds else array
        if array.dtype.kind not in "US":
            return array
        text, bad = _text(array)
        if bad is not None:
            raise self.error(f"row {bad + 1} of its array {name} is not text")
        return text

    @contextmanager
    def _opened(self, member: zipfile.ZipInfo, name: str) -> Iterator[IO[bytes]]:
        """A handle on a member's bytes; what fails while it is read is a `DataError`."""
        try:
            with self._archive.open(member) as handle:
                yield handle
        except MemoryError as error:
            size = f"{member.file_size:,} bytes"
            raise self.error(f"its array {name} ({size}) does not fit into memory") from error
        except ZIP_DAMAGE as error:
            raise self.error(f"its array {name} is damaged") from error


def archive_fault(archive: zipfile.ZipFile, n_bytes: int) -> str:
    """What makes a zip archive of `n_bytes` unusable, seen from its directory; empty if nothing."""
    members = archive.infolist()
    counts = Counter(member.filename for member in members)
    if twice := [name for name, n in counts.items() if n > 1]:
        return f"it holds {named(twice, 1)} twice"
    # bit 0 of the flags: the zip format's mark of encryption
    if locked := [member.filename for member in members if member.flag_bits & 1]:
        return f"its member {named(locked, 1)} is encrypted"
    unpacked = sum(member.file_size for member in members)
    if unpacked > max(ALWAYS_UNPACKED, MAX_RATIO * n_bytes):
        return f"it unpacks to {unpacked:,} bytes, over {MAX_RATIO} times its size"
    return ""


@contextmanager
def open_npz(path: Path, claim: str, remedy: str) -> Iterator[NpzFile]:
    """Open an NPZ file, whose errors say ``PATH CLAIM: FAULT; REMEDY``.

    Raises `FileNotFoundError`, and `DataError` for what is not a complete zip archive, holds a
    name twice, or unpacks to more than `MAX_RATIO` times its size.
    """
    try:
        archive = zipfile.ZipFile(path)
    except FileNotFoundError:
        raise
    except ZIP_DAMAGE as error:
        reason = getattr(error, "strerror", None) or "it is not a complete zip archive"
        raise DataError(f"{path} {claim}: {reason}; {remedy}.") from error
    with archive:
        yield NpzFile(path, archive, claim, remedy)


def _parsed(header: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and dtype of a header, which is read to its end."""
    # NumPy writes version 3 for records alone, whose fields have names beyond Latin 1.
    readers = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    shape, _, dtype = readers[npy.read_magic(header)](header)
    return shape, dtype


def _listed(shape: Sequence[int | None]) -> str:
    return "(" + ", ".join("any" if n is None else f"{n:,}" for n in shape) + ")"


def _text(array: NDArray[Any]) -> tuple[NDArray[np.str_], int | None]:
    """Text (n,) or its UTF-8 bytes as text, and the first row that is not text, if any."""
    if array.dtype.kind == "S":
        found = []
        for row, item in enumerate(array.tolist()):
            try:
                found.append(item.decode())
            except UnicodeDecodeError:
                return array, row
        return np.array(found, dtype=np.str_), None
    if not array.dtype.itemsize:
        return array, None
    array = array.astype(array.dtype.newbyteorder("="))
    # NumPy keeps any 32 bits as a character: beyond Unicode, and lone halves of a surrogate pair,
    # which no file could hold. NUL fills the end of shorter texts and is lost there.
    codes = array.view(np.uint32).reshape(len(array), -1)
    bad = ((codes > 0x10FFFF) | ((codes >= 0xD800) & (codes < 0xE000))).any(axis=1)
    bad |= ((codes[:, :-1] == 0) & (codes[:, 1:] != 0)).any(axis=1)
    return array, int(np.argmax(bad)) if bad.any() else None
