"""The fitted probe as files: safetensors for the numbers, JSON for what they mean."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retailtag.files import read_artefact, write_json, write_whole
from retailtag.probes.heads.knn import FILE as KNN_FILE
from retailtag.probes.heads.knn import KnnBank, KnnVote
from retailtag.probes.scaling import is_unit, unit_rows

FORMAT = 3  # 2 knew linear heads alone, 1 only logistic regression on standardised features
READABLE = (1, 2, FORMAT)
TENSORS = ("weight", "bias", "thresholds", "C")


@dataclass(frozen=True, eq=False)
class Probe:
    """A head on raw embeddings (or on unit rows of them), with its thresholds."""

    tags: tuple[str, ...]
    # (n_tags, dim), the standardisation folded in; (n_tags, 0) for head ``knn``
    weight: NDArray[np.float32]
    bias: NDArray[np.float32]  # (n_tags,)
    thresholds: NDArray[np.float32]  # (n_tags,), on logits
    C: NDArray[np.float64]  # (n_tags,), strength chosen for each tag
    # JSON-able: identity of the embeddings, catalogue digest, rules, seed
    facts: dict[str, Any] = field(default_factory=dict)
    scale: str = "standardise"  # kind of scaling that C was chosen under
    head: str = "logistic"  # or ridge, text, knn
    vote: KnnVote | None = None  # gives the logits of head ``knn``

    def logits(self, X: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits (n_images, n_tags) of raw embeddings X (n_images, dim)."""
        if self.vote is not None:
            return self.vote.logits(X)
        return (unit_rows(X) if self.unit else X) @ self.weight.T + self.bias

    @property
    def unit(self) -> bool:
        """Whether the weights want every embedding divided by its norm first."""
        return self.head == "logistic" and is_unit(self.scale)

    @property
    def files(self) -> tuple[str, ...]:
        """Names of the files that `save` writes."""
        names = ("probe.safetensors", "probe.json")
        return names if self.vote is None else (*names, KNN_FILE)

    def save(self, folder: Path) -> None:
        """Write ``probe.safetensors``, the bank of a vote, then ``probe.json``, each whole."""
        from safetensors.numpy import save

        arrays = {name: np.ascontiguousarray(getattr(self, name)) for name in TENSORS}
        with write_whole(folder / "probe.safetensors") as handle:
            handle.write(save(arrays))
        header: dict[str, Any] = {
            "format": FORMAT,
            "tags": list(self.tags),
            "scale": self.scale,
            "head": self.head,
            "facts": self.facts,
        }
        if self.vote is not None:
            self.vote.bank.save(folder)
            counts = self.vote.counts.tolist()
            header["knn"] = {"counts": counts, "temperature": self.vote.temperature}
        write_json(folder / "probe.json", header)
        if self.vote is None:  # the bank of an earlier probe in the same folder
            (folder / KNN_FILE).unlink(missing_ok=True)

    @classmethod
    def load(cls, folder: Path) -> Probe:
        """Read what `save` wrote; raises as `retailtag.files.read_artefact` does."""
        from safetensors.numpy import load

        header, arrays = read_artefact(folder, "probe", READABLE, "retailtag probe", load)
        if header["format"] == 1:
            header |= {"scale": "standardise", "head": "logistic"}
        vote = None
        if header["head"] == "knn":
            knn = header["knn"]
            vote = KnnVote(KnnBank.load(folder), np.array(knn["counts"]), knn["temperature"])
        return cls(
            tags=tuple(header["tags"]),
            facts=header["facts"],
            scale=header["scale"],
            head=header["head"],
            vote=vote,
            **{name: arrays[name] for name in TENSORS},
        )
