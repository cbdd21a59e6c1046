"""The default solver: batched, preconditioned L-BFGS over all tags at once, on CPU or CUDA.

* Features are rotated once into the eigenbasis of their Gram matrix, where the Hessian at the
  prevalence is diagonal. Its inverse is the first guess of every L-BFGS direction, so that the
  number of iterations does not depend on the spectrum of the features.
* Where that guess no longer does (large C, rare tags, nearly separable), the guess is the Hessian
  that is exact for a working set of images, those with the most curvature, and averaged for the
  others. Woodbury's identity inverts it at the cost of the images, not of the features. A tag that
  takes long gets more images, up to Newton's method, and what float32 does not bring to the
  tolerance continues in float64.
* Strengths are solved in ascending order. Each starts from where the path of the last two leads,
  as far as the objective falls that way, and with the L-BFGS pairs of the one before.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from torch import Tensor

from retailtag.probes.solver.descent import Limits, State, descend, move, relative_gap, rounding_gap
from retailtag.probes.solver.eigenbasis import RotatedFeatures
from retailtag.probes.solver.fits import ProbeFits, statuses
from retailtag.probes.solver.interface import FeatureRows, OnStrength, Start, ignore
from retailtag.probes.solver.labels import fittable, prior_logit
from retailtag.probes.solver.lbfgs import Pairs
from retailtag.probes.solver.plane import Direction
from retailtag.probes.solver.preconditioners import (
    DiagonalPreconditioner,
    WorkingSetPreconditioner,
)
from retailtag.probes.solver.problem import PerTag, Problem, objective
from retailtag.progress import Advance, nobody

MAX_LOGITS = 48_000_000  # logits (tags x images) in flight: 0.2 GB for each float32 matrix
FLOAT32_ITERATIONS = 50  # iterations after which a (tag, C) continues in float64
DIAGONAL_ITERATIONS = 2  # iterations that a tag may take with the diagonal guess


@dataclass(frozen=True)
class TorchSolver:
    """Batched L-BFGS in the eigenbasis of the features.

    A tag stops when its bound on (objective - optimum) / objective is below `tol`; see
    `retailtag.probes.solver.descent.relative_gap`. Where C·mean(x²) is above 1e8, which
    standardised features never reach, the truth may be up to 1e-3 above the bound.
    """

    device: str = "cpu"  # cpu or cuda
    tol: float = 1e-4
    # Iterations allowed for one (tag, C), each two products of (n_images, dim) by (dim, n_tags)
    max_iter: int = 300
    # Bytes that the rotated features may take before they go to a scratch file that is streamed;
    # by default 60 % of what is free on the device
    memory: int | None = None

    def __call__(
        self,
        X: FeatureRows,
        Y: NDArray[np.int8],
        C: NDArray[np.float64],
        advance: Advance = nobody,
        *,
        sample_weight: NDArray[np.float64] | None = None,
        start: Start | None = None,
        on_strength: OnStrength = ignore,
    ) -> ProbeFits:
        """Fit every (C, tag); see `retailtag.probes.solver.interface.Solver`."""
        begun = time.perf_counter()
        features, batches = self._prepare(X, Y, sample_weight, start)
        fits = ProbeFits.empty(C, Y.shape[1], X.shape[1])
        fits.bias[:] = prior_logit(Y, sample_weight)
        n_single_class = Y.shape[1] - sum(len(tags) for tags, _ in batches)
        for k, c in enumerate(C):
            for tags, path in batches:
                at = path.minimise(float(c))
                weight, bias = features.restore(at.x)
                gap = at.gap.cpu().numpy()
                fits.weight[k, tags] = weight.cpu()
                fits.bias[k, tags] = bias.cpu()
                fits.objective[k, tags] = at.objective.cpu()
                fits.gap[k, tags] = gap
                fits.iterations[k, tags] = at.steps.cpu()
                separated = at.separated.cpu().numpy()
                fits.status[k, tags] = statuses(gap <= self.tol, separated, Y[:, tags])
                advance(len(tags))
            advance(n_single_class)
            on_strength(k, fits)
        return replace(fits, seconds=time.perf_counter() - begun)

    def _prepare(
        self,
        X: FeatureRows,
        Y: NDArray[np.int8],
        sample_weight: NDArray[np.float64] | None,
        start: Start | None,
    ) -> tuple[RotatedFeatures, list[tuple[NDArray[np.intp], _Path]]]:
        """Rotate the features, and open the path of each batch of tags that can be fitted."""
        device = torch.device(self.device)
        weights = None
        if sample_weight is not None:
            weights = torch.from_numpy(np.asarray(sample_weight, np.float64)).to(device)
        memory = self.memory or _free_bytes(device) * 6 // 10
        features = RotatedFeatures.make(X, weights, device, memory)
        tags = np.flatnonzero(fittable(Y, sample_weight))
        if start is None:
            weight = np.zeros((Y.shape[1], X.shape[1]), np.float32)
            bias = prior_logit(Y, sample_weight)
        else:
            weight, bias = start
        n_batches = -(-len(tags) * len(Y) // MAX_LOGITS)
        batches = []
        for batch in np.array_split(tags, n_batches) if n_batches else ():
            problem = Problem.make(features, Y[:, batch], weights)
            x = features.adopt(torch.from_numpy(weight[batch]), torch.from_numpy(bias[batch]))
            path = _Path(problem, x, self.tol, self.max_iter, keep_logits=n_batches == 1)
            batches.append((batch, path))
        return features, batches


def _free_bytes(device: torch.device) -> int:
    """Bytes free on the device."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)


