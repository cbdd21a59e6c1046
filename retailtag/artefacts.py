"""Fitted models as files: a JSON header and tensors, bound to each other and checked when read.

The header records the SHA-256 of every file of tensors, and of its own fields. A header and tensors
of two fits, which a kill between the replacement of two files leaves, are therefore refused. Files
of earlier versions record no digests and still open. Everything is checked against rules before any
of it is used.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from retailtag.errors import ArtefactError, DamagedFile, DataError
from retailtag.files import json_bytes, parse_json, read_json, write_together

# Metadata of every file of tensors. A header of an earlier version, which binds nothing, is by them
# known not to belong to these tensors.
BOUND = {"retailtag": "bound"}
# Of tensors without a rule: what networks are made of.
DTYPES = ("F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL")


@dataclass(frozen=True)
class Rule:
    """What a field, or every number of a tensor, must be: in words, and as a test."""

    what: str
    holds: Callable[[Any], Any]  # gives a bool for a field, an array of them for a tensor


@dataclass(frozen=True)
class TensorRule:
    """What a tensor must be."""

    dtype: str  # as safetensors writes it, such as F32
    axes: tuple[str, ...]  # an axis has one length in all tensors of a model, at least 1
    numbers: Rule


@dataclass(frozen=True)
class Kind:
    """How the files of a kind of model look."""

    name: str  # of the header, ``NAME.json``
    command: str  # writes the files
    version: int  # of the format that is written; all from 1 on are read
    bound_from: int  # version from which headers hold digests
    fields: Mapping[str, Rule]  # of the header, besides ``format``, ``facts`` and ``files``
    facts: Mapping[str, Rule]  # of ``facts``, where present; others are allowed
    optional: frozenset[str] = frozenset()  # of `fields`
    # Fields that headers of a version lack, with their values.
    implied: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value != ""


def _are_texts(value: Any) -> bool:
    """Whether it is a list of different texts."""
    return isinstance(value, list) and all(map(_is_text, value)) and len(set(value)) == len(value)


def _is_count(value: Any) -> bool:
    return type(value) is int and 1 <= value < 2**31  # a bool is an int too


def _is_positive(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value < 1e30


def _are_engine(value: Any) -> bool:
    return isinstance(value, dict) and all(_is_text(value.get(n)) for n in ("engine", "dtype"))


def _are_thresholds(value: Any) -> bool:
    return isinstance(value, dict) and all(_is_text(value.get(n, n)) for n in ("rule", "objective"))


TEXT = Rule("a text", _is_text)
TAGS = Rule("a list of different tags", lambda value: _are_texts(value) and value != [])
TEXTS = Rule("a list of different texts", lambda value: value is None or _are_texts(value))
OBJECT = Rule("an object", lambda value: isinstance(value, dict))
KNN = Rule(
    "an object of counts, whole numbers of at least 1, and a temperature above 0",
    lambda value: (
        isinstance(value, dict)
        and value.keys() == {"counts", "temperature"}
        and isinstance(value["counts"], list)
        and all(map(_is_count, value["counts"]))
        and _is_positive(value["temperature"])
    ),
)
FACTS = {
    "backbone": TEXT,
    "catalog_digest": TEXT,
    "features": TEXT,
    "exclusive": TEXTS,
    "settings": OBJECT,
    "stored_as": Rule("an object of the texts engine and dtype", _are_engine),
    "threshold_f1": OBJECT,
    "thresholds": Rule("an object of the texts rule and objective", _are_thresholds),
}
_FILES = Rule(
    "an object of SHA-256 digests",
    lambda value: isinstance(value, dict) and all(map(_is_text, value.values())),
)

FINITE = Rule("finite", np.isfinite)
POSITIVE = Rule("finite and above 0", lambda array: np.isfinite(array) & (array > 0))
THRESHOLD = Rule("finite, or inf for a tag that is never given", lambda array: array > -np.inf)
LABEL = Rule("1, 0 or -1", lambda array: (array >= -1) & (array <= 1))


def one_of(*values: str) -> Rule:
    """Rule of a field that is one of some texts."""
    return Rule(
        f"one of {', '.join(values)}", lambda value: isinstance(value, str) and value in values
    )


def write_model(
    folder: Path, kind: Kind, header: Mapping[str, Any], files: Mapping[str, bytes]
) -> None:
    """Write `files` of tensors, whose metadata are `BOUND`, and the header that binds them."""
    digests = {name: hashlib.sha256(body).hexdigest() for name, body in files.items()}
    whole = bound_header({"format": kind.version, **header, "files": digests}, f"{kind.name}.json")
    write_together(folder, {f"{kind.name}.json": json_bytes(whole), **files})


def bound_header(header: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Header whose ``files`` hold the digest of all else in it under its own `name`."""
    others = {file: digest for file, digest in header["files"].items() if file != name}
    digest = hashlib.sha256(json_bytes({**header, "files": others})).hexdigest()
    return {**header, "files": {**others, name: digest}}


