"""Mutants of files: bytes, JSON, text tables, TOML, arrays, Parquet, zip and tar archives.

A mutator takes a `random.Random` and the bytes of a sound file, and returns those of another file:
one fault in its names, shapes, dtypes, nesting, sizes, encoding or bytes. Where the format is an
envelope (a checksum, a header with offsets), most mutants have a sound envelope around a changed
content, since bytes changed at random never get past it.
"""

from __future__ import annotations

import io
import json
import random
import re
import struct
import tarfile
import warnings
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors import SafetensorError
from safetensors.numpy import load, save

Mutator = Callable[[random.Random, bytes], bytes]
Arrays = dict[str, np.ndarray]

HEADS = (b"PK\3\4", b"\x1f\x8b\x08", b"\x80\x02", b"<!doctype html>", b"\x89HDF", b"PAR1", b"{",
         b"version https://git-lfs.github.com/spec/v1\n", b"\xff\xfe", b"\0" * 600)  # fmt: skip
TEXTS = ("", " ", "-", "0", "nan", "inf", "-1", "1e400", "true", "null", "é", "e\u0301",
         "\u202egpj", "\x1b[31m", "ﬁ" * 90, "a\0b", "a|b", "a,b", 'a"b', "a\nb", "=1+1",
         "../up", "/etc/passwd", "x" * 5000, "9" * 400, "\ufeff")  # fmt: skip
_DEEP = "@deep@"
VALUES = (*TEXTS, None, True, False, 0, 1, -1, 2, 1.5, -0.0, 1e308, 2**53 + 1, 10**30, 10**400,
          float("nan"), float("inf"), -float("inf"), "\ud800", [], {}, [[]], [None], [1, 2],
          {"a": 1}, {"": None}, _DEEP)  # fmt: skip


def any_of(*mutators: Mutator) -> Mutator:
    """One of several mutators, each as often as it is named."""
    return lambda rng, data: rng.choice(mutators)(rng, data)


# Bytes


def _place(rng: random.Random, data: bytes) -> int:
    """A position, as often in the first hundred bytes as in the last and in all."""
    n = len(data)
    first, last = rng.choice(((0, min(n, 100)), (max(0, n - 100), n), (0, n)))
    return rng.randrange(first, last)


def _span(rng: random.Random, data: bytes) -> tuple[int, int]:
    start = _place(rng, data)
    return start, min(len(data), start + rng.choice((1, 2, 4, 16, 300)))


def _flip(rng: random.Random, data: bytes) -> bytes:
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 8))):
        out[_place(rng, data)] ^= 1 << rng.randrange(8)
    return bytes(out)


def _put(rng: random.Random, data: bytes) -> bytes:
    start, end = _span(rng, data)
    n = end - start
    new = rng.choice((bytes(n), b"\xff" * n, rng.randbytes(n), b"\x7f" + b"\xff" * (n - 1)))
    return data[:start] + new + data[end:]


def _remove(rng: random.Random, data: bytes) -> bytes:
    start, end = _span(rng, data)
    return data[:start] + data[end:]


def _insert(rng: random.Random, data: bytes) -> bytes:
    start = _place(rng, data)
    return data[:start] + rng.choice((rng.randbytes(4), b"\0", b"\n", b"\xff")) + data[start:]


def _splice(rng: random.Random, data: bytes) -> bytes:
    start, end = _span(rng, data)
    at = _place(rng, data)
    return data[:at] + data[start:end] + data[at:]


BYTES: tuple[Mutator, ...] = (
    _flip, _flip, _flip, _put, _put, _remove, _insert, _splice,
    lambda rng, data: data[: _place(rng, data)],
    lambda rng, data: data[: _place(rng, data)],
    lambda rng, data: data + rng.choice((b"\0", b"\n", data, rng.randbytes(600))),
    lambda rng, data: rng.choice((b"", b"\n", b"null", b"[]", b"{}", rng.randbytes(200))),
    lambda rng, data: rng.choice(HEADS) + data[rng.choice((0, 4)) :],
)  # fmt: skip


def of_bytes(rng: random.Random, data: bytes) -> bytes:
    """Bits flipped, bytes changed, removed, inserted, moved; the file cut, grown, replaced."""
    return rng.choice(BYTES)(rng, data or b"\n")


