"""The sweep: out-of-fold scores of every C, and the choice of C that they support."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retailtag.errors import UsageError
from retailtag.probes.fits import STATUS_REMEDY, ProbeFits, Solver
from retailtag.probes.scaling import Standardiser
from retailtag.progress import SILENT, Progress

DEFAULT_GRID = "1e-5:10:13"
CHOICES = ("per-group", "global")

AveragePrecision = Callable[[NDArray[np.float32], NDArray[np.int8]], NDArray[np.float64]]


def parse_grid(text: str) -> NDArray[np.float64]:
    """Strengths from ``START:STOP:N`` (logarithmically spaced) or a comma-separated list.

    Raises
    ------
    UsageError
        If the text is neither, or a value is not positive.

    Examples
    --------
    >>> parse_grid("0.01:100:3").tolist()
    [0.01, 1.0, 100.0]
    >>> parse_grid("1,0.1").tolist()
    [0.1, 1.0]
    """
    remedy = f"--sweep-C {text} is no grid; write START:STOP:N such as {DEFAULT_GRID}, or a list."
    try:
        if ":" in text:
            start, stop, n = text.split(":")
            grid = np.geomspace(float(start), float(stop), int(n))
        else:
            grid = np.unique([float(part) for part in text.split(",")])
    except ValueError:
        raise UsageError(remedy) from None
    if not (len(grid) and np.isfinite(grid).all() and (grid > 0).all()):
        raise UsageError(remedy)
    return np.sort(grid)


@dataclass(frozen=True, eq=False)
class OutOfFold:
    """Fits of every fold, and the score that each C earns on images it was not fitted on.

    Parameters
    ----------
    X : ndarray of float32, shape (n_images, dim)
        Raw features of the training images.
    fold : ndarray of int, shape (n_images,)
    scalers : tuple of Standardiser, length n_folds
        Learned on the images outside each fold.
    fits : tuple of ProbeFits, length n_folds
        Fitted on the images outside each fold, standardised.
    ap : ndarray of float64, shape (n_C, n_tags)
        Average precision of the pooled out-of-fold logits; NaN for a tag without positives.
    """

    X: NDArray[np.float32]
    fold: NDArray[np.intp]
    scalers: tuple[Standardiser, ...]
    fits: tuple[ProbeFits, ...]
    ap: NDArray[np.float64]

    @property
    def C(self) -> NDArray[np.float64]:
        """The grid, ascending, (n_C,)."""
        return self.fits[0].C

    def logits(self, choice: int | NDArray[np.intp]) -> NDArray[np.float32]:
        """Pooled out-of-fold logits (n_images, n_tags) at grid index `choice`, one or per tag."""
        return _pooled_logits(self.X, self.fold, self.scalers, self.fits, choice)


def sweep_out_of_fold(
    X: NDArray[np.float32],
    Y: NDArray[np.int8],
    fold: NDArray[np.intp],
    C: NDArray[np.float64],
    solver: Solver,
    average_precision: AveragePrecision,
    progress: Progress = SILENT,
) -> OutOfFold:
    """Fit every (tag, C) on each fold's complement and score it on the fold.

    Parameters
    ----------
    X : ndarray of float32, shape (n_images, dim)
    Y : ndarray of int8, shape (n_images, n_tags)
    fold : ndarray of int, shape (n_images,)
        0 .. n_folds - 1; products must not be divided.
    C : ndarray of float64, shape (n_C,)
        Ascending.
    solver : Solver
    average_precision : callable
        ``(logits, labels) -> (n_tags,)``, NaN where undefined.
    progress : Progress

    Returns
    -------
    OutOfFold

    Notes
    -----
    No fold starts from a solution that has seen its images: a fit that stops at a tolerance would
    remember them, and rare tags would look better than they are.
    """
    scalers, fits = [], []
    n_folds = int(fold.max()) + 1
    with progress.task("sweep", n_folds * len(C) * Y.shape[1], "fits") as advance:
        for k in range(n_folds):
            outside = fold != k
            scalers.append(Standardiser.fit(X[outside]))
            fits.append(solver(scalers[-1].transform(X[outside]), Y[outside], C, advance))
    ap = np.stack(
        [average_precision(_pooled_logits(X, fold, scalers, fits, c), Y) for c in range(len(C))]
    )
    return OutOfFold(X, fold, tuple(scalers), tuple(fits), ap)


def _pooled_logits(
    X: NDArray[np.float32],
    fold: NDArray[np.intp],
    scalers: Any,
    fits: Any,
    choice: int | NDArray[np.intp],
) -> NDArray[np.float32]:
    pooled = np.empty((len(X), fits[0].bias.shape[1]), np.float32)
    for k, (scaler, fit) in enumerate(zip(scalers, fits, strict=True)):
        inside = fold == k
        pooled[inside] = fit.logits(scaler.transform(X[inside]), choice)
    return pooled


def choose_C(
    ap: NDArray[np.float64], group: NDArray[np.str_], rule: str = "per-group"
) -> NDArray[np.intp]:
    """Grid index of each tag, by the mean out-of-fold AP of its frequency group or of all tags.

    Parameters
    ----------
    ap : ndarray of float64, shape (n_C, n_tags)
        NaN for tags that have no score.
    group : ndarray of str, shape (n_tags,)
    rule : {"per-group", "global"}

    Returns
    -------
    ndarray of int, shape (n_tags,)
        Of equal means the smaller C; a group without any score takes the choice of all tags.

    Raises
    ------
    UsageError
        If the rule is unknown.
    """
    if rule not in CHOICES:
        raise UsageError(f"--choose-C {rule} is unknown; use one of {', '.join(CHOICES)}.")
    scored = np.isfinite(ap).all(axis=0)
    choice = np.zeros(ap.shape[1], np.intp)
    if scored.any():
        choice[:] = int(np.argmax(ap[:, scored].mean(axis=1)))
    for name in np.unique(group) if rule == "per-group" else ():
        members = (group == name) & scored
        if members.any():
            choice[group == name] = int(np.argmax(ap[:, members].mean(axis=1)))
    return choice


def sweep_rows(
    sweep: OutOfFold, tags: tuple[str, ...], group: NDArray[np.str_]
) -> dict[str, NDArray[Any]]:
    """Columns of the sweep table, one row a (fold, C, tag); arrays of n_folds·n_C·n_tags."""
    n_folds, (n_C, n_tags) = len(sweep.fits), sweep.ap.shape
    shape = (n_folds, n_C, n_tags)

    def spread(values: NDArray[Any], axis: int) -> NDArray[Any]:
        view = [1, 1, 1]
        view[axis] = -1
        return np.broadcast_to(values.reshape(view), shape).ravel()

    def stacked(name: str) -> NDArray[Any]:
        return np.stack([getattr(fit, name) for fit in sweep.fits]).ravel()

    return {
        "tag": spread(np.array(tags), 2),
        "group": spread(group, 2),
        "C": spread(sweep.C, 1),
        "fold": spread(np.arange(n_folds), 0),
        "objective": stacked("objective"),
        "gap": stacked("gap"),
        "iterations": stacked("iterations"),
        "status": stacked("status"),
        "out_of_fold_ap": np.broadcast_to(sweep.ap, shape).ravel(),
    }


def sweep_findings(
    sweep: OutOfFold, choice: NDArray[np.intp], group: NDArray[np.str_]
) -> list[tuple[str, str, str]]:
    """Findings about a choice at the grid's edge and about fits that did not converge.

    Returns
    -------
    list of (code, sentence, remedy)
    """
    found = []
    edge = {0: "smallest", len(sweep.C) - 1: "largest"}
    for name in np.unique(group):
        k = int(choice[group == name][0])
        if k in edge and len(sweep.C) > 1:
            sentence = f"The best C of {name} tags is the {edge[k]} of the grid ({sweep.C[k]:g})."
            found.append(("grid-edge", sentence, "Widen the grid with --sweep-C."))
    status = np.stack([fit.status for fit in sweep.fits])
    for name, remedy in STATUS_REMEDY.items():
        n = int((status == name).sum())
        if n:
            sentence = f"{n:,} of {status.size:,} fits ended with status '{name}'."
            found.append((name.replace(" ", "-"), sentence, remedy))
    return found
