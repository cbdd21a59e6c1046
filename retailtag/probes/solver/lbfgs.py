"""Limited-memory BFGS for a batch of tags: the pairs of each and the two-loop recursion."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from retailtag.probes.solver.preconditioners import Preconditioner
from retailtag.probes.solver.problem import dot

N_PAIRS = 12  # pairs remembered; 20 gave nothing


@dataclass
class Pairs:
    """L-BFGS pairs of a batch, newest last: steps, and how the gradient of the loss changed.

    Both are (N_PAIRS, tags, dim + 1), 0 where nothing is remembered yet.
    """

    # The gradient of ½‖w‖² + C·loss changes over a step s by y = C·Δ∇loss + (s_w, 0). A pair that
    # was seen at one strength serves at others: with Δ∇loss alone it is exact as long as the
    # curvature p(1-p) stays. Where a tag is separable p(1-p) falls as 1/C, so that C·Δ∇loss stays.

    steps: Tensor
    changes: Tensor
    frozen: bool  # whether `changes` are C·Δ∇loss at the strength where they were seen

    @classmethod
    def none(cls, like: Tensor, *, frozen: bool = False) -> Pairs:
        """No pairs for parameters `like` (tags, dim + 1)."""
        empty = like.new_zeros(N_PAIRS, *like.shape)
        return cls(empty, empty.clone(), frozen)

    def add(self, step: Tensor, change: Tensor, C: Tensor) -> None:
        """Remember a step (tags, dim + 1) and its Δ∇loss at strengths C; forget the oldest pair."""
        seen = C[:, None] * change if self.frozen else change
        self.steps = torch.cat([self.steps[1:], step[None]])
        self.changes = torch.cat([self.changes[1:], seen[None]])

    def take(self, rows: Tensor) -> Pairs:
        """Only the tags in `rows`."""
        return Pairs(self.steps[:, rows], self.changes[:, rows], self.frozen)

    def put(self, rows: Tensor, other: Pairs) -> None:
        """Overwrite the tags in `rows`."""
        self.steps[:, rows] = other.steps
        self.changes[:, rows] = other.changes

    def direction(
        self, g: Tensor, C: Tensor, preconditioner: Preconditioner, tags: Tensor
    ) -> Tensor:
        """Two-loop recursion for -Hg, (tags, dim + 1), at strengths C (tags,).

        References
        ----------
        Nocedal (1980), Updating quasi-Newton matrices with limited storage, Mathematics of
        Computation 35.
        """
        # H = (I - ρsy')H₋(I - ρys') + ρss' with ρ = 1/(s'y), unrolled over the pairs: the newest
        # pair is taken off g first, the first guess is applied in the middle, then back.
        q = g.clone()
        seen: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        for s, change in zip(self.steps.flip(0), self.changes.flip(0), strict=True):
            y = change.clone() if self.frozen else C[:, None] * change
            y[:, :-1] += s[:, :-1]  # the intercept has no penalty
            sy = dot(s, y)
            # s'y > 0 keeps H positive definite. It fails where rounding spoiled a step (and for
            # the zeros of an empty memory): such a pair is skipped by ρ = 0.
            rho = torch.where(sy > 0, 1 / sy, torch.zeros_like(sy))
            a = rho * dot(s, q)
            q -= a[:, None] * y
            seen.append((s, y, rho, a))
        q = preconditioner.apply(tags, q)
        for s, y, rho, a in reversed(seen):
            q += (a - rho * dot(y, q))[:, None] * s
        return -q