def of_encoding(rng: random.Random, data: bytes) -> bytes:
    """The same text in another encoding."""
    text = data.decode()
    names = ("utf-16", "utf-16-le", "utf-32", "utf-8-sig", "latin-1", "cp1252", "utf-7")
    return text.encode(rng.choice(names), errors="replace")


# JSON


def _odd(rng: random.Random, value: Any) -> Any:
    """Another value: one of the odd ones, or a relative of the value itself."""
    near = [[value], {"a": value}, str(value), [value, value]]
    if isinstance(value, int | float):
        near += [-value, value + 1, float(value)]
    if isinstance(value, list):
        near += [
            value[:-1],
            value + value[-1:],
            value[::-1],
            {str(i): v for i, v in enumerate(value)},
        ]
    if isinstance(value, str):
        near += [value[:-1], value + "x", value.upper(), value + "\0", [*value[:9]]]
    return rng.choice(near) if rng.random() < 0.4 else rng.choice(VALUES)


def changed(rng: random.Random, value: Any) -> Any:
    """A JSON value with one key or element changed, somewhere inside."""
    if not isinstance(value, dict | list) or not value or rng.random() < 0.15:
        return _odd(rng, value)
    value = value.copy()
    key = rng.choice(list(value) if isinstance(value, dict) else range(len(value)))
    act = rng.randrange(10)
    if act == 0:
        del value[key]
    elif act == 1 and isinstance(value, dict):
        value[rng.choice((f"{key} ", str(key).upper(), *TEXTS))] = value.pop(key)
    elif act == 1:
        value.insert(key, value[key])
    elif act == 2:
        other = rng.choice(list(value) if isinstance(value, dict) else range(len(value)))
        value[key], value[other] = value[other], value[key]
    elif act == 3 and isinstance(value, dict):
        value[rng.choice(TEXTS)] = _odd(rng, value[key])
    else:
        value[key] = changed(rng, value[key])
    return value


def json_text(rng: random.Random, value: Any) -> bytes:
    """JSON of a value, in which one mark stands for lists nested up to 100,000 deep."""
    text = json.dumps(value, ensure_ascii=rng.random() < 0.5)
    depth = rng.choice((40, 1000, 100_000))
    inside = rng.choice(("", "1", '{"a": 1}'))
    nested = rng.choice(("[" * depth + inside + "]" * depth, '{"a":' * depth + "1" + "}" * depth))
    return text.replace(f'"{_DEEP}"', nested).encode(errors="surrogatepass")


def of_json(rng: random.Random, data: bytes) -> bytes:
    """One key, element or value of a JSON text is another."""
    if rng.random() < 0.2:
        return rng.choice((of_bytes, of_encoding))(rng, data)
    return json_text(rng, changed(rng, json.loads(data)))


def of_json_lines(rng: random.Random, data: bytes) -> bytes:
    """One line of JSON lines is another."""
    if rng.random() < 0.2:
        return rng.choice((of_bytes, of_encoding, of_lines))(rng, data)
    lines = data.splitlines()
    at = rng.randrange(len(lines))
    lines[at] = json_text(rng, changed(rng, json.loads(lines[at])))
    return b"\n".join(lines) + b"\n"


# Text by lines and cells


def of_lines(rng: random.Random, data: bytes) -> bytes:
    """Lines are lost, repeated, moved, joined, or end otherwise."""
    lines = data.splitlines(keepends=True)
    at = rng.randrange(len(lines))
    end = rng.choice((b"\r\n", b"\r", b"", b"\0\n", b"\n\n", "\u2028".encode()))
    return b"".join(
        rng.choice((
            lines[:at] + lines[at + 1 :],
            lines[: at + 1] + lines[at:],
            lines[at:] + lines[:at],
            [*lines[:at], lines[at].rstrip(b"\n") + end, *lines[at + 1 :]],
            [line.rstrip(b"\n") + end for line in lines],
            lines[:1],
        ))
    )  # fmt: skip


