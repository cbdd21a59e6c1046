"""The default solver: batched, preconditioned L-BFGS over all tags at once, on CPU or CUDA.

* Features are rotated once into the eigenbasis of X'X (V e V'), where the Hessian at the prior
  is nearly diagonal: I + C·π(1-π)·diag(e) for a tag of prevalence π. Its inverse is the first
  Hessian guess of every L-BFGS direction, so that conditioning does not depend on the spectrum.
* From the strength on where that guess no longer does (large C, rare tags, nearly separable), the
  guess is the factored Hessian of the images that hold nearly all of the tag's curvature. Tags
  that take long (those near the edge of separability do) end with Newton steps, and what float32
  does not bring to the tolerance goes on in float64 with the curvature of all images.
* Logits are linear in the step: one pass over the images gives a trial point and its gradient, and
  a shorter step costs no product with the features.
* Strengths are solved in ascending order, each from the solution of the one before, whose sums
  serve the next strength too, as do its L-BFGS pairs while the guess is the diagonal; tags that
  have converged leave the batch.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, fields, replace

import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from torch import Tensor

from retailtag.probes.solver.fits import (
    OnBlock,
    ProbeFits,
    Start,
    fittable,
    ignore,
    prior_logit,
    statuses,
)
from retailtag.probes.solver.problem import Problem, Sums
from retailtag.probes.solver.quasi_newton import Diagonal, Factors, Guess, Memory, dot
from retailtag.probes.solver.rotated import Rotated
from retailtag.probes.solver.rows import FeatureRows
from retailtag.progress import Advance, nobody

CELLS = 48_000_000  # (tag, image) cells in flight: 0.2 GB a float32 matrix of logits
ARMIJO = 1e-4
RETURNED = 2e-6  # of the objective: what rounding the head to float32 may add
SINGLE = 50  # iterations after which a (tag, C) goes on in float64
EPSILON = 2.0**-24  # of float32
ROUNDING = 2e-7  # relative noise of a float32 objective
SHORTER = 25  # times a step may be shortened
EASY = 8  # iterations a tag may take with the diagonal guess


@dataclass(frozen=True)
class TorchSolver:
    """Batched L-BFGS in the eigenbasis of the features.

    Parameters
    ----------
    device : str
        ``cpu`` or ``cuda``.
    tol : float
        Stop a tag when its bound on (objective - optimum) / objective is below this.
    max_iter : int
        Iterations allowed for one (tag, C).
    memory : int, optional
        Bytes that the rotated features may take before they go to a scratch file that is
        streamed; by default 60 % of what is free on the device.

    Notes
    -----
    The bound: where the intercept minimises the objective for the given w, what remains is a
    1-strongly convex function of w, so its gap is at most ½‖∇_w‖². How far the intercept is off
    enters by its Newton step, which moves the gradient by at most |∇_b|·R, R² being the mean of
    ‖z‖² weighted by curvature; and by its Newton decrement.

    Where C·mean(x²) is beyond 1e8, which standardised features never reach, what float32 features
    and heads lose is counted in by an estimate, and the truth may be up to 1e-3 above the bound.

    The cost of an iteration is two products of (n_images, dim) by (dim, n_tags). Features whose
    scales differ by more than a hundred are solved in float64.
    """

    device: str = "cpu"
    tol: float = 1e-4
    max_iter: int = 300
    memory: int | None = None

    def __call__(
        self,
        X: FeatureRows,
        Y: NDArray[np.int8],
        C: NDArray[np.float64],
        advance: Advance = nobody,
        *,
        sample_weight: NDArray[np.float64] | None = None,
        tag_weight: NDArray[np.float64] | None = None,
        start: Start | None = None,
        on_block: OnBlock = ignore,
    ) -> ProbeFits:
        """Fit every (C, tag); see `retailtag.probes.solver.fits.Solver`."""
        begun = time.perf_counter()
        features, blocks = self._prepare(X, Y, sample_weight, tag_weight, start)
        fits = ProbeFits.empty(C, Y.shape[1], X.shape[1])
        fits.bias[:] = prior_logit(Y, sample_weight)
        n_single = Y.shape[1] - sum(len(tags) for tags, _ in blocks)
        for k, c in enumerate(C):
            for tags, path in blocks:
                at = path.minimise(float(c))
                weight, bias = features.restore(at.x)
                fits.weight[k, tags], fits.bias[k, tags] = weight.cpu(), bias.cpu()
                fits.objective[k, tags], gap = at.objective.cpu(), at.gap.cpu().numpy()
                fits.gap[k, tags], fits.iterations[k, tags] = gap, at.steps.cpu()
                separated = at.separated.cpu().numpy()
                fits.status[k, tags] = statuses(gap <= self.tol, separated, Y[:, tags])
                advance(len(tags))
            advance(n_single)
            on_block(k, fits)
        return replace(fits, seconds=time.perf_counter() - begun)

    def _prepare(
        self,
        X: FeatureRows,
        Y: NDArray[np.int8],
        sample_weight: NDArray[np.float64] | None,
        tag_weight: NDArray[np.float64] | None,
        start: Start | None,
    ) -> tuple[Rotated, list[tuple[NDArray[np.intp], _Path]]]:
        """Rotate the features, and open the path of each block of tags that can be fitted."""
        device = torch.device(self.device)
        mass = None
        if sample_weight is not None:
            mass = torch.from_numpy(np.asarray(sample_weight, np.float64)).to(device)
        features = Rotated.make(X, mass, device, self.memory or _free(device) * 6 // 10)
        tags = np.flatnonzero(fittable(Y, sample_weight))
        factor = np.ones(Y.shape[1]) if tag_weight is None else np.asarray(tag_weight)
        weight, bias = start or (
            np.zeros((Y.shape[1], X.shape[1]), np.float32),
            prior_logit(Y, sample_weight),
        )
        n_blocks = -(-len(tags) * len(Y) // CELLS)
        paths = []
        for block in np.array_split(tags, n_blocks) if n_blocks else ():
            problem = Problem.make(features, Y[:, block], mass, factor[block])
            x = features.adopt(torch.from_numpy(weight[block]), torch.from_numpy(bias[block]))
            path = _Path(problem, x, self.tol, self.max_iter, keep_logits=n_blocks == 1)
            paths.append((block, path))
        return features, paths


def _free(device: torch.device) -> int:
    """Bytes free on the device."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)