class StoredModel:
    """Header of a model, checked; its tensors are read by `tensors`.

    Parameters
    ----------
    folder : Path
    kind : Kind

    Raises
    ------
    DataError
        If there is no such header.
    ArtefactError
        If the header has another format, is damaged, or holds a field that breaks its rule.
    """

    def __init__(self, folder: Path, kind: Kind) -> None:
        self.folder = folder
        self.path = folder / f"{kind.name}.json"
        self.again = f"run {kind.command} again."
        header = self._read(kind)
        self.is_bound = header["format"] >= kind.bound_from
        written = dict(header)
        rules = {**kind.fields, "facts": OBJECT} | ({"files": _FILES} if self.is_bound else {})
        self.header: dict[str, Any] = {**kind.implied.get(header.pop("format"), {}), **header}
        self._check_fields(self.header, rules, kind.optional)
        facts = self.header["facts"]
        known = {name: rule for name, rule in kind.facts.items() if name in facts}
        self._check_fields({name: facts[name] for name in known}, known, prefix="facts.")
        if self.is_bound and bound_header(written, self.path.name) != written:
            raise DamagedFile(
                f"{self.path} was altered or damaged: its digest is not that of its fields; "
                f"{self.again}"
            )
        self.header["facts"] = _Facts(facts, f"{self.path} lacks ", f"; {self.again}")
        self.sizes = {"tags": len(self.header["tags"])}  # of axes, by their names

    def _read(self, kind: Kind) -> dict[str, Any]:
        if not self.path.exists():
            raise DataError(
                f"{self.path} does not exist; make it with `{kind.command}`, or name its folder."
            )
        try:
            header = read_json(self.path)
        except DataError as error:
            raise DamagedFile(f"{str(error).removesuffix('.')}; {self.again}") from error
        version = header.get("format") if isinstance(header, dict) else None
        if type(version) is not int or not 1 <= version <= kind.version:
            raise ArtefactError(f"{self.path} has another format; {self.again}")
        return dict(header)

    def _check_fields(
        self,
        values: Mapping[str, Any],
        rules: Mapping[str, Rule],
        optional: frozenset[str] = frozenset(),
        prefix: str = "",
    ) -> None:
        for name, rule in rules.items():
            if name not in values and name not in optional:
                raise ArtefactError(f"{self.path} lacks {name}; {self.again}")
            if name in values and not rule.holds(values[name]):
                raise ArtefactError(f"{self.path}: {prefix}{name} is not {rule.what}; {self.again}")
        if unknown := sorted(values.keys() - rules.keys()):
            raise ArtefactError(
                f"{self.path} holds an unknown field, {unknown[0]!r:.80}; {self.again}"
            )

    def tensors(
        self,
        file: str,
        rules: Mapping[str, TensorRule],
        load: Callable[[bytes], dict[str, Any]],
        *,
        others: str = "",
        finite: Callable[[Any], Any] = np.isfinite,
    ) -> dict[str, Any]:
        """Tensors of one file, each as its rule says.

        Parameters
        ----------
        file : str
            Its name.
        rules : mapping of str to TensorRule
        load : callable
            ``safetensors.numpy.load`` or ``safetensors.torch.load``.
        others : str
            Beginning of the names of tensors without a rule, whose numbers are finite all the same;
            by default there are none.
        finite : callable
            ``isfinite`` of the library that `load` belongs to.

        Raises
        ------
        ArtefactError
            If it is missing or damaged, is not the file that the header was written with, or a
            tensor breaks its rule.
        """
        path = self.folder / file
        try:
            body = path.read_bytes()
        except OSError as error:
            reason = error.strerror or error
            raise ArtefactError(f"{path} cannot be read ({reason}); {self.again}") from error
        layout = self._layout(path, body)
        self._check_bound(path, body, layout.pop("__metadata__", None))
        self._check_layout(path, layout, rules, others)
        tensors = self._loaded(path, load, body)
        for name, tensor in tensors.items():
            if name in rules:
                self._check_numbers(path, name, np.asarray(tensor), rules[name].numbers)
            else:
                self._check_numbers(path, name, tensor, Rule("finite", finite))
        return tensors

    def _layout(self, path: Path, body: bytes) -> dict[str, Any]:
        """What the file says of its tensors, before any is loaded."""
        size = int.from_bytes(body[:8], "little")
        try:
            layout = parse_json(body[8 : 8 + size])
        except ValueError:
            layout = None
        if not isinstance(layout, dict) or not all(isinstance(v, dict) for v in layout.values()):
            raise DamagedFile(f"{path} is damaged or no file of tensors; {self.again}")
        return layout

    def _check_bound(self, path: Path, body: bytes, metadata: Any) -> None:
        if self.is_bound:
            fits = self.header["files"].get(path.name) == hashlib.sha256(body).hexdigest()
        else:
            fits = metadata != BOUND
        if not fits:
            raise ArtefactError(
                f"{self.path} and {path} were not written together (a run was stopped between the "
                f"two, or a file was altered); {self.again}"
            )

    def _check_layout(
        self, path: Path, layout: dict[str, Any], rules: Mapping[str, TensorRule], others: str
    ) -> None:
        for name, rule in rules.items():
            if name not in layout:
                raise ArtefactError(f"{path} lacks {name}; {self.again}")
            dtype = layout[name].get("dtype")
            if dtype != rule.dtype:
                raise ArtefactError(
                    f"{path}: {name} is {dtype!s:.40}, not {rule.dtype}; {self.again}"
                )
            shape = layout[name].get("shape")
            if not isinstance(shape, list) or not self._fits(shape, rule.axes):
                wanted = ", ".join(
                    f"{self.sizes.get(axis, '')} {axis}".strip() for axis in rule.axes
                )
                raise ArtefactError(
                    f"{path}: {name} has shape {shape!s:.80}, not ({wanted}); {self.again}"
                )
        for name in layout.keys() - rules.keys():
            if not others or not name.startswith(others):
                raise ArtefactError(f"{path} holds an unknown tensor, {name!r:.80}; {self.again}")
            dtype = layout[name].get("dtype")
            if dtype not in DTYPES:
                raise ArtefactError(
                    f"{path}: {name:.80} is of unknown type, {dtype!s:.40}; {self.again}"
                )

    def _fits(self, shape: list[Any], axes: tuple[str, ...]) -> bool:
        """Whether a shape has these axes; the length of one that is new is noted."""
        if len(shape) != len(axes):
            return False
        sizes = [self.sizes.get(axis, n or None) for axis, n in zip(axes, shape, strict=True)]
        if sizes != shape:
            return False
        self.sizes.update(zip(axes, shape, strict=True))
        return True

    def _loaded(
        self, path: Path, load: Callable[[bytes], dict[str, Any]], body: bytes
    ) -> dict[str, Any]:
        from safetensors import SafetensorError

        try:
            return load(body)
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise DamagedFile(f"{path} cannot be read ({error}); {self.again}") from error

    def _check_numbers(self, path: Path, name: str, tensor: Any, rule: Rule) -> None:
        holds = np.asarray(rule.holds(tensor))
        if holds.all():
            return
        at = tuple(np.argwhere(~holds)[0].tolist())
        place = f"{name}[{', '.join(map(str, at))}]" if at else name
        raise ArtefactError(f"{path}: {place} is {tensor[at]}, not {rule.what}; {self.again}")


class _Facts(dict[str, Any]):
    """The facts of a model; taking one that is missing names the file, the fact and the remedy."""

    def __init__(self, facts: dict[str, Any], before: str, after: str) -> None:
        super().__init__(facts)
        self._before = before
        self._after = after

    def __missing__(self, key: str) -> Any:
        raise ArtefactError(f"{self._before}{key}{self._after}")
