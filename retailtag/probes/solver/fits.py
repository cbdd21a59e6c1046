"""What a solver returns: one row a (tag, C), with a status instead of a crash."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from retailtag.probes.solver.rows import FeatureRows
from retailtag.progress import Advance, nobody

CONVERGED = "converged"
STEP_LIMIT = "step limit"
SINGLE_CLASS = "single class"
SEPARABLE = "separable"
FEW_POSITIVES = "few positives"
FEW = 3  # positives under which a fit stands, but says next to nothing of other images

TRUSTED = (CONVERGED, SEPARABLE)
"""Statuses that call for nothing: rare tags are separable in many dimensions as a rule."""

STATUS_REMEDY = {
    STEP_LIMIT: (
        "The C is usually so large that the tag is separable: leave the largest C out of --sweep-C."
    ),
    FEW_POSITIVES: (
        f"Under {FEW} known positives (or negatives) a probe says next to nothing of other "
        "images: collect more."
    ),
    SINGLE_CLASS: (
        "All known labels of the tag are equal in the images fitted and its probe is a constant: "
        "collect images with and without the tag."
    ),
}
"""What to do about fits that are not to be trusted, by status."""


@dataclass(frozen=True, eq=False)
class ProbeFits:
    """Linear heads of every (C, tag) on the features as given, and how each fit went.

    Parameters
    ----------
    C : ndarray of float64, shape (n_C,)
        Inverse L2 strengths, ascending.
    weight : ndarray of float32, shape (n_C, n_tags, dim)
    bias : ndarray of float32, shape (n_C, n_tags)
    objective : ndarray of float64, shape (n_C, n_tags)
        ½‖w‖² + C·Σ loss at the solution; NaN for a single class.
    gap : ndarray of float64, shape (n_C, n_tags)
        Bound on (objective - optimum) / objective; NaN where the solver gives none.
    iterations : ndarray of int32, shape (n_C, n_tags)
    status : ndarray of str, shape (n_C, n_tags)
        `CONVERGED`; `SEPARABLE`: converged, and all known labels lie on their side, so that the
        norm of w grows with C; `FEW_POSITIVES`: converged on under `FEW` positives or negatives;
        `STEP_LIMIT`: not converged; `SINGLE_CLASS`: a constant.
    seconds : float
        Wall time of all fits together.
    """

    C: NDArray[np.float64]
    weight: NDArray[np.float32]
    bias: NDArray[np.float32]
    objective: NDArray[np.float64]
    gap: NDArray[np.float64]
    iterations: NDArray[np.int32]
    status: NDArray[np.str_]
    seconds: float

    def logits(self, X: NDArray[np.float32], c: int | NDArray[np.intp]) -> NDArray[np.float32]:
        """Logits (n_images, n_tags) of X (n_images, dim) at strength index `c`, one or per tag."""
        tag = np.arange(self.bias.shape[1])
        chosen = np.broadcast_to(c, tag.shape)
        return X @ self.weight[chosen, tag].T + self.bias[chosen, tag]

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


Start = tuple[NDArray[np.float32], NDArray[np.float32]]
"""Heads to start from: weight (n_tags, dim), bias (n_tags,)."""

OnBlock = Callable[[int, ProbeFits], None]
"""Told (k, fits) when every tag at C[k] is done; the rows of fits are filled up to k."""


def ignore(k: int, fits: ProbeFits) -> None:
    """OnBlock that does nothing."""


class Solver(Protocol):
    """Fits every (C, tag) of one training set."""

    def __call__(
        self,
        X: FeatureRows,
        Y: NDArray[np.int8],
        C: NDArray[np.float64],
        advance: Advance = nobody,
        *,
        sample_weight: NDArray[np.float64] | None = None,
        tag_weight: NDArray[np.float64] | None = None,
        start: Start | None = None,
        on_block: OnBlock = ignore,
    ) -> ProbeFits:
        """Fit on features X (n_images, dim), labels Y (n_images, n_tags), C ascending (n_C,).

        X is an array, or anything that gives ``shape`` and slices of rows. `advance` is told the
        number of fits as they end, n_C * n_tags in all. `sample_weight` (n_images,) multiplies
        the loss of images, `tag_weight` (n_tags,) that of tags. `start` is where the first C
        starts, as far as the solver can.
        """
        ...


def prior_logit(
    Y: NDArray[np.int8], sample_weight: NDArray[np.float64] | None = None
) -> NDArray[np.float32]:
    """Smoothed log-odds of each tag's prevalence; Y (n_images, n_tags) to (n_tags,).

    Half a positive and half a negative are added (Jeffreys), so that it is finite for a tag that
    is never or always on.
    """
    if sample_weight is None:
        positive, negative = (Y == 1).sum(axis=0), (Y == 0).sum(axis=0)
    else:
        positive, negative = sample_weight @ (Y == 1), sample_weight @ (Y == 0)
    return np.log((positive + 0.5) / (negative + 0.5)).astype(np.float32)


def fittable(
    Y: NDArray[np.int8], sample_weight: NDArray[np.float64] | None = None
) -> NDArray[np.bool_]:
    """Whether each tag has a positive and a negative among its known labels, (n_tags,)."""
    used = Y if sample_weight is None else Y[np.asarray(sample_weight) > 0]
    return np.logical_and((used == 1).any(axis=0), (used == 0).any(axis=0))


def statuses(
    converged: NDArray[np.bool_], separated: NDArray[np.bool_], Y: NDArray[np.int8]
) -> NDArray[np.str_]:
    """Status of fits of both classes, (n_tags,), from whether they converged and separate Y."""
    fewest = np.minimum((Y == 1).sum(axis=0), (Y == 0).sum(axis=0))
    known = [~converged, fewest < FEW, separated]
    return np.select(known, [STEP_LIMIT, FEW_POSITIVES, SEPARABLE], CONVERGED)
