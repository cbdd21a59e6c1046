"""Tensors and nodes of an ONNX file.

An ONNX file is a protobuf message. Of its graph the initialisers (tensors), and names, inputs and
outputs of the nodes are read here, with every length and size checked, so that neither the package
onnx nor ONNX Runtime is needed and nothing of the file is run.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from retailtag.errors import DataError, named
from retailtag.files import check_kind

ONNX_SUFFIX = ".onnx"
REMEDY = (
    "give the safetensors or PyTorch file that it was exported from (pages of a model hub have it "
    "beside the ONNX file), or export it again with optimize=False and do_constant_folding=False"
)

MAX_BYTES = 1 << 31  # of a protobuf message; larger models keep their tensors in other files
MAX_NUMBER = 1 << 29  # above every number that a field may have
MAX_FIELDS = 5_000_000  # of all messages read; a model of 1,000 layers has some 100,000

# Numbers of fields in onnx.proto
_MODEL_GRAPH, _MODEL_FUNCTIONS = 7, 25
_GRAPH_NODE, _GRAPH_INITIALIZER = 1, 5
_NODE_INPUT, _NODE_OUTPUT, _NODE_NAME, _NODE_KIND, _NODE_ATTRIBUTE = 1, 2, 3, 4, 5
_ATTRIBUTE_NAME, _ATTRIBUTE_INT = 1, 3
_DIMS, _DTYPE, _FLOATS, _NAME, _RAW, _DOUBLES, _EXTERNAL, _LOCATION = 1, 2, 4, 8, 9, 10, 13, 14
_OTHER_NUMBERS = (5, 6, 7, 11)  # numbers as varints, which exporters use for indices and text

_DTYPES = {
    1: torch.float32, 2: torch.uint8, 3: torch.int8, 5: torch.int16, 6: torch.int32,
    7: torch.int64, 9: torch.bool, 10: torch.float16, 11: torch.float64, 16: torch.bfloat16,
}  # fmt: skip

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # how a field is encoded

Value = int | memoryview


class _DamageError(ValueError):
    """Bytes that are no such message."""


@dataclass
class _Reader:
    """Fields of protobuf messages, counted together."""

    n_fields: int = 0

    def fields(self, data: memoryview) -> Iterator[tuple[int, Value]]:
        """Number and value of every field of one message."""
        at = 0
        while at < len(data):
            self.n_fields += 1
            if self.n_fields > MAX_FIELDS:
                raise _DamageError(f"more than {MAX_FIELDS:,} fields")
            key, at = _varint(data, at)
            number, encoding = key >> 3, key & 7
            if not 0 < number < MAX_NUMBER:
                raise _DamageError(f"a field of the number {number}")
            value: Value
            if encoding == _VARINT:
                value, at = _varint(data, at)
            else:
                size = {_FIXED64: 8, _FIXED32: 4}.get(encoding, 0)
                if encoding == _BYTES:
                    size, at = _varint(data, at)
                elif not size:
                    raise _DamageError(f"a field of the unknown encoding {encoding}")
                if size > len(data) - at:
                    raise _DamageError("it ends within a field")
                value = data[at : at + size]
                at += size
            yield number, value

    def message(self, data: memoryview) -> dict[int, list[Value]]:
        """Values of every field of one message, by number, in their order."""
        found: dict[int, list[Value]] = {}
        for number, value in self.fields(data):
            found.setdefault(number, []).append(value)
        return found


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    """An integer of 7 bits a byte, the lowest first, and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise _DamageError("it ends within a number")
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value & (2**64 - 1), at
    raise _DamageError("a number of more than 64 bits")


@dataclass(frozen=True)
class Node:
    """One operation of a graph; inputs and outputs are names of tensors, empty where optional."""

    kind: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, int]  # those that are integers


def read_graph(path: Path) -> tuple[dict[str, Tensor], list[Node]]:
    """Tensors of an ONNX file by name, and the nodes that use them.

    Tensors of text, complex numbers or less than 8 bits are left out. Raises `DataError` if the
    file is damaged, too large, or names files outside its folder.
    """
    if path.stat().st_size > MAX_BYTES:
        raise DataError(f"{path} has over 2 GiB, which no ONNX file may have; {REMEDY}.")
    try:
        return _read_model(path, memoryview(path.read_bytes()))
    except (ValueError, OSError, MemoryError) as error:
        check_kind(path, "weights")
        raise DataError(
            f"{path} is damaged or cut off, no complete ONNX file ({error}); download or copy it "
            "again."
        ) from error


def _read_model(path: Path, data: memoryview) -> tuple[dict[str, Tensor], list[Node]]:
    reader = _Reader()
    model = reader.message(data)
    graphs = model.get(_MODEL_GRAPH, [])
    if len(graphs) != 1:
        raise _DamageError(f"{len(graphs)} graphs")
    if _MODEL_FUNCTIONS in model:
        raise DataError(f"{path} calls functions of its own, which are not read; {REMEDY}.")
    graph = reader.message(_bytes(graphs[0]))
    files = _Files(path)
    tensors: dict[str, Tensor] = {}
    for content in graph.get(_GRAPH_INITIALIZER, ()):
        fields = reader.message(_bytes(content))
        name = _text(_last(fields, _NAME))
        if name in tensors:
            raise _DamageError(f"the tensor {named([name])} twice")
        tensor = _tensor(reader, name, fields, files)
        if tensor is not None:
            tensors[name] = tensor
    return tensors, [_node(reader, _bytes(content)) for content in graph.get(_GRAPH_NODE, ())]


