"""scikit-learn as the reference solver and cuML as the GPU library's own; one tag at a time."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retailtag.errors import Unavailable
from retailtag.probes.solver.fits import (
    OnBlock,
    ProbeFits,
    Start,
    fittable,
    ignore,
    prior_logit,
    statuses,
)
from retailtag.probes.solver.rows import FeatureRows
from retailtag.progress import Advance, nobody

Estimator = Callable[[float], Any]


@dataclass(frozen=True)
class SklearnSolver:
    """scikit-learn's `LogisticRegression(solver="lbfgs")` per (tag, C).

    Parameters
    ----------
    tol : float
        Gradient tolerance of the estimator. The default of scikit-learn (1e-4) under-fits rare
        tags, hence the tighter default here.
    max_iter : int
    """

    tol: float = 1e-6
    max_iter: int = 2000

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
        """Fit every (C, tag); see `retailtag.probes.solver.fits.Solver`. `start` is not used."""
        from sklearn.linear_model import LogisticRegression

        job = _Job(X[:], Y, C, sample_weight, tag_weight, self.max_iter)
        return job.run(
            lambda c: LogisticRegression(C=c, tol=self.tol, max_iter=self.max_iter),
            advance,
            on_block,
        )


@dataclass(frozen=True)
class CumlSolver:
    """cuML's `LogisticRegression` (quasi-Newton) per (tag, C), on a CUDA device.

    Parameters
    ----------
    tol : float
        Tolerance of cuML's ``qn`` solver.
    max_iter : int

    Raises
    ------
    Unavailable
        When called without cuML or without a CUDA device.

    Notes
    -----
    ``penalty_normalized=False`` gives C the meaning it has in scikit-learn: the penalty is not
    divided by the number of images.
    """

    tol: float = 1e-6
    max_iter: int = 2000

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
        """Fit every (C, tag); see `retailtag.probes.solver.fits.Solver`. `start` is not used."""
        estimator = _cuml_logistic_regression()
        job = _Job(X[:], Y, C, sample_weight, tag_weight, self.max_iter)
        return job.run(
            lambda c: estimator(
                C=c,
                tol=self.tol,
                max_iter=self.max_iter,
                penalty_normalized=False,
                output_type="numpy",
            ),
            advance,
            on_block,
        )


def _cuml_logistic_regression() -> Any:
    """Estimator class of cuML; a device is looked for first, the import takes seconds."""
    import torch

    if not torch.cuda.is_available():
        raise Unavailable("--solver cuml needs a CUDA device and none is here; use --solver torch.")
    try:
        from cuml.linear_model import LogisticRegression
    except ImportError:
        raise Unavailable(
            "--solver cuml needs cuML; install it with: pip install 'retailtag[gpu]'."
        ) from None
    return LogisticRegression


@dataclass(frozen=True, eq=False)
class _Job:
    """Every (C, tag) of one training set, for an estimator of scikit-learn's interface."""

    X: NDArray[np.float32]
    Y: NDArray[np.int8]
    C: NDArray[np.float64]
    sample_weight: NDArray[np.float64] | None
    tag_weight: NDArray[np.float64] | None
    max_iter: int

    def run(self, estimator: Estimator, advance: Advance, on_block: OnBlock) -> ProbeFits:
        """Fit one after the other, on each tag's known labels."""
        begun = time.perf_counter()
        n_tags = self.Y.shape[1]
        fits = ProbeFits.empty(self.C, n_tags, self.X.shape[1])
        fits.bias[:] = prior_logit(self.Y, self.sample_weight)
        factor = np.ones(n_tags) if self.tag_weight is None else self.tag_weight
        tags = np.flatnonzero(fittable(self.Y, self.sample_weight)).tolist()
        for k, c in enumerate(self.C):
            advance(n_tags - len(tags))
            for tag in tags:
                self._fit(fits, k, tag, estimator(float(c * factor[tag])), c * factor[tag])
                advance(1)
            on_block(k, fits)
        return replace(fits, seconds=time.perf_counter() - begun)

    def _fit(self, fits: ProbeFits, k: int, tag: int, model: Any, C: float) -> None:
        """Fit one tag on its known labels, and write down what came of it."""
        known = self.Y[:, tag] >= 0
        x, y = (self.X, self.Y[:, tag]) if known.all() else (self.X[known], self.Y[known, tag])
        mass = None if self.sample_weight is None else self.sample_weight[known]
        model.fit(x, y.astype(np.float32), sample_weight=mass)
        w = np.asarray(model.coef_, np.float64).reshape(-1)
        b = float(np.asarray(model.intercept_).reshape(-1)[0])
        steps = int(np.max(model.n_iter_))
        u = x @ w + b
        loss = np.logaddexp(0, u) - y * u
        fits.weight[k, tag], fits.bias[k, tag] = w, b
        fits.objective[k, tag] = 0.5 * w @ w + C * (loss if mass is None else loss * mass).sum()
        fits.iterations[k, tag] = steps
        ended, separated = np.array([steps < self.max_iter]), np.array([((u > 0) == y).all()])
        fits.status[k, tag] = statuses(ended, separated, y[:, None])[0]
