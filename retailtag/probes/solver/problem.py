"""Objective, gradient and curvature of a batch of tags over one set of features.

For each tag, f(w, b) = ½‖w‖² + C·Σ_i m_i·log(1 + exp(-s_i·u_i)) with logits u_i = w·z_i + b, label
signs s = ±1 and sample weights m, 0 where the label is unknown. With p = sigmoid(u):

* gradient: w + C·Σ m_i·(p_i - y_i)·z_i for w; C·Σ m_i·(p_i - y_i) for b, which is not penalised;
* Hessian: diag(1, ..., 1, 0) + C·Σ m_i·p_i(1 - p_i)·(z_i, 1)(z_i, 1)'.

Parameters of the batch lie in one tensor (tags, dim + 1), the intercept last.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from retailtag.probes.solver.eigenbasis import RotatedFeatures
from retailtag.ranks import ALONE, Ranks

CACHED_LABELS = 250_000  # labels that are worked on at once: in cache
STRIPE = 256  # columns of a Gram matrix made at once
LEAST_BIAS_CURVATURE = 1e-3  # of a tag's curvature, in the diagonal of a working set
MAX_TAGS_IMAGES_FIRST = 16  # tags up to which a CPU multiplies images by tags the faster way round
LEAST_PRIOR_CURVATURE = 1e-9  # of the curvature at the prevalence, likewise
JITTER = np.logspace(-6, 1, 8)  # shares of the diagonal; the smallest that is enough is added


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Row-wise inner products of (tags, m), shape (tags,)."""
    return (a * b).sum(dim=1)


def objective(x: Tensor, loss: Tensor, C: Tensor) -> Tensor:
    """½‖w‖² + C·loss, float64 (tags,)."""
    w = x[:, :-1].double()
    return 0.5 * dot(w, w) + C.double() * loss


class PerTag:
    """Dataclass of tensors whose rows are tags, and of others like it."""

    def take(self, rows: Tensor | slice) -> Self:
        """Only the tags in `rows`."""
        fields = vars(self).items()
        return type(self)(
            **{k: v[rows] if isinstance(v, Tensor) else v.take(rows) for k, v in fields}
        )

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """The tags of all `parts`, one after another."""
        columns = {name: [getattr(part, name) for part in parts] for name in vars(parts[0])}
        return cls(
            **{
                name: torch.cat(values)
                if isinstance(values[0], Tensor)
                else type(values[0]).joined(values)
                for name, values in columns.items()
            }
        )

    def put(self, rows: Tensor, other: Self) -> None:
        """Overwrite the tags in `rows`."""
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                value[rows] = getattr(other, name)
            else:
                value.put(rows, getattr(other, name))


@dataclass(frozen=True)
class Sums(PerTag):
    """What one pass over the images gives for each tag at some parameters, (tags, ...)."""

    loss: Tensor  # Σ m·log-loss, float64
    gradient: Tensor  # of that loss (tags, dim + 1), without C and penalty: for every strength
    curvature: Tensor  # Σ m·p(1-p)
    spread: Tensor  # Σ m·p(1-p)·‖z‖²

    @classmethod
    def zero(cls, n_tags: int, like: Tensor, dim: int) -> Sums:
        """Sums over no image."""
        return cls(
            # Differences between trial points are far below the sum: float32 would lose them.
            loss=like.new_zeros(n_tags, dtype=torch.float64),
            gradient=like.new_zeros(n_tags, dim + 1),
            curvature=like.new_zeros(n_tags),
            spread=like.new_zeros(n_tags),
        )


class Cells(NamedTuple):
    """Of every label (tags, images): weighted log-loss, p - y and p(1-p)."""

    loss: Tensor
    residual: Tensor
    curvature: Tensor


