"""Embeddings as they are handed out."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class FeatureView:
    """Embeddings of the images that were asked for, in the order asked."""

    image_ids: NDArray[np.str_]  # (n_asked,)
    X: NDArray[np.float32]  # (n_found, dim), where `found` is true
    found: NDArray[np.bool_]  # (n_asked,), whether the image has an embedding
    absent: dict[str, str]  # image id to why it has none

    @cached_property
    def digest(self) -> str:
        """SHA-256 over ids, presence and embeddings (as float32), hexadecimal."""
        h = hashlib.sha256()
        for image_id in self.image_ids.tolist():
            # With its length, so that ["ab", "c"] and ["a", "bc"] differ.
            h.update(f"{len(image_id)}:{image_id}".encode())
        h.update(np.packbits(self.found).tobytes())
        h.update(
            np.ascontiguousarray(self.X).astype("<f4", copy=False).data if self.X.size else b""
        )
        return h.hexdigest()
