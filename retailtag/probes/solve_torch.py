"""The default solver: batched, preconditioned L-BFGS over all tags at once, on CPU or CUDA.

For each tag, ½‖w‖² + C·Σ log(1 + exp(-s(w·x + b))) is minimised over (w, b), s = ±1.

* Features are rotated once into the eigenbasis of X'X (V e V'), where the Hessian at the prior
  is nearly diagonal: I + C·π(1-π)·diag(e) for a tag of prevalence π. Its inverse is the first
  Hessian guess of every L-BFGS direction, so that conditioning does not depend on the spectrum.
* Logits are linear in the step: a line search costs no matrix product.
* Strengths are solved in ascending order, each from the solution of the one before, and tags
  that have converged leave the batch.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import softplus

from retailtag.probes.fits import CONVERGED, STEP_LIMIT, ProbeFits, has_both_classes, prior_logit
from retailtag.progress import Advance, nobody

HISTORY = 12  # pairs kept by L-BFGS
CELLS = 48_000_000  # (tag, image) cells in flight: 0.2 GB a float32 matrix of logits
ARMIJO = 1e-4
ROUNDING = 2e-7  # relative noise of a float32 objective


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
        for block in np.array_split(tags, max(1, -(-len(tags) * len(X) // CELLS))):
            if len(block):
                self._path(fits, Z, V, eigenvalues, Y, block, advance)
        return replace(fits, seconds=time.perf_counter() - start)

    def _path(
        self,
        fits: ProbeFits,
        Z: Tensor,
        V: Tensor,
        eigenvalues: Tensor,
        Y: NDArray[np.int8],
        tags: NDArray[np.intp],
        advance: Advance,
    ) -> None:
        """Solve all strengths for some tags, each from the solution of the one before."""
        problem = _Problem.make(Z, eigenvalues, Y[:, tags])
        W = torch.zeros(len(tags), Z.shape[1], device=Z.device)
        b = torch.from_numpy(fits.bias[0, tags]).to(Z.device)
        for k, C in enumerate(fits.C):
            W, b, f, gap, steps = _minimise(problem, float(C), W, b, self.tol, self.max_iter)
            fits.weight[k, tags] = (W @ V.T).cpu().numpy()
            fits.bias[k, tags] = b.cpu().numpy()
            fits.objective[k, tags] = f.cpu().numpy()
            fits.gap[k, tags] = gap.cpu().numpy()
            fits.iterations[k, tags] = steps.cpu().numpy()
            fits.status[k, tags] = np.where(gap.cpu().numpy() <= self.tol, CONVERGED, STEP_LIMIT)
            advance(len(tags))


def _rotate(X: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """X (n, dim) in the eigenbasis of X'X: Z = XV (n, dim), V (dim, dim), eigenvalues (dim,)."""
    values, vectors = torch.linalg.eigh((X.T @ X).double())
    V = vectors.float()
    return X @ V, V, values.clamp_min(0).float()


@dataclass(frozen=True)
class _Problem:
    """Labels and features of a batch of tags; rows of every matrix are tags."""

    Z: Tensor  # (n, dim) rotated features
    eigenvalues: Tensor  # (dim,)
    target: Tensor  # (tags, n) 1.0 or 0.0
    known: Tensor | None  # (tags, n) 1.0 or 0.0; None when every label is known
    curvature: Tensor  # (tags,) π(1-π) at the prior
    n_known: Tensor  # (tags,)

    @classmethod
    def make(cls, Z: Tensor, eigenvalues: Tensor, Y: NDArray[np.int8]) -> _Problem:
        """Lay out labels Y (n, tags) for products with Z (n, dim)."""
        labels = torch.from_numpy(np.ascontiguousarray(Y.T)).to(Z.device)
        known = None if (Y >= 0).all() else (labels >= 0).float()
        n_known = (labels >= 0).sum(dim=1).float()
        prevalence = (labels == 1).sum(dim=1) / n_known
        return cls(
            Z, eigenvalues, (labels == 1).float(), known, prevalence * (1 - prevalence), n_known
        )

    def keep(self, rows: Tensor) -> _Problem:
        """Only the tags in `rows`."""
        known = None if self.known is None else self.known[rows]
        return _Problem(
            self.Z,
            self.eigenvalues,
            self.target[rows],
            known,
            self.curvature[rows],
            self.n_known[rows],
        )

    def loss(self, u: Tensor) -> Tensor:
        """Σ log-loss of logits u (tags, n), shape (tags,)."""
        cells = softplus(u) - self.target * u
        return (cells if self.known is None else cells * self.known).sum(dim=1)

    def gradient(self, u: Tensor, W: Tensor, C: float) -> tuple[Tensor, Tensor]:
        """Gradient (tags, dim + 1), intercept last, and Σ p(1-p) (tags,)."""
        p = torch.sigmoid(u)
        weight = p * (1 - p)
        r = p.sub_(self.target)
        if self.known is not None:
            r, weight = r * self.known, weight * self.known
        g = torch.cat([W + C * (r @ self.Z), C * r.sum(dim=1, keepdim=True)], dim=1)
        return g, weight.sum(dim=1)

    def preconditioner(self, C: float) -> Tensor:
        """Inverse diagonal of the Hessian at the prior, (tags, dim + 1)."""
        w = 1 / (1 + C * self.curvature[:, None] * self.eigenvalues)
        b = 1 / (C * self.curvature * self.n_known)
        return torch.cat([w, b[:, None]], dim=1)


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

    def direction(self, g: Tensor, preconditioner: Tensor) -> Tensor:
        """Two-loop recursion (Nocedal 1980) with a diagonal first guess; -Hg, (tags, dim + 1)."""
        q = g.clone()
        kept: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        for s, y in zip(reversed(self.s), reversed(self.y), strict=True):
            sy = _dot(s, y)
            # A step that rounding spoiled (no curvature seen) must not enter the recursion.
            rho = torch.where(sy > 0, 1 / sy, torch.zeros_like(sy))
            a = rho * _dot(s, q)
            q -= a[:, None] * y
            kept.append((s, y, rho, a))
        q *= preconditioner
        for s, y, rho, a in reversed(kept):
            q += (a - rho * _dot(y, q))[:, None] * s
        return -q


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(dim=1)