@dataclass
class _State:
    """Where each tag of a batch stands; rows are tags.

    x (tags, dim + 1), u (tags, n_images) the logits there, `sums` of them; the rest (tags,).
    """

    x: Tensor
    u: Tensor
    sums: Sums
    steps: Tensor

    @classmethod
    def at(cls, problem: Problem, x: Tensor) -> _State:
        u = torch.empty_like(problem.away)
        sums = problem.sums(None, x, u)
        return cls(x, u, sums, torch.zeros(len(x), dtype=torch.int32, device=x.device))

    def take(self, rows: Tensor) -> _State:
        return _State(self.x[rows], self.u[rows], self.sums.take(rows), self.steps[rows])

    def put(self, rows: Tensor, other: _State) -> None:
        self.x[rows], self.u[rows], self.steps[rows] = other.x, other.u, other.steps
        self.sums.put(rows, other.sums)


@dataclass(frozen=True)
class _Solution:
    """Parameters x float64 (tags, dim + 1) of a batch at one strength; the rest (tags,)."""

    x: Tensor
    objective: Tensor
    gap: Tensor
    steps: Tensor
    separated: Tensor

    def put(self, rows: Tensor, other: _Solution) -> None:
        for f in fields(self):
            getattr(self, f.name)[rows] = getattr(other, f.name)


