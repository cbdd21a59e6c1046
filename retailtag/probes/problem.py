"""Objective, gradient and curvature of a batch of tags over one set of features.

For each tag, ½‖w‖² + C·Σ log(1 + exp(-s(w·x + b))) over (w, b), s = ±1. Parameters of the batch
lie in one tensor (tags, dim + 1), the intercept last.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import softplus

NEGLIGIBLE = 1e-4  # of the largest curvature: images under it are left to the diagonal


@dataclass(frozen=True)
class Problem:
    """Labels and features of a batch of tags; rows of every matrix are tags.

    Parameters
    ----------
    Z : Tensor, float32, shape (n_images, dim)
        Features in the eigenbasis of their Gram matrix.
    eigenvalues : Tensor, float32, shape (dim,)
        Of the Gram matrix; the columns of Z have these squared norms.
    target : Tensor, float32, shape (tags, n_images)
        1 present, 0 otherwise.
    known : Tensor or None, float32, shape (tags, n_images)
        1 where the label is known; None when all are.
    curvature : Tensor, float32, shape (tags,)
        π(1-π) at the prevalence π.
    n_known : Tensor, float32, shape (tags,)
    """

    Z: Tensor
    eigenvalues: Tensor
    target: Tensor
    known: Tensor | None
    curvature: Tensor
    n_known: Tensor

    @classmethod
    def make(cls, Z: Tensor, eigenvalues: Tensor, Y: NDArray[np.int8]) -> Problem:
        """Lay out labels Y (n_images, tags) for products with Z."""
        labels = torch.from_numpy(np.ascontiguousarray(Y.T)).to(Z.device)
        known = None if (Y >= 0).all() else (labels >= 0).float()
        n_known = (labels >= 0).sum(dim=1).float()
        prevalence = (labels == 1).sum(dim=1) / n_known
        curvature = prevalence * (1 - prevalence)
        return cls(Z, eigenvalues, (labels == 1).float(), known, curvature, n_known)

    def keep(self, rows: Tensor) -> Problem:
        """Only the tags in `rows`."""
        return replace(
            self,
            target=self.target[rows],
            known=None if self.known is None else self.known[rows],
            curvature=self.curvature[rows],
            n_known=self.n_known[rows],
        )

    def logits(self, x: Tensor) -> Tensor:
        """Logits (tags, n_images) of parameters, or their change along a direction."""
        return torch.addmm(x[:, -1:], x[:, :-1], self.Z.T)

    def objective(self, u: Tensor, x: Tensor, C: float) -> Tensor:
        """½‖w‖² + C·Σ log-loss at parameters x with logits u, shape (tags,)."""
        cells = softplus(u) - self.target * u
        loss = (cells if self.known is None else cells * self.known).sum(dim=1)
        w = x[:, :-1]
        return C * loss + 0.5 * (w * w).sum(dim=1)

    def gradient(self, u: Tensor, x: Tensor, C: float) -> tuple[Tensor, Tensor]:
        """Gradient (tags, dim + 1) and Σ p(1-p) (tags,)."""
        p = torch.sigmoid(u)
        weight = p * (1 - p)
        r = p.sub_(self.target)
        if self.known is not None:
            r, weight = r * self.known, weight * self.known
        g = torch.cat([x[:, :-1] + C * (r @ self.Z), C * r.sum(dim=1, keepdim=True)], dim=1)
        return g, weight.sum(dim=1)

    def prior_diagonal(self, C: float) -> Tensor:
        """Inverse diagonal of the Hessians at the prevalence, (tags, dim + 1)."""
        w = 1 / (1 + C * self.curvature[:, None] * self.eigenvalues)
        b = 1 / (C * self.curvature * self.n_known)
        return torch.cat([w, b[:, None]], dim=1)

    def hessian_factor(self, tag: int, u: Tensor, C: float, size: int) -> Tensor:
        """Cholesky factor (dim + 1, dim + 1) of one tag's Hessian, nearly.

        Its curvature p(1-p) at logits u (n_images,) is exact for the `size` images that have most
        of it. That of the others is spread over them all, where the Hessian is diagonal in this
        basis. Rare tags have nearly all their curvature in few images.
        """
        p = torch.sigmoid(u)
        weight = p.mul_(1 - p)
        if self.known is not None:
            weight = weight * self.known[tag]
        top, rows = torch.topk(weight, min(size, len(u)), sorted=False)
        much = top > NEGLIGIBLE * top.max()
        top, rows = top[much], rows[much]
        rest = C * (weight.sum() - top.sum()).clamp_min(0)
        A = torch.cat([self.Z[rows], torch.ones_like(top)[:, None]], dim=1)
        A *= (C * top).sqrt()[:, None]
        H = A.T @ A
        diagonal = H.diagonal()
        diagonal[:-1] += 1 + rest / len(u) * self.eigenvalues
        diagonal[-1] += rest + 1e-6 * diagonal[-1]  # positive definite in float32 too
        return torch.linalg.cholesky(H)
