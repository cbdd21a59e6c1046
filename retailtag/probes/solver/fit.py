"""The way in to the solvers: features, labels and strengths in, linear heads out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from retailtag.errors import DataError, UsageError
from retailtag.probes.solver.fits import ProbeFits
from retailtag.probes.solver.interface import Solver
from retailtag.ranks import ALONE, Ranks

ROWS_CHECKED_AT_ONCE = 8192
SOLVERS = ("torch", "cuml", "sklearn")


def make_solver(name: str = "torch", device: str = "cpu", ranks: Ranks = ALONE) -> Solver:
    """Solver by name; `UsageError` if it is none of `SOLVERS`, or cannot divide the images."""
    if name in SOLVERS and name != "torch" and ranks.size > 1:
        raise UsageError(f"--solver {name} fits in one process; use torch.")
    if name == "torch":
        from retailtag.probes.solver.torch_solver import TorchSolver

        return TorchSolver(device, ranks=ranks)
    if name in SOLVERS:
        from retailtag.probes.solver.library_solvers import cuml_solver, sklearn_solver

        return cuml_solver() if name == "cuml" else sklearn_solver()
    raise UsageError(f"--solver {name} is unknown; use one of {', '.join(SOLVERS)}.")


def fit_probes(
    X: ArrayLike,
    Y: ArrayLike,
    C_grid: Sequence[float],
    *,
    sample_weight: ArrayLike | None = None,
    solver: str = "torch",
    device: str = "cpu",
    ranks: Ranks = ALONE,
) -> ProbeFits:
    """Fit one L2 logistic regression per (C, tag), on features as they are.

    Minimises ½‖w‖² + C·Σ_i m_i·log(1 + exp(-s_i(w·x_i + b))) with s_i = ±1 and m_i the weight of
    the image, as ``sklearn.linear_model.LogisticRegression`` does; the intercept b is not
    penalised.

    Parameters
    ----------
    X : array of shape (n_images, dim)
        Finite features, best standardised; a float32 memory map is read in blocks.
    Y : array of shape (n_images, n_tags)
        1 present, 0 absent, -1 not annotated (left out for that tag).
    C_grid : sequence of float
        Inverse L2 strengths, positive; solved in ascending order.
    sample_weight : array of shape (n_images,), optional
        Weights of the images, not negative; 0 leaves one out.
    solver : {"torch", "cuml", "sklearn"}
    device : {"cpu", "cuda"}
        For the torch solver.
    ranks : Ranks
        Processes that have the rows of some images each (torch solver); all get the same fits.

    Raises
    ------
    DataError
        If shapes disagree, a feature is not finite or a label is not 1, 0 or -1.
    UsageError
        If a C is not positive or the solver is unknown.
    Unavailable
        If the solver's library or device is missing.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> X = rng.standard_normal((200, 3))
    >>> fits = fit_probes(X, X[:, :2] > 0.5, C_grid=[0.1, 1.0])
    >>> fits.weight.shape, fits.status.tolist()
    ((2, 2, 3), [['converged', 'converged'], ['converged', 'converged']])
    """
    features = np.asarray(X)
    if features.dtype != np.float32:
        features = features.astype(np.float32)
    labels = np.asarray(Y).astype(np.int8)
    C = np.unique(np.asarray(C_grid, np.float64))
    _check(features, labels, C)
    if not ranks.are_same(f"{features.shape[1]} {labels.shape[1]} {C.tolist()}"):
        raise DataError(
            "The processes gave features, tags or strengths that differ in number; give each some "
            "rows of the same arrays."
        )
    weights = None if sample_weight is None else _weights(sample_weight, len(features))
    return make_solver(solver, device, ranks)(features, labels, C, sample_weight=weights)


def _check(X: NDArray[np.float32], Y: NDArray[np.int8], C: NDArray[np.float64]) -> None:
    if X.ndim != 2 or Y.ndim != 2 or len(X) != len(Y):
        raise DataError(
            f"X {X.shape} and Y {Y.shape} must be (n_images, dim) and (n_images, n_tags)."
        )
    for start in range(0, len(X), ROWS_CHECKED_AT_ONCE):
        bad = ~np.isfinite(X[start : start + ROWS_CHECKED_AT_ONCE]).all(axis=1)
        if bad.any():
            row = start + int(np.flatnonzero(bad)[0])
            raise DataError(f"Row {row} of X holds NaN or infinity; extract that image again.")
    if not np.isin(np.unique(Y), (-1, 0, 1)).all():
        raise DataError("Labels must be 1 (present), 0 (absent) or -1 (not annotated).")
    if not (len(C) and np.isfinite(C).all() and (C > 0).all()):
        raise UsageError("Every C must be a positive number.")


def _weights(given: ArrayLike, n: int) -> NDArray[np.float64]:
    """Weights as float64 (n,), checked."""
    weights = np.asarray(given, np.float64)
    if weights.shape != (n,) or not np.isfinite(weights).all() or (weights < 0).any():
        raise DataError(f"sample_weight must hold {n} finite numbers, 0 or more.")
    return weights
