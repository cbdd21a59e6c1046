"""Embeddings as they are handed out."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class FeatureView:
    """Embeddings of the images that were asked for, in the order asked.

    Parameters
    ----------
    image_ids : ndarray of str, shape (n_asked,)
        What was asked for.
    X : ndarray of float32, shape (n_found, dim)
        Embeddings of the images where `found` is true, in order.
    found : ndarray of bool, shape (n_asked,)
        Which images have an embedding.
    absent : dict of str to str
        Why each other image has none: the reason it could not be read, or that it was not
        extracted yet.
    """

    image_ids: NDArray[np.str_]
    X: NDArray[np.float32]
    found: NDArray[np.bool_]
    absent: dict[str, str]

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
