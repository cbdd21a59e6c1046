"""Features as the solver wants them: centred, in the eigenbasis of their Gram matrix, by blocks.

In the eigenbasis V of the centred Gram matrix X'X = V·diag(e)·V' the columns of Z = XV are
orthogonal, and the Hessian at the prevalence π is diagonal: I + C·π(1-π)·diag(e). The penalty is
the same in every orthogonal basis, ‖Vw‖ = ‖w‖, and so is the optimum.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from retailtag.memory import scratch_rows
from retailtag.neighbours import FeatureRows
from retailtag.ranks import ALONE, Ranks

READ_NUMBERS = 16_000_000  # feature values read at once: 64 MB in float32
CACHED_NUMBERS = 4_000_000  # feature values, or logits, that a pass works on at once
MIN_BLOCK_IMAGES = 256
GRAM_STRIPE = 512  # columns of the Gram matrix made at once: its upper triangle is not needed
MAX_SCALE_RATIO = 100.0  # ratio of feature scales above which float32 loses the small ones
CONSTANT = 1e-7  # of the largest scale: features below are constants but for rounding


@dataclass(frozen=True, eq=False)
class RotatedFeatures:
    """Centred features in the eigenbasis of their Gram matrix, float32 or float64."""

    Z: Tensor  # (n_images, dim), on `device`, or `streamed` from a scratch file on every pass
    V: Tensor  # (dim, dim), columns are eigenvectors
    mean: Tensor  # (dim,), float64, subtracted before the rotation
    eigenvalues: Tensor  # (dim,), the squared norms of the columns of Z
    norms: Tensor  # (n_images,), squared norms of the rows of Z
    device: torch.device  # where blocks are worked on
    block_numbers: int  # feature values in a block of a streamed Z
    streamed: bool
    ranks: Ranks = ALONE  # processes, each of which has the rows of some images

    @classmethod
    def make(
        cls,
        X: FeatureRows,
        sample_weight: Tensor | None,
        device: torch.device,
        memory: int,
        ranks: Ranks = ALONE,
    ) -> RotatedFeatures:
        """Read X twice: for its moments, and to rotate it.

        `sample_weight` is float64 (n_images,); Z goes to a scratch file if it takes more than
        `memory` bytes.
        """
        block_numbers = max(min(READ_NUMBERS, memory // 16), X.shape[1])
        dtype = torch.float32
        mean, gram = _moments(X, sample_weight, dtype, device, block_numbers, ranks)
        scale = gram.diagonal().sqrt()
        varying = scale > CONSTANT * scale.max()
        # Rotation mixes the features: a small one would vanish in the rounding of a large one.
        if varying.any() and scale.max() > MAX_SCALE_RATIO * scale[varying].min():
            dtype = torch.float64
            mean, gram = _moments(X, sample_weight, dtype, device, block_numbers, ranks)
        # One process decomposes: two machines may turn the signs of eigenvectors differently.
        basis = ranks.from_first(lambda: [t.cpu() for t in torch.linalg.eigh(gram)])
        values, vectors = (t.to(device) for t in basis)
        V = vectors.to(dtype)
        # Of several processes all stream or none: what follows differs (`Path.patience`).
        exceeds = X.shape[0] * X.shape[1] * dtype.itemsize > memory
        streamed = bool(ranks.total(np.array([float(exceeds)]))[0])
        flat = np.float64 if dtype == torch.float64 else np.float32
        Z = (
            torch.from_numpy(scratch_rows(X.shape, flat))
            if streamed
            else torch.empty(X.shape, dtype=dtype, device=device)
        )
        norms = torch.empty(X.shape[0], dtype=dtype, device=device)
        for at, block in _read(X, dtype, device, block_numbers):
            rotated = (block - mean.to(dtype)) @ V
            norms[at] = (rotated * rotated).sum(dim=1)
            Z[at] = rotated.to(Z.device)
        eigenvalues = values.clamp_min(0).to(dtype)
        return cls(Z, V, mean, eigenvalues, norms, device, block_numbers, streamed, ranks)

    def blocks(self, n_tags: int) -> Iterator[tuple[slice, Tensor]]:
        """Consecutive rows of Z, as many as `n_tags` tags want at once, on the device."""
        n = len(self.Z)
        size = n
        if self.device.type == "cpu":
            size = max(CACHED_NUMBERS // max(n_tags, self.Z.shape[1], 1), MIN_BLOCK_IMAGES)
        if self.streamed:
            size = min(size, max(self.block_numbers // self.Z.shape[1], 1))
        for start in range(0, n, size):
            at = slice(start, min(start + size, n))
            yield at, self.Z[at].to(self.device, non_blocking=True)

    def double(self) -> RotatedFeatures:
        """The same in float64, for fits that float32 does not bring to their tolerance."""
        names = ("Z", "V", "eigenvalues", "norms")
        return replace(self, **{name: getattr(self, name).double() for name in names})

    def rows(self, index: Tensor) -> Tensor:
        """Rows of Z, on the device; index int64 of any shape."""
        return self.Z[index.to(self.Z.device)].to(self.device)

    @cached_property
    def _V64(self) -> Tensor:
        return self.V.double()

    # w·V'(x - mean) + b = (Vw)·x + (b - (Vw)·mean): centring moves only the intercept, which is not
    # penalised, so the optimum is the same.

    def restore(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Heads on the features as given, of x float64 (tags, dim + 1): weight, bias, float32."""
        weight = x[:, :-1] @ self._V64.T
        return weight.float(), (x[:, -1] - weight @ self.mean).float()

    def adopt(self, weight: Tensor, bias: Tensor) -> Tensor:
        """Parameters (tags, dim + 1) of heads on the features as given; inverse of `restore`."""
        weight = weight.to(self.device).double()
        b = bias.to(self.device).double() + weight @ self.mean
        return torch.cat([weight @ self._V64, b[:, None]], dim=1).to(self.V.dtype)