class _Path:
    """Minimises at ascending strengths and remembers what helps the next."""

    def __init__(
        self, problem: Problem, x: Tensor, tol: float, max_iter: int, keep_logits: bool
    ) -> None:
        self.problem, self.tol, self.max_iter = problem, tol, max_iter
        self.keep_logits = keep_logits
        # A second copy of streamed features, in float64, may be more than the disk holds.
        self.single = max_iter if problem.features.streamed else min(SINGLE, max_iter)
        self.x = x
        self.state: _State | None = None
        self.hard = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        self.memory = Memory.nothing(x)
        self.factors = Factors(problem.features.V.shape[0], len(x), x.device)

    def minimise(self, C: float) -> _Solution:
        """Minimise for every tag, from the last solution."""
        problem, tol = self.problem, self.tol
        state = self.state or _State.at(problem, self.x)
        state.steps.zero_()
        strength = C * problem.tag_weight
        easy = torch.nonzero(~self.hard).flatten()
        if len(easy):
            diagonal = Diagonal(problem.prior_diagonal(strength))
            limit = min(EASY, self.max_iter)
            _descend(problem, state, self.memory, easy, strength, diagonal, tol, limit)
        hard = torch.nonzero(self.hard | (_gap(state, strength) > tol)).flatten()
        self.hard[hard] = True
        fresh = Memory.nothing(state.x)  # pairs of another strength mislead a factor of this one
        for some in hard.split(self.factors.capacity):
            _descend(problem, state, fresh, some, strength, self.factors, tol, self.single)
        found = _solution(problem, state, strength)
        stuck = torch.nonzero(found.gap > tol).flatten()
        if len(stuck) and self.max_iter > self.single:
            found.put(stuck, self._in_double(stuck, state, strength))
            state.put(stuck, _State.at(problem.keep(stuck), found.x[stuck].to(state.x.dtype)))
        self.x, self.state = state.x, state if self.keep_logits else None
        return found

    def _in_double(self, tags: Tensor, state: _State, C: Tensor) -> _Solution:
        """Go on in float64 with tags that float32 leaves above the tolerance."""
        problem, C = self.problem.keep(tags).double(), C[tags].double()
        exact = _State.at(problem, state.x[tags].double())
        exact.steps += state.steps[tags]
        everyone = torch.arange(len(tags), device=tags.device)
        factors = Factors(problem.features.V.shape[0], len(tags), tags.device, exact=True)
        fresh = Memory.nothing(exact.x)
        for some in everyone.split(factors.capacity):
            _descend(problem, exact, fresh, some, C, factors, self.tol, self.max_iter)
        return _solution(problem, exact, C)


def _solution(problem: Problem, state: _State, C: Tensor) -> _Solution:
    return _Solution(
        x=state.x.double(),
        objective=_objective(state.x, state.sums.loss, C),
        gap=_gap(state, C) + _rounding(problem, state, C),
        steps=state.steps.clone(),
        separated=problem.separated(state.u),
    )


def _descend(
    problem: Problem,
    whole: _State,
    remembered: Memory,
    tags: Tensor,
    C: Tensor,
    guess: Guess,
    tol: float,
    max_iter: int,
) -> None:
    """Minimise for some tags of the batch, from `whole` and into it; C is (all tags,)."""
    problem, state, C = problem.keep(tags), whole.take(tags), C[tags]
    memory = remembered.take(tags)
    for step in range(max_iter + 1):
        done = (_gap(state, C) <= tol) | (state.steps >= max_iter)
        if done.any():
            ended, going = torch.nonzero(done).flatten(), torch.nonzero(~done).flatten()
            whole.put(tags[ended], state.take(ended))
            remembered.put(tags[ended], memory.take(ended))
            problem, tags, state, C = problem.keep(going), tags[going], state.take(going), C[going]
            memory = memory.take(going)
        if not len(tags):
            break
        if guess.renew(problem, tags, state.u, C, step):
            memory.forget()
        g, slope = _gradient(state, C), state.sums.slope
        d = _downhill(memory.direction(g, C, guess, tags), g)
        alpha = _step(problem, state, d, g, C)
        memory.add(alpha[:, None] * d, state.sums.slope - slope)
        state.steps += 1


def _objective(x: Tensor, loss: Tensor, C: Tensor) -> Tensor:
    """½‖w‖² + C·loss, float64 (tags,)."""
    w = x[:, :-1].double()
    return 0.5 * dot(w, w) + C.double() * loss


def _gradient(state: _State, C: Tensor) -> Tensor:
    """Gradient of the objective, (tags, dim + 1)."""
    g = C[:, None] * state.sums.slope
    g[:, :-1] += state.x[:, :-1]
    return g


