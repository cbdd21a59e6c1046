"""The step of every tag: about the least of its objective on a line, or in a plane.

Logits are linear in the step, so that a trial point costs no product with the features.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from retailtag.probes.solver.problem import PerTag, Problem

MAX_TRIALS = 30
ENOUGH = 0.01  # of the decrease so far: a Newton step in the plane that promises less is not taken
NEGLIGIBLE = 1e-5  # of the objective: likewise
SHORTENED = 0.1  # a step that went up is shortened to this; Newton goes on from there
OBJECTIVE_NOISE = 2e-7  # relative rounding of a float32 objective
# Longer steps, in directions, would magnify how the logits of small directions are rounded.
MAX_REACH = 32.0
GROWTH = 4.0  # times the largest coordinate, or 1, that a Newton step in the plane may be
DAMPING = 1e-6  # of the diagonal of the plane's Hessian, for two directions that are nearly one


@dataclass(frozen=True)
class Direction(PerTag):
    """Directions d (tags, dim + 1) and their logits du (tags, n_images)."""

    d: Tensor
    du: Tensor


class _Trial(NamedTuple):
    """Objective (tags,), its slopes (tags, J) and Hessian (tags, J, J) along J directions."""

    f: Tensor
    slope: Tensor
    hessian: Tensor


@dataclass(frozen=True)
class Plane:
    """The objective at x + Σ β_j·d_j, as a function of β (tags, J), J = 1 or 2."""

    problem: Problem
    u: Tensor  # logits at x
    C: Tensor  # (tags,)
    du: tuple[Tensor, ...]  # J of (tags, n_images)
    penalty: Tensor  # inner products of the weights of (x, d_1, ..., d_J), (tags, J + 1, J + 1)

    @classmethod
    def make(
        cls, problem: Problem, x: Tensor, u: Tensor, C: Tensor, directions: list[Direction]
    ) -> Plane:
        """Plane through parameters x (tags, dim + 1), whose logits are u."""
        weights = torch.stack([x, *(way.d for way in directions)], dim=1)[:, :, :-1].double()
        return cls(problem, u, C, tuple(way.du for way in directions), weights @ weights.mT)

    def take(self, rows: Tensor) -> Plane:
        """Only the tags in `rows`."""
        du = tuple(each[rows] for each in self.du)
        problem = self.problem.take(rows)
        return Plane(problem, self.u[rows], self.C[rows], du, self.penalty[rows])

    def least(self, f: Tensor) -> Tensor:
        """Coordinates β float64 (tags, J) of about the least objective, which is `f` at 0.

        Newton's method from the full step along the first direction; 0 where nothing goes down.
        """
        best = torch.zeros(len(f), len(self.du), dtype=torch.float64, device=f.device)
        step = torch.zeros_like(best)
        step[:, 0] = 1
        plane = self
        rows = torch.arange(len(f), device=f.device)  # tags that are not done
        start, lowest = f, f  # of those
        for _ in range(MAX_TRIALS):
            beta = best[rows] + step
            trial = plane._at(beta)
            # NaN comes from a trial that overflowed, and is no decrease.
            down = trial.f <= lowest + OBJECTIVE_NOISE * start
            newton = torch.linalg.solve_ex(trial.hessian, -trial.slope[:, :, None]).result[:, :, 0]
            newton = newton.nan_to_num(0.0, 0.0, 0.0)
            # Where the labels are far on their sides curvature is next to nothing, and so is what
            # Newton's step says there: go a few times as far as now at most.
            far = newton.abs().amax(dim=1) / beta.abs().amax(dim=1).clamp_min(1)
            newton = newton * (GROWTH / far).clamp_max(1)[:, None]
            promised = -0.5 * (trial.slope * newton).sum(dim=1)
            best[rows] = torch.where(down[:, None], beta, best[rows])
            lowest = torch.where(down, trial.f, lowest)
            enough = torch.maximum(ENOUGH * (start - lowest), NEGLIGIBLE * lowest)
            going = torch.nonzero(~(down & (promised <= enough))).flatten()
            if not len(going):
                break
            step = torch.where(down[:, None], newton, SHORTENED * step)[going]
            if len(going) < len(rows):
                plane = plane.take(going)
                rows, start, lowest = rows[going], start[going], lowest[going]
        # On the way to what is found the objective falls as well: it is convex.
        return best * (MAX_REACH / best.abs().amax(dim=1, keepdim=True)).clamp_max(1)

    def _at(self, beta: Tensor) -> _Trial:
        """The objective and its derivatives at β."""
        n_tags, J = beta.shape
        C = self.C.double()
        v = torch.cat([torch.ones_like(beta[:, :1]), beta], dim=1)
        slope = (self.penalty @ v[:, :, None])[:, :, 0]  # of ½v'Pv
        f = 0.5 * (v * slope).sum(dim=1)
        slope = slope[:, 1:].clone()
        hessian = self.penalty[:, 1:, 1:].clone()
        ranks = self.problem.features.ranks
        if not ranks.is_first:  # the penalty counts once
            f, slope, hessian = (torch.zeros_like(t) for t in (f, slope, hessian))
        coefficients = beta.to(self.u.dtype)
        for at in self.problem.slices(n_tags):
            du = [each[:, at] for each in self.du]
            u = self.u[:, at]
            for j in range(J):
                u = torch.addcmul(u, du[j], coefficients[:, j : j + 1])
            cells = self.problem.cells(u, at)
            f += C * cells.loss.sum(dim=1)
            for j in range(J):
                slope[:, j] += C * (cells.residual * du[j]).sum(dim=1)
                bent = cells.curvature * du[j]
                for k in range(j + 1):
                    hessian[:, j, k] += C * (bent * du[k]).sum(dim=1)
        ranks.add_up([f, slope, hessian])
        if J == 2:
            hessian[:, 0, 1] = hessian[:, 1, 0]
        hessian.diagonal(dim1=1, dim2=2).mul_(1 + DAMPING).clamp_min_(1e-300)
        return _Trial(f, slope, hessian)
