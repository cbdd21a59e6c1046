"""Descent of a batch of tags at one strength: directions, line search, and when to stop."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from retailtag.probes.solver.lbfgs import Pairs
from retailtag.probes.solver.preconditioners import Preconditioner
from retailtag.probes.solver.problem import PerTag, Problem, Sums, dot

ARMIJO = 1e-4  # share of the decrease that the slope promises which a step must bring
MAX_SHORTENINGS = 25
FLOAT32_EPSILON = 2.0**-24
OBJECTIVE_NOISE = 2e-7  # relative rounding of a float32 objective
ROUNDED_HEAD_GAP = 2e-6  # share of the objective that rounding the head to float32 may add


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
        u = torch.empty_like(problem.neg_sign)
        sums = problem.sums(None, x, u)
        return cls(x, u, sums, torch.zeros(len(x), dtype=torch.int32, device=x.device))


def objective(x: Tensor, loss: Tensor, C: Tensor) -> Tensor:
    """½‖w‖² + C·loss, float64 (tags,)."""
    w = x[:, :-1].double()
    return 0.5 * dot(w, w) + C.double() * loss


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
    tol: float,
    max_iter: int,
) -> None:
    """Minimise for the batch's `tags`, from `whole` and into it, at strengths C (all tags,)."""
    problem = problem.take(tags)
    state = whole.take(tags)
    C = C[tags]
    pairs = remembered.take(tags)
    for step in range(max_iter + 1):
        done = (relative_gap(state, C) <= tol) | (state.steps >= max_iter)
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
        if preconditioner.renew(problem, tags, state.u, C, step):
            pairs.clear()
        g = gradient(state, C)
        before = state.sums.gradient
        d = _downhill(pairs.direction(g, C, preconditioner, tags), g)
        alpha = _step(problem, state, d, g, C)
        pairs.add(alpha[:, None] * d, state.sums.gradient - before)
        state.steps += 1


def _downhill(d: Tensor, g: Tensor) -> Tensor:
    """The direction d, or the steepest descent where d does not go down."""
    steepest = -g / dot(g, g).sqrt().clamp_min(1)[:, None]
    return torch.where((dot(g, d) < 0)[:, None], d, steepest)


def _step(problem: Problem, state: State, d: Tensor, g: Tensor, C: Tensor) -> Tensor:
    """Move along d until the decrease is sufficient; step lengths, (tags,)."""
    # Logits are linear in the step, so this one pass gives the full step's loss and gradient, and
    # a shorter step costs no product with the features.
    du = torch.empty_like(state.u)
    sums = problem.sums(state.u, d, du)
    alpha = torch.ones_like(C)
    line = _Line(problem, state.x, state.u, d, du, C, dot(g, d).double(), state.sums.loss)
    reached = objective(state.x + d, sums.loss, C)
    long = torch.nonzero(line.too_high(alpha, reached)).flatten()
    if len(long):
        alpha[long] = line.take(long).backtrack(alpha[long], reached[long])
    state.x += alpha[:, None] * d
    state.u.addcmul_(du, alpha[:, None])
    state.sums = sums
    if len(long):
        sums.put(long, problem.take(long).sums_at(state.u[long]))
    return alpha


@dataclass(frozen=True)
class _Line(PerTag):
    """The objective along d (tags, dim + 1), whose logits are du (tags, n_images)."""

    problem: Problem
    x: Tensor
    u: Tensor
    d: Tensor
    du: Tensor
    C: Tensor
    slope: Tensor  # g·d, float64 (tags,)
    loss: Tensor

    def too_high(self, alpha: Tensor, reached: Tensor) -> Tensor:
        """Whether the objective `reached` at alpha has not decreased enough, (tags,)."""
        f = objective(self.x, self.loss, self.C)
        # Armijo's condition; near the optimum the promised decrease is below the rounding of f.
        return ~(reached <= f + ARMIJO * alpha.double() * self.slope + OBJECTIVE_NOISE * f)

    def backtrack(self, alpha: Tensor, reached: Tensor) -> Tensor:
        """Shorten alpha (tags,) until the objective, `reached` at first, has decreased enough."""
        f = objective(self.x, self.loss, self.C)
        for _ in range(MAX_SHORTENINGS):
            high = self.too_high(alpha, reached)
            if not high.any():
                break
            # Minimum of the parabola through f, its slope and the trial, kept within [0.1, 0.5]
            # of the trial; NaN comes from a trial that overflowed.
            rise = self.slope * alpha.double()
            shrink = (-rise / (2 * (reached - f - rise))).nan_to_num(0.1).clamp(0.1, 0.5)
            alpha = torch.where(high, alpha * shrink.to(alpha.dtype), alpha)
            u = torch.addcmul(self.u, self.du, alpha[:, None])
            x = self.x + alpha[:, None] * self.d
            reached = objective(x, self.problem.loss(u), self.C)
        return alpha
