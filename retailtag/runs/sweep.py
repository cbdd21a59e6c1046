"""The sweep of a probe run: every scaling and C out of fold, and what is chosen of them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import retailtag
from retailtag.catalog.catalog import Catalog
from retailtag.catalog.folds import k_folds
from retailtag.probes.checkpoints import SweepCheckpoints
from retailtag.probes.choice import choose_candidate
from retailtag.probes.grid import parse_grid
from retailtag.probes.heads.head import Head
from retailtag.probes.heads.knn import KnnHead
from retailtag.probes.heads.ridge import RidgeHead
from retailtag.probes.heads.text_prior import TextPriorHead
from retailtag.probes.scaling import Scaled, Scaler
from retailtag.probes.solver.interface import Solver
from retailtag.probes.sweep import Pooled, Sweep, Sweeper, out_of_fold, sweep_rows
from retailtag.progress import SILENT, Progress
from retailtag.runs.heads import ScoredHead
from retailtag.scoring.metrics import average_precision_per_tag

BLOCKS = "sweep"  # folder of the finished blocks of a run that is not finished


@dataclass(frozen=True, eq=False)
class Chosen:
    """The sweep of the chosen scaling, and what every scaling gave.

    Parameters
    ----------
    sweep : Sweep
    index : ndarray of int, shape (n_tags,)
        Into the grid of `sweep`.
    macro_ap : dict of str to float or None
        Out-of-fold macro-AP of each scaling at its chosen C, in the order asked for; None where
        no tag has a positive.
    table : dict of str to ndarray
        Columns of the sweep table, one row a fitted (scaling, fold, C, tag).
    resumed_seconds : float
        Time that blocks taken over from an interrupted run had cost.
    heads : tuple of ScoredHead
        Logistic regression under the chosen scaling first, then the others asked for.
    """

    sweep: Sweep
    index: NDArray[np.intp]
    macro_ap: dict[str, float | None]
    table: dict[str, NDArray[Any]]
    resumed_seconds: float
    heads: tuple[ScoredHead, ...]

    @property
    def C(self) -> NDArray[np.float64]:
        """Chosen strength of each tag, (n_tags,)."""
        return self.sweep.C[self.index]

    @property
    def n_fits(self) -> int:
        """Fits of the whole sweep."""
        return len(self.table["C"])


def sweep_and_choose(
    catalog: Catalog,
    rows: NDArray[np.intp],
    X: NDArray[np.float32],
    blocks: SweepCheckpoints | None,
    *,
    grid: str,
    scales: tuple[str, ...],
    choose: str,
    folds: int,
    seed: int,
    solver: Solver,
    heads: tuple[str, ...] = ("logistic",),
    texts: NDArray[np.float32] | None = None,
    device: str = "cpu",
    progress: Progress = SILENT,
) -> Chosen:
    """Sweep C under every scaling, and choose C, then the scaling by out-of-fold macro-AP.

    Parameters
    ----------
    catalog : Catalog
    rows : ndarray of int, shape (n,)
        Training images.
    X : ndarray of float32, shape (n, dim)
        Their raw embeddings.
    blocks : SweepCheckpoints or None
        Where finished blocks are kept.
    grid, choose, folds, seed
        As in `retailtag.runs.probe.ProbeSettings`.
    scales : tuple of str
        Of equal macro-AP the earlier is taken.
    solver : Solver
    heads : tuple of str
        ``logistic``, then what is to compete with it; ``text`` is skipped without `texts`, or
        without standardised embeddings among `scales`, whose strengths it takes.
    texts : ndarray of float32, shape (n_tags, dim), optional
        Directions of the tags' names; see `retailtag.probes.heads.text_prior.text_embeddings`.
    device : str
        Where neighbours are searched.
    progress : Progress
    """
    labels, group, tags = catalog.table.labels[rows], catalog.table.group, catalog.table.tags
    fold = k_folds(labels, catalog.group[rows], catalog.image_ids[rows], folds, seed)
    sweeper = Sweeper(X, labels, fold, solver, average_precision_per_tag, blocks, progress)
    positives = (labels == 1).sum(axis=0)
    found: list[tuple[Sweep, ScoredHead]] = []
    for scale in scales:
        sweep = sweeper.widened(sweeper.sweep(parse_grid(grid), scale), group, choose)
        index = choose_candidate(sweep.ap, group, choose, positives)
        found.append((sweep, _logistic(sweep, index)))
    reached = {sweep.scale: head.macro_ap for sweep, head in found}
    tables = [sweep_rows(sweep, tags, group) for sweep, _ in found]
    sweep, head = max(found, key=lambda pair: pair[1].rank)
    others = []
    rivals: dict[str, Head] = {"ridge": RidgeHead(), "knn": KnnHead(device=device)}
    standardised = next((s for s, _ in found if s.scale == "standardise"), None)
    if texts is not None and standardised is not None:
        C = strengths_around(standardised.C, standardised.ap, group, choose)
        rivals["text"] = TextPriorHead(texts, C, solver)
    for other in (rivals[name] for name in heads if name in rivals):
        pooled, ap = out_of_fold(other, X, labels, fold, average_precision_per_tag, progress)
        index = choose_candidate(ap, group, choose, positives)
        others.append(ScoredHead(other.name, other.candidates, ap, pooled, index, other))
    return Chosen(
        sweep=sweep,
        index=head.index,
        macro_ap=reached,
        table={name: np.concatenate([t[name] for t in tables]) for name in tables[0]},
        resumed_seconds=sum(fold.resumed_seconds for s, _ in found for fold in s.fits),
        heads=(head, *others),
    )


def strengths_around(
    C: NDArray[np.float64],
    ap: NDArray[np.float64],
    group: NDArray[np.str_],
    choose: str = "per-group",
) -> NDArray[np.float64]:
    """Strengths that the groups choose (or all tags, for ``global``) and the next either side.

    Per tag the choices would be too many: those of the groups stand for them.
    """
    chosen = choose_candidate(ap, group, "global" if choose == "global" else "per-group")
    near = np.unique(chosen + np.array([[-1], [0], [1]]))
    return C[near[(near >= 0) & (near < len(C))]]


def _logistic(sweep: Sweep, index: NDArray[np.intp]) -> ScoredHead:
    settings = tuple(f"C={c:.3g}" for c in sweep.C)
    pooled = Pooled(sweep.X, sweep.fold, sweep.fits)
    return ScoredHead("logistic", settings, sweep.ap, pooled, index)


def checkpoint_key(inputs: dict[str, Any], grid: str, **more: Any) -> str:
    """Digest of everything that the fits of a sweep depend on.

    `inputs` are those of the stage without what is decided after the fits; `more` is the rest.
    """
    stated = {**inputs, "grid": parse_grid(grid).tolist(), "version": retailtag.__version__, **more}
    return hashlib.sha256(json.dumps(stated, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, eq=False)
class FittedHead:
    """A logistic head of each tag at its own strength, fitted to all images given.

    Parameters
    ----------
    scaler : Scaler
    weight : ndarray of float32, shape (n_tags, dim)
        On scaled features.
    bias : ndarray of float32, shape (n_tags,)
    status : ndarray of str, shape (n_tags,)
        How each fit went.
    """

    scaler: Scaler
    weight: NDArray[np.float32]
    bias: NDArray[np.float32]
    status: NDArray[np.str_]

    def raw(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Weight and bias on raw embeddings, or on their unit rows; see `Scaler.unscale`."""
        return self.scaler.unscale(self.weight, self.bias)


def fit_at(
    X: NDArray[np.float32],
    Y: NDArray[np.int8],
    C: NDArray[np.float64],
    solver: Solver,
    scale: str = "standardise",
) -> FittedHead:
    """Fit tags Y (n_images, n_tags) on raw embeddings X (n_images, dim) at C (n_tags,) of each."""
    scaler = Scaler.fit(X, scale)
    grid, index = np.unique(C, return_inverse=True)
    fits = solver(Scaled(X, scaler=scaler), Y, grid)
    tag = np.arange(Y.shape[1])
    return FittedHead(
        scaler, fits.weight[index, tag], fits.bias[index, tag], fits.status[index, tag]
    )


def run_checkpoints(out: Path, key: str) -> SweepCheckpoints:
    """Where a run keeps its finished blocks."""
    return SweepCheckpoints(out / BLOCKS, key)
