"""Headers of a plain tar (ustar, GNU, pax), read in one pass with everything in them bounded.

Not `tarfile`: it recurses for every extended header, searches a pax header in quadratic time,
takes a malformed size for 0, and takes a damaged header inside an archive for its end.

References
----------
POSIX.1-2017, pax, "pax Interchange Format" and "ustar Interchange Format"; GNU tar manual,
"Basic Tar Format".
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import IO, NamedTuple

BLOCK = 512  # bytes
MAX_EXTENDED = 1 << 20  # bytes of one extended header; a path has 4,096 at most
MAX_CHAINED = 16  # extended headers before one member; writers use up to three
_PAX, _GLOBAL, _LONG_NAME, _LONG_LINK, _SPARSE = b"x", b"g", b"L", b"K", b"S"
_EXTENDED = (_PAX, b"X", _GLOBAL, _LONG_NAME, _LONG_LINK)  # X: pax as Solaris writes it
_REGULAR = (b"0", b"\0", b"7", _SPARSE)
_LINKS = (b"1", b"2")
_WITHOUT_DATA = (*_LINKS, b"3", b"4", b"5", b"6")  # whatever their size says
_OCTAL = re.compile(rb" *([0-7]*)[ \0]*")
_LENGTH = re.compile(rb"([1-9][0-9]{0,18}) ")


class TarDamage(ValueError):
    """What is wrong with an archive, and at which byte."""


class Entry(NamedTuple):
    """One member."""

    name: str
    kind: str  # file, folder, link or other (devices, sparse files, unknown types)
    offset: int  # of its bytes
    size: int


class _Header(NamedTuple):
    name: str
    kind: bytes
    size: int


def entries(handle: IO[bytes], length: int) -> Iterator[Entry]:
    """Members of an archive of `length` bytes, in order; `TarDamage` where it is not one."""
    if not length:
        raise TarDamage("it is empty")
    at = chained = 0
    pending = -1  # where an extended header began whose member has not come yet
    common: dict[str, str] = {}  # of the global headers so far
    own: dict[str, str] = {}  # of the extended headers before one member
    while at < length:
        block = _read(handle, at, BLOCK, "a header")
        if block.count(0) == BLOCK:
            break
        header = _header(block, at)
        if header.kind in _EXTENDED:
            chained += 1
            if chained > MAX_CHAINED:
                raise TarDamage(f"over {MAX_CHAINED} extended headers follow one another {_at(at)}")
            found = _extension(handle, at, header)
            if header.kind == _GLOBAL:
                common |= found
            else:
                own, pending = found | own, at  # the first of several counts, as in tarfile
            at += BLOCK + _padded(header.size)
            continue
        entry = _entry(handle, at, header, common | own)
        end = entry.offset + (0 if header.kind in _WITHOUT_DATA else entry.size)
        if _padded(end) > length:
            raise TarDamage(
                f"it ends inside {_short(entry.name)}, whose header {_at(at)} says "
                f"{entry.size:,} bytes"
            )
        yield entry
        at, chained, own, pending = _padded(end), 0, {}, -1
    if pending >= 0:
        raise TarDamage(f"no member follows the extended header {_at(pending)}")


def _at(offset: int) -> str:
    return f"at byte {offset:,}"


def _short(name: str) -> str:
    return repr(name if len(name) <= 100 else f"{name[:97]}...")


def _padded(size: int) -> int:
    return BLOCK * -(-size // BLOCK)


def _read(handle: IO[bytes], at: int, size: int, what: str) -> bytes:
    handle.seek(at)
    data = handle.read(size)
    if len(data) < size:
        raise TarDamage(f"it ends inside {what} {_at(at)}")
    return data


def _header(block: bytes, at: int) -> _Header:
    """Fields of a header block whose checksum is right."""
    # The sum counts its own eight bytes as spaces; some old writers summed signed bytes.
    stored = _number(block[148:156])
    total = sum(block) - sum(block[148:156]) + 8 * 32
    if stored != total and stored != _signed(total, block):
        raise TarDamage(
            f"its header {_at(at)} is damaged (the checksum does not fit)"
            if at
            else "its first 512 bytes are no header of one"
        )
    name, kind, size = _text(block[:100]), block[156:157], _number(block[124:136])
    if size is None:
        raise TarDamage(f"the size of {_short(name)} in its header {_at(at)} is no number")
    if kind == b"\0" and name.endswith("/"):  # as tar wrote folders before POSIX
        kind = b"5"
    prefix = _text(block[345:500])
    if prefix and kind not in (_LONG_NAME, _LONG_LINK, _SPARSE):
        name = f"{prefix}/{name}"
    return _Header(name, kind, size)


def _signed(total: int, block: bytes) -> int:
    return total - 256 * sum(byte > 127 for byte in (*block[:148], *block[156:]))


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode(errors="surrogateescape")


def _number(field: bytes) -> int | None:
    """An octal number, or a binary one where the first bit is set (GNU); None: neither."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:])
    octal = _OCTAL.fullmatch(field)
    return int(octal[1] or b"0", 8) if octal else None


def _extension(handle: IO[bytes], at: int, header: _Header) -> dict[str, str]:
    """What an extended header says of path, size and sparseness."""
    if header.size > MAX_EXTENDED:
        raise TarDamage(f"its extended header {_at(at)} has {header.size:,} bytes")
    data = _read(handle, at + BLOCK, header.size, "an extended header")
    if header.kind == _LONG_NAME:
        return {"path": _text(data)}
    return {} if header.kind == _LONG_LINK else _records(data, at)


def _records(data: bytes, at: int) -> dict[str, str]:
    """Those records (length, key and value) of a pax header that are used here."""
    found: dict[str, str] = {}
    start = 0
    while start < len(data) and data[start]:  # a NUL begins what some writers pad with
        length = _LENGTH.match(data, start)
        end = start + int(length[1]) if length else 0
        if length is None or end > len(data) or data[end - 1 : end] != b"\n":
            raise TarDamage(f"its pax header {_at(at)} is malformed")
        key, _, value = data[length.end() : end - 1].partition(b"=")
        if key in (b"path", b"size") or key.startswith(b"GNU.sparse."):
            found[key.decode(errors="replace")] = value.decode(errors="surrogateescape")
        start = end
    return found


def _entry(handle: IO[bytes], at: int, header: _Header, said: dict[str, str]) -> Entry:
    """The member of a header, with what the extended headers before it `said`."""
    name = said.get("GNU.sparse.name", said.get("path", header.name))
    size, offset = header.size, at + BLOCK
    if "size" in said:
        digits = said["size"]
        if not re.fullmatch("[0-9]{1,19}", digits):
            raise TarDamage(
                f"the size of {_short(name)} in the pax header before byte {at:,} is no number"
            )
        size = int(digits)
    is_sparse = header.kind == _SPARSE or any(key.startswith("GNU.sparse.") for key in said)
    if header.kind == _SPARSE:
        offset = _after_map(handle, at)
    kind = "file" if header.kind in _REGULAR and not is_sparse else "other"
    kind = "folder" if header.kind == b"5" else "link" if header.kind in _LINKS else kind
    return Entry(name, kind, offset, size)


def _after_map(handle: IO[bytes], at: int) -> int:
    """Where the bytes of an old GNU sparse file begin: behind the blocks of its map."""
    more = _read(handle, at, BLOCK, "a header")[482]
    at += BLOCK
    while more:
        more = _read(handle, at, BLOCK, "the map of a sparse file")[504]
        at += BLOCK
    return at
