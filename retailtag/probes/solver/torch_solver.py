"""The default solver: batched, preconditioned L-BFGS over all tags at once, on CPU or CUDA.

* Features are rotated once into the eigenbasis of their Gram matrix, where the Hessian at the
  prevalence is diagonal. Its inverse is the first guess of every L-BFGS direction, so that the
  number of iterations does not depend on the spectrum of the features.
* Where that guess no longer does (large C, rare tags, nearly separable), the guess is the Hessian
  that is exact for a working set of images, those with the most curvature, and averaged for the
  others. Woodbury's identity inverts it at the cost of the images, not of the features. A tag that
  takes long gets more images, up to Newton's method, and what float32 does not bring to the
  tolerance continues in float64.
* Every tag goes through the strengths in ascending order, at its own pace. Each fit starts from
  where the path of the last two leads, as far as the objective falls that way, and with the L-BFGS
  pairs of the one before.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from retailtag.memory import free_bytes
from retailtag.neighbours import FeatureRows
from retailtag.probes.solver.eigenbasis import RotatedFeatures
from retailtag.probes.solver.fits import ProbeFits, statuses
from retailtag.probes.solver.interface import Start
from retailtag.probes.solver.labels import fewest, fittable, prior_logit
from retailtag.probes.solver.lbfgs import N_PAIRS
from retailtag.probes.solver.path import Found, Path
from retailtag.probes.solver.problem import Problem
from retailtag.probes.solver.state import State
from retailtag.progress import Advance, nobody
from retailtag.ranks import ALONE, Ranks

BATCH_NUMBERS = 48_000_000  # logits, or entries of L-BFGS pairs, of a batch: 0.2 GB in float32
RESTORED_AT_ONCE = 128  # heads


@dataclass(frozen=True)
class TorchSolver:
    """Batched L-BFGS in the eigenbasis of the features.

    A tag stops when its bound on (objective - optimum) / objective is below `tol`; see
    `retailtag.probes.solver.state.relative_gap`. Where C·mean(x²) is above 1e8, which
    standardised features never reach, the truth may be up to 1e-3 above the bound.
    """

    device: str = "cpu"  # cpu or cuda
    tol: float = 1e-4
    # Iterations allowed for one (tag, C), each two products of (n_images, dim) by (dim, n_tags)
    max_iter: int = 300
    # Bytes that the rotated features may take before they go to a scratch file that is streamed;
    # by default 60 % of what is free on the device
    memory: int | None = None
    # Processes with a part of the images each; all get the same fits. Sums over images (losses,
    # gradients, curvatures, Gram matrix) are added up, and what follows from them is equal.
    ranks: Ranks = ALONE

    def __call__(
        self,
        X: FeatureRows,
        Y: NDArray[np.int8],
        C: NDArray[np.float64],
        advance: Advance = nobody,
        *,
        sample_weight: NDArray[np.float64] | None = None,
        start: Start | None = None,
    ) -> ProbeFits:
        """Fit every (C, tag); see `retailtag.probes.solver.interface.Solver`."""
        begun = time.perf_counter()
        device = torch.device(self.device)
        weights = None
        if sample_weight is not None:
            weights = torch.from_numpy(np.asarray(sample_weight, np.float64)).to(device)
        memory = self.memory or free_bytes(device.type) * 6 // 10
        ranks = self.ranks
        features = RotatedFeatures.make(X, weights, device, memory, ranks)
        fits = ProbeFits.empty(C, Y.shape[1], X.shape[1])
        fits.bias[:] = prior_logit(Y, sample_weight, ranks)
        weight, bias = start or (np.zeros((Y.shape[1], X.shape[1]), np.float32), fits.bias[0])
        tags = np.flatnonzero(fittable(Y, sample_weight, ranks))
        n_images = int(ranks.total(np.array([len(Y)], np.float64))[0]) // ranks.size
        numbers = len(tags) * max(n_images, 2 * N_PAIRS * X.shape[1])
        n_batches = -(-numbers // BATCH_NUMBERS)
        batches = np.array_split(tags, n_batches) if n_batches else []
        advance(len(C) * (Y.shape[1] - len(tags)))
        rarer = fewest(Y, ranks)
        strengths = torch.from_numpy(C).to(features.device, features.V.dtype)
        for batch in batches:
            problem = Problem.make(features, Y[:, batch], weights)
            x = features.adopt(torch.from_numpy(weight[batch]), torch.from_numpy(bias[batch]))
            grid = strengths.expand(len(batch), -1)
            state = State.at(problem, x)
            path = Path(problem, state, grid, self.tol, self.max_iter, exact=False)
            for found in _together(path.solve()):
                self._write(fits, features, rarer, batch, found)
                advance(len(found.tags))
        return replace(fits, seconds=time.perf_counter() - begun)

    def _write(
        self,
        fits: ProbeFits,
        features: RotatedFeatures,
        rarer: NDArray[np.float64],
        batch: NDArray[np.intp],
        found: Found,
    ) -> None:
        """Fill in the fits that were found of a batch of tags."""
        tags = batch[found.tags.cpu().numpy()]
        at = (found.k.cpu().numpy(), tags)
        weight, bias = features.restore(found.solution.x)
        gap = found.solution.gap.cpu().numpy()
        separated = found.solution.separated.cpu().numpy()
        fits.weight[at] = weight.cpu()
        fits.bias[at] = bias.cpu()
        fits.objective[at] = found.solution.objective.cpu()
        fits.gap[at] = gap
        fits.iterations[at] = found.solution.steps.cpu()
        fits.status[at] = statuses(gap <= self.tol, separated, rarer[tags])


def _together(found: Iterator[Found]) -> Iterator[Found]:
    """The same in groups: heads are rotated back at the speed of memory, one or many."""
    group: list[Found] = []
    for some in found:
        group.append(some)
        if sum(len(each.tags) for each in group) >= RESTORED_AT_ONCE:
            yield Found.joined(group)
            group = []
    if group:
        yield Found.joined(group)