def _node(reader: _Reader, data: memoryview) -> Node:
    fields = reader.message(data)
    attributes: dict[str, int] = {}
    for content in fields.get(_NODE_ATTRIBUTE, ()):
        attribute = reader.message(_bytes(content))
        name = _text(_last(attribute, _ATTRIBUTE_NAME))
        if _ATTRIBUTE_INT in attribute:
            attributes[name] = _integer(_last(attribute, _ATTRIBUTE_INT))
    return Node(
        kind=_text(_last(fields, _NODE_KIND)),
        name=_text(_last(fields, _NODE_NAME)),
        inputs=tuple(map(_text, fields.get(_NODE_INPUT, ()))),
        outputs=tuple(map(_text, fields.get(_NODE_OUTPUT, ()))),
        attributes=attributes,
    )


# Tensors


@dataclass(frozen=True)
class _Files:
    """The files beside an ONNX file that hold its larger tensors, mapped into memory."""

    path: Path
    opened: dict[str, np.ndarray] = field(default_factory=dict)  # bytes, by name of the file
    claimed: dict[str, int] = field(default_factory=dict)  # bytes of the tensors read from each

    def read(self, name: str, entries: Mapping[str, str], n_bytes: int) -> memoryview:
        """Bytes of one tensor; `DataError` if they are not in a plain file of the same folder."""
        place = entries.get("location", "")
        path = self.path.parent / place
        # The location is as hostile as a path in an archive, and a link may lead anywhere.
        if place in ("", ".", "..") or set(place) & {*"/\\:\0"} or path.is_symlink():
            raise DataError(
                f"{self.path} keeps the tensor {named([name])} in {named([place])}, which is no "
                f"file of its folder and is not read; {REMEDY}."
            )
        if not path.is_file():
            raise DataError(f"{self.path} needs {path}, which is missing; copy it there.")
        offset, length = int(entries.get("offset", "0")), int(entries.get("length", n_bytes))
        data = self.opened.get(place)
        if data is None:
            empty = path.stat().st_size == 0
            data = np.zeros(0, np.uint8) if empty else np.memmap(path, np.uint8, "r")
            self.opened[place] = data
        self.claimed[place] = self.claimed.get(place, 0) + n_bytes
        is_inside = 0 <= offset <= len(data) - n_bytes
        if length != n_bytes or not is_inside or self.claimed[place] > len(data):
            raise DataError(
                f"{self.path} looks for {n_bytes:,} bytes of {named([name])} in {path}, which does "
                "not hold them; copy both files again."
            )
        return data[offset : offset + n_bytes].data


def _tensor(
    reader: _Reader, name: str, fields: Mapping[int, list[Value]], files: _Files
) -> Tensor | None:
    """A tensor as its fields store it; None where it is of no dtype that weights have."""
    dtype = _DTYPES.get(_integer(_last(fields, _DTYPE)))
    if dtype is None or any(number in fields for number in _OTHER_NUMBERS):
        return None
    shape = _shape(fields)
    n_bytes = math.prod(shape) * dtype.itemsize
    # Packed floats are stored as raw ones are: little-endian, one after the other.
    parts = [part for number in (_RAW, _FLOATS, _DOUBLES) for part in fields.get(number, ())]
    external = fields.get(_EXTERNAL, ())
    if external or fields.get(_LOCATION, [0]) != [0]:
        entries = [reader.message(_bytes(entry)) for entry in external]
        data = files.read(name, {_text(_last(e, 1)): _text(_last(e, 2)) for e in entries}, n_bytes)
        parts.append(data)
    if len(parts) != 1 and n_bytes:
        raise _DamageError(f"the numbers of {named([name])} in {len(parts)} parts")
    raw = _bytes(parts[0]) if parts else memoryview(b"")
    if len(raw) != n_bytes:
        raise _DamageError(f"{len(raw):,} bytes of {named([name])}, not {n_bytes:,}")
    # a copy, since bytes in a message are not aligned
    flat = torch.from_numpy(np.frombuffer(raw, np.uint8).copy())
    return flat.view(dtype).reshape(shape)


def _shape(fields: Mapping[int, list[Value]]) -> list[int]:
    shape: list[int] = []
    for value in fields.get(_DIMS, ()):
        if isinstance(value, int):
            shape.append(value)
        else:
            at = 0
            while at < len(value):
                size, at = _varint(value, at)
                shape.append(size)
    if any(size >= 1 << 63 for size in shape):
        raise _DamageError("a negative size")
    return shape


def _last(fields: Mapping[int, list[Value]], number: int) -> Value:
    """The value of a field that may be given once; 0 stands for none, as in an empty message."""
    values = fields.get(number, [0])
    if len(values) > 1:
        raise _DamageError("a field twice")
    return values[0]


def _bytes(value: Value) -> memoryview:
    if isinstance(value, int):
        raise _DamageError("a number in place of bytes")
    return value


def _text(value: Value) -> str:
    return str(value, "utf-8") if isinstance(value, memoryview) else ""


def _integer(value: Value) -> int:
    if not isinstance(value, int):
        raise _DamageError("bytes in place of a number")
    return value
