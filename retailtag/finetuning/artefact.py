"""The fine-tuned model as files: safetensors for the numbers, JSON for what they mean."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from retailtag.artefacts import (
    BOUND,
    FACTS,
    FINITE,
    TAGS,
    TEXT,
    THRESHOLD,
    Kind,
    StoredModel,
    TensorRule,
    write_model,
)
from retailtag.calibration import FILE as CALIBRATION
from retailtag.calibration import Calibration
from retailtag.tuning_scores import TuningScores

FILE = "checkpoint.safetensors"
VALIDATION = "validation.safetensors"  # optional, as the next; see `Checkpoint.validation`
START = "start.safetensors"
HEAD = {
    "weight": TensorRule("F32", ("tags", "dim"), FINITE),
    "bias": TensorRule("F32", ("tags",), FINITE),
    "thresholds": TensorRule("F32", ("tags",), THRESHOLD),
}
KIND = Kind(
    name="checkpoint",
    command="retailtag finetune",
    version=2,  # 1 recorded no digests
    bound_from=2,
    fields={"backbone": TEXT, "tags": TAGS},
    facts=FACTS,
)


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A fine-tuned backbone and its head."""

    backbone: str  # id that rebuilds the architecture
    state: dict[str, Tensor]  # parameters and buffers of the backbone's module, on the CPU
    tags: tuple[str, ...]
    weight: NDArray[np.float32]  # (n_tags, dim), on raw embeddings of the fine-tuned backbone
    bias: NDArray[np.float32]  # (n_tags,)
    thresholds: NDArray[np.float32]  # (n_tags,)
    facts: dict[str, Any] = field(default_factory=dict)  # JSON-able: settings, epoch, digests
    # Scores behind the thresholds: of the validation set, and those of the start that
    # `retailtag.runs.start_scores` describes. Written by `save`, read by `load_scores` alone
    validation: TuningScores | None = None
    start: TuningScores | None = None
    calibration: Calibration | None = None  # fitted on the validation set

    @property
    def files(self) -> tuple[str, ...]:
        """Names of the files that `save` writes."""
        return (FILE, "checkpoint.json", *self._optional)

    @property
    def _optional(self) -> dict[str, TuningScores | Calibration]:
        optional = {VALIDATION: self.validation, START: self.start, CALIBRATION: self.calibration}
        return {name: part for name, part in optional.items() if part is not None}

    def save(self, folder: Path) -> None:
        """Write what `files` names; ``checkpoint.json`` binds the others."""
        from safetensors.torch import save

        tensors = {f"backbone.{k}": v.contiguous() for k, v in self.state.items()}
        for name in HEAD:
            tensors[f"head.{name}"] = torch.from_numpy(np.ascontiguousarray(getattr(self, name)))
        header = {"backbone": self.backbone, "tags": list(self.tags), "facts": self.facts}
        files = {FILE: save(tensors, metadata=BOUND)}
        files |= {name: part.to_bytes() for name, part in self._optional.items()}
        write_model(folder, KIND, header, files)
        for name in {VALIDATION, START, CALIBRATION} - self._optional.keys():
            (folder / name).unlink(missing_ok=True)  # of an earlier fine-tune in the same folder

    @classmethod
    def load(cls, folder: Path) -> Checkpoint:
        """Read what `save` wrote; raises as `retailtag.artefacts.StoredModel` does."""
        from safetensors.torch import load

        stored = StoredModel(folder, KIND)
        header = stored.header
        rules = {f"head.{name}": rule for name, rule in HEAD.items()}
        prefix = "backbone."
        tensors = stored.tensors(FILE, rules, load, others=prefix, finite=torch.isfinite)
        head = {name: tensors[f"head.{name}"].numpy() for name in HEAD}
        state = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        return cls(
            header["backbone"],
            state,
            tuple(header["tags"]),
            facts=header["facts"],
            calibration=Calibration.read(stored),
            **head,
        )


def load_scores(folder: Path) -> tuple[TuningScores, TuningScores | None]:
    """Scores of the validation set, and those of the start where thresholds came from it.

    Raises as `TuningScores.read` does.
    """
    validation = TuningScores.read(StoredModel(folder, KIND), VALIDATION)
    stored = StoredModel(folder, KIND)  # of other images than the validation set's
    has_start = START in stored.header.get("files", {})
    return validation, TuningScores.read(stored, START) if has_start else None
