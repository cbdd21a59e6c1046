"""The fitted probe as files: safetensors for the numbers, JSON for what they mean."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retailtag.artefacts import (
    BOUND,
    FACTS,
    FINITE,
    KNN,
    POSITIVE,
    TAGS,
    THRESHOLD,
    Kind,
    StoredModel,
    TensorRule,
    one_of,
    write_model,
)
from retailtag.calibration import FILE as CALIBRATION
from retailtag.calibration import Calibration
from retailtag.errors import ArtefactError
from retailtag.probes.heads.knn import FILE as KNN_FILE
from retailtag.probes.heads.knn import KnnBank, KnnVote
from retailtag.probes.scaling import SCALES, is_unit, unit_rows
from retailtag.tuning_scores import TuningScores

FILE = "probe.safetensors"
OUT_OF_FOLD = "out_of_fold.safetensors"  # optional; probes of earlier versions have none
TENSORS = {
    "weight": TensorRule("F32", ("tags", "dim"), FINITE),
    "bias": TensorRule("F32", ("tags",), FINITE),
    "thresholds": TensorRule("F32", ("tags",), THRESHOLD),
    "C": TensorRule("F64", ("tags",), POSITIVE),
}
KIND = Kind(
    name="probe",
    command="retailtag probe",
    version=4,  # 3 recorded no digests, 2 knew linear heads alone, 1 only standardised features
    bound_from=4,
    fields={
        "tags": TAGS,
        "scale": one_of(*SCALES, "l2-standardise"),  # the last of earlier versions
        "head": one_of("logistic", "ridge", "text", "knn"),
        "knn": KNN,
    },
    facts=FACTS,
    optional=frozenset({"knn"}),
    implied={1: {"scale": "standardise", "head": "logistic"}},
)


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
    # Of the training images; written by `save`, and read by `load_out_of_fold` alone
    out_of_fold: TuningScores | None = None
    calibration: Calibration | None = None  # fitted on those scores

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
    def dim(self) -> int:
        """Length of the embeddings that it takes."""
        return len(self.vote.bank.mean) if self.vote else self.weight.shape[1]

    @property
    def files(self) -> tuple[str, ...]:
        """Names of the files that `save` writes."""
        optional = {
            KNN_FILE: self.vote,
            OUT_OF_FOLD: self.out_of_fold,
            CALIBRATION: self.calibration,
        }
        return (FILE, "probe.json", *(name for name, has in optional.items() if has is not None))

    def save(self, folder: Path) -> None:
        """Write ``probe.safetensors``, what else `files` names, and ``probe.json``, binding all."""
        from safetensors.numpy import save

        arrays = {name: np.ascontiguousarray(getattr(self, name)) for name in TENSORS}
        files = {FILE: save(arrays, metadata=BOUND)}
        header = {
            "tags": list(self.tags),
            "scale": self.scale,
            "head": self.head,
            "facts": self.facts,
        }
        if self.vote is not None:
            files[KNN_FILE] = self.vote.bank.to_bytes()
            counts = self.vote.counts.tolist()
            header["knn"] = {"counts": counts, "temperature": self.vote.temperature}
        if self.out_of_fold is not None:
            files[OUT_OF_FOLD] = self.out_of_fold.to_bytes()
        if self.calibration is not None:
            files[CALIBRATION] = self.calibration.to_bytes()
        write_model(folder, KIND, header, files)
        for name in {KNN_FILE, OUT_OF_FOLD, CALIBRATION} - {*self.files}:
            (folder / name).unlink(missing_ok=True)  # of an earlier probe in this folder

    @classmethod
    def load(cls, folder: Path) -> Probe:
        """Read what `save` wrote; raises as `retailtag.artefacts.StoredModel` does."""
        from safetensors.numpy import load

        stored = StoredModel(folder, KIND)
        header = stored.header
        if header["head"] == "knn":
            stored.sizes["dim"] = 0  # its logits are votes of the bank
        arrays = stored.tensors(FILE, TENSORS, load)
        return cls(
            tags=tuple(header["tags"]),
            facts=header["facts"],
            scale=header["scale"],
            head=header["head"],
            vote=vote_of(stored) if header["head"] == "knn" else None,
            calibration=Calibration.read(stored),
            **arrays,
        )


def load_out_of_fold(folder: Path) -> TuningScores:
    """Out-of-fold scores of a probe's training images; raises as `TuningScores.read` does."""
    return TuningScores.read(StoredModel(folder, KIND), OUT_OF_FOLD)


def vote_of(stored: StoredModel) -> KnnVote:
    """The vote of a model whose head is ``knn``."""
    knn = stored.header.get("knn", {})
    counts = np.array(knn.get("counts", ()), np.int64)
    if len(counts) != stored.sizes["tags"]:
        raise ArtefactError(
            f"{stored.path}: knn.counts has {len(counts)} numbers for {stored.sizes['tags']} tags; "
            f"{stored.again}"
        )
    return KnnVote(KnnBank.read(stored), counts, knn["temperature"])
