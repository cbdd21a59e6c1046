"""The sweep: every candidate of a head scored on images that it was not fitted on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retailtag.neighbours import FeatureRows
from retailtag.probes.checkpoints import Checkpoints
from retailtag.probes.choice import deciding_choices, informative
from retailtag.probes.grid import beyond
from retailtag.probes.heads.head import Head, HeadFits
from retailtag.probes.heads.logistic import LogisticHead
from retailtag.probes.heads.repeated import FoldFits, distinct_columns
from retailtag.probes.scaling import Scaled, row_blocks
from retailtag.probes.solver.interface import Solver
from retailtag.progress import SILENT, Progress
from retailtag.statistics.one_standard_error import Choice

MAX_WIDENINGS = 3  # of a grid whose end was chosen

AveragePrecision = Callable[[NDArray[np.float32], NDArray[np.int8]], NDArray[np.float64]]
Fold = NDArray[np.intp]


@dataclass(frozen=True, eq=False)
class Pooled:
    """Fits of every fold, and the scores they give to the images they did not see."""

    X: FeatureRows  # (n_images, dim), raw features of the training images
    fold: Fold  # (n_images,)
    fits: Sequence[HeadFits]  # (n_folds,), on the images outside each fold

    def logits(self, choice: int | NDArray[np.intp]) -> NDArray[np.float32]:
        """Out-of-fold logits (n_images, n_tags) at candidate `choice`, one or per tag."""
        pooled: NDArray[np.float32] | None = None
        for k, fits in enumerate(self.fits):
            rows = np.flatnonzero(self.fold == k)
            inside = Scaled(self.X, rows)
            for block in row_blocks(len(rows)):
                scores = fits.scores(inside[block], choice)
                if pooled is None:
                    pooled = np.empty((len(self.fold), scores.shape[1]), np.float32)
                pooled[rows[block]] = scores
        assert pooled is not None  # there are folds, and no fold is empty
        return pooled

    def average_precision(
        self, Y: NDArray[np.int8], candidates: Sequence[int], score: AveragePrecision
    ) -> NDArray[np.float64]:
        """AP (len(candidates), n_tags), with the logits of one candidate at a time in memory."""
        return np.array([score(self.logits(c), Y) for c in candidates]).reshape(-1, Y.shape[1])


def out_of_fold(
    head: Head,
    X: FeatureRows,
    Y: NDArray[np.int8],
    fold: Fold,
    average_precision: AveragePrecision,
    progress: Progress = SILENT,
) -> tuple[Pooled, NDArray[np.float64]]:
    """Fits of a head outside every fold, and the out-of-fold AP (n_candidates, n_tags) of each."""
    n_folds = int(fold.max()) + 1
    n = len(head.candidates)
    fits = []
    with progress.task(f"sweep {head.name}", n_folds * n * Y.shape[1], "fits") as advance:
        for k in range(n_folds):
            outside = np.flatnonzero(fold != k)
            fits.append(head.fit(Scaled(X, outside), Y[outside], advance))
    pooled = Pooled(X, fold, fits)
    return pooled, pooled.average_precision(Y, range(n), average_precision)


@dataclass(frozen=True, eq=False)
class Sweep(Pooled):
    """Logistic fits of every fold and C under one scaling, and the AP that each C reaches."""

    fits: tuple[FoldFits, ...]
    scale: str
    ap: NDArray[np.float64]  # (n_C, n_tags), of the pooled logits; NaN for a tag without positives
    asked: NDArray[np.float64]  # the grid before it was widened
    informative: NDArray[np.bool_]  # (n_tags,), tags whose AP may choose; see `choice.informative`

    @property
    def evidence(self) -> NDArray[np.float64]:
        """AP to choose C by, (n_C, n_tags): NaN for a tag that is not informative."""
        return np.where(self.informative, self.ap, np.nan)

    @property
    def C(self) -> NDArray[np.float64]:
        """The grid that was fitted, ascending, (n_C,)."""
        return self.fits[0].distinct.fits.C

    @property
    def status(self) -> NDArray[np.str_]:
        """How each fit went, (n_folds, n_C, n_tags)."""
        return np.stack([fold.cells("status") for fold in self.fits])


@dataclass(frozen=True, eq=False)
class Sweeper:
    """Fits and scores grids of C on the folds of one training set."""

    X: FeatureRows  # raw features (n_images, dim) of any float type; a memory map too
    Y: NDArray[np.int8]  # labels (n_images, n_tags)
    fold: Fold  # (n_images,) of 0 .. n_folds - 1, none empty; products must not be divided
    solver: Solver
    average_precision: AveragePrecision  # of logits and labels: (n_tags,), NaN where undefined
    checkpoints: Checkpoints | None = None  # where finished paths are stored, and taken from
    progress: Progress = SILENT

    def sweep(self, C: NDArray[np.float64], scale: str = "standardise") -> Sweep:
        """Fit every (tag, C) outside each fold and score it on the fold; C ascending, (n_C,)."""
        n_folds = int(self.fold.max()) + 1
        no_ap = np.empty((0, self.Y.shape[1]))
        tells = informative(self.Y, self.fold)
        start = Sweep(self.X, self.fold, (), scale, no_ap, C, tells)
        return self._extended(start, C, (None,) * n_folds)

    def widened(self, sweep: Sweep, group: NDArray[np.str_], rule: str) -> Sweep:
        """Extend a grid while a group of tags chooses its end, at most `MAX_WIDENINGS` times.

        `group` and `rule` say how C will be chosen, as in `choose_candidate`.
        """
        for _ in range(MAX_WIDENINGS):
            C = sweep.C
            choices = deciding_choices(sweep.evidence, group, rule).values()
            below = beyond(C, above=False) if any(at_lower_end(c) for c in choices) else C[:0]
            above = beyond(C, above=True) if any(at_upper_end(c) for c in choices) else C[:0]
            wider = np.concatenate([below, C, above])
            if len(wider) == len(C):
                break
            sweep = self._extended(sweep, wider, sweep.fits)
        return sweep

    def _extended(
        self, sweep: Sweep, C: NDArray[np.float64], before: tuple[FoldFits | None, ...]
    ) -> Sweep:
        """Fit and score the strengths of C that `sweep` lacks."""
        # No fold starts from a solution that has seen its images: a fit that stops at a tolerance
        # remembers its start, and rare tags would look better than they are.
        n_tags = self.Y.shape[1]
        fits = []
        name = f"sweep {sweep.scale}"
        with self.progress.task(name, len(before) * len(C) * n_tags, "fits") as advance:
            for k, known in enumerate(before):
                outside = np.flatnonzero(self.fold != k)
                stored = self.checkpoints.of(sweep.scale, k) if self.checkpoints else None
                head = LogisticHead(C, self.solver, sweep.scale, stored)
                view = Scaled(self.X, outside)
                first, of_tag = distinct_columns(self.Y[outside])
                labels = self.Y[np.ix_(outside, first)]
                found = head.fit(view, labels, advance, known.distinct if known else None)
                advance((n_tags - len(first)) * len(C))
                fits.append(FoldFits(found, of_tag))
        pooled = Pooled(self.X, self.fold, fits)
        ap = np.empty((len(C), n_tags))
        old = np.isin(C, sweep.C) if sweep.fits else np.zeros(len(C), bool)
        new = np.flatnonzero(~old)
        ap[old] = sweep.ap
        ap[new] = pooled.average_precision(self.Y, new.tolist(), self.average_precision)
        return replace(sweep, fits=tuple(fits), ap=ap)


def at_upper_end(choice: Choice) -> bool:
    """Whether the largest C alone is within the tolerance of the best."""
    return choice.chosen == len(choice.mean) - 1


def at_lower_end(choice: Choice) -> bool:
    """Whether the smallest C alone is within the tolerance of the best."""
    # Being within it does not count: still smaller values would be so too, for the order of the
    # scores hardly changes as C goes to 0.
    return choice.chosen == 0 and not choice.within[1:].any()


def sweep_rows(
    sweep: Sweep, tags: tuple[str, ...], group: NDArray[np.str_]
) -> dict[str, NDArray[Any]]:
    """Columns of the sweep table, one row per fitted (fold, C, tag)."""
    shape = (len(sweep.fits), *sweep.ap.shape)  # (n_folds, n_C, n_tags)

    def spread(values: NDArray[Any]) -> NDArray[Any]:
        return np.broadcast_to(values, shape).ravel()

    def stacked(name: str) -> NDArray[Any]:
        return np.stack([fold.cells(name) for fold in sweep.fits]).ravel()

    return {
        "tag": spread(np.array(tags)),
        "group": spread(group),
        "scale": spread(np.array(sweep.scale)),
        "C": spread(sweep.C[:, None]),
        "fold": spread(np.arange(shape[0])[:, None, None]),
        "objective": stacked("objective"),
        "gap": stacked("gap"),
        "iterations": stacked("iterations"),
        "status": stacked("status"),
        "out_of_fold_ap": spread(sweep.ap),
    }
