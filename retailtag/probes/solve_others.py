"""scikit-learn as the reference solver and cuML as the GPU library's own; one tag at a time."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retailtag.errors import Unavailable
from retailtag.probes.fits import CONVERGED, STEP_LIMIT, ProbeFits, has_both_classes, prior_logit
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
        X: NDArray[np.float32],
        Y: NDArray[np.int8],
        C: NDArray[np.float64],
        advance: Advance = nobody,
    ) -> ProbeFits:
        """Fit every (C, tag); see `retailtag.probes.fits.Solver`."""
        from sklearn.linear_model import LogisticRegression

        return _one_by_one(
            lambda c: LogisticRegression(C=c, tol=self.tol, max_iter=self.max_iter),
            X,
            Y,
            C,
            self.max_iter,
            advance,
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
        X: NDArray[np.float32],
        Y: NDArray[np.int8],
        C: NDArray[np.float64],
        advance: Advance = nobody,
    ) -> ProbeFits:
        """Fit every (C, tag); see `retailtag.probes.fits.Solver`."""
        estimator = _cuml_logistic_regression()
        return _one_by_one(
            lambda c: estimator(
                C=c,
                tol=self.tol,
                max_iter=self.max_iter,
                penalty_normalized=False,
                output_type="numpy",
            ),
            X,
            Y.astype(np.float32),
            C,
            self.max_iter,
            advance,
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


def _one_by_one(
    estimator: Estimator,
    X: NDArray[np.float32],
    Y: NDArray[Any],
    C: NDArray[np.float64],
    max_iter: int,
    advance: Advance,
) -> ProbeFits:
    """Fit an estimator of scikit-learn's interface to each (C, tag) on its known labels."""
    start = time.perf_counter()
    fits = ProbeFits.empty(C, Y.shape[1], X.shape[1])
    fits.bias[:] = prior_logit(Y)
    tags = np.flatnonzero(has_both_classes(Y)).tolist()
    advance(len(C) * (Y.shape[1] - len(tags)))
    for tag in tags:
        known = np.flatnonzero(Y[:, tag] >= 0)
        x, y = (X, Y[:, tag]) if len(known) == len(X) else (X[known], Y[known, tag])
        for k, c in enumerate(C):
            model = estimator(float(c)).fit(x, y)
            _record(fits, k, tag, model, x, y, max_iter)
            advance(1)
    return replace(fits, seconds=time.perf_counter() - start)


def _record(
    fits: ProbeFits,
    k: int,
    tag: int,
    model: Any,
    x: NDArray[np.float32],
    y: NDArray[Any],
    max_iter: int,
) -> None:
    w = np.asarray(model.coef_, np.float64).reshape(-1)
    b = float(np.asarray(model.intercept_).reshape(-1)[0])
    steps = int(np.max(model.n_iter_))
    u = x @ w + b
    fits.weight[k, tag], fits.bias[k, tag] = w, b
    fits.objective[k, tag] = 0.5 * w @ w + fits.C[k] * (np.logaddexp(0, u) - y * u).sum()
    fits.iterations[k, tag] = steps
    fits.status[k, tag] = CONVERGED if steps < max_iter else STEP_LIMIT
