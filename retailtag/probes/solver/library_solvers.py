"""scikit-learn as the reference solver and cuML as the GPU library's own; one tag at a time."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retailtag.errors import Unavailable
from retailtag.neighbours import FeatureRows
from retailtag.probes.solver.fits import ProbeFits, statuses
from retailtag.probes.solver.interface import Start
from retailtag.probes.solver.labels import fewest, fittable, prior_logit
from retailtag.progress import Advance, nobody

TOLERANCE = 1e-6  # of the gradient; scikit-learn's default (1e-4) under-fits rare tags
MAX_ITER = 2000


@dataclass(frozen=True)
class OneTagSolver:
    """Fits every (C, tag) one after the other, with estimators of scikit-learn's interface."""

    estimator: Callable[..., Any]

    def __call__(
        self,
        X: FeatureRows,
        Y: NDArray[np.int8],
        C: NDArray[np.float64],
        advance: Advance = nobody,
        *,
        sample_weight: NDArray[np.float64] | None = None,
        start: Start | None = None,
    ) -> ProbeFits:
        """Fit every (C, tag); see `retailtag.probes.solver.interface.Solver`. Starts cold."""
        begun = time.perf_counter()
        features = X[:]
        n_tags = Y.shape[1]
        fits = ProbeFits.empty(C, n_tags, X.shape[1])
        fits.bias[:] = prior_logit(Y, sample_weight)
        tags = np.flatnonzero(fittable(Y, sample_weight)).tolist()
        for k in range(len(C)):
            advance(n_tags - len(tags))
            for tag in tags:
                self._fit(fits, k, tag, features, Y[:, tag], sample_weight)
                advance(1)
        return replace(fits, seconds=time.perf_counter() - begun)

    def _fit(
        self,
        fits: ProbeFits,
        k: int,
        tag: int,
        X: NDArray[np.float32],
        labels: NDArray[np.int8],
        sample_weight: NDArray[np.float64] | None,
    ) -> None:
        """Fit one tag at C[k] on its known labels, and fill its cell of the tables."""
        C = float(fits.C[k])
        known = labels >= 0
        x = X if known.all() else X[known]
        y = labels[known]
        weight = None if sample_weight is None else sample_weight[known]
        model = self.estimator(C=C, tol=TOLERANCE, max_iter=MAX_ITER)
        model.fit(x, y.astype(np.float32), sample_weight=weight)
        w = np.asarray(model.coef_, np.float64).reshape(-1)
        b = float(np.asarray(model.intercept_).reshape(-1)[0])
        steps = int(np.max(model.n_iter_))
        u = x @ w + b
        loss = np.logaddexp(0, u) - y * u
        fits.weight[k, tag] = w
        fits.bias[k, tag] = b
        fits.objective[k, tag] = 0.5 * w @ w + C * (loss if weight is None else loss * weight).sum()
        fits.iterations[k, tag] = steps
        converged = np.array([steps < MAX_ITER])
        separated = np.array([((u > 0) == y).all()])
        fits.status[k, tag] = statuses(converged, separated, fewest(y[:, None]))[0]


def sklearn_solver() -> OneTagSolver:
    """scikit-learn's `LogisticRegression(solver="lbfgs")`."""
    from sklearn.linear_model import LogisticRegression

    return OneTagSolver(LogisticRegression)


def cuml_solver() -> OneTagSolver:
    """Solver by cuML's `LogisticRegression`; raises `Unavailable` without it or a CUDA device."""
    estimator = _cuml_logistic_regression()
    # penalty_normalized=False gives C the meaning it has in scikit-learn: a penalty that is not
    # divided by the number of images.
    return OneTagSolver(partial(estimator, penalty_normalized=False, output_type="numpy"))


def _cuml_logistic_regression() -> Any:
    """Estimator class of cuML; a device is looked for first, the import takes seconds."""
    import torch

    if not torch.cuda.is_available():
        raise Unavailable("--solver cuml needs a CUDA device and found none; use --solver torch.")
    try:
        from cuml.linear_model import LogisticRegression
    except ImportError:
        raise Unavailable(
            "--solver cuml needs cuML; install it with: pip install 'retailtag[gpu]'."
        ) from None
    return LogisticRegression
