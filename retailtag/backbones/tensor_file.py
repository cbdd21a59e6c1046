"""Read the tensors of a checkpoint by their dotted names; no code of the file is run.

Safetensors, PyTorch's files and ONNX are read, the last by `retailtag.backbones.onnx_names`.
PyTorch files are pickles, which can call anything. They are read by torch's own restricted
unpickler (``weights_only``), which knows tensors and plain containers. Every other class that a
file names is replaced by an inert `Record`, so that training arguments and numpy scalars beside the
tensors do not stop the reading, and nothing of them is imported or called.
"""

from __future__ import annotations

import os
import pickle
import pickletools
import struct
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from retailtag.backbones.onnx_file import ONNX_SUFFIX
from retailtag.backbones.onnx_names import read_onnx
from retailtag.errors import DataError, named
from retailtag.files import check_kind, head_of, parse_json
from retailtag.npz import ZIP_DAMAGE, archive_fault

State = dict[str, Tensor]

TORCH_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".tar")

MAX_DEPTH = 8  # of dictionaries in dictionaries; a pickle may nest a dictionary in itself
MAX_HEADER = 100_000_000  # bytes of a safetensors header, as the library has it
MAX_VALUES = 1_000_000  # a checkpoint of a thousand tensors has some 10,000 with its optimizer's
MAX_NAME = 1_000  # characters of a tensor's name
MAX_VIEW = 64 << 20  # bytes of a tensor that repeats its numbers, such as one number expanded

_AGAIN = "download or copy it again"
_SAVE = "where it was made, save the model's state_dict() as safetensors"
# What no checkpoint needs: to name it means an attack. (Nothing else is called either.)
_HOSTILE_MODULES = {"os", "posix", "nt", "sys", "subprocess", "runpy", "shutil", "socket", "pty"}
_HOSTILE_BUILTINS = {"eval", "exec", "compile", "open", "input", "__import__", "breakpoint"}
_TENSOR_NAMES = (
    "torch._utils.", "torch._tensor.", "torch.Size", "torch.serialization.", "collections.",
    "_codecs.encode", "builtins.set",
)  # fmt: skip
_MODERN = {"__builtin__": "builtins", "copy_reg": "copyreg"}  # modules of Python 2, as torch maps
# What torch's reader raises on damaged bytes.
_DAMAGE = (
    OSError, RuntimeError, EOFError, ValueError, LookupError, TypeError, AttributeError,
    AssertionError, MemoryError, struct.error,
)  # fmt: skip
# A file of the format before PyTorch 1.6 begins with three pickles before that of the content.
_PICKLES_OF_OLD_FILE = 4


class Record:
    """Stands for an object of a class that is not imported; it takes everything, does nothing."""

    path = ""  # module and name of the class
    state: Any = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state

    @property
    def is_module(self) -> bool:
        """Whether it stands for a ``torch.nn.Module``."""
        return isinstance(self.state, dict) and "_modules" in self.state


@dataclass(frozen=True)
class TensorFile:
    """The tensors of a weights file by dotted name, and the classes of its whole modules."""

    path: Path
    tensors: State  # dense numbers, real or integer
    models: tuple[str, ...] = ()  # tensors inside a module of such a class cannot be read
    unusable: Mapping[str, str] = field(default_factory=dict)  # other tensors, and what they are
    is_exported: bool = False  # as ONNX, whose exporters fold, merge and rename tensors

    def needs_numbers(self) -> DataError:
        """The error of a file whose tensors are not dense numbers."""
        name, what = next(iter(self.unusable.items()))
        more = len(self.unusable) - 1
        others = f" (and {more:,} such tensors more)" if more else ""
        return DataError(
            f"{self.path} holds {named([name])} as {what}{others}, which is not read; {_SAVE}, all "
            "of its tensors dense floating-point numbers."
        )

    def needs_classes(self, classes: Sequence[str] = ()) -> DataError:
        """The error of a file whose objects cannot be made without their classes."""
        whole = "it holds a whole model instead of its tensors, and " if self.models else ""
        return DataError(
            f"{self.path} needs the class {named(self.models or classes)} to be read: {whole}"
            f"retailtag runs no code of a weights file; {_SAVE}."
        )