def _minimise(
    problem: _Problem, C: float, W: Tensor, b: Tensor, tol: float, max_iter: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Minimise for every tag of the batch from (W, b); returns W, b, objective, gap, steps."""
    W, b = W.clone(), b.clone()
    objective, gap = torch.empty_like(b), torch.full_like(b, torch.inf)
    steps = torch.zeros_like(b, dtype=torch.int32)
    alive = torch.arange(len(b), device=b.device)
    x = torch.cat([W, b[:, None]], dim=1)
    u = torch.addmm(b[:, None], W, problem.Z.T)
    f = C * problem.loss(u) + 0.5 * _dot(W, W)
    g, weight = problem.gradient(u, W, C)
    memory, P = _Memory([], []), problem.preconditioner(C)
    for step in range(max_iter + 1):
        bound = _gap(g, weight, C, f)
        W[alive], b[alive] = x[:, :-1], x[:, -1]
        objective[alive], gap[alive], steps[alive] = f, bound, step
        going = torch.nonzero(bound > tol).flatten()
        if len(going) == 0 or step == max_iter:
            break
        if len(going) < len(alive):
            problem, alive, P = problem.keep(going), alive[going], P[going]
            x, u, f, g = x[going], u[going], f[going], g[going]
            memory.keep(going)
        x, u, f, g_new, weight, s = _step(problem, C, x, u, f, g, memory.direction(g, P))
        memory.add(s, g_new - g)
        g = g_new
    return W, b, objective, gap, steps


def _gap(g: Tensor, weight: Tensor, C: float, f: Tensor) -> Tensor:
    """Bound on the relative suboptimality of each tag, (tags,)."""
    w, b = g[:, :-1], g[:, -1]
    return (0.5 * _dot(w, w) + b * b / (C * weight).clamp_min(1e-30)) / f.clamp_min(1e-30)


def _step(
    problem: _Problem, C: float, x: Tensor, u: Tensor, f: Tensor, g: Tensor, d: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Backtrack along d until the decrease is sufficient; logits move linearly with the step."""
    slope = _dot(g, d)
    uphill = slope >= 0
    if uphill.any():
        d = torch.where(uphill[:, None], -g / _dot(g, g).sqrt().clamp_min(1)[:, None], d)
        slope = _dot(g, d)
    du = torch.addmm(d[:, -1:], d[:, :-1], problem.Z.T)
    alpha = torch.ones_like(f)
    for _ in range(25):
        trial = x + alpha[:, None] * d
        u_trial = torch.addcmul(u, du, alpha[:, None])
        W = trial[:, :-1]
        f_trial = C * problem.loss(u_trial) + 0.5 * _dot(W, W)
        bad = f_trial > f + ARMIJO * alpha * slope + ROUNDING * f.abs()
        if not bad.any():
            break
        # Minimum of the parabola through f, its slope and f_trial, kept within [0.1, 0.5].
        shrink = -slope * alpha / (2 * (f_trial - f - slope * alpha))
        alpha = torch.where(bad, alpha * shrink.clamp(0.1, 0.5), alpha)
    g_new, weight = problem.gradient(u_trial, W, C)
    return trial, u_trial, f_trial, g_new, weight, trial - x
