"""Where each tag of a batch is, and a bound on how far that is from its optimum."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from retailtag.probes.solver.problem import PerTag, Problem, Sums, dot, objective

FLOAT32_EPSILON = 2.0**-24
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
