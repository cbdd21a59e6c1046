"""The fitted probe as files: safetensors for the numbers, JSON for what they mean."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retailtag.files import read_artefact, write_json, write_whole

FORMAT = 1


@dataclass(frozen=True, eq=False)
class Probe:
    """A linear head on raw embeddings, with its thresholds.

    Parameters
    ----------
    tags : tuple of str, length n_tags
    weight : ndarray of float32, shape (n_tags, dim)
        For raw embeddings: the standardisation is folded in.
    bias : ndarray of float32, shape (n_tags,)
    thresholds : ndarray of float32, shape (n_tags,)
        On logits.
    C : ndarray of float64, shape (n_tags,)
        Strength chosen for each tag.
    facts : dict
        JSON-able: identity of the embeddings, catalogue digest, rules, seed.
    """

    tags: tuple[str, ...]
    weight: NDArray[np.float32]
    bias: NDArray[np.float32]
    thresholds: NDArray[np.float32]
    C: NDArray[np.float64]
    facts: dict[str, Any] = field(default_factory=dict)

    def logits(self, X: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits (n_images, n_tags) of raw embeddings X (n_images, dim)."""
        return X @ self.weight.T + self.bias

    def save(self, folder: Path) -> None:
        """Write ``probe.safetensors``, then ``probe.json``, each whole or not at all."""
        from safetensors.numpy import save

        arrays = {
            "weight": self.weight,
            "bias": self.bias,
            "thresholds": self.thresholds,
            "C": self.C,
        }
        with write_whole(folder / "probe.safetensors") as handle:
            handle.write(save({k: np.ascontiguousarray(v) for k, v in arrays.items()}))
        write_json(
            folder / "probe.json", {"format": FORMAT, "tags": list(self.tags), "facts": self.facts}
        )

    @classmethod
    def load(cls, folder: Path) -> Probe:
        """Read what `save` wrote.

        Raises
        ------
        DataError
            If a file is missing or damaged.
        ArtefactError
            If it was written by a newer format or lacks something.
        """
        from safetensors.numpy import load

        header, arrays = read_artefact(folder, "probe", FORMAT, "retailtag probe", load)
        names = ("weight", "bias", "thresholds", "C")
        return cls(
            tags=tuple(header["tags"]), facts=header["facts"], **{n: arrays[n] for n in names}
        )
