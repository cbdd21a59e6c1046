"""The identity of an embedding: every fact that changes its numbers."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class FeatureSpec:
    """What must be equal for two embeddings of the same bytes to be interchangeable.

    Library versions, device, batch size and number of workers are recorded beside a store, not
    here: they do not change what an embedding means.

    Parameters
    ----------
    backbone : str
        Resolved id, e.g. ``timm:resnet50.a1_in1k``.
    weights_sha256 : str
        Hash of the parameters and buffers that were loaded, hexadecimal.
    architecture : str
        Model name and arguments as canonical JSON.
    output : str
        Which tensor is the embedding (pooling and projection), e.g. ``cls``, ``avg``, ``proj``.
    dim : int
        Length of one embedding.
    preprocessing : str
        Fully resolved preprocessing as canonical JSON: size, resize mode, crop, interpolation,
        antialias, mean, std, EXIF policy, transparency policy, decoder family.
    engine : str
        Compute engine and precision, e.g. ``eager-float32``.
    dtype : str
        Stored dtype, ``float32`` or ``float16``.
    """

    backbone: str
    weights_sha256: str
    architecture: str
    output: str
    dim: int
    preprocessing: str
    engine: str = "eager-float32"
    dtype: str = "float32"

    def to_json(self) -> dict[str, Any]:
        """Plain dictionary of the fields."""
        return asdict(self)

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON of all fields, hexadecimal."""
        return hashlib.sha256(canonical_json(self.to_json()).encode()).hexdigest()

    def differences(self, other: FeatureSpec) -> list[tuple[str, Any, Any]]:
        """Fields that differ, as (name, value here, value there)."""
        mine, theirs = self.to_json(), other.to_json()
        return [(k, mine[k], theirs[k]) for k in mine if mine[k] != theirs[k]]


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
