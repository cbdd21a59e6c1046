"""Logistic regression over a grid of C as one head of the sweep."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retailtag.neighbours import FeatureRows
from retailtag.probes.checkpoints import Checkpoints, at_strength, joined, missing_runs
from retailtag.probes.scaling import Scaled, Scaler
from retailtag.probes.solver.fits import ProbeFits
from retailtag.probes.solver.interface import Solver
from retailtag.progress import Advance, nobody


@dataclass(frozen=True, eq=False)
class LogisticFits:
    """Fits of every (C, tag) on one set of training images, with the scaling they want."""

    scaler: Scaler  # learned on those images
    fits: ProbeFits  # on scaled features
    resumed_seconds: float = 0.0  # that the fits taken from checkpoints had cost

    def scores(
        self, X: NDArray[np.floating], choice: int | NDArray[np.intp]
    ) -> NDArray[np.float32]:
        """Logits (n, n_tags) of raw X (n, dim) at strength index `choice`, one or per tag."""
        return self.fits.scores(self.scaler.transform(X), choice)


@dataclass(frozen=True, eq=False)
class LogisticHead:
    """Logistic regression of all tags at all strengths C (n_C,), ascending.

    What a call of the solver found is stored in `checkpoints` and looked for there.
    """

    C: NDArray[np.float64]
    solver: Solver
    scale: str = "standardise"
    checkpoints: Checkpoints | None = None
    name: str = "logistic"

    @property
    def candidates(self) -> tuple[str, ...]:
        """Each strength, printable."""
        return tuple(f"C={c:g}" for c in self.C)

    def fit(
        self,
        X: FeatureRows,
        Y: NDArray[np.int8],
        advance: Advance = nobody,
        before: LogisticFits | None = None,
    ) -> LogisticFits:
        """Fit what is not in `before`, on the same images.

        See `retailtag.probes.heads.head.Head.fit`; `advance` counts reused fits too.
        """
        scaler = Scaler.fit(X, self.scale) if before is None else before.scaler
        fits: list[ProbeFits | None] = [None] * len(self.C)
        resumed = 0.0
        if before is not None:
            resumed = before.resumed_seconds
            index = {c: k for k, c in enumerate(before.fits.C.tolist())}
            fits = [at_strength(before.fits, index[c]) if c in index else None for c in self.C]
        known = np.array([at is not None for at in fits])
        advance(int(known.sum()) * Y.shape[1])
        for run in missing_runs(known):
            # Every run starts warm, from the solution at the strength below it.
            below = fits[run.start - 1] if run.start else None
            start = None if below is None else (below.weight[0], below.bias[0])
            C = self.C[run]
            stored = self.checkpoints
            found = stored.load(C, start, Y.shape[1], X.shape[1]) if stored else None
            if found is not None:
                resumed += found.seconds
                advance(found.status.size)
            else:
                found = self.solver(Scaled(X, scaler=scaler), Y, C, advance, start=start)
                if stored:
                    stored.save(found, start)
            fits[run] = [at_strength(found, k) for k in range(len(C))]
        return LogisticFits(scaler, joined([at for at in fits if at is not None]), resumed)
