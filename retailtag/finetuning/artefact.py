"""The fine-tuned model as files: safetensors for the numbers, JSON for what they mean."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from retailtag.files import read_artefact, write_json, write_whole

FORMAT = 1


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

    def save(self, folder: Path) -> None:
        """Write ``checkpoint.safetensors``, then ``checkpoint.json``, which makes it count."""
        from safetensors.torch import save

        tensors = {f"backbone.{k}": v.contiguous() for k, v in self.state.items()}
        for name in ("weight", "bias", "thresholds"):
            tensors[f"head.{name}"] = torch.from_numpy(np.ascontiguousarray(getattr(self, name)))
        with write_whole(folder / "checkpoint.safetensors") as handle:
            handle.write(save(tensors))
        header = {"format": FORMAT, "backbone": self.backbone, "tags": list(self.tags)}
        write_json(folder / "checkpoint.json", {**header, "facts": self.facts})

    @classmethod
    def load(cls, folder: Path) -> Checkpoint:
        """Read what `save` wrote.

        Raises `DataError` for a missing or damaged file, `ArtefactError` for a newer format.
        """
        from safetensors.torch import load

        header, tensors = read_artefact(folder, "checkpoint", (FORMAT,), "retailtag finetune", load)
        head = {n: tensors[f"head.{n}"].numpy() for n in ("weight", "bias", "thresholds")}
        prefix = "backbone."
        state = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        return cls(header["backbone"], state, tuple(header["tags"]), facts=header["facts"], **head)
