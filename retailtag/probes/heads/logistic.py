"""Logistic regression over a grid of C as one head of the sweep, strength by strength."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from retailtag.probes.checkpoints import Checkpoints, at_strength, joined, missing_runs
from retailtag.probes.scaling import Scaled, Scaler
from retailtag.probes.solver.fits import ProbeFits
from retailtag.probes.solver.interface import FeatureRows, OnStrength, Solver, ignore
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

    Finished strengths are stored in `checkpoints` and looked for there.
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
        """Fit what is neither in `before`, on the same images, nor in a checkpoint.

        See `retailtag.probes.heads.head.Head.fit`; `advance` counts reused fits too.
        """
        scaler = Scaler.fit(X, self.scale) if before is None else before.scaler
        fits: list[ProbeFits | None] = [None] * len(self.C)
        resumed = 0.0
        if before is not None:
            resumed = before.resumed_seconds
            index = {c: k for k, c in enumerate(before.fits.C.tolist())}
            fits = [at_strength(before.fits, index[c]) if c in index else None for c in self.C]
        for k, c in enumerate(self.C.tolist()):
            if fits[k] is None and self.checkpoints is not None:
                stored = self.checkpoints.load(c, Y.shape[1], X.shape[1])
                fits[k] = stored
                resumed += 0.0 if stored is None else stored.seconds
        known = np.array([at is not None for at in fits])
        advance(int(known.sum()) * Y.shape[1])
        for run in missing_runs(known):
            # Every run starts warm, from the solution at the strength below it.
            below = fits[run.start - 1] if run.start else None
            found = self.solver(
                Scaled(X, scaler=scaler),
                Y,
                self.C[run],
                advance,
                start=None if below is None else (below.weight[0], below.bias[0]),
                on_strength=self._saver(),
            )
            fits[run] = [at_strength(found, k) for k in range(len(found.C))]
        return LogisticFits(scaler, joined([at for at in fits if at is not None]), resumed)

    def _saver(self) -> OnStrength:
        """Store each strength when it is done, with the time since the one before."""
        if self.checkpoints is None:
            return ignore
        checkpoints = self.checkpoints
        last = time.perf_counter()

        def save(k: int, fits: ProbeFits) -> None:
            nonlocal last
            now = time.perf_counter()
            checkpoints.save(replace(at_strength(fits, k), seconds=now - last))
            last = now

        return save
