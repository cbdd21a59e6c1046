"""Ridge regression on 0/1 targets: one factorisation for all tags and all strengths.

For the images K whose label of a tag is known, with z̄ and ȳ their means, the head (w, b) that
minimises Σ_K (w·z_i + b - y_i)² + λ‖w‖² is

    w = (S + λI)⁻¹ c,  b = ȳ - w·z̄,  S = Σ_K (z_i - z̄)(z_i - z̄)',  c = Σ_K (z_i - z̄) y_i,

so that one eigendecomposition S = V diag(e) V' serves every strength, w = V (V'c / (e + λ)), and
every tag with the same K.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retailtag.neighbours import FeatureRows
from retailtag.probes.heads.repeated import RepeatedFits, distinct_columns
from retailtag.probes.scaling import Standardiser, row_blocks
from retailtag.probes.solver.fits import LinearFits
from retailtag.probes.solver.labels import fittable, prior_logit
from retailtag.progress import Advance, nobody
from retailtag.statistics.platt import fit_sigmoid

STRENGTHS = tuple(np.logspace(2, -4, 13).tolist())
CALIBRATION_IMAGES = 2048  # at most, evenly spaced, whose leave-one-out values carry the Platt map
CALIBRATION_CELLS = 2_048_000  # at most, those of 1,000 tags on so many images
TANGENT = (4.0, -2.0)  # of the log-odds at one half, where no rising Platt map can be fitted

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class RidgeHead:
    """Ridge regression on standardised embeddings, mapped to log-odds.

    Exact in float64 also with unknown labels: tags are grouped by which images they leave out (one
    group per attribute as a rule, one per tag at worst), and each group has its own factorisation,
    of some ``2·min(left out, kept)·dim² + 9·dim³`` operations.

    References
    ----------
    Hoerl & Kennard (1970); leave-one-out: Golub, Heath & Wahba (1979).
    """

    # λ as a share of the number of images with a known label, descending: the penalty of one
    # feature of unit variance relative to its own sum of squares
    strengths: tuple[float, ...] = STRENGTHS
    name: str = "ridge"

    @property
    def candidates(self) -> tuple[str, ...]:
        """Strengths as text, such as ``ridge=0.1``."""
        return tuple(f"ridge={g:.3g}" for g in self.strengths)

    def fit(self, X: FeatureRows, Y: NDArray[np.int8], advance: Advance = nobody) -> LinearFits:
        """Solve every (strength, tag); see `retailtag.probes.heads.head.Head.fit`."""
        scaler = Standardiser.fit(X)
        first, of_tag = distinct_columns(Y)
        n_tags = Y.shape[1]
        Y = Y[:, first]
        n_rows = min(CALIBRATION_IMAGES, max(CALIBRATION_CELLS // max(n_tags, 1), 1))
        rows = slice(0, None, -(-X.shape[0] // n_rows))
        sample = scaler.transform(X[rows]).astype(np.float64)
        shape = (len(self.strengths), len(first))
        weight = np.zeros((*shape, X.shape[1]))
        bias = np.zeros(shape)
        loo = np.zeros((len(self.strengths), len(sample), len(first)))
        sums = _Sums.of(X, Y, scaler)
        for tags in _by_unknown(Y):
            system = sums.system(X, Y, scaler, tags)
            for k, g in enumerate(self.strengths):
                weight[k, tags], bias[k, tags] = system.solve(g)
            loo[:, :, tags] = system.leave_one_out(sample, Y[rows][:, tags], self.strengths)
            advance(len(self.strengths) * len(tags))
        advance(len(self.strengths) * (n_tags - len(first)))
        # Scores are slope·r + offset of the regression value r, one Platt map per strength for all
        # tags, fitted to leave-one-out values: those of the fitted images would be too sure of
        # themselves where λ is small. Rankings do not depend on it.
        # A tag of one class is the constant 0 or 1, on the scale of the others: pooled over folds
        # its scores stand beside those of folds that did see both classes.
        fitted = fittable(Y)
        every = of_tag[fitted[of_tag]]  # columns as often as there are tags of them
        annotated = (Y >= 0).any(axis=0)
        for k in range(len(self.strengths)):
            slope, offset = _rising_sigmoid(loo[k][:, every], Y[rows][:, every])
            weight[k] *= slope
            bias[k] = np.where(annotated, slope * bias[k] + offset, prior_logit(Y))
            weight[k, ~fitted] = 0
        return RepeatedFits(*scaler.unscale(weight, bias), of_tag)


@dataclass(frozen=True, eq=False)
class _Sums:
    """Over all images: Σ z z' (dim, dim), Σ z (dim,), and Σ z over each tag's positives."""

    gram: Floats
    total: Floats
    positive: Floats  # (dim, n_tags)

    @classmethod
    def of(cls, X: FeatureRows, Y: NDArray[np.int8], scaler: Standardiser) -> _Sums:
        """Sum up standardised X (n_images, dim), block by block."""
        dim = X.shape[1]
        sums = cls(np.zeros((dim, dim)), np.zeros(dim), np.zeros((dim, Y.shape[1])))
        for at in row_blocks(len(Y)):
            # float64: differences of these sums give the groups', which float32 would cancel.
            Z = scaler.transform(X[at]).astype(np.float64)
            sums.gram[:] += Z.T @ Z
            sums.total[:] += Z.sum(axis=0)
            sums.positive[:] += Z.T @ (Y[at] == 1)
        return sums

    def system(
        self, X: FeatureRows, Y: NDArray[np.int8], scaler: Standardiser, tags: NDArray[np.intp]
    ) -> _System:
        """Normal equations of `tags`, which all leave out the same images."""
        known = Y[:, tags[0]] >= 0
        n = int(known.sum())
        # Sum the smaller side: the images left out are taken off the sums of all.
        fewer = known if 2 * n < len(known) else ~known
        gram = np.zeros_like(self.gram)
        total = np.zeros_like(self.total)
        for at in row_blocks(len(fewer)) if fewer.any() else ():
            Z = scaler.transform(X[at][fewer[at]]).astype(np.float64)
            gram += Z.T @ Z
            total += Z.sum(axis=0)
        if fewer is not known:
            gram = self.gram - gram
            total = self.total - total
        mean = total / max(n, 1)
        prevalence = (Y[:, tags] == 1).sum(axis=0) / max(n, 1)
        values, vectors = np.linalg.eigh(gram - n * np.outer(mean, mean))
        cross = vectors.T @ (self.positive[:, tags] - np.outer(mean, n * prevalence))
        return _System(n, mean, prevalence, values.clip(0), vectors, cross)


@dataclass(frozen=True, eq=False)
class _System:
    """S = V diag(e) V' and V'c of some tags over the `n` images that they know."""

    n: int
    mean: Floats  # (dim,)
    prevalence: Floats  # (tags,)
    e: Floats  # (dim,)
    V: Floats  # (dim, dim)
    cross: Floats  # (dim, tags)

    def solve(self, strength: float) -> tuple[Floats, Floats]:
        """Weight (tags, dim) and bias (tags,) at λ = strength·n."""
        weight = (self.V @ (self.cross / self._shifted(strength)[:, None])).T
        return weight, self.prevalence - weight @ self.mean

    def leave_one_out(self, Z: Floats, y: NDArray[np.int8], strengths: tuple[float, ...]) -> Floats:
        """Values (n_strengths, n_rows, tags) of images Z (n_rows, dim), each as if not fitted."""
        # In closed form r_i - (y_i - r_i)·h_i/(1 - h_i), with the leverage
        # h_i = 1/n + (z_i - z̄)'(S + λI)⁻¹(z_i - z̄) = 1/n + Σ_j U_ij²/(e_j + λ), U = (Z - z̄)V.
        U = (Z - self.mean) @ self.V
        squares = U * U
        left_out = np.empty((len(strengths), *y.shape))
        for k, strength in enumerate(strengths):
            shifted = self._shifted(strength)
            value = U @ (self.cross / shifted[:, None]) + self.prevalence
            leverage = 1 / max(self.n, 1) + squares @ (1 / shifted)
            share = leverage / (1 - leverage).clip(1e-12)
            left_out[k] = value - ((y == 1) - value) * share[:, None]
        return left_out

    def _shifted(self, strength: float) -> Floats:
        return self.e + strength * max(self.n, 1)


def _by_unknown(Y: NDArray[np.int8]) -> list[NDArray[np.intp]]:
    """Tags (their indices) that leave out the same images, together."""
    pattern = np.packbits(Y < 0, axis=0).T
    groups: dict[bytes, list[int]] = {}
    for tag, bits in enumerate(pattern):
        groups.setdefault(bits.tobytes(), []).append(tag)
    return [np.array(tags, np.intp) for tags in groups.values()]


def _rising_sigmoid(values: Floats, labels: NDArray[np.int8]) -> tuple[float, float]:
    slope, offset = fit_sigmoid(values, labels)
    return (slope, offset) if slope > 0 else TANGENT