def read_tensors(path: Path) -> TensorFile:
    """Read a safetensors, PyTorch or ONNX file; nested names are joined by dots.

    Raises `DataError` if the file is damaged, of another kind, holds no tensors, or needs classes.
    """
    if path.suffix not in (".safetensors", ONNX_SUFFIX, *TORCH_SUFFIXES):
        raise DataError(
            f"{path} has an unknown ending; weights are .safetensors, {ONNX_SUFFIX}, or torch "
            f"files ending in {', '.join(TORCH_SUFFIXES)}."
        )
    head = head_of(path)
    if not head:
        raise DataError(f"{path} is empty (0 bytes); {_AGAIN}.")
    if path.suffix == ONNX_SUFFIX:  # protobuf has no magic: such a file is told by its ending
        return replace(_sorted_out(path, read_onnx(path).items()), is_exported=True)
    # The others are recognised by content: files are renamed. A safetensors file begins with the
    # length of its header in 8 bytes, then JSON; PyTorch's begin as zip or as pickle.
    if head[8:9] == b"{" or not head.startswith((b"PK", b"\x80")):
        return _sorted_out(path, _read_safetensors(path).items())
    content, classes = _read_torch(path)
    found = _sorted_out(path, _leaves(content))
    if not found.tensors and not found.unusable:
        if classes:
            raise found.needs_classes(classes)
        raise DataError(f"{path} holds no named tensors; save the model's state_dict().")
    return found


def _sorted_out(path: Path, leaves: Iterable[tuple[str, Any]]) -> TensorFile:
    """The tensors among named values; `DataError` for more or longer names than weights have."""
    tensors: State = {}
    unusable: dict[str, str] = {}
    models: dict[str, None] = {}
    for number, (name, value) in enumerate(leaves):
        if number >= MAX_VALUES or len(name) > MAX_NAME:
            what = f"more than {MAX_VALUES:,} values"
            if number < MAX_VALUES:
                what = f"a name of {len(name):,} characters"
            raise DataError(f"{path} holds {what}, which no weights do; {_SAVE}.")
        if isinstance(value, Record) and value.is_module:
            models[value.path] = None
        elif isinstance(value, Tensor):
            if name in tensors or name in unusable:
                raise DataError(f"{path} holds the tensor {name} twice; {_SAVE}.")
            if what := _unusable(value):
                unusable[name] = what
            else:
                tensors[name] = value
    return TensorFile(path, tensors, tuple(models), unusable)


def _unusable(tensor: Tensor) -> str:
    """What a tensor is, if it is not dense numbers that a model could take; else empty."""
    if tensor.is_meta:
        return "a meta tensor (a shape without numbers)"
    if tensor.is_quantized:
        return "a quantised tensor"
    if tensor.layout != torch.strided or tensor.is_nested:
        return "a sparse tensor"
    if tensor.is_complex() or tensor.dtype == torch.float4_e2m1fn_x2:
        return f"a tensor of {str(tensor.dtype).removeprefix('torch.')}"
    n_bytes = tensor.numel() * tensor.element_size()
    if n_bytes > max(MAX_VIEW, tensor.untyped_storage().nbytes()):
        return f"a tensor of {n_bytes:,} bytes that repeats its numbers"
    return ""


