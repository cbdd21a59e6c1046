"""Probabilities from logits, calibrated by one curve for each tag."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retailtag.artefacts import BOUND, FINITE, POSITIVE, StoredModel, TensorRule

FILE = "calibration.safetensors"
TENSORS = {
    "slope": TensorRule("F32", ("tags",), POSITIVE),
    "offset": TensorRule("F32", ("tags",), FINITE),
}


@dataclass(frozen=True, eq=False)
class Calibration:
    """Platt scaling of each tag: the logit of its probability is slope * logit + offset.

    Slopes are above 0, so that a higher logit never means a lower probability.
    """

    slope: NDArray[np.float32]  # (n_tags,), or one for all
    offset: NDArray[np.float32]

    def probabilities(self, logits: NDArray[np.float32]) -> NDArray[np.float64]:
        """Probabilities of the same shape as `logits` (n_images, n_tags), in [0, 1]."""
        z = self.slope * np.asarray(logits, np.float64) + self.offset
        return 0.5 * (1 + np.tanh(0.5 * z))  # the logistic, without overflow

    def to_bytes(self) -> bytes:
        """The file of tensors."""
        from safetensors.numpy import save

        arrays = {name: np.ascontiguousarray(getattr(self, name), np.float32) for name in TENSORS}
        return save(arrays, metadata=BOUND)

    @classmethod
    def read(cls, stored: StoredModel) -> Calibration | None:
        """That of a model, None if it has none; raises as `StoredModel.tensors` does."""
        from safetensors.numpy import load

        if FILE not in stored.header.get("files", {}):
            return None
        return cls(**stored.tensors(FILE, TENSORS, load))


UNCALIBRATED = Calibration(np.ones(1, np.float32), np.zeros(1, np.float32))
