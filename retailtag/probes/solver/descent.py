"""Descent of a batch of tags at one strength: directions, steps, and when to stop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from retailtag.probes.solver.lbfgs import Pairs
from retailtag.probes.solver.plane import Direction, Plane
from retailtag.probes.solver.preconditioners import Preconditioner
from retailtag.probes.solver.problem import PerTag, Problem, Sums, dot, objective

FLOAT32_EPSILON = 2.0**-24
ROUNDED_HEAD_GAP = 2e-6  # share of the objective that rounding the head to float32 may add


class Limits(NamedTuple):
    """When a tag stops: its bound on the relative gap, or its iterations at one strength."""

    tol: float
    iterations: int


@dataclass
class State(PerTag):
    """Where each tag of a batch is."""

    x: Tensor  # (tags, dim + 1)
    u: Tensor  # (tags, n_images), the logits there
    sums: Sums
    steps: Tensor  # (tags,)

    @classmethod
    def at(cls, problem: Problem, x: Tensor) -> State:
        """State at parameters x, no step taken yet."""
        u = problem.logits(x)
        return cls(
            x, u, problem.sums_at(u), torch.zeros(len(x), dtype=torch.int32, device=x.device)
        )


def gradient(state: State, C: Tensor) -> Tensor:
    """Gradient of the objective, (tags, dim + 1)."""
    g = C[:, None] * state.sums.gradient
    g[:, :-1] += state.x[:, :-1]
    return g


def relative_gap(state: State, C: Tensor) -> Tensor:
    """Bound on (objective - optimum) / objective of each tag, float64 (tags,).

    Profiled over the intercept, F(w) = min_b f(w, b) is 1-strongly convex because of ½‖w‖², so
    F(w) - F* ≤ ½‖∇F(w)‖², and ∇F(w) is the gradient of f in w at the best intercept b(w).
    """
    # The intercept at hand is off by a Newton step of |g_b|/h, h = C·Σ m·p(1-p). That moves the
    # gradient in w by at most |g_b|/h · C·Σ m·p(1-p)·‖z‖ ≤ |g_b|·R, where R² is the mean of ‖z‖²
    # weighted by curvature (Cauchy-Schwarz), and f itself by about g_b²/h: half of it by the
    # quadratic model, doubled for what the model leaves out.
    g = gradient(state, C).double()
    g_w = g[:, :-1]
    g_b = g[:, -1].abs()
    curvature = state.sums.curvature.double().clamp_min(1e-300)
    R = (state.sums.spread.double() / curvature).sqrt()
    f = objective(state.x, state.sums.loss, C)
    bound = 0.5 * (dot(g_w, g_w).sqrt() + g_b * R).square() + g_b * g_b / (C.double() * curvature)
    return bound / f.clamp_min(1e-300) + ROUNDED_HEAD_GAP


def rounding_gap(problem: Problem, state: State, C: Tensor) -> Tensor:
    """What storing features and heads in float32 may add to the gap, float64 (tags,).

    It matters where C·mean(x²) is above 1e8.
    """
    # Logits move by at most δ = ε·‖w‖·‖x‖ and the objective, at its minimum, by ½·C·Σ m·p(1-p)·δ²:
    # twice, for the features and for the head. ‖x‖² ≤ 2(‖z‖² + ‖mean‖²) for features before
    # centring.
    w = state.x[:, :-1].double()
    far = problem.features.mean.square().sum()
    reach = state.sums.spread.double() + state.sums.curvature.double() * far
    f = objective(state.x, state.sums.loss, C)
    return C.double() * FLOAT32_EPSILON**2 * dot(w, w) * 2 * reach / f.clamp_min(1e-300)


def descend(
    problem: Problem,
    whole: State,
    remembered: Pairs,
    tags: Tensor,
    C: Tensor,
    preconditioner: Preconditioner,
    limits: Limits,
) -> None:
    """Minimise for the batch's `tags`, from `whole` and into it, at strengths C (all tags,)."""
    problem = problem.take(tags)
    state = whole.take(tags)
    C = C[tags]
    pairs = remembered.take(tags)
    for step in range(limits.iterations + 1):
        done = (relative_gap(state, C) <= limits.tol) | (state.steps >= limits.iterations)
        if done.any():  # tags that are done leave the batch
            ended = torch.nonzero(done).flatten()
            going = torch.nonzero(~done).flatten()
            whole.put(tags[ended], state.take(ended))
            remembered.put(tags[ended], pairs.take(ended))
            problem = problem.take(going)
            tags = tags[going]
            state = state.take(going)
            C = C[going]
            pairs = pairs.take(going)
        if not len(tags):
            break
        preconditioner.renew(problem, tags, state.u, C, step)
        g = gradient(state, C)
        d = _downhill(pairs.direction(g, C, preconditioner, tags), g)
        pairs.add(*move(problem, state, C, [Direction(d, problem.logits(d))]), C)
        state.steps += 1


def _downhill(d: Tensor, g: Tensor) -> Tensor:
    """The direction d, or the steepest descent where d does not go down."""
    steepest = -g / dot(g, g).sqrt().clamp_min(1)[:, None]
    return torch.where((dot(g, d) < 0)[:, None], d, steepest)


def move(
    problem: Problem,
    state: State,
    C: Tensor,
    directions: list[Direction],
    *,
    afresh: bool = False,
) -> tuple[Tensor, Tensor]:
    """Go to about the least objective along the directions.

    Returns the steps and how the gradients of the loss changed, (tags, dim + 1). Logits are
    computed `afresh` from the parameters, or follow the steps, whose rounding adds up.
    """
    before = state.sums.gradient
    plane = Plane.make(problem, state.x, state.u, C, directions)
    beta = plane.least(objective(state.x, state.sums.loss, C)).to(state.x.dtype)
    moved = torch.zeros_like(state.x)
    for j, way in enumerate(directions):
        moved += beta[:, j : j + 1] * way.d
        state.u.addcmul_(way.du, beta[:, j : j + 1])
    state.x += moved
    if afresh:
        state.u = problem.logits(state.x)
    state.sums = problem.sums_at(state.u)
    return moved, state.sums.gradient - before
