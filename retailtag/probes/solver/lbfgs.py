"""Limited-memory BFGS for a batch of tags: the pairs of each and the direction they give."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from retailtag.probes.solver.problem import PerTag

N_PAIRS = 6  # pairs remembered; 8 and 12 took no fewer iterations


@dataclass
class Pairs(PerTag):
    """L-BFGS pairs of a batch, newest last: steps, and how the gradient of the loss changed.

    Both are (tags, N_PAIRS, dim + 1), 0 where nothing is remembered yet; `seen` (tags, N_PAIRS)
    are the strengths at which they were seen.
    """

    steps: Tensor
    changes: Tensor
    seen: Tensor

    @classmethod
    def none(cls, like: Tensor) -> Self:
        """No pairs for parameters `like` (tags, dim + 1)."""
        empty = like.new_zeros(len(like), N_PAIRS, like.shape[1])
        return cls(empty, empty.clone(), empty[:, :, 0].clone())

    def add(self, step: Tensor, change: Tensor, C: Tensor) -> None:
        """Remember a step (tags, dim + 1) and its Δ∇loss at strengths C; forget the oldest pair."""
        self.steps = torch.cat([self.steps[:, 1:], step[:, None]], dim=1)
        self.changes = torch.cat([self.changes[:, 1:], change[:, None]], dim=1)
        self.seen = torch.cat([self.seen[:, 1:], C[:, None]], dim=1)

    def direction(
        self, g: Tensor, C: Tensor, frozen: Tensor, guess: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """The L-BFGS direction -Hg, (tags, dim + 1), at strengths C (tags,).

        `guess` multiplies (tags, dim + 1) by the first guess of the inverse Hessian. Pairs of
        `frozen` tags (tags,) serve as they were at the strength where they were seen.

        References
        ----------
        Nocedal (1980), Updating quasi-Newton matrices with limited storage, Mathematics of
        Computation 35. Byrd, Nocedal & Schnabel (1994), Representations of quasi-Newton matrices
        and their use in limited memory methods, Mathematical Programming 63.
        """
        # H = (I - ρsy')H₋(I - ρys') + ρss' with ρ = 1/(s'y), unrolled over the pairs, takes the
        # newest pair off g first, applies the first guess in the middle and then goes back. With
        # the pairs as rows of S and Y, the oldest first, both ways are triangular systems: R is
        # the upper triangle of SY', D its diagonal, and
        #   a = R⁻¹Sg,  q = H₀(g - Y'a),  Hg = q + S'·R⁻ᵀ(Da - Yq).
        # The gradient of ½‖w‖² + C·loss changes over a step s by y = C·Δ∇loss + (s_w, 0). A pair
        # that was seen at one strength serves at others: Δ∇loss is exact as long as the curvature
        # p(1-p) stays. Where a tag is separable p(1-p) falls as 1/C, so that C·Δ∇loss stays.
        S = self.steps
        Y = torch.where(frozen[:, None], self.seen, C[:, None])[:, :, None] * self.changes
        Y[:, :, :-1] += S[:, :, :-1]  # the intercept has no penalty
        products = S @ Y.mT
        # s'y > 0 keeps H positive definite. It fails where rounding spoiled a step (and for the
        # zeros of an empty memory): such a pair is left out.
        D = products.diagonal(dim1=1, dim2=2)
        valid = (D > 0).to(D.dtype)
        R = (products * valid[:, :, None] * valid[:, None, :]).triu()
        R.diagonal(dim1=1, dim2=2).add_(1 - valid)
        a = torch.linalg.solve_triangular(R, valid[:, :, None] * (S @ g[:, :, None]), upper=True)
        q = guess(g - (Y.mT @ a)[:, :, 0])
        back = D[:, :, None] * a - valid[:, :, None] * (Y @ q[:, :, None])
        c = torch.linalg.solve_triangular(R.mT, back, upper=False)
        return -(q + (S.mT @ c)[:, :, 0])