@dataclass(frozen=True)
class _Solution(PerTag):
    """Parameters x float64 (tags, dim + 1) of a batch at one strength; the rest (tags,)."""

    x: Tensor
    objective: Tensor
    gap: Tensor
    steps: Tensor
    separated: Tensor

    @classmethod
    def of(cls, problem: Problem, state: State, C: Tensor) -> _Solution:
        return cls(
            x=state.x.double(),
            objective=objective(state.x, state.sums.loss, C),
            gap=relative_gap(state, C) + rounding_gap(problem, state, C),
            steps=state.steps.clone(),
            separated=problem.separated(state.u),
        )


class _Path:
    """Minimises for a batch of tags at ascending strengths, each warm from the one before."""

    def __init__(
        self, problem: Problem, x: Tensor, tol: float, max_iter: int, keep_logits: bool
    ) -> None:
        self.problem = problem
        self.tol = tol
        self.max_iter = max_iter
        self.keep_logits = keep_logits
        # A second copy of streamed features, in float64, may be more than the disk holds.
        streamed = problem.features.streamed
        self.float32_iterations = max_iter if streamed else min(FLOAT32_ITERATIONS, max_iter)
        self.x = x
        self.state: State | None = None
        self.hard = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        self.pairs = Pairs.none(x)
        self.hard_pairs = Pairs.none(x, frozen=True)
        self.guesses = WorkingSetPreconditioner(problem.features.V.shape[0], len(x), x.device)
        self.before: Direction | None = None  # where the last call started
        self.ways: list[Direction] = []  # from one start to the next, the newest first

    def minimise(self, C: float) -> _Solution:
        """Minimise for every tag, from the last solution."""
        problem = self.problem
        tol = self.tol
        state = self.state or State.at(problem, self.x)
        state.steps.zero_()
        strength = torch.full_like(problem.prior_curvature, C)
        self._extrapolate(state, strength)
        easy = torch.nonzero(~self.hard).flatten()
        if len(easy):
            diagonal = DiagonalPreconditioner(problem.prior_diagonal(strength))
            limits = Limits(tol, min(DIAGONAL_ITERATIONS, self.max_iter))
            descend(problem, state, self.pairs, easy, strength, diagonal, limits)
        # A tag that once was hard stays so: curvature only moves further from the prior's.
        self.hard |= relative_gap(state, strength) > tol
        hard = torch.nonzero(self.hard).flatten()
        limits = Limits(tol, self.float32_iterations)
        if len(hard):
            descend(problem, state, self.hard_pairs, hard, strength, self.guesses, limits)
        found = _Solution.of(problem, state, strength)
        stuck = torch.nonzero(found.gap > tol).flatten()
        if len(stuck) and self.max_iter > limits.iterations:
            found.put(stuck, self._in_double(stuck, state, strength))
            state.put(stuck, State.at(problem.take(stuck), found.x[stuck].to(state.x.dtype)))
        self.x = state.x
        self.state = state if self.keep_logits else None
        return found

    def _extrapolate(self, state: State, C: Tensor) -> None:
        """Go on as the path went over the last two strengths, as far as the objective falls.

        Optima move almost steadily in log C where a tag is separable.
        """
        if not self.keep_logits:
            return
        before, self.before = self.before, Direction(state.x.clone(), state.u.clone())
        if before is None:
            return
        self.ways = [Direction(state.x - before.d, state.u - before.du), *self.ways[:1]]
        tags = torch.nonzero(relative_gap(state, C) > self.tol).flatten()
        if len(tags):
            some = state.take(tags)
            ways = [way.take(tags) for way in self.ways]
            # The gap is stated for the logits: what rounding took from them would make it false.
            step = move(self.problem.take(tags), some, C[tags], ways, afresh=True)
            state.put(tags, some)
            for remembered in (self.pairs, self.hard_pairs):
                pairs = remembered.take(tags)
                pairs.add(*step, C[tags])
                remembered.put(tags, pairs)

    def _in_double(self, tags: Tensor, state: State, C: Tensor) -> _Solution:
        """Continue in float64 with tags whose gradient float32 rounds above the tolerance."""
        problem = self.problem.take(tags).double()
        C = C[tags].double()
        exact = State.at(problem, state.x[tags].double())
        exact.steps += state.steps[tags]
        everyone = torch.arange(len(tags), device=tags.device)
        dim = problem.features.V.shape[0]
        factors = WorkingSetPreconditioner(dim, len(tags), tags.device, exact=True)
        fresh = Pairs.none(exact.x)
        limits = Limits(self.tol, self.max_iter)
        for some in everyone.split(factors.capacity):
            descend(problem, exact, fresh, some, C, factors, limits)
        return _Solution.of(problem, exact, C)