def _read(
    X: FeatureRows, dtype: torch.dtype, device: torch.device, block_numbers: int
) -> Iterator[tuple[slice, Tensor]]:
    n, dim = X.shape
    size = max(block_numbers // dim, 1)
    for start in range(0, n, size):
        at = slice(start, min(start + size, n))
        block = np.array(X[at], dtype=np.float64 if dtype == torch.float64 else np.float32)
        yield at, torch.from_numpy(block).to(device)


def _moments(
    X: FeatureRows,
    sample_weight: Tensor | None,
    dtype: torch.dtype,
    device: torch.device,
    block_numbers: int,
    ranks: Ranks,
) -> tuple[Tensor, Tensor]:
    """Weighted mean (dim,) and centred Gram matrix (dim, dim; its lower triangle), float64."""
    dim = X.shape[1]
    mean = torch.zeros(dim, dtype=torch.float64, device=device)
    gram = torch.zeros(dim, dim, dtype=torch.float64, device=device)
    shift = None
    total = 0.0
    for at, raw in _read(X, dtype, device, block_numbers):
        if shift is None:
            # Sums of squares about a point near the mean do not cancel when it is far from 0.
            shift = raw.mean(dim=0)
        block = raw - shift
        weighted = block
        if sample_weight is None:
            total += len(block)
        else:
            weighted = block * sample_weight[at].to(dtype)[:, None]
            total += float(sample_weight[at].sum())
        mean += weighted.sum(dim=0, dtype=torch.float64)
        for start in range(0, dim, GRAM_STRIPE):
            stripe = weighted[:, start:].T @ block[:, start : start + GRAM_STRIPE]
            gram[start:, start : start + GRAM_STRIPE] += stripe
    mean /= total or 1.0  # 0: one of several processes, all of whose images have no weight
    gram -= total * torch.outer(mean, mean)  # Σ m(x - a)(x - a)' - M(x̄ - a)(x̄ - a)'
    mean = mean if shift is None else mean + shift
    return _together(mean, gram, total, ranks)


def _together(mean: Tensor, gram: Tensor, total: float, ranks: Ranks) -> tuple[Tensor, Tensor]:
    """Mean and centred Gram matrix of all processes, from those of each and its total weight."""
    if ranks.size == 1:
        return mean, gram
    # Chan, Golub & LeVeque (1983): squares about each mean, and those of the means about the whole.
    weights = mean.new_tensor([total])
    overall = mean * total
    ranks.add_up([weights, overall])
    overall /= weights
    between = mean - overall
    gram += total * torch.outer(between, between)
    ranks.add_up([gram])
    return overall, gram