def of_cells(delimiter: str) -> Mutator:
    """Mutator of a text table: one cell, or the header, is another."""

    def mutate(rng: random.Random, data: bytes) -> bytes:
        lines = data.decode().splitlines()
        at = rng.choice((0, rng.randrange(len(lines))))
        cells = lines[at].split(delimiter)
        k = rng.randrange(len(cells))
        act = rng.randrange(6)
        if act == 0:
            del cells[k]
        elif act == 1:
            cells.insert(k, cells[k])
        elif act == 2:
            cells = cells[::-1]
        else:
            other = cells[rng.randrange(len(cells))]
            quoted = f'"{cells[k]}"'
            cells[k] = rng.choice((*TEXTS, other, quoted, f'"{cells[k]}', f" {cells[k]} "))
        lines[at] = delimiter.join(cells)
        return ("\n".join(lines) + "\n").encode()

    return any_of(mutate, mutate, mutate, of_lines, of_encoding, of_bytes)


def of_toml(rng: random.Random, data: bytes) -> bytes:
    """A value, key or table of a TOML file is another."""
    if rng.random() < 0.2:
        return rng.choice((of_bytes, of_encoding, of_lines))(rng, data)
    lines = data.decode().splitlines()
    at = rng.choice([i for i, line in enumerate(lines) if line.strip()])
    key, equals, value = lines[at].partition(" = ")
    odd = ("1", "-1", "0", "1.5", "1e400", "nan", "inf", "true", '""', '"x"', "[]", "[1]", "{}",
           '{a = 1}', "1979-05-27", "[[[]]]", "9" * 60, "'''a", "0x10", '["a", 1]', "[" * 2000,
           f"[{value}]", f'"{value}"', f"{value}{value}", "")  # fmt: skip
    new = rng.choice(
        (f"{key}{equals}{rng.choice(odd)}",) * 5 + (f"{key}x{equals}{value}", key, "[a]")
    )
    return "\n".join([*lines[:at], new, *lines[at + 1 :]]).encode()


# Arrays

DTYPES = ("float16", "float64", "float32", "int8", "int64", "uint8", "bool", "complex64",
          "datetime64[s]", "U12", "S12", "O", ">f4", "i4,f4")  # fmt: skip


def _recast(rng: random.Random, array: np.ndarray) -> np.ndarray:
    return array.astype(rng.choice(DTYPES))


def _reshaped(rng: random.Random, array: np.ndarray) -> np.ndarray:
    shapes = [array[None], array[..., None], array.T, array.reshape(-1), array[:0], array[:-1]]
    shapes += [np.concatenate([array, array[-1:]]), array[..., :-1], array[::-1], array[0]]
    shapes += [np.repeat(array, 3, axis=-1), array.reshape(-1)[:1].reshape(())]
    return rng.choice(shapes)


def _revalued(rng: random.Random, array: np.ndarray) -> np.ndarray:
    array = array.copy()
    flat = array.reshape(-1)
    at = rng.randrange(len(flat))
    if array.dtype.kind in "US":
        flat[at] = rng.choice(TEXTS[:20] if rng.random() < 0.5 else (flat[0], flat[-1]))
    elif array.dtype.kind == "f":
        flat[at] = rng.choice((np.nan, np.inf, -np.inf, 0, -0.0, 3e38, 1e-40, -7.25, flat[0]))
    else:
        flat[at] = rng.choice((0, 1, 2, 100, flat[0], flat[-1]))
    return array


def of_arrays(rng: random.Random, arrays: Arrays) -> Arrays:
    """One array is missing, renamed, doubled, or of another dtype, shape or value."""
    arrays = dict(arrays)
    name = rng.choice(list(arrays))
    act = rng.randrange(12)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        if act == 0:
            del arrays[name]
        elif act == 1:
            arrays[rng.choice((f"{name}x", name.upper(), *TEXTS[:9]))] = arrays.pop(name)
        elif act == 2:
            arrays[f"{name}2"] = arrays[name]
        elif act == 3:
            other = rng.choice(list(arrays))
            arrays[name], arrays[other] = arrays[other], arrays[name]
        else:
            change = rng.choice((_recast, _reshaped, _revalued))
            arrays[name] = np.asarray(change(rng, arrays[name]))
    return arrays


