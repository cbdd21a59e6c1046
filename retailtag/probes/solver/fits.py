"""What a solver returns: one row per (C, tag), with a status instead of a crash."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from retailtag.display import Displayed, View

CONVERGED = "converged"
STEP_LIMIT = "step limit"
SINGLE_CLASS = "single class"
SEPARABLE = "separable"
FEW_POSITIVES = "few positives"
MIN_POSITIVES = 3  # positives (or negatives) below which a fit says next to nothing of new images

# Separable is trusted: in many dimensions rare tags are separable as a rule, and the penalty
# keeps the optimum finite.
TRUSTED = (CONVERGED, SEPARABLE)

STATUS_REMEDY = {
    STEP_LIMIT: (
        "The C is usually so large that the tag is separable: leave the largest C out of --sweep-C."
    ),
    FEW_POSITIVES: (
        f"A probe fitted on fewer than {MIN_POSITIVES} known positives (or negatives) says next to "
        "nothing of other images: collect more."
    ),
    SINGLE_CLASS: (
        "All known labels of the tag are equal in the images fitted and its probe is a constant: "
        "collect images with and without the tag."
    ),
}
"""What to do about fits that are not to be trusted, by status."""


@dataclass(frozen=True, eq=False)
class LinearFits:
    """A linear head on features as given for every (candidate, tag)."""

    weight: NDArray[np.float32]  # (n_candidates, n_tags, dim)
    bias: NDArray[np.float32]  # (n_candidates, n_tags)

    def scores(self, X: NDArray[np.float32], choice: int | NDArray[np.intp]) -> NDArray[np.float32]:
        """Logits (n_images, n_tags) of X (n_images, dim) at candidate `choice`, one or per tag."""
        weight, bias = self.linear(choice)
        return X @ weight.T + bias

    def linear(
        self, choice: int | NDArray[np.intp]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Weight (n_tags, dim) and bias (n_tags,) at candidate `choice`, one or per tag."""
        tag = np.arange(self.bias.shape[1])
        chosen = np.broadcast_to(choice, tag.shape)
        return self.weight[chosen, tag], self.bias[chosen, tag]


@dataclass(frozen=True, eq=False, repr=False)
class ProbeFits(Displayed, LinearFits):
    """Logistic regressions of every (C, tag), and how each fit went.

    Arrays but `C` are (n_C, n_tags). `status` is `CONVERGED`; `SEPARABLE`: converged, and all known
    labels lie on their side, so that the norm of w grows with C; `FEW_POSITIVES`: converged on
    fewer than `MIN_POSITIVES` positives or negatives; `STEP_LIMIT`: not converged; or
    `SINGLE_CLASS`: a constant.
    """

    C: NDArray[np.float64]  # inverse L2 strengths (n_C,), ascending: the candidates of `LinearFits`
    objective: NDArray[np.float64]  # ½‖w‖² + C·Σ loss at the solution; NaN for a single class
    gap: NDArray[np.float64]  # bound on (objective - optimum) / objective; NaN if there is none
    iterations: NDArray[np.int32]
    status: NDArray[np.str_]
    seconds: float  # wall time of all fits together

    def logits(self, X: NDArray[np.float32], c: int | NDArray[np.intp]) -> NDArray[np.float32]:
        """Logits (n_images, n_tags) of X (n_images, dim) at strength index `c`, one or per tag."""
        return self.scores(X, c)

    @property
    def table(self) -> pa.Table:
        """One row per C and tag (by its column of Y): status, objective, gap, iterations."""
        n_C, n_tags = self.bias.shape
        return pa.table(
            {
                "C": np.repeat(self.C, n_tags),
                "tag": np.tile(np.arange(n_tags), n_C),
                "status": self.status.ravel().tolist(),
                "objective": self.objective.ravel(),
                "gap": self.gap.ravel(),
                "iterations": self.iterations.ravel(),
            }
        )

    def views(self) -> Iterable[View]:
        """The table."""
        yield View(f"Probes on {self.weight.shape[2]} features", self.table)

    @classmethod
    def empty(cls, C: NDArray[np.float64], n_tags: int, dim: int) -> ProbeFits:
        """Tables to be filled by a solver; every cell starts as a single-class constant 0."""
        shape = (len(C), n_tags)
        return cls(
            C=C,
            weight=np.zeros((*shape, dim), np.float32),
            bias=np.zeros(shape, np.float32),
            objective=np.full(shape, np.nan),
            gap=np.full(shape, np.nan),
            iterations=np.zeros(shape, np.int32),
            status=np.full(shape, SINGLE_CLASS, dtype="<U16"),
            seconds=0.0,
        )


def statuses(
    converged: NDArray[np.bool_], separated: NDArray[np.bool_], fewest: NDArray[np.float64]
) -> NDArray[np.str_]:
    """Status of fits of both classes, (n_tags,): whether they converged and separate the labels.

    `fewest` are positives or negatives, whichever are fewer.
    """
    conditions = [~converged, fewest < MIN_POSITIVES, separated]
    return np.select(conditions, [STEP_LIMIT, FEW_POSITIVES, SEPARABLE], CONVERGED)
