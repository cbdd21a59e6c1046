"""The identity of an embedding: every fact that changes its numbers."""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from typing import Any

from retailtag.errors import DataError
from retailtag.files import parse_json

DTYPES = ("float32", "float16")
LARGEST_DIM = 1 << 20  # far above any backbone; keeps a hostile file from declaring terabytes


@dataclass(frozen=True)
class FeatureSpec:
    """What must be equal for two embeddings of the same bytes to be interchangeable.

    Library versions, device, batch size and number of workers are recorded beside a store, not
    here: they do not change what an embedding means.
    """

    backbone: str  # resolved id, e.g. timm:resnet50.a1_in1k
    weights_sha256: str  # of the parameters and buffers that were loaded, hexadecimal
    architecture: str  # model name and arguments as canonical JSON
    output: str  # which tensor is the embedding (pooling and projection), e.g. cls, avg, proj
    dim: int  # length of one embedding
    preprocessing: str  # fully resolved preprocessing and decoding policy as canonical JSON
    engine: str = "eager-float32"  # compute engine and precision
    dtype: str = "float32"  # as stored: float32 or float16

    def to_json(self) -> dict[str, Any]:
        """Plain dictionary of the fields."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Any) -> FeatureSpec:
        """Rebuild what `to_json` gave, trusting nothing.

        Raises
        ------
        DataError
            If a field is missing, unknown, of another type or out of range.
        """
        names = {f.name for f in fields(cls)}
        if not isinstance(value, dict) or set(value) != names:
            raise DataError(f"An identity needs exactly the fields {', '.join(sorted(names))}.")
        if type(value["dim"]) is not int or not 0 < value["dim"] <= LARGEST_DIM:
            raise DataError(f"An identity with dim {value['dim']!r} is not possible.")
        if not all(isinstance(value[name], str) for name in names - {"dim"}):
            raise DataError("Every field of an identity but dim is text.")
        if value["dtype"] not in DTYPES:
            raise DataError(f"Features are stored as {' or '.join(DTYPES)}, not {value['dtype']}.")
        return cls(**value)

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON of all fields, hexadecimal."""
        return hashlib.sha256(canonical_json(self.to_json()).encode()).hexdigest()


def explain_differences(
    stored: FeatureSpec, asked: FeatureSpec, names: tuple[str, str] = ("stored", "asked")
) -> str:
    """Name the facts that differ with both values, those inside JSON fields one by one.

    `names` is what the two values are called.
    """
    mine = open_facts(stored)
    theirs = open_facts(asked)
    return "; ".join(
        f"{key}: {names[0]} {_short(mine.get(key))}, {names[1]} {_short(theirs.get(key))}"
        for key in dict.fromkeys([*mine, *theirs])
        if mine.get(key) != theirs.get(key)
    )


def open_facts(spec: FeatureSpec) -> dict[str, Any]:
    """Every fact of an identity by dotted name, those inside JSON fields one by one."""
    return _flat(spec.to_json())


def _flat(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Facts by dotted name; dictionaries, and JSON text that holds one, are opened."""
    flat: dict[str, Any] = {}
    for name, fact in value.items():
        opened = fact
        if isinstance(fact, str):
            with suppress(ValueError):
                opened = parse_json(fact)
        is_open = isinstance(opened, dict)
        flat |= _flat(opened, f"{prefix}{name}.") if is_open else {f"{prefix}{name}": fact}
    return flat


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