def _leaves(content: Any, prefix: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Dotted names and values inside nested dictionaries."""
    if isinstance(content, dict) and depth <= MAX_DEPTH:
        # not content.items(): a pickle may give an OrderedDict an attribute of that name
        for key, value in dict.items(content):
            yield from _leaves(value, f"{prefix}.{key}" if prefix else str(key), depth + 1)
    else:
        yield prefix, content


def _read_safetensors(path: Path) -> State:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        with path.open("rb") as handle:
            length = int.from_bytes(handle.read(8), "little")
            if length <= MAX_HEADER:
                parse_json(
                    handle.read(length)
                )  # the library would keep the last of two equal names
        return load_file(path)
    except (SafetensorError, *_DAMAGE) as error:
        # a header of 123 bytes begins as JSON does: its length is the file's first byte
        check_kind(path, "weights", but=("JSON",) if head_of(path)[8:9] == b"{" else ())
        reason = str(error).partition("\n")[0]  # torch adds its own call stack
        raise DataError(
            f"{path} is damaged or cut off, no complete weights file ({reason}); {_AGAIN}."
        ) from error


def _read_torch(path: Path) -> tuple[Any, list[str]]:
    """Content, and the classes that were not imported for it."""
    try:
        names = _globals(path)
    except (*_DAMAGE, *ZIP_DAMAGE) as error:
        raise DataError(f"{path} is damaged or cut off; {_AGAIN}.") from error
    if hostile := [name for name in names if _is_hostile(name)]:
        raise DataError(
            f"{path} asks to run {named(hostile)}, which no weights need; nothing was run. The "
            "file may be an attack: do not load it with other tools."
        )
    classes = [name for name in names if not name.startswith(_TENSOR_NAMES)]
    try:
        return _load(path, {name: _record(name) for name in names}), classes
    except pickle.UnpicklingError:
        pass  # some class is a dictionary, such as a configuration, which is filled item by item
    # Numpy's objects take a state that a dictionary cannot take.
    kinds = {n: _record(n) if n.startswith("numpy.") else _DictRecord for n in names}
    try:
        return _load(path, kinds), classes
    except pickle.UnpicklingError as error:
        # Torch's own message is left out: it advises to load the file with weights_only=False.
        if classes:
            raise TensorFile(path, {}).needs_classes(classes) from error
        raise DataError(
            f"{path} is damaged or cut off, or its pickle is not of protocol 2; {_AGAIN}, or "
            f"{_SAVE}."
        ) from error


def _load(path: Path, stand_ins: Mapping[str, Callable[..., Any]]) -> Any:
    """Read with torch's restricted unpickler, `stand_ins` in place of the classes of that name."""
    with (
        warnings.catch_warnings(),
        torch.serialization.safe_globals([(stand_in, c) for c, stand_in in stand_ins.items()]),
    ):
        # torch warns about a pickle protocol that it did not write; such a file loads or is
        # refused
        warnings.simplefilter("ignore", UserWarning)
        try:
            with path.open("rb") as handle:  # of a path torch would judge by the suffix
                return torch.load(handle, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError:
            raise
        except _DAMAGE as error:
            raise DataError(f"{path} is damaged or cut off; {_AGAIN}.") from error


def _record(path: str) -> type[Record]:
    return type("Record", (Record,), {"path": path})


class _DictRecord:
    """Stands for a class that may be a dictionary: what is made of it is a plain one."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        return OrderedDict()  # of all dictionaries that torch fills the one that takes attributes


def _is_hostile(name: str) -> bool:
    module, _, function = name.rpartition(".")
    outer = module.partition(".")[0]
    return outer in _HOSTILE_MODULES or (outer == "builtins" and function in _HOSTILE_BUILTINS)


def _globals(path: Path) -> list[str]:
    """Classes and functions that a torch file names; its pickle is disassembled, not run.

    Raises `DataError` for a zip without such a pickle, `ValueError` and the like for damage.
    """
    if not head_of(path).startswith(b"PK"):
        with path.open("rb") as handle:
            found = _named_by(handle)  # else it is no pickle
            with suppress(ValueError):  # a single pickle, which torch did not write
                for _ in range(_PICKLES_OF_OLD_FILE - 1):
                    found |= _named_by(handle)
            return sorted(found)
    with zipfile.ZipFile(path) as archive:
        if fault := archive_fault(archive, path.stat().st_size):
            raise DataError(f"{path} is not read: {fault}; {_AGAIN}, or {_SAVE}.")
        members = archive.namelist()
        if any(member.endswith("/constants.pkl") for member in members):
            raise DataError(
                f"{path} is a TorchScript program, not weights; {_SAVE}, or take "
                "torch.jit.load(FILE).state_dict() there if you trust the file."
            )
        pickles = [member for member in members if member.endswith("/data.pkl")]
        if not pickles:
            raise DataError(
                f"{path} is a zip archive without PyTorch's weights (it holds {named(members)}); "
                "give a weights file."
            )
        if _has_checksums(archive):
            with archive.open(pickles[0]) as handle:
                return sorted(_named_by(handle))
        place = archive.getinfo(pickles[0]).header_offset
    with path.open("rb") as handle:
        # A local header of 30 bytes ends in the lengths of a name and of an extra field.
        handle.seek(place + 26)
        handle.seek(sum(struct.unpack("<HH", handle.read(4))), os.SEEK_CUR)
        return sorted(_named_by(handle))


def _has_checksums(archive: zipfile.ZipFile) -> bool:
    """Compare all checksums; False for a file that torch wrote without them.

    torch compares none, so that a changed byte would be a changed weight. Raises
    `zipfile.BadZipFile` if some member differs from its checksum.
    """
    n_damaged = 0
    for member in archive.infolist():
        try:
            with archive.open(member) as handle:
                while handle.read(1 << 22):
                    pass
        except zipfile.BadZipFile:
            n_damaged += 1
    if 0 < n_damaged < len(archive.infolist()):
        raise zipfile.BadZipFile(f"{n_damaged} members differ from their checksums")
    return not n_damaged


def _named_by(handle: IO[bytes]) -> set[str]:
    """Names that one pickle imports, as Python 3 calls them."""
    found: set[str] = set()
    texts: list[str] = []  # the last two are what STACK_GLOBAL takes
    for opcode, argument, _ in pickletools.genops(handle):
        if opcode.name == "GLOBAL":
            module, _, name = str(argument).partition(" ")
            found.add(f"{_MODERN.get(module, module)}.{name}")
        elif opcode.name == "STACK_GLOBAL":
            found.add(".".join(texts[-2:]))
        elif isinstance(argument, str):
            texts.append(argument)
    return found
