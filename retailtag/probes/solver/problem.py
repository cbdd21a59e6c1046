"""Objective, gradient and curvature of a batch of tags over one set of features.

For each tag, ½‖w‖² + C·Σ_i m_i·log(1 + exp(-s_i(w·z_i + b))) over (w, b), s = ±1, where m_i is the
image's weight, 0 where the label is unknown. Parameters of the batch lie in one tensor
(tags, dim + 1), the intercept last.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from retailtag.probes.solver.rotated import Rotated

STRIPE = 256  # columns of a Gram matrix made at once
FEW = 16  # tags up to which a CPU takes images by tags faster than tags by images
JITTER = np.logspace(-6, 1, 8)  # shares of the diagonal, the least that is enough is added


@dataclass(frozen=True)
class Sums:
    """What one pass over the images gives for each tag, at some parameters.

    Parameters
    ----------
    loss : Tensor, float64, shape (tags,)
        Σ m·log-loss.
    slope : Tensor, shape (tags, dim + 1)
        Its gradient.
    weight : Tensor, shape (tags,)
        Curvature Σ m·p(1-p).
    spread : Tensor, shape (tags,)
        Σ m·p(1-p)·‖z‖².
    """

    loss: Tensor
    slope: Tensor
    weight: Tensor
    spread: Tensor

    @classmethod
    def zero(cls, n_tags: int, like: Tensor, dim: int) -> Sums:
        """Sums over no image."""
        return cls(
            loss=like.new_zeros(n_tags, dtype=torch.float64),
            slope=like.new_zeros(n_tags, dim + 1),
            weight=like.new_zeros(n_tags),
            spread=like.new_zeros(n_tags),
        )

    def take(self, rows: Tensor) -> Sums:
        """Only the tags in `rows`."""
        return Sums(*(getattr(self, f.name)[rows] for f in fields(self)))

    def put(self, rows: Tensor, other: Sums) -> None:
        """Overwrite the tags in `rows`."""
        for f in fields(self):
            getattr(self, f.name)[rows] = getattr(other, f.name)


@dataclass(frozen=True)
class Problem:
    """Labels of a batch of tags on rotated features; rows of every matrix are tags.

    Parameters
    ----------
    features : Rotated
        n_images of them.
    away : Tensor, shape (tags, n_images)
        -1 present, 1 otherwise: -s. The loss is softplus(away·u), its slope away·sigmoid(away·u);
        neither cancels where an image is far on its side.
    mass : Tensor or None, shape (tags, n_images) or (1, n_images)
        Weight of each label, 0 where it is unknown; None when all are 1.
    tag_weight : Tensor, shape (tags,)
        Factor of C.
    curvature : Tensor, shape (tags,)
        π(1-π) at the prevalence π.
    total : Tensor, shape (tags,)
        Sum of the masses.
    """

    features: Rotated
    away: Tensor
    mass: Tensor | None
    tag_weight: Tensor
    curvature: Tensor
    total: Tensor

    @classmethod
    def make(
        cls,
        features: Rotated,
        Y: NDArray[np.int8],
        sample_weight: Tensor | None,
        tag_weight: NDArray[np.float64],
    ) -> Problem:
        """Lay out labels Y (n_images, tags); `sample_weight` (n_images,), `tag_weight` (tags,)."""
        dtype, device = features.V.dtype, features.device
        labels = torch.from_numpy(np.ascontiguousarray(Y.T)).to(device)
        away = torch.where(labels == 1, -1.0, 1.0).to(dtype)
        mass = None if sample_weight is None else sample_weight.to(dtype)[None]
        if not (Y >= 0).all():
            known = (labels >= 0).to(dtype)
            mass = known if mass is None else known * mass
        weighed = torch.ones_like(away[:1]) if mass is None else mass
        total = weighed.sum(dim=1).expand(len(away))
        prevalence = ((away < 0) * weighed).sum(dim=1) / total
        curvature = (prevalence * (1 - prevalence)).clamp_min(1e-12)
        factor = torch.from_numpy(np.asarray(tag_weight)).to(device, dtype)
        return cls(features, away, mass, factor, curvature, total)

    def keep(self, rows: Tensor) -> Problem:
        """Only the tags in `rows`."""
        shared = self.mass is None or len(self.mass) == 1
        return replace(
            self,
            away=self.away[rows],
            mass=self.mass if shared else self.mass[rows],  # type: ignore[index]
            tag_weight=self.tag_weight[rows],
            curvature=self.curvature[rows],
            total=self.total[rows],
        )

    def double(self) -> Problem:
        """The same in float64."""
        return Problem(
            self.features.double(),
            self.away.double(),
            None if self.mass is None else self.mass.double(),
            self.tag_weight.double(),
            self.curvature.double(),
            self.total.double(),
        )

    def sums(self, u: Tensor | None, d: Tensor, du: Tensor) -> Sums:
        """One pass: `du` becomes the logits of `d`, and the sums are of u + du.

        Parameters
        ----------
        u : Tensor or None, shape (tags, n_images)
            Logits to start from; None for 0.
        d : Tensor, shape (tags, dim + 1)
            Direction in the parameters.
        du : Tensor, shape (tags, n_images)
            Written.
        """
        total = Sums.zero(len(d), d, d.shape[1] - 1)
        for at, Z in self.features.blocks(len(d)):
            step = _logits(d, Z)
            du[:, at] = step
            self._add(total, step if u is None else step.add_(u[:, at]), at, Z)
        return total

    def sums_at(self, u: Tensor) -> Sums:
        """Sums at logits u (tags, n_images)."""
        total = Sums.zero(len(u), self.features.V, self.features.V.shape[0])
        for at, Z in self.features.blocks(len(u)):
            self._add(total, u[:, at], at, Z)
        return total

    def _add(self, total: Sums, u: Tensor, at: slice, Z: Tensor) -> None:
        """Add the images `at`, with features Z and logits u (tags, len), to the sums."""
        away = self.away[:, at]
        m = away * u
        loss, q = _softplus(m), torch.sigmoid(m)
        weight = torch.addcmul(q, q, q, value=-1)
        r = q.mul_(away)
        if self.mass is not None:
            mass = self.mass[:, at]
            loss, weight, r = loss * mass, weight * mass, r * mass
        total.loss.add_(loss.sum(dim=1))
        total.weight.add_(weight.sum(dim=1))
        total.spread.add_(weight @ self.features.norms[at])
        total.slope[:, :-1].addmm_(r, Z)
        total.slope[:, -1].add_(r.sum(dim=1))

    def loss(self, u: Tensor) -> Tensor:
        """Σ m·log-loss at logits u (tags, n_images), float64 (tags,)."""
        cells = _softplus(self.away * u)
        return (cells if self.mass is None else cells * self.mass).sum(dim=1, dtype=torch.float64)

    def separated(self, u: Tensor) -> Tensor:
        """Whether logits u (tags, n_images) put every known label on its side of 0, (tags,)."""
        wrong = self.away * u >= 0
        if self.mass is not None:
            wrong &= self.mass > 0
        return ~wrong.any(dim=1)

    def prior_diagonal(self, C: Tensor) -> Tensor:
        """Inverse diagonal of the Hessians at the prevalence, (tags, dim + 1); C is (tags,)."""
        w = 1 / (1 + (C * self.curvature)[:, None] * self.features.eigenvalues)
        b = 1 / (C * self.curvature * self.total)
        return torch.cat([w, b[:, None]], dim=1)

    def hessian_factors(self, u: Tensor, C: Tensor, size: int, covered: float) -> Tensor:
        """Cholesky factors (tags, dim + 1, dim + 1) of the tags' Hessians, nearly.

        The curvature p(1-p) at logits u (tags, n_images) is exact for the images that have most of
        it: as many as make up the share `covered`, at most `size`. That of the others is spread
        over them all, where the Hessian is diagonal in this basis. Rare tags have nearly all their
        curvature in few images.
        """
        q = torch.sigmoid(self.away * u)
        weight = q.mul_(1 - q)
        if self.mass is not None:
            weight = weight * self.mass
        top, rows = torch.topk(weight, min(size, weight.shape[1]), dim=1)
        total = weight.sum(dim=1)
        needed = top.cumsum(dim=1) - top < covered * total[:, None]
        much = int(needed.any(dim=0).sum())
        top, rows = top[:, :much], rows[:, :much]
        rest = C * (total - top.sum(dim=1)).clamp_min(0)
        A = torch.cat([self.features.rows(rows), torch.ones_like(top)[:, :, None]], dim=2)
        A *= (C[:, None] * top).sqrt()[:, :, None]
        H = _lower_gram(A)
        share = (rest / self.total)[:, None] * self.features.eigenvalues
        H.diagonal(dim1=1, dim2=2)[:, :-1] += 1 + share
        H.diagonal(dim1=1, dim2=2)[:, -1] += rest
        return _factored(H)


def _logits(x: Tensor, Z: Tensor) -> Tensor:
    """Logits (tags, n_images) of parameters x (tags, dim + 1) on features Z (n_images, dim)."""
    if len(x) > FEW:
        return torch.addmm(x[:, -1:], x[:, :-1], Z.T)
    return torch.addmm(x[:, -1], Z, x[:, :-1].T).T.contiguous()


def _softplus(m: Tensor) -> Tensor:
    """log(1 + exp(m)) to the last digits, several times faster than torch's on a CPU.

    log(1 + exp(-|m|)) is -log(u) with u = 1 - p, p = sigmoid(-|m|); what rounding 1 - p loses is
    added to first order.
    """
    p = m.abs().neg_().sigmoid_()
    u = 1 - p
    lost = p.sub_(1 - u).div_(u)
    return m.clamp_min(0).add_(lost.sub_(u.log_()))


def _lower_gram(A: Tensor) -> Tensor:
    """Lower triangle of A'A, (tags, m, m) from (tags, rows, m), at little over half the price."""
    m = A.shape[2]
    gram = A.new_zeros(len(A), m, m)
    for start in range(0, m, STRIPE):
        torch.matmul(
            A[:, :, start:].mT,
            A[:, :, start : start + STRIPE],
            out=gram[:, start:, start : start + STRIPE],
        )
    return gram


def _factored(H: Tensor) -> Tensor:
    """Cholesky factors of H (tags, m, m), whose diagonals may differ by many powers of ten.

    Only the lower triangle of H is read.
    """
    scale = H.diagonal(dim1=1, dim2=2).clamp_min(torch.finfo(H.dtype).tiny).sqrt()
    unit = H / (scale[:, :, None] * scale[:, None, :])
    for jitter in JITTER:  # rounding may leave the matrix indefinite
        unit.diagonal(dim1=1, dim2=2).fill_(1 + jitter)
        factor, failed = torch.linalg.cholesky_ex(unit)
        if not failed.any():
            break
    return factor * scale[:, :, None]