def _gap(state: _State, C: Tensor) -> Tensor:
    """Bound on the relative suboptimality of each tag, float64 (tags,); see `TorchSolver`."""
    g = _gradient(state, C).double()
    w, b = g[:, :-1], g[:, -1].abs()
    weight = state.sums.weight.double().clamp_min(1e-300)
    reach = (state.sums.spread.double() / weight).sqrt()
    f = _objective(state.x, state.sums.loss, C)
    bound = 0.5 * (dot(w, w).sqrt() + b * reach).square() + b * b / (C.double() * weight)
    return bound / f.clamp_min(1e-300) + RETURNED


def _rounding(problem: Problem, state: _State, C: Tensor) -> Tensor:
    """What storing features and heads in float32 may add to the gap, float64 (tags,).

    Logits move by at most δ = ε·‖w‖·‖x‖, and the objective, at its minimum, by ½·C·Σ m·p(1-p)·δ²;
    twice, for the features and for the head. It matters where C·mean(x²) is beyond 1e8.
    """
    w, far = state.x[:, :-1].double(), problem.features.mean.square().sum()
    reach = state.sums.spread.double() + state.sums.weight.double() * far
    f = _objective(state.x, state.sums.loss, C)
    return C.double() * EPSILON**2 * dot(w, w) * 2 * reach / f.clamp_min(1e-300)


def _downhill(d: Tensor, g: Tensor) -> Tensor:
    """The direction d, or the steepest descent where d does not go down."""
    steepest = -g / dot(g, g).sqrt().clamp_min(1)[:, None]
    return torch.where((dot(g, d) < 0)[:, None], d, steepest)


def _step(problem: Problem, state: _State, d: Tensor, g: Tensor, C: Tensor) -> Tensor:
    """Move along d until the decrease is sufficient; how far, (tags,)."""
    du = torch.empty_like(state.u)
    sums = problem.sums(state.u, d, du)
    alpha = torch.ones_like(C)
    line = _Line(problem, state.x, state.u, d, du, C, dot(g, d).double(), state.sums.loss)
    reached = _objective(state.x + d, sums.loss, C)
    long = torch.nonzero(line.too_high(alpha, reached)).flatten()
    if len(long):
        alpha[long] = line.keep(long).backtrack(alpha[long], reached[long])
    state.x += alpha[:, None] * d
    state.u.addcmul_(du, alpha[:, None])
    state.sums = sums
    if len(long):
        sums.put(long, problem.keep(long).sums_at(state.u[long]))
    return alpha


@dataclass(frozen=True)
class _Line:
    """The objective along d (tags, dim + 1), whose logits are du (tags, n_images)."""

    problem: Problem
    x: Tensor
    u: Tensor
    d: Tensor
    du: Tensor
    C: Tensor
    slope: Tensor
    loss: Tensor

    def keep(self, rows: Tensor) -> _Line:
        """Only the tags in `rows`."""
        rest = (self.x, self.u, self.d, self.du, self.C, self.slope, self.loss)
        return _Line(self.problem.keep(rows), *(t[rows] for t in rest))

    def too_high(self, alpha: Tensor, reached: Tensor) -> Tensor:
        """Whether the objective `reached` at alpha has not sunk enough (Armijo), (tags,)."""
        f = _objective(self.x, self.loss, self.C)
        return ~(reached <= f + ARMIJO * alpha.double() * self.slope + ROUNDING * f)

    def backtrack(self, alpha: Tensor, reached: Tensor) -> Tensor:
        """Shorten alpha (tags,) until the objective, `reached` at first, has sunk enough.

        Next comes the minimum of the parabola through the objective, its slope and the trial,
        kept within [0.1, 0.5] of the trial.
        """
        f = _objective(self.x, self.loss, self.C)
        for _ in range(SHORTER):
            high = self.too_high(alpha, reached)
            if not high.any():
                break
            rise = self.slope * alpha.double()
            shrink = (-rise / (2 * (reached - f - rise))).nan_to_num(0.1).clamp(0.1, 0.5)
            alpha = torch.where(high, alpha * shrink.to(alpha.dtype), alpha)
            u = torch.addcmul(self.u, self.du, alpha[:, None])
            x = self.x + alpha[:, None] * self.d
            reached = _objective(x, self.problem.loss(u), self.C)
        return alpha
