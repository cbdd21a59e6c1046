"""The sweep of a probe run: every scaling and C out of fold, and what is chosen of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retailtag.catalog.folds import k_folds
from retailtag.context import RunContext
from retailtag.probes.checkpoints import Checkpoints
from retailtag.probes.choice import choose_candidate, informative
from retailtag.probes.grid import parse_grid
from retailtag.probes.heads.head import Head
from retailtag.probes.heads.knn import KnnHead
from retailtag.probes.heads.repeated import distinct_columns
from retailtag.probes.heads.ridge import RidgeHead
from retailtag.probes.heads.text_prior import TextPriorHead
from retailtag.probes.scaling import Scaled, Scaler, parse_scales
from retailtag.probes.solver.fit import make_solver
from retailtag.probes.solver.interface import Solver
from retailtag.probes.sweep import Sweep, Sweeper, out_of_fold, sweep_rows
from retailtag.runs.heads import ScoredHead, competing
from retailtag.scoring.metrics import average_precision_per_tag, macro
from retailtag.settings import ProbeSettings
from retailtag.statistics.one_standard_error import first_within


@dataclass(frozen=True, eq=False)
class Chosen:
    """The sweep of the chosen scaling, and what every scaling gave."""

    sweep: Sweep
    index: NDArray[np.intp]  # (n_tags,), into the grid of `sweep`
    # Out of fold, of each scaling at its chosen C; None if no tag has a positive.
    macro_ap: dict[str, float | None]
    table: dict[str, NDArray[Any]]  # columns; one row per fitted (scaling, fold, C, tag)
    resumed_seconds: float  # that fits reused from an interrupted run had cost
    heads: tuple[ScoredHead, ...]  # logistic regression under the chosen scaling first

    @property
    def C(self) -> NDArray[np.float64]:
        """Chosen strength of each tag, (n_tags,)."""
        return self.sweep.C[self.index]

    @property
    def n_fits(self) -> int:
        """Fits of the whole sweep."""
        return len(self.table["C"])


def sweep_and_choose(
    context: RunContext,
    rows: NDArray[np.intp],
    X: NDArray[np.float32],
    settings: ProbeSettings,
    *,
    checkpoints: Checkpoints | None = None,
    texts: NDArray[np.float32] | None = None,
) -> Chosen:
    """Sweep C under every scaling, and choose C, then the scaling by out-of-fold macro-AP.

    `rows` (n,) are the training images, X float32 (n, dim) their raw embeddings. Of scalings
    whose macro-AP is equal within the resolution of `retailtag.statistics.one_standard_error` the
    earlier in `settings` is taken. Finished paths of the solver are stored in `checkpoints`. Head
    ``text`` is skipped without `texts` (n_tags, dim), the directions of the
    tags' names (see `retailtag.probes.heads.text_prior.text_embeddings`), or without standardised
    embeddings among the scalings, whose strengths it takes.
    """
    catalog = context.catalog
    labels = catalog.table.labels[rows]
    fold = k_folds(
        labels, catalog.group[rows], catalog.image_ids[rows], settings.folds, settings.seed
    )
    solver = make_solver(settings.solver, context.device)
    sweeper = Sweeper(
        X, labels, fold, solver, average_precision_per_tag, checkpoints, context.progress
    )
    group = catalog.table.group
    choose = settings.choose_C
    positives = (labels == 1).sum(axis=0)
    found: list[tuple[Sweep, ScoredHead]] = []
    for scale in parse_scales(settings.scale):
        # Strengths are added where a group chooses an end of the grid, so that none is cut off.
        first = sweeper.sweep(parse_grid(settings.sweep_C), scale)
        sweep = sweeper.widened(first, group, choose)
        index = choose_candidate(sweep.evidence, group, choose, positives)
        names = tuple(f"C={c:.3g}" for c in sweep.C)
        found.append((sweep, ScoredHead("logistic", names, sweep.ap, sweep, index)))
    tables = [sweep_rows(sweep, catalog.table.tags, group) for sweep, _ in found]
    tells = informative(labels, fold)
    macro_ap = np.array([macro(head.ap, tells & np.isfinite(head.ap)) for _, head in found])
    sweep, head = found[int(first_within(np.nan_to_num(macro_ap), np.zeros(len(found))))]
    others = []
    for other in _rivals(settings, found, group, solver, context.device, texts, len(rows)):
        pooled, ap = out_of_fold(
            other, X, labels, fold, average_precision_per_tag, context.progress
        )
        index = choose_candidate(np.where(tells, ap, np.nan), group, choose, positives)
        others.append(ScoredHead(other.name, other.candidates, ap, pooled, index, other))
    return Chosen(
        sweep=sweep,
        index=head.index,
        macro_ap={sweep.scale: head.macro_ap for sweep, head in found},
        table={name: np.concatenate([t[name] for t in tables]) for name in tables[0]},
        resumed_seconds=sum(
            fold.distinct.resumed_seconds for sweep, _ in found for fold in sweep.fits
        ),
        heads=(head, *others),
    )


def _rivals(
    settings: ProbeSettings,
    found: list[tuple[Sweep, ScoredHead]],
    group: NDArray[np.str_],
    solver: Solver,
    device: str,
    texts: NDArray[np.float32] | None,
    n_images: int,
) -> list[Head]:
    """The heads that compete with logistic regression, in the order asked for."""
    rivals: dict[str, Head] = {"ridge": RidgeHead(), "knn": KnnHead(device=device)}
    standardised = next((sweep for sweep, _ in found if sweep.scale == "standardise"), None)
    if texts is not None and standardised is not None:
        C = strengths_around(standardised.C, standardised.evidence, group, settings.choose_C)
        rivals["text"] = TextPriorHead(texts, C, solver)
    return [
        rivals[name] for name in competing(settings.heads, n_images, len(group)) if name in rivals
    ]


def strengths_around(
    C: NDArray[np.float64],
    ap: NDArray[np.float64],
    group: NDArray[np.str_],
    choose: str = "per-group",
) -> NDArray[np.float64]:
    """Strengths that the groups choose (or all tags, for ``global``) and the next either side."""
    # Per tag the choices would be too many: those of the groups stand for them.
    chosen = choose_candidate(ap, group, "global" if choose == "global" else "per-group")
    near = np.unique(chosen + np.array([[-1], [0], [1]]))
    return C[near[(near >= 0) & (near < len(C))]]


@dataclass(frozen=True, eq=False)
class FittedHead:
    """A logistic head of each tag at its own strength, fitted to all images given."""

    scaler: Scaler
    weight: NDArray[np.float32]  # (n_tags, dim), on scaled features
    bias: NDArray[np.float32]  # (n_tags,)
    status: NDArray[np.str_]  # (n_tags,), how each fit went

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
    # One warm-started path over the distinct strengths; each tag then takes its own.
    grid, index = np.unique(C, return_inverse=True)
    first, tag = distinct_columns(Y)
    fits = solver(Scaled(X, scaler=scaler), Y[:, first], grid)
    return FittedHead(
        scaler=scaler,
        weight=fits.weight[index, tag],
        bias=fits.bias[index, tag],
        status=fits.status[index, tag],
    )