@dataclass(frozen=True)
class Problem:
    """Labels of a batch of tags on rotated features; rows of every matrix are tags."""

    features: RotatedFeatures
    neg_sign: Tensor  # (tags, n_images), -s: -1 present, 1 otherwise
    # Sample weight of each label (tags or 1, n_images), 0 where unknown; None when all are 1.
    label_weight: Tensor | None
    prior_curvature: Tensor  # (tags,), π(1-π) at the prevalence π
    total_weight: Tensor  # (tags,), sum of the label weights

    @classmethod
    def make(
        cls, features: RotatedFeatures, Y: NDArray[np.int8], sample_weight: Tensor | None
    ) -> Problem:
        """Lay out labels Y (n_images, tags); `sample_weight` is (n_images,)."""
        dtype = features.V.dtype
        labels = torch.from_numpy(np.ascontiguousarray(Y.T)).to(features.device)
        neg_sign = torch.where(labels == 1, -1.0, 1.0).to(dtype)
        weight = None if sample_weight is None else sample_weight.to(dtype)[None]
        if not (Y >= 0).all():
            known = (labels >= 0).to(dtype)
            weight = known if weight is None else known * weight
        weight_or_ones = torch.ones_like(neg_sign[:1]) if weight is None else weight
        total = weight_or_ones.sum(dim=1).repeat(len(neg_sign) // len(weight_or_ones))
        positive = ((neg_sign < 0) * weight_or_ones).sum(dim=1)
        features.ranks.add_up([total, positive])
        prevalence = positive / total
        curvature = (prevalence * (1 - prevalence)).clamp_min(1e-12)
        return cls(features, neg_sign, weight, curvature, total)

    def take(self, rows: Tensor | slice) -> Problem:
        """Only the tags in `rows`."""
        weight = self.label_weight
        return replace(
            self,
            neg_sign=self.neg_sign[rows],
            label_weight=weight if weight is None or len(weight) == 1 else weight[rows],
            prior_curvature=self.prior_curvature[rows],
            total_weight=self.total_weight[rows],
        )

    def double(self) -> Problem:
        """The same in float64."""
        fields = vars(self).items()
        doubled: dict[str, Any] = {k: None if v is None else v.double() for k, v in fields}
        return Problem(**doubled)

    def logits(self, x: Tensor) -> Tensor:
        """Logits (tags, n_images) of parameters or directions x (tags, dim + 1)."""
        u = torch.empty_like(self.neg_sign)
        for at, Z in self.features.blocks(1):
            u[:, at] = _logits(x, Z)
        return u

    def sums_at(self, u: Tensor) -> Sums:
        """Sums at logits u (tags, n_images): the second product of a pass over the images."""
        total = Sums.zero(len(u), self.features.V, self.features.V.shape[0])
        residual = torch.empty_like(u)
        for at in self.slices(len(u)):
            cells = self.cells(u[:, at], at)
            total.loss.add_(cells.loss.sum(dim=1))
            total.curvature.add_(cells.curvature.sum(dim=1))
            total.spread.add_(cells.curvature @ self.features.norms[at])
            residual[:, at] = cells.residual
        for at, Z in self.features.blocks(1):
            total.gradient[:, :-1].addmm_(residual[:, at], Z)
        total.gradient[:, -1] = residual.sum(dim=1)
        ranks = self.features.ranks
        ranks.add_up([total.loss])
        ranks.add_up([total.gradient, total.curvature, total.spread])
        return total

    def slices(self, n_tags: int) -> list[slice]:
        """Images by as many as the labels of `n_tags` tags fit in a CPU's cache."""
        n = self.neg_sign.shape[1]
        size = n if self.neg_sign.device.type != "cpu" else max(CACHED_LABELS // n_tags, 256)
        return [slice(start, min(start + size, n)) for start in range(0, n, size)]

    def cells(self, u: Tensor, at: slice) -> Cells:
        """Loss and its derivatives by the logits u (tags, len) of the images `at`."""
        # With the label's sign in the logit, m = -s·u, the loss is softplus(m) and its derivative
        # by u is -s·sigmoid(m). Neither cancels where an image is far on its side, as
        # softplus(u) - y·u and p - y do in float32.
        neg_sign = self.neg_sign[:, at]
        m = neg_sign * u
        loss = _softplus(m)
        q = torch.sigmoid(m)
        curvature = torch.addcmul(q, q, q, value=-1)  # q(1 - q) = p(1 - p)
        residual = q.mul_(neg_sign)  # p - y
        if self.label_weight is not None:
            weight = self.label_weight[:, at]
            loss, curvature, residual = loss * weight, curvature * weight, residual * weight
        return Cells(loss, residual, curvature)

    def separated(self, u: Tensor) -> Tensor:
        """Whether logits u (tags, n_images) put every known label on its side of 0, (tags,)."""
        wrong = self.neg_sign * u >= 0
        if self.label_weight is not None:
            wrong &= self.label_weight > 0
        n_wrong = wrong.any(dim=1).int()
        self.features.ranks.add_up([n_wrong])
        return n_wrong == 0

    def prior_diagonal(self, C: Tensor) -> Tensor:
        """Inverse diagonal of the Hessians at the prevalence, (tags, dim + 1); C is (tags,)."""
        # At w = 0 every p is π, so the Hessian is I + C·π(1-π)·Z'Z, and Z'Z = diag(eigenvalues).
        # Centred features have no products with the intercept.
        w = 1 / (1 + (C * self.prior_curvature)[:, None] * self.features.eigenvalues)
        b = 1 / (C * self.prior_curvature * self.total_weight)
        return torch.cat([w, b[:, None]], dim=1)

    def working_set(self, u: Tensor, C: Tensor, n_images: int, covered: float) -> WorkingSet:
        """The Hessians at logits u (tags, n_images): exact for some images, averaged for others.

        The curvature p(1-p) is taken exactly for the images of which a tag's Hessian consists
        most: as many as make up the share `covered` of its trace, at most `n_images`. That of the
        others is spread over all images, where the Hessian is diagonal in this basis. Rare tags
        have nearly all their curvature in few images. Every process takes as many of its own.
        """
        curvature = self._curvature(u)
        trace = curvature * self.features.norms
        top, rows = torch.topk(trace, min(n_images, trace.shape[1]), dim=1)
        total = trace.sum(dim=1)
        if covered < 1:
            # An image is needed while those before it do not make up the share; the tag that needs
            # most sets the width of the batch.
            needed = top.cumsum(dim=1) - top < covered * total[:, None]
            width = int(needed.any(dim=0).sum())
            top, rows = top[:, :width], rows[:, :width]
        inside = curvature.gather(1, rows)
        root = (C[:, None] * inside).sqrt()
        A = u.new_empty(*rows.shape, self.features.V.shape[0] + 1)
        torch.mul(self.features.rows(rows), root[:, :, None], out=A[:, :, :-1])
        A[:, :, -1] = root
        # The trace that is left, as a curvature of every image
        size = self.features.eigenvalues.sum().clamp_min(torch.finfo(u.dtype).tiny)
        whole = curvature.sum(dim=1)
        outside = torch.stack([total - top.sum(dim=1), whole - inside.sum(dim=1), whole])
        self.features.ranks.add_up([outside])
        trace_left, rest, whole = outside.clamp_min(0)
        left = trace_left / size
        diagonal = torch.empty(len(u), A.shape[2], dtype=u.dtype, device=u.device)
        diagonal[:, :-1] = 1 + (C * left)[:, None] * self.features.eigenvalues  # 1: the penalty
        # The intercept has no penalty: some of its curvature keeps the diagonal invertible, and
        # some of the prior's keeps its steps finite where no label is uncertain any more.
        prior = LEAST_PRIOR_CURVATURE * self.prior_curvature * self.total_weight
        diagonal[:, -1] = C * rest.maximum(LEAST_BIAS_CURVATURE * whole).maximum(prior)
        return WorkingSet(A, diagonal)

    def _curvature(self, u: Tensor) -> Tensor:
        """Weighted p(1-p) of each label, (tags, n_images)."""
        q = torch.sigmoid(self.neg_sign * u)
        curvature = q.mul_(1 - q)
        return curvature if self.label_weight is None else curvature * self.label_weight


@dataclass(frozen=True)
class WorkingSet(PerTag):
    """Hessians H ≈ diag(diagonal) + A'A of some tags."""

    A: Tensor  # (tags, images, dim + 1), rows √(C·p(1-p))·(z, 1)
    diagonal: Tensor  # (tags, dim + 1): the penalty and what the other images add

    def hessian_factors(self, ranks: Ranks = ALONE) -> Tensor:
        """Cholesky factors of H, (tags, dim + 1, dim + 1); A has the images of one process."""
        H = lower_gram(self.A, STRIPE)
        ranks.add_up([H])
        H.diagonal(dim1=1, dim2=2).add_(self.diagonal)
        return factored(H)


def _logits(x: Tensor, Z: Tensor) -> Tensor:
    """Logits (tags, n_images) of parameters x (tags, dim + 1) on features Z (n_images, dim)."""
    if len(x) > MAX_TAGS_IMAGES_FIRST:
        return torch.addmm(x[:, -1:], x[:, :-1], Z.T)
    return torch.addmm(x[:, -1], Z, x[:, :-1].T).T.contiguous()


def _softplus(m: Tensor) -> Tensor:
    """log(1 + exp(m)) to the last digits, several times faster than torch's on a CPU."""
    # softplus(m) = max(m, 0) + log(1 + exp(-|m|)), and log(1 + exp(-|m|)) = -log(1 - p) with
    # p = sigmoid(-|m|). What rounding u = 1 - p loses, (p - (1 - u))/u, is added to first order.
    p = m.abs().neg_().sigmoid_()
    u = 1 - p
    lost = p.sub_(1 - u).div_(u)
    return m.clamp_min(0).add_(lost.sub_(u.log_()))


def lower_gram(A: Tensor, stripe: int) -> Tensor:
    """Lower triangle of A'A, (tags, m, m) from (tags, rows, m), at little over half the cost."""
    m = A.shape[2]
    gram = A.new_zeros(len(A), m, m)
    for start in range(0, m, stripe):
        torch.matmul(
            A[:, :, start:].mT,
            A[:, :, start : start + stripe],
            out=gram[:, start:, start : start + stripe],
        )
    return gram


def factored(H: Tensor) -> Tensor:
    """Cholesky factors of H (tags, m, m); only its lower triangle is read."""
    # Diagonals may differ by many powers of ten. H = D·U·D with D = diag(H)^½ and U of unit
    # diagonal; a factor of U times D is one of H, and U is as well conditioned as scaling gets.
    scale = H.diagonal(dim1=1, dim2=2).clamp_min(torch.finfo(H.dtype).tiny).sqrt()
    unit = H / (scale[:, :, None] * scale[:, None, :])
    for jitter in JITTER:  # rounding may leave the matrix indefinite
        unit.diagonal(dim1=1, dim2=2).fill_(1 + jitter)
        factor, failed = torch.linalg.cholesky_ex(unit)
        if not failed.any():
            break
    return factor * scale[:, :, None]
