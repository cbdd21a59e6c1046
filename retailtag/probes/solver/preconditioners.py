"""First guesses of the inverse Hessian, from which every L-BFGS direction starts."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import Tensor

from retailtag.probes.solver.problem import Problem

# Ratios of 7 and 11, and Newton from the 6th iteration on, gave no gain (results/LOG.md).
STALE_RATIO = 3.5  # ratio of strengths from which a factored Hessian is made anew
RENEW_EVERY = 8  # iterations between two factorings
NEWTON_AFTER = 12  # iterations after which every step is Newton's, from its own factoring
NEWTON_IMAGES = 4  # times the images of an ordinary factoring that those may take
COVERED = 0.9999  # share of a tag's curvature that a factoring takes exactly
EXACT_NUMBERS = 100_000_000  # feature values that an exact factoring takes at once: 0.8 GB
STORED_NUMBERS = 400_000_000  # entries of stored factors: 1.6 GB


@dataclass(frozen=True)
class DiagonalPreconditioner:
    """The Hessian at the prevalence, diagonal in the eigenbasis: (n_tags, dim + 1) inverted."""

    inverse: Tensor

    def renew(self, problem: Problem, tags: Tensor, u: Tensor, C: Tensor, step: int) -> bool:
        """Leave it as it is."""
        return False

    def apply(self, tags: Tensor, q: Tensor) -> Tensor:
        """Inverse Hessian times q, (tags, dim + 1)."""
        return q * self.inverse[tags]


class FactoredPreconditioner:
    """Factored Hessians, each reused until the strength or the iterations have gone far.

    `exact` is Newton's method from the first step on, with the curvature of as many images as fit
    in memory.
    """

    def __init__(self, dim: int, n_tags: int, device: torch.device, *, exact: bool = False) -> None:
        self.exact = exact
        self.dim = dim
        self.device = device
        # 2 or 6 times as many images as dimensions gave no gain.
        self.n_images = max(4 * dim, 1000)
        self.capacity = max(STORED_NUMBERS // (dim + 1) ** 2, 1)
        self.factor: OrderedDict[int, Tensor] = OrderedDict()  # the least recently used first
        self.made_at = torch.zeros(n_tags, dtype=torch.float64, device=device)  # strength; 0: none

    def renew(self, problem: Problem, tags: Tensor, u: Tensor, C: Tensor, step: int) -> bool:
        """Factor again what is stale or was dropped because memory was full.

        `problem` holds the rows of `tags`, u (tags, n_images) their logits. Returns whether the
        guess is made for these logits: older pairs would then mislead it.
        """
        newton = self.exact or step >= NEWTON_AFTER
        for tag in tags.tolist():
            if tag in self.factor:
                self.factor.move_to_end(tag)
        stale = self.made_at[tags] * STALE_RATIO < C
        if newton or (step and step % RENEW_EVERY == 0):
            stale[:] = True
        n_images = self.n_images * NEWTON_IMAGES if newton else self.n_images
        covered = COVERED
        if self.exact:
            n_images = max(n_images, EXACT_NUMBERS // (self.dim + 1))
            covered = 1.0
        for rows in torch.nonzero(stale).flatten().split(self._tags_at_once(n_images)):
            made = problem.take(rows).hessian_factors(u[rows], C[rows], n_images, covered)
            self._remember(tags[rows].tolist(), made)
        self.made_at[tags[stale]] = C[stale].double()
        return newton

    def _tags_at_once(self, n_images: int) -> int:
        """Tags to factor together: a CPU is as fast one by one, a GPU wants many small ones."""
        if self.device.type == "cpu":
            return 1
        return max(STORED_NUMBERS // (n_images * (self.dim + 1)), 1)

    def _remember(self, tags: list[int], made: Tensor) -> None:
        for tag, factor in zip(tags, made, strict=True):
            # A view would keep the whole stack alive after the other tags are dropped.
            self.factor[tag] = factor.clone() if len(made) > 1 else factor
            self.factor.move_to_end(tag)
        while len(self.factor) > self.capacity:
            dropped, _ = self.factor.popitem(last=False)
            self.made_at[dropped] = 0

    def apply(self, tags: Tensor, q: Tensor) -> Tensor:
        """Inverse Hessian times q, (tags, dim + 1), of at most `capacity` tags, just renewed."""
        if q.device.type != "cpu":
            stacked = torch.stack([self.factor[tag] for tag in tags.tolist()])
            return torch.cholesky_solve(q[:, :, None], stacked)[:, :, 0]
        solved = [
            torch.cholesky_solve(column[:, None], self.factor[tag])[:, 0]
            for tag, column in zip(tags.tolist(), q, strict=True)
        ]
        return torch.stack(solved)


Preconditioner = DiagonalPreconditioner | FactoredPreconditioner
