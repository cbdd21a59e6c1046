"""Probabilities from logits, calibrated by one curve for each tag."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


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


UNCALIBRATED = Calibration(np.ones(1, np.float32), np.zeros(1, np.float32))