FAILURES = (OSError, ValueError, LookupError, TypeError, AttributeError, OverflowError,
            struct.error, zipfile.BadZipFile, pa.ArrowException, SafetensorError)  # fmt: skip


def tried(rng: random.Random, attempt: Callable[[], bytes]) -> bytes:
    """The first attempt that makes a file: not every array can be cut, cast or stored."""
    for _ in range(100):
        try:
            return attempt()
        except FAILURES:
            continue
    raise AssertionError("no mutant could be made")


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


def of_npy_header(rng: random.Random, data: bytes) -> bytes:
    """The text that says dtype, order and shape says something else."""
    start = 10
    (length,) = struct.unpack("<H", data[8:start])
    text = data[start : start + length].decode("latin-1").rstrip()
    shape = ("(99999999999999,)", "(4294967296, 4294967296)", "(-1,)", "()", "(2, 3, 1)", "1",
             "(1000000000,)", "(True,)", "(" * 300)  # fmt: skip
    kinds = ("'|O'", "'<U999999'", "'<f8'", "'<M8[s]'", "[('a', '<f4')]", "'<c8'", "'x'", "'|V0'")
    new = rng.choice((
        re.sub(r"'shape': \(.*?\)", lambda _: f"'shape': {rng.choice(shape)}", text),
        re.sub(r"'descr': '.*?'", lambda _: f"'descr': {rng.choice(kinds)}", text),
        text.replace("False", rng.choice(("True", "1", "'a'"))), text[:-2], text * 2,
        "[" * 20_000, "{" + "'a': 1, " * 3000 + "}",
    ))  # fmt: skip
    raw = new.encode("latin-1") + b"\n"
    return data[:8] + struct.pack("<H", min(len(raw), 65535)) + raw + data[start + length :]


def of_npy(rng: random.Random, data: bytes) -> bytes:
    """Another array, another header, or other bytes."""
    act = rng.random()
    if act < 0.25:
        return of_bytes(rng, data)
    if act < 0.5:
        return of_npy_header(rng, data)
    array = np.load(io.BytesIO(data))
    change = rng.choice((_recast, _reshaped, _revalued))
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        return tried(rng, lambda: npy(np.asarray(change(rng, array))))


def of_npz(inner: dict[str, Mutator] | None = None) -> Mutator:
    """Mutator of an NPZ; `inner` mutates the bytes that an array of uint8 holds, by its name."""

    def mutate(rng: random.Random, data: bytes) -> bytes:
        with np.load(io.BytesIO(data)) as archive:
            arrays = {name: archive[name] for name in archive.files}
        buffer = io.BytesIO()
        if inner and rng.random() < 0.4:
            name = rng.choice(list(inner))
            new = inner[name](rng, arrays[name].tobytes())
            np.savez(buffer, **{**arrays, name: np.frombuffer(new, np.uint8)})
        else:
            new_arrays = of_arrays(rng, arrays)
            write = rng.choice((np.savez, np.savez_compressed))
            write(buffer, **new_arrays)
        return buffer.getvalue()

    def make(rng: random.Random, data: bytes) -> bytes:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return tried(rng, lambda: mutate(rng, data))

    return any_of(make, make, make, of_zip(of_npy), of_bytes)


def safetensors(arrays: Arrays) -> bytes:
    return save({name: np.array(array, order="C") for name, array in arrays.items()})


def of_safetensors(rng: random.Random, data: bytes) -> bytes:
    """Other tensors, another header around the same bytes, or other bytes."""
    act = rng.random()
    if act < 0.25:
        return of_bytes(rng, data)
    if act < 0.5:
        (length,) = struct.unpack("<Q", data[:8])
        header = of_json(rng, data[8 : 8 + length])
        return struct.pack("<Q", len(header)) + header + data[8 + length :]
    return tried(rng, lambda: safetensors(of_arrays(rng, load(data))))


# Parquet

KINDS = (pa.string(), pa.large_string(), pa.binary(), pa.float64(), pa.float16(), pa.int8(),
         pa.int64(), pa.bool_(), pa.date32(), pa.timestamp("ns", "Europe/Paris"), pa.duration("s"),
         pa.decimal128(30, 4), pa.dictionary(pa.int32(), pa.string()), pa.list_(pa.string()),
         pa.null(), pa.list_(pa.list_(pa.float32())))  # fmt: skip


