"""Limited-memory BFGS for a batch of tags, from a first guess of each inverse Hessian."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from retailtag.probes.solver.problem import Problem

HISTORY = 12  # pairs kept
STALE = 3.5  # ratio of strengths from which a factored Hessian is made anew
RENEW = 8  # iterations between two factorings
NEWTON = 12  # iterations after which every step is Newton's, from its own factoring
WIDER = 4  # times the images that those factorings may take
COVERED = 0.9999  # share of a tag's curvature that a factoring has exactly
IMAGES = 100_000_000  # numbers of features that an exact factoring takes at once: 0.8 GB
FACTORS = 400_000_000  # numbers of factored Hessians kept: 1.6 GB


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Row-wise inner products of (tags, m), shape (tags,)."""
    return (a * b).sum(dim=1)


class Guess(Protocol):
    """First guess of the inverse Hessian of each tag."""

    def renew(self, problem: Problem, tags: Tensor, u: Tensor, C: Tensor, step: int) -> bool:
        """Follow the tags, whose rows make up `problem`, to their logits u (tags, n_images).

        Returns whether the guess is made for these logits, so that pairs would mislead it.
        """
        ...

    def apply(self, tags: Tensor, q: Tensor) -> Tensor:
        """Inverse Hessian times q, (tags, dim + 1)."""
        ...


@dataclass(frozen=True)
class Diagonal:
    """The Hessian at the prevalence, diagonal in the eigenbasis: (n_tags, dim + 1) inverted."""

    inverse: Tensor

    def renew(self, problem: Problem, tags: Tensor, u: Tensor, C: Tensor, step: int) -> bool:
        """Stays as it is."""
        return False

    def apply(self, tags: Tensor, q: Tensor) -> Tensor:
        """See `Guess.apply`."""
        return q * self.inverse[tags]


class Factors:
    """Factored Hessians, each kept until the strength or the iterations have gone far.

    Parameters
    ----------
    dim : int
        Of the features.
    n_tags : int
        In the batch.
    device : torch.device
    exact : bool
        Newton's method from the first step on, with the curvature of as many images as there is
        room for.
    """

    def __init__(self, dim: int, n_tags: int, device: torch.device, *, exact: bool = False) -> None:
        self.exact = exact
        self.size = max(4 * dim, 1000)
        self.capacity = max(FACTORS // (dim + 1) ** 2, 1)
        self.dim, self.device = dim, device
        self.factor: OrderedDict[int, Tensor] = OrderedDict()
        self.made_at = torch.zeros(n_tags, dtype=torch.float64, device=device)

    def renew(self, problem: Problem, tags: Tensor, u: Tensor, C: Tensor, step: int) -> bool:
        """Factor anew what is stale or was given up for want of room."""
        newton = self.exact or step >= NEWTON
        for tag in tags.tolist():
            if tag in self.factor:
                self.factor.move_to_end(tag)
        stale = self.made_at[tags] * STALE < C
        if newton or (step and step % RENEW == 0):
            stale[:] = True
        size, covered = self.size * WIDER if newton else self.size, COVERED
        if self.exact:
            size, covered = max(size, IMAGES // (self.dim + 1)), 1.0
        for rows in torch.nonzero(stale).flatten().split(self._at_once(size)):
            made = problem.keep(rows).hessian_factors(u[rows], C[rows], size, covered)
            self._remember(tags[rows].tolist(), made)
        self.made_at[tags[stale]] = C[stale].double()
        return newton

    def _at_once(self, size: int) -> int:
        """Tags to factor together: a CPU takes one at a time, a GPU wants many small ones."""
        return 1 if self.device.type == "cpu" else max(FACTORS // (size * (self.dim + 1)), 1)

    def _remember(self, tags: list[int], made: Tensor) -> None:
        for tag, factor in zip(tags, made, strict=True):
            self.factor[tag] = factor.clone() if len(made) > 1 else factor
            self.factor.move_to_end(tag)
        while len(self.factor) > self.capacity:
            gone, _ = self.factor.popitem(last=False)
            self.made_at[gone] = 0

    def apply(self, tags: Tensor, q: Tensor) -> Tensor:
        """See `Guess.apply`; at most `capacity` tags, and renewed before."""
        if q.device.type != "cpu":
            stacked = torch.stack([self.factor[tag] for tag in tags.tolist()])
            return torch.cholesky_solve(q[:, :, None], stacked)[:, :, 0]
        solved = [
            torch.cholesky_solve(column[:, None], self.factor[tag])[:, 0]
            for tag, column in zip(tags.tolist(), q, strict=True)
        ]
        return torch.stack(solved)


@dataclass
class Memory:
    """L-BFGS pairs of a batch, newest last: steps, and how the slope of the loss changed over them.

    The gradient of ½‖w‖² + C·loss changes by C times the change of slope, plus the step in w: so a
    pair that was seen at one strength is exact at every other.

    Parameters
    ----------
    steps, slopes : Tensor, shape (HISTORY, tags, dim + 1)
        0 where nothing is remembered yet.
    """

    steps: Tensor
    slopes: Tensor

    @classmethod
    def nothing(cls, like: Tensor) -> Memory:
        """No pairs for parameters `like` (tags, dim + 1)."""
        empty = like.new_zeros(HISTORY, *like.shape)
        return cls(empty, empty.clone())

    def add(self, step: Tensor, slope: Tensor) -> None:
        """Remember a step and its change of slope, (tags, dim + 1), and forget the oldest."""
        self.steps = torch.cat([self.steps[1:], step[None]])
        self.slopes = torch.cat([self.slopes[1:], slope[None]])

    def forget(self) -> None:
        """Drop every pair."""
        self.steps.zero_()
        self.slopes.zero_()

    def take(self, rows: Tensor) -> Memory:
        """Only the tags in `rows`."""
        return Memory(self.steps[:, rows], self.slopes[:, rows])

    def put(self, rows: Tensor, other: Memory) -> None:
        """Overwrite the tags in `rows`."""
        self.steps[:, rows], self.slopes[:, rows] = other.steps, other.slopes

    def direction(self, g: Tensor, C: Tensor, guess: Guess, tags: Tensor) -> Tensor:
        """Two-loop recursion from a first guess: -Hg, (tags, dim + 1), at strengths C (tags,).

        References
        ----------
        Nocedal (1980), Updating quasi-Newton matrices with limited storage, Mathematics of
        Computation 35.
        """
        q = g.clone()
        kept: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        for s, slope in zip(self.steps.flip(0), self.slopes.flip(0), strict=True):
            y = C[:, None] * slope
            y[:, :-1] += s[:, :-1]
            sy = dot(s, y)
            # A step that rounding spoiled (no curvature seen) must not enter the recursion.
            rho = torch.where(sy > 0, 1 / sy, torch.zeros_like(sy))
            a = rho * dot(s, q)
            q -= a[:, None] * y
            kept.append((s, y, rho, a))
        q = guess.apply(tags, q)
        for s, y, rho, a in reversed(kept):
            q += (a - rho * dot(y, q))[:, None] * s
        return -q
