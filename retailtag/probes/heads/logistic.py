"""Logistic regression over a grid of C as one head of the sweep, block by block."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from retailtag.probes.checkpoints import FoldCheckpoints, at_strength, joined, missing_runs
from retailtag.probes.scaling import Scaled, Scaler
from retailtag.probes.solver.fits import ProbeFits
from retailtag.probes.solver.interface import FeatureRows, OnStrength, Solver, Start, ignore
from retailtag.progress import Advance, nobody


@dataclass(frozen=True, eq=False)
class LogisticFits:
    """Fits of every (C, tag) on one set of training images, with the scaling they want.

    Parameters
    ----------
    scaler : Scaler
        Learned on those images.
    fits : ProbeFits
        On scaled features.
    resumed_seconds : float
        Time that the fits taken from blocks had cost.
    """

    scaler: Scaler
    fits: ProbeFits
    resumed_seconds: float = 0.0

    def scores(
        self, X: NDArray[np.floating], choice: int | NDArray[np.intp]
    ) -> NDArray[np.float32]:
        """Logits (n, n_tags) of raw X (n, dim) at strength index `choice`, one or per tag."""
        return self.fits.logits(self.scaler.transform(X), choice)


@dataclass(frozen=True, eq=False)
class LogisticHead:
    """Logistic regression of all tags at all strengths of a grid.

    Parameters
    ----------
    C : ndarray of float64, shape (n_C,)
        Ascending.
    solver : Solver
    scale : str
        Kind of scaling; see `retailtag.probes.scaling.Scaler`.
    blocks : FoldCheckpoints, optional
        Where finished strengths are kept and looked for.
    """

    C: NDArray[np.float64]
    solver: Solver
    scale: str = "standardise"
    blocks: FoldCheckpoints | None = None

    @property
    def name(self) -> str:
        """What the head is called in tables."""
        return "logistic"

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
        """Fit what is neither in `before` nor in a block, each run from the strength below it.

        Parameters
        ----------
        X : array or view of shape (n_images, dim)
            Raw features.
        Y : ndarray of int8, shape (n_images, n_tags)
        advance : callable
            Told of every fit, those that stood from before included.
        before : LogisticFits, optional
            Fits of some of the strengths on the same images.
        """
        scaler = Scaler.fit(X, self.scale) if before is None else before.scaler
        parts = self._earlier(before)
        resumed = 0.0 if before is None else before.resumed_seconds
        for k, part in enumerate(parts):
            block = self._block(k, Y.shape[1], X.shape[1]) if part is None else None
            if block is not None:
                parts[k], resumed = block, resumed + block.seconds
        known = np.array([part is not None for part in parts])
        advance(int(known.sum()) * Y.shape[1])
        for run in missing_runs(known):
            fits = self.solver(
                Scaled(X, scaler=scaler),
                Y,
                self.C[run],
                advance,
                start=_solution(parts[run.start - 1]) if run.start else None,
                on_strength=self._keeper(),
            )
            parts[run] = [at_strength(fits, k) for k in range(len(fits.C))]
        done = joined([part for part in parts if part is not None])
        return LogisticFits(scaler, done, resumed)

    def _earlier(self, before: LogisticFits | None) -> list[ProbeFits | None]:
        """Fits of each strength that `before` has."""
        at = {} if before is None else {c: k for k, c in enumerate(before.fits.C.tolist())}
        return [
            None if before is None or c not in at else at_strength(before.fits, at[c])
            for c in self.C.tolist()
        ]

    def _block(self, k: int, n_tags: int, dim: int) -> ProbeFits | None:
        return None if self.blocks is None else self.blocks.load(float(self.C[k]), n_tags, dim)

    def _keeper(self) -> OnStrength:
        """Save each block as it ends, with the time since the one before."""
        if self.blocks is None:
            return ignore
        blocks, last = self.blocks, time.perf_counter()

        def keep(k: int, fits: ProbeFits) -> None:
            nonlocal last
            now = time.perf_counter()
            blocks.save(replace(at_strength(fits, k), seconds=now - last))
            last = now

        return keep


def _solution(fits: ProbeFits | None) -> Start | None:
    return None if fits is None else (fits.weight[0], fits.bias[0])
