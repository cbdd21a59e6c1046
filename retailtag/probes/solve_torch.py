"""The default solver: batched, preconditioned L-BFGS over all tags at once, on CPU or CUDA.

* Features are rotated once into the eigenbasis of X'X (V e V'), where the Hessian at the prior
  is nearly diagonal: I + C·π(1-π)·diag(e) for a tag of prevalence π. Its inverse is the first
  Hessian guess of every L-BFGS direction, so that conditioning does not depend on the spectrum.
* From the strength on where that guess no longer does (large C, rare tags, nearly separable), the
  guess is the factored Hessian of the images that hold most of the tag's curvature.
* Logits are linear in the step: a line search costs no matrix product.
* Strengths are solved in ascending order, each from the solution of the one before, and tags
  that have converged leave the batch.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from retailtag.probes.fits import CONVERGED, STEP_LIMIT, ProbeFits, has_both_classes, prior_logit
from retailtag.probes.problem import Problem
from retailtag.progress import Advance, nobody

HISTORY = 12  # pairs kept by L-BFGS
CELLS = 48_000_000  # (tag, image) cells in flight: 0.2 GB a float32 matrix of logits
FACTORS = 150_000_000  # numbers of factored Hessians in flight: 0.6 GB
ARMIJO = 1e-4
ROUNDING = 2e-7  # relative noise of a float32 objective
EASY = 8  # iterations a tag may take with the diagonal guess, and between two factorings
STALE = 3.5  # ratio of strengths from which a factored Hessian is made anew


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

    Notes
    -----
    The bound: for fixed w let b minimise the objective; the remaining function of w is
    1-strongly convex, so its gap is at most ½‖∇_w‖². The intercept adds its Newton decrement.
    The cost of an iteration is two products of (n_images, dim) by (dim, n_tags).
    """

    device: str = "cpu"
    tol: float = 1e-4
    max_iter: int = 300

    def __call__(
        self,
        X: NDArray[np.float32],
        Y: NDArray[np.int8],
        C: NDArray[np.float64],
        advance: Advance = nobody,
    ) -> ProbeFits:
        """Fit every (C, tag); see `retailtag.probes.fits.Solver`."""
        start = time.perf_counter()
        fits = ProbeFits.empty(C, Y.shape[1], X.shape[1])
        fits.bias[:] = prior_logit(Y)
        tags = np.flatnonzero(has_both_classes(Y))
        advance(len(C) * (Y.shape[1] - len(tags)))
        Z, V, eigenvalues = _rotate(torch.from_numpy(X).to(self.device))
        at_once = max(1, min(CELLS // len(X), FACTORS // (X.shape[1] + 1) ** 2))
        for block in np.array_split(tags, -(-len(tags) // at_once) or 1):
            if len(block):
                path = _Path(Problem.make(Z, eigenvalues, Y[:, block]), self.tol, self.max_iter)
                self._solve(fits, path, V, block, advance)
        return replace(fits, seconds=time.perf_counter() - start)

    def _solve(
        self, fits: ProbeFits, path: _Path, V: Tensor, tags: NDArray[np.intp], advance: Advance
    ) -> None:
        """Solve all strengths for some tags, each from the solution of the one before."""
        b = torch.from_numpy(fits.bias[0, tags]).to(V.device)
        x = torch.cat([torch.zeros(len(tags), V.shape[0], device=V.device), b[:, None]], dim=1)
        for k, C in enumerate(fits.C):
            at = path.minimise(x, float(C))
            x = at.x
            fits.weight[k, tags] = (x[:, :-1] @ V.T).cpu().numpy()
            fits.bias[k, tags] = x[:, -1].cpu().numpy()
            fits.objective[k, tags] = at.objective.cpu().numpy()
            gap = fits.gap[k, tags] = at.gap.cpu().numpy()
            fits.iterations[k, tags] = at.steps.cpu().numpy()
            fits.status[k, tags] = np.where(gap <= self.tol, CONVERGED, STEP_LIMIT)
            advance(len(tags))


def _rotate(X: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """X (n, dim) in the eigenbasis of X'X: Z = XV (n, dim), V (dim, dim), eigenvalues (dim,)."""
    values, vectors = torch.linalg.eigh((X.T @ X).double())
    V = vectors.float()
    return X @ V, V, values.clamp_min(0).float()


class _Path:
    """Minimises at ascending strengths and remembers what helps: tags' factored Hessians."""

    def __init__(self, problem: Problem, tol: float, max_iter: int) -> None:
        self.problem, self.tol, self.max_iter = problem, tol, max_iter
        n_tags, device = len(problem.target), problem.Z.device
        self.hard = torch.zeros(n_tags, dtype=torch.bool, device=device)
        self.factors = _Factors(max(4 * problem.Z.shape[1], 1000), n_tags, device)

    def minimise(self, x: Tensor, C: float) -> _Solution:
        """Minimise for every tag from x (tags, dim + 1)."""
        at = _Solution.start(x)
        easy = torch.nonzero(~self.hard).flatten()
        if len(easy):
            diagonal = _Diagonal(self.problem.prior_diagonal(C))
            _descend(self.problem, at, easy, C, diagonal, self.tol, min(EASY, self.max_iter))
        hard = torch.nonzero(self.hard | (at.gap > self.tol)).flatten()
        self.hard[hard] = True
        if len(hard) and self.max_iter > EASY:
            _descend(self.problem, at, hard, C, self.factors, self.tol, self.max_iter)
        return at


@dataclass
class _Solution:
    """Where each tag of a batch stands: x (tags, dim + 1), the rest (tags,)."""

    x: Tensor
    objective: Tensor
    gap: Tensor
    steps: Tensor

    @classmethod
    def start(cls, x: Tensor) -> _Solution:
        """At parameters x, nothing known of them yet."""
        unknown = torch.full_like(x[:, 0], torch.inf)
        return cls(x.clone(), unknown, unknown.clone(), torch.zeros_like(unknown).int())


class _Guess(Protocol):
    """First guess of the inverse Hessian of each tag."""

    def renew(self, problem: Problem, tags: Tensor, u: Tensor, C: float, step: int) -> None:
        """Follow the tags, whose rows make up `problem`, to their logits u (tags, n_images)."""

    def apply(self, tags: Tensor, q: Tensor) -> Tensor:
        """Inverse Hessian times q, (tags, dim + 1)."""
        ...


@dataclass(frozen=True)
class _Diagonal:
    inverse: Tensor  # (n_tags, dim + 1)

    def renew(self, problem: Problem, tags: Tensor, u: Tensor, C: float, step: int) -> None:
        """Stays as it is."""

    def apply(self, tags: Tensor, q: Tensor) -> Tensor:
        return q * self.inverse[tags]


class _Factors:
    """Factored Hessians, each kept until the strength or the iterations have gone far."""

    def __init__(self, size: int, n_tags: int, device: torch.device) -> None:
        self.size = size
        self.factor: dict[int, Tensor] = {}
        self.made_at = torch.zeros(n_tags, dtype=torch.float64, device=device)

    def renew(self, problem: Problem, tags: Tensor, u: Tensor, C: float, step: int) -> None:
        stale = self.made_at[tags] * STALE < C
        if step and step % EASY == 0:
            stale[:] = True
        for row in torch.nonzero(stale).flatten().tolist():
            self.factor[int(tags[row])] = problem.hessian_factor(row, u[row], C, self.size)
        self.made_at[tags[stale]] = C

    def apply(self, tags: Tensor, q: Tensor) -> Tensor:
        solved = [
            torch.cholesky_solve(column[:, None], self.factor[tag])[:, 0]
            for tag, column in zip(tags.tolist(), q, strict=True)
        ]
        return torch.stack(solved)


@dataclass
class _Memory:
    """L-BFGS pairs of a batch; s and y are (pairs, tags, dim + 1)."""

    s: list[Tensor]
    y: list[Tensor]

    def add(self, s: Tensor, y: Tensor) -> None:
        self.s.append(s)
        self.y.append(y)
        if len(self.s) > HISTORY:
            del self.s[0], self.y[0]

    def keep(self, rows: Tensor) -> None:
        self.s = [s[rows] for s in self.s]
        self.y = [y[rows] for y in self.y]

    def direction(self, g: Tensor, guess: _Guess, tags: Tensor) -> Tensor:
        """Two-loop recursion (Nocedal 1980) from a first guess; -Hg, (tags, dim + 1)."""
        q = g.clone()
        kept: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        for s, y in zip(reversed(self.s), reversed(self.y), strict=True):
            sy = _dot(s, y)
            # A step that rounding spoiled (no curvature seen) must not enter the recursion.
            rho = torch.where(sy > 0, 1 / sy, torch.zeros_like(sy))
            a = rho * _dot(s, q)
            q -= a[:, None] * y
            kept.append((s, y, rho, a))
        q = guess.apply(tags, q)
        for s, y, rho, a in reversed(kept):
            q += (a - rho * _dot(y, q))[:, None] * s
        return -q


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(dim=1)


def _descend(
    whole: Problem,
    at: _Solution,
    tags: Tensor,
    C: float,
    guess: _Guess,
    tol: float,
    max_iter: int,
) -> None:
    """Minimise for some tags of the batch, from `at` and into it."""
    problem = whole if len(tags) == len(whole.target) else whole.keep(tags)
    x = at.x[tags]
    u = problem.logits(x)
    f = problem.objective(u, x, C)
    g, weight = problem.gradient(u, x, C)
    memory = _Memory([], [])
    for step in range(max_iter + 1):
        gap = _gap(g, weight, C, f)
        at.x[tags], at.objective[tags], at.gap[tags] = x, f, gap
        going = torch.nonzero((gap > tol) & (at.steps[tags] < max_iter)).flatten()
        if not len(going):
            break
        if len(going) < len(tags):
            problem, tags = problem.keep(going), tags[going]
            x, u, f, g = x[going], u[going], f[going], g[going]
            memory.keep(going)
        guess.renew(problem, tags, u, C, step)
        d = memory.direction(g, guess, tags)
        x, u, f, g_new, weight, s = _step(problem, C, x, u, f, g, d)
        memory.add(s, g_new - g)
        g = g_new
        at.steps[tags] += 1


def _gap(g: Tensor, weight: Tensor, C: float, f: Tensor) -> Tensor:
    """Bound on the relative suboptimality of each tag, (tags,)."""
    w, b = g[:, :-1], g[:, -1]
    return (0.5 * _dot(w, w) + b * b / (C * weight).clamp_min(1e-30)) / f.clamp_min(1e-30)


def _step(
    problem: Problem, C: float, x: Tensor, u: Tensor, f: Tensor, g: Tensor, d: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Backtrack along d until the decrease is sufficient; logits move linearly with the step."""
    slope = _dot(g, d)
    uphill = slope >= 0
    if uphill.any():
        d = torch.where(uphill[:, None], -g / _dot(g, g).sqrt().clamp_min(1)[:, None], d)
        slope = _dot(g, d)
    du = problem.logits(d)
    alpha = torch.ones_like(f)
    for _ in range(25):
        x_trial = x + alpha[:, None] * d
        u_trial = torch.addcmul(u, du, alpha[:, None])
        f_trial = problem.objective(u_trial, x_trial, C)
        bad = f_trial > f + ARMIJO * alpha * slope + ROUNDING * f.abs()
        if not bad.any():
            break
        # Minimum of the parabola through f, its slope and f_trial, kept within [0.1, 0.5].
        shrink = -slope * alpha / (2 * (f_trial - f - slope * alpha))
        alpha = torch.where(bad, alpha * shrink.clamp(0.1, 0.5), alpha)
    g_new, weight = problem.gradient(u_trial, x_trial, C)
    return x_trial, u_trial, f_trial, g_new, weight, x_trial - x
