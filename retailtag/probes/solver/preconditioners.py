"""First guesses of the inverse Hessian, from which every L-BFGS direction starts."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import Tensor

from retailtag.probes.solver.problem import PerTag, Problem, WorkingSet, factored, lower_gram
from retailtag.ranks import ALONE, Ranks

# Other values of these four were no better (results/LOG.md).
WORKING_IMAGES = 256  # images of a working set, at most, until a tag takes long
COVERED = 0.95  # share of a tag's curvature that a working set holds, if it may be that large
STALE_RATIO = 10.0  # ratio of strengths from which a working set is chosen anew
RENEW_EVERY = 3  # iterations at one strength after which it is, and after 6, 12, 24, ...
DENSE_IMAGES = 4  # images a dimension of a guess that is factored whole
DENSE_COVERED = 0.9999  # share of the curvature that those hold, if they may
IMAGES_STRIPE = 64  # rows of a working set's Gram matrix made at once
EXACT_NUMBERS = 100_000_000  # feature values that an exact factoring takes at once: 0.8 GB
STORED_NUMBERS = 400_000_000  # entries of stored guesses: 1.6 GB


@dataclass(frozen=True)
class _Woodbury(PerTag):
    """Inverse of H = Δ + A'A for a diagonal Δ and few rows A, by Woodbury's identity."""

    # H⁻¹ = Δ^-½(I - B'S⁻¹B)Δ^-½ with B = AΔ^-½ and S = I + BB', which has as many rows as there are
    # images: images²·dim operations, where a factor of H takes dim³/3 beside images·dim².

    scale: Tensor  # (tags, dim + 1), Δ^-½
    B: Tensor  # (tags, images, dim + 1)
    factor: Tensor  # (tags, images, images), Cholesky factor of S

    @classmethod
    def of(cls, some: WorkingSet) -> _Woodbury:
        scale = some.diagonal.rsqrt()
        B = some.A * scale[:, None, :]
        S = lower_gram(B.mT, IMAGES_STRIPE)
        S.diagonal(dim1=1, dim2=2).add_(1)
        return cls(scale, B, factored(S))

    def apply(self, q: Tensor) -> Tensor:
        y = self.scale * q
        z = torch.cholesky_solve(self.B @ y[:, :, None], self.factor)
        return self.scale * (y - (self.B.mT @ z)[:, :, 0])


@dataclass(frozen=True)
class _Dense(PerTag):
    """Inverse of H by its Cholesky factor."""

    factor: Tensor  # (tags, dim + 1, dim + 1)

    @classmethod
    def of(cls, some: WorkingSet, ranks: Ranks = ALONE) -> _Dense:
        return cls(some.hessian_factors(ranks))

    def apply(self, q: Tensor) -> Tensor:
        return torch.cholesky_solve(q[:, :, None], self.factor)[:, :, 0]


_Guess = _Woodbury | _Dense


class WorkingSetPreconditioner:
    """Hessians whose curvature is exact for a working set of images, each reused for a while.

    A tag's guess is made anew when the strength has grown by `STALE_RATIO`, and whenever the
    iterations at one strength double, then of twice the images: a tag that takes long ends with
    Newton's method. `exact` is Newton's method from the first step on, with the curvature of
    as many images as fit in memory.
    """

    def __init__(self, dim: int, n_tags: int, device: torch.device, *, exact: bool = False) -> None:
        self.exact = exact
        self.dim = dim
        self.device = device
        self.guess: OrderedDict[int, _Guess] = OrderedDict()  # the least recently made first
        self.stored = 0  # entries of all guesses
        self.made_at = torch.zeros(n_tags, dtype=torch.float64, device=device)  # strength; 0: none

    @staticmethod
    def fits(dim: int) -> int:
        """Tags whose whole Hessians are stored at once."""
        return max(STORED_NUMBERS // (dim + 1) ** 2, 1)

    def renew(
        self, problem: Problem, tags: Tensor, rows: Tensor, u: Tensor, C: Tensor, tries: Tensor
    ) -> None:
        """Make anew what is stale or was dropped because memory was full, of the tags in `rows`.

        `problem`, `tags`, logits u (tags, n_images), strengths C and the steps made at them,
        `tries`, are of a whole batch.
        """
        self._forget()
        ranks = problem.features.ranks
        at = tags[rows]
        stale = self.made_at[at] * STALE_RATIO < C[rows]
        if self.exact:
            stale[:] = True
        stale |= _doubles(tries[rows])
        for step in tries[rows][stale].unique().tolist():
            n_tags = int((tries[rows] >= step).sum())
            kind, n_images, covered = self._size(n_tags, step)
            some = rows[stale & (tries[rows] == step)]
            for few in some.split(self._tags_at_once(n_images)):
                made = problem.take(few).working_set(u[few], C[few], n_images, covered)
                # The images of several processes are too many to exchange; their Hessian is not.
                alone = ranks.size == 1
                guess = kind.of(made) if alone else _Dense.of(made, ranks)
                self._remember(tags[few].tolist(), guess)
        self.made_at[at[stale]] = C[rows][stale].double()

    def _size(self, n_tags: int, step: int) -> tuple[type[_Guess], int, float]:
        """Kind of guess, images at most, and the share of curvature that is enough.

        `n_tags` tags have made `step` steps or more.
        """
        if self.exact:
            return _Dense, max(EXACT_NUMBERS // (self.dim + 1), self.dim), 1.0
        n_images = WORKING_IMAGES * max(step // RENEW_EVERY, 1)
        if n_images > self.dim and n_tags <= self.fits(self.dim):
            return _Dense, max(DENSE_IMAGES * self.dim, 1000), DENSE_COVERED
        n_images = min(n_images, self.dim, max(STORED_NUMBERS // (n_tags * (self.dim + 1)), 1))
        # A GPU wants stacks of one size.
        return _Woodbury, n_images, COVERED if self.device.type == "cpu" else 1.0

    def _tags_at_once(self, n_images: int) -> int:
        """Tags to factor together: a CPU is as fast one by one, a GPU wants many small ones."""
        if self.device.type == "cpu":
            return 1
        return max(STORED_NUMBERS // (n_images * (self.dim + 1)), 1)

    def _remember(self, tags: list[int], made: _Guess) -> None:
        for row, tag in enumerate(tags):
            self._drop(tag)
            # A view would keep the whole stack alive after the other tags are dropped.
            alone = made if len(tags) == 1 else made.take(torch.tensor([row], device=self.device))
            self.guess[tag] = alone
            self.stored += _numbers(alone)

    def _forget(self) -> None:
        """Drop the oldest guesses until the rest fits in memory."""
        while self.stored > STORED_NUMBERS:
            tag = next(iter(self.guess))
            self._drop(tag)
            self.made_at[tag] = 0

    def _drop(self, tag: int) -> None:
        if tag in self.guess:
            self.stored -= _numbers(self.guess.pop(tag))

    def apply(self, tags: Tensor, q: Tensor) -> Tensor:
        """Inverse Hessian times q, (tags, dim + 1), of tags just renewed."""
        guesses = [self.guess[tag] for tag in tags.tolist()]
        if self.device.type == "cpu":  # stacking would copy what is read once
            alone = [guess.apply(row[None]) for guess, row in zip(guesses, q, strict=True)]
            return torch.cat(alone)
        solved = torch.empty_like(q)
        by_shape: dict[torch.Size, list[int]] = {}
        for row, guess in enumerate(guesses):
            by_shape.setdefault(guess.factor.shape, []).append(row)
        for rows in by_shape.values():
            stack = _stacked([guesses[row] for row in rows])
            at = torch.tensor(rows, device=self.device)
            solved[at] = stack.apply(q[at])
        return solved


def _doubles(steps: Tensor) -> Tensor:
    """Whether steps (tags,) are `RENEW_EVERY` times a power of two."""
    times = steps // RENEW_EVERY
    return (times > 0) & (steps % RENEW_EVERY == 0) & (times & (times - 1) == 0)


def _numbers(guess: _Guess) -> int:
    return sum(values.numel() for values in vars(guess).values())


def _stacked(guesses: list[_Guess]) -> _Guess:
    """Guesses of one shape as one of several tags."""
    fields = vars(guesses[0])
    return type(guesses[0])(
        **{name: torch.cat([getattr(guess, name) for guess in guesses]) for name in fields}
    )
