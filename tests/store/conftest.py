"""A small identity and rows to store under it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import numpy as np
import pytest
from numpy.typing import NDArray

from retailtag.store import FeatureSpec
from retailtag.store.spec import canonical_json


@dataclass(frozen=True)
class Rows:
    ids: list[str]
    sha256: list[str]
    embeddings: NDArray[np.float32]


class World:
    """Identities and rows whose content follows from a number."""

    dim = 5

    def spec(self, **changes: object) -> FeatureSpec:
        base = FeatureSpec(
            backbone="demo:cnn",
            weights_sha256="ab" * 32,
            architecture=canonical_json({"model": "tiny"}),
            output="avg",
            dim=self.dim,
            preprocessing=canonical_json({"antialias": True, "size": [64, 64]}),
        )
        return replace(base, **changes)

    def rows(self, n: int, seed: int = 0, prefix: str = "image") -> Rows:
        ids = [f"{prefix}-{i:04d}" for i in range(n)]
        sha256 = [hashlib.sha256(f"{i} {seed}".encode()).hexdigest() for i in ids]
        rng = np.random.default_rng(seed)
        return Rows(ids, sha256, rng.normal(size=(n, self.dim)).astype(np.float32))


@pytest.fixture
def world() -> World:
    return World()
