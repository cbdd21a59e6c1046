"""Write the golden feature store of format 1, and what must be read from it.

Run from the repository root, only when the format changes (then under a new name):
``python tests/golden/make_features_v1.py``.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from retailtag.store import Absent, FeatureSpec, FeatureStore
from retailtag.store.spec import canonical_json

HERE = Path(__file__).parent
EMPTY = "is empty (0 bytes)"

SPEC = FeatureSpec(
    backbone="demo:cnn",
    weights_sha256=hashlib.sha256(b"weights").hexdigest(),
    architecture=canonical_json({"model": "tiny", "width": 8}),
    output="avg",
    dim=3,
    preprocessing=canonical_json({"antialias": True, "mean": [0.5, 0.5, 0.5], "size": [64, 64]}),
    dtype="float16",
)


def main() -> None:
    """Two segments: one row is superseded, one image is absent."""
    store = FeatureStore.create_or_open(HERE / "features-v1", SPEC)
    embeddings = np.arange(12, dtype=np.float32).reshape(4, 3) / 8
    sha256 = [hashlib.sha256(bytes([i])).hexdigest() for i in range(4)]
    store.append(["shirt", "shoe", "鞄"], sha256[:3], embeddings[:3])
    store.append(["shoe"], sha256[3:], embeddings[3:], [Absent("robe-été", None, EMPTY)])
    (store.path / ".lock").unlink()
    ids = ["鞄", "shoe", "robe-été", "shirt"]
    np.savez(
        HERE / "features-v1.npz",
        image_ids=np.array(ids),
        X=embeddings[[2, 3, 0]],
        found=np.array([True, True, False, True]),
        digest=store.digest_for(ids),
        identity=SPEC.digest,
    )


if __name__ == "__main__":
    main()