def parquet(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()


def _column(rng: random.Random, column: pa.ChunkedArray) -> pa.Array:
    """The column in another type, or with another value in one row."""
    values = column.to_pylist()
    act = rng.randrange(4)
    if act == 0:
        kind = rng.choice(KINDS)
        return pa.nulls(len(values), kind) if rng.random() < 0.3 else column.cast(kind)
    at = rng.randrange(len(values))
    values[at] = rng.choice((None, values[0], values[-1], *TEXTS, 1, 1.5, b"\xff", []))
    if act == 1:  # text that is not UTF-8, which Arrow does not check
        raw = [str(value).encode()[:-1] + b"\xff" for value in values]
        return pa.array(raw, pa.binary()).view(pa.string())
    return pa.array(values, type=column.type if act == 2 else None)


def of_table(rng: random.Random, table: pa.Table) -> pa.Table:
    """One column is missing, renamed, doubled, added or another; or rows or notes are."""
    names = table.column_names
    k = rng.randrange(len(names))
    act = rng.randrange(12)
    if act == 3:
        odd = rng.choice((b"[]", b"{", b'{"info": 1}', b"\xff", b'{"info": {"features": []}}'))
        key = rng.choice((b"huggingface", b"pandas", b"ARROW:schema"))
        return table.replace_schema_metadata({key: odd})
    if act < 6:
        values = pa.array([rng.choice(VALUES[:-1])] * len(table))
        rows = rng.choice((table[:0], table[:1], pa.concat_tables([table, table]), table[::-1]))
        return rng.choice((
            table.drop_columns([names[k]]),
            table.rename_columns([*names[:k], rng.choice(TEXTS), *names[k + 1 :]]),
            table.append_column(names[k], table.column(k)),
            table.append_column(rng.choice(("extra", *TEXTS)), values),
            rows,
        ))  # fmt: skip
    return table.set_column(k, names[k], _column(rng, table.column(k)))


def of_parquet(rng: random.Random, data: bytes) -> bytes:
    """Another table, or other bytes."""
    if rng.random() < 0.35:
        return of_bytes(rng, data)
    table = pq.read_table(io.BytesIO(data))
    return tried(rng, lambda: parquet(of_table(rng, table)))


# Archives


def of_zip(inner: Mutator = of_bytes) -> Mutator:
    """Mutator of a zip: its members by `inner` (checksums anew), their names and flags."""

    def mutate(rng: random.Random, data: bytes) -> bytes:
        members = []
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = [(info, archive.read(info)) for info in archive.infolist()]
        at = rng.randrange(len(members))
        info, content = members[at]
        act = rng.randrange(9)
        if act == 0:
            del members[at]
        elif act == 1:
            members.append((info, content[::-1]))
        elif act == 2:
            info.filename = rng.choice((f"../{info.filename}", f"/{info.filename}", *TEXTS[4:]))
        elif act == 3:
            info.compress_type = rng.choice((zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))
        elif act == 4:
            info.external_attr = rng.choice((0o120777, 0o040755, 0o020666)) << 16
        elif act >= 7:
            members[at] = info, inner(rng, content)
        out = io.BytesIO()
        with warnings.catch_warnings(), zipfile.ZipFile(out, "w") as archive:
            warnings.simplefilter("ignore")  # of names that are there twice
            for member, body in members:
                archive.writestr(member, body)
        return _with_flags(rng, out.getvalue()) if act in (5, 6) else out.getvalue()

    def make(rng: random.Random, data: bytes) -> bytes:
        return of_bytes(rng, data) if rng.random() < 0.3 else tried(rng, lambda: mutate(rng, data))

    return make


def _with_flags(rng: random.Random, data: bytes) -> bytes:
    """A zip whose directory says other flags, methods, sizes or checksums of one member."""
    entries = [m.start() for m in re.finditer(b"PK\1\2", data)]
    at = rng.choice(entries)
    (local,) = struct.unpack_from("<I", data, at + 42)
    out = bytearray(data)
    field, form, values = rng.choice((
        (8, "<H", (1, 0x800, 0x2001)), (10, "<H", (1, 6, 9, 14, 93, 99)),
        (16, "<I", (0, 1)), (20, "<I", (0, 2**31, 2**32 - 1)), (24, "<I", (0, 2**31, 2**32 - 1)),
        (42, "<I", (1, 2**31)),
    ))  # fmt: skip
    value = rng.choice(values)
    struct.pack_into(form, out, at + field, value)
    if field != 42 and rng.random() < 0.7:  # the local header agrees
        struct.pack_into(form, out, local + field - 2, value)
    return bytes(out)


def tar(members: list[tuple[tarfile.TarInfo, bytes]], form: int = tarfile.PAX_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as archive:
        for info, body in members:
            info.size = len(body)
            archive.addfile(info, io.BytesIO(body))
    return out.getvalue()


def _tar_header(rng: random.Random, data: bytes) -> bytes:
    """A tar one of whose headers has another field, its checksum sound."""
    blocks = [at for at in range(0, len(data), 512) if data[at + 257 : at + 262] == b"ustar"]
    at = rng.choice(blocks)
    header = bytearray(data[at : at + 512])
    start, length = rng.choice(((0, 100), (100, 8), (124, 12), (136, 12), (156, 1), (157, 100)))
    new = rng.choice((b"9" * length, b"7" * (length - 1) + b"\0", b"\x80" + b"\xff" * (length - 1),
                      b"-1".ljust(length, b"\0")[:length], bytes(length), rng.randbytes(length),
                      rng.choice(b"0123456LKSxgVM").to_bytes(1, "big") * length))  # fmt: skip
    header[start : start + length] = new
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return data[:at] + bytes(header) + data[at + 512 :]


def _tar_chain(rng: random.Random, data: bytes) -> bytes:
    """Three thousand extended headers before the first member, or one with an endless number."""
    info = tarfile.TarInfo(rng.choice(("a", "././@LongLink", "PaxHeaders/a")))
    info.type = rng.choice((b"x", b"g", b"L", b"K", b"S"))
    body = rng.choice((
        b"11 path=ab\n", b"9" * 200_000 + b" path=a\n", b"30 mtime=1\n", b"", b"a\0",
        b"22 GNU.sparse.major=1\n", b"30 GNU.sparse.realsize=99999999\n",
    ))  # fmt: skip
    info.size = len(body)
    block = info.tobuf(tarfile.USTAR_FORMAT) + body.ljust(-(-len(body) // 512) * 512, b"\0")
    return block * (rng.choice((1, 3000)) if len(body) < 512 else 1) + data


def of_tar(inner: Mutator = of_bytes) -> Mutator:
    """Mutator of a plain tar: its members by `inner`, their names, types and headers."""

    def mutate(rng: random.Random, data: bytes) -> bytes:
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            members = [(i, archive.extractfile(i).read()) for i in archive if i.isreg()]
        at = rng.randrange(len(members))
        info, content = members[at]
        act = rng.randrange(6)
        if act == 0:
            del members[at]
        elif act == 1:
            members.append((info, content[::-1]))
        elif act == 2:
            info.name = rng.choice((f"../{info.name}", f"/{info.name}", *TEXTS[4:]))
        elif act == 3:
            info.type = rng.choice((tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, b"S", b"Z"))
            info.linkname = rng.choice(("/etc/passwd", info.name, "", "a"))
            members[at] = info, b""
        else:
            members[at] = info, inner(rng, content)
        return tar(members, rng.choice((tarfile.PAX_FORMAT, tarfile.GNU_FORMAT)))

    def make(rng: random.Random, data: bytes) -> bytes:
        act = rng.random()
        if act < 0.5:
            return tried(rng, lambda: mutate(rng, data))
        return rng.choice((of_bytes, _tar_header, _tar_header, _tar_chain))(rng, data)

    return make


def packed(
    pack: Callable[[bytes], bytes], unpack: Callable[[bytes], bytes], inner: Mutator
) -> Mutator:
    """Mutator of a compressed file: of its content, packed again, or of its bytes."""

    def mutate(rng: random.Random, data: bytes) -> bytes:
        return of_bytes(rng, data) if rng.random() < 0.4 else pack(inner(rng, unpack(data)))

    return mutate
