"""Path of a batch of tags over ascending strengths, every tag at its own pace.

A tag goes on to its next strength as soon as its last is solved. The two matrix products of a pass
over the images therefore serve all tags until near the end of the path, where a path that waited
for the slowest tag at every strength would spend most passes on few of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from retailtag.probes.solver.lbfgs import Pairs
from retailtag.probes.solver.plane import Direction, Plane
from retailtag.probes.solver.preconditioners import WorkingSetPreconditioner
from retailtag.probes.solver.problem import PerTag, Problem, dot, objective
from retailtag.probes.solver.state import State, gradient, relative_gap, rounding_gap

FLOAT32_ITERATIONS = 50  # iterations after which a (tag, C) continues in float64
DIAGONAL_ITERATIONS = 2  # iterations that a tag may take with the diagonal guess

Rows = Tensor | slice


@dataclass(frozen=True)
class Solution(PerTag):
    """Parameters x float64 (tags, dim + 1) of some tags at one strength each; the rest (tags,)."""

    x: Tensor
    objective: Tensor
    gap: Tensor
    steps: Tensor
    separated: Tensor

    @classmethod
    def of(cls, problem: Problem, state: State, C: Tensor) -> Self:
        """Solutions at the parameters of a state, with their bounds."""
        return cls(
            x=state.x.double(),
            objective=objective(state.x, state.sums.loss, C),
            gap=relative_gap(state, C) + rounding_gap(problem, state, C),
            steps=state.steps.clone(),
            separated=problem.separated(state.u),
        )


@dataclass(frozen=True)
class Found(PerTag):
    """Solutions of `tags` at the strengths of index `k`, both (tags,)."""

    tags: Tensor
    k: Tensor
    solution: Solution


@dataclass
class _Walk(PerTag):
    """Tags on their path, (tags, ...)."""

    tags: Tensor  # their rows in the problem that the path was opened for
    state: State
    C: Tensor  # (tags, strengths), ascending
    k: Tensor  # the strength that each is at
    last: Direction  # parameters and logits where the last strength was left
    second_last: Direction
    begins: Tensor  # whether the next step follows the path, from the last strength
    hard: Tensor  # whether the diagonal guess is not enough
    tries: Tensor  # steps with a working set at this strength
    pairs: Pairs

    @classmethod
    def start(cls, state: State, C: Tensor) -> Self:
        """Everyone at the first strength; C is (tags, strengths)."""
        n_tags = len(state.x)
        zeros = torch.zeros(n_tags, dtype=torch.int64, device=C.device)
        return cls(
            tags=torch.arange(n_tags, device=C.device),
            state=state,
            C=C,
            k=zeros,
            last=Direction(state.x.clone(), state.u.clone()),
            second_last=Direction(state.x.clone(), state.u.clone()),
            begins=zeros.bool(),
            hard=zeros.bool(),
            tries=zeros.clone(),
            pairs=Pairs.none(state.x),
        )

    @property
    def strength(self) -> Tensor:
        """C of each tag, (tags,)."""
        return self.C.gather(1, self.k[:, None])[:, 0]

    def next_strength(self, rows: Tensor) -> None:
        """Send the tags in `rows` to their next strength."""
        self.second_last.put(rows, self.last.take(rows))
        self.last.put(rows, Direction(self.state.x[rows], self.state.u[rows]))
        self.k[rows] += 1
        self.state.steps[rows] = 0
        self.tries[rows] = 0
        self.begins[rows] = True


class Path:
    """Minimises for a batch of tags at ascending strengths, each warm from the one before.

    `exact` uses Newton's method from the first step on.
    """

    def __init__(
        self, problem: Problem, state: State, C: Tensor, tol: float, max_iter: int, *, exact: bool
    ) -> None:
        self.whole = problem  # of all tags; `problem` is of those that are still on their way
        self.problem = problem
        self.tol = tol
        self.max_iter = max_iter
        self.exact = exact
        # A second copy of streamed features, in float64, may be more than the disk holds.
        float64_left = not (exact or problem.features.streamed)
        self.patience = min(FLOAT32_ITERATIONS, max_iter) if float64_left else max_iter
        self.walk = _Walk.start(state, C)
        dim = problem.features.V.shape[0]
        self.guesses = WorkingSetPreconditioner(dim, len(C), C.device, exact=exact)
        if exact:
            self.walk.hard[:] = True
        self.stuck: list[_Walk] = []  # tags that float32 does not bring to the tolerance

    def solve(self) -> Iterator[Found]:
        """Solutions as they are found; of each tag in the order of its strengths."""
        while len(self.walk.tags) or self.stuck:
            if not len(self.walk.tags):
                yield self._in_double()
            yield from self._arrivals()
            if len(self.walk.tags):
                self._step()

    def _arrivals(self) -> Iterator[Found]:
        """Take the solutions of tags that are done, until every tag has steps to go."""
        while len(self.walk.tags):
            walk = self.walk
            C = walk.strength
            done = relative_gap(walk.state, C) <= self.tol
            walk.hard |= ~(done | walk.begins) & (
                walk.state.steps >= min(DIAGONAL_ITERATIONS, self.max_iter)
            )
            rows = torch.nonzero(done | (walk.state.steps >= self.patience)).flatten()
            if not len(rows):
                return
            problem = self.problem.take(rows)
            solution = Solution.of(problem, walk.state.take(rows), C[rows])
            if self.patience < self.max_iter:
                arrived = solution.gap <= self.tol
                rest = rows[~arrived]
                if len(rest):
                    self.stuck.append(walk.take(rest))
                    solution = solution.take(arrived)
                    rows = rows[arrived]
            else:
                rest = rows[:0]
            yield Found(walk.tags[rows], walk.k[rows], solution)
            self._go_on(rows, rest)

    def _go_on(self, rows: Tensor, leaving: Tensor) -> None:
        """Send `rows` to their next strength; those without one, and `leaving`, leave."""
        walk = self.walk
        last = walk.k[rows] + 1 == walk.C.shape[1]
        walk.next_strength(rows[~last])
        gone = torch.cat([rows[last], leaving])
        if len(gone):
            stays = torch.ones(len(walk.tags), dtype=torch.bool, device=gone.device)
            stays[gone] = False
            self.walk = walk.take(stays)
            self.problem = self.problem.take(stays)

    def _step(self) -> None:
        """One pass over the images: a step of every tag."""
        walk = self.walk
        state = walk.state
        C = walk.strength
        along = _rows(walk.begins)
        down = _rows(~walk.begins)
        moved = torch.zeros_like(state.x)
        asked = torch.empty_like(state.x)
        if _some(along):
            moved[along] = self._along_path(along, C)
            # The gap is stated for the logits: what rounding took from them would make it false.
            # They are computed afresh once a strength.
            asked[along] = state.x[along] + moved[along]
        if _some(down):
            asked[down] = self._directions(down, C)
        product = self.problem.logits(asked)
        if _some(along):
            state.u[along] = product[along]
        if _some(down):
            way = Direction(asked[down], product[down])
            beta = self._least(down, C, [way])
            moved[down] = beta * way.d
            state.u[down] = torch.addcmul(state.u[down], way.du, beta)
        before = state.sums.gradient
        state.x += moved
        state.sums = self.problem.sums_at(state.u)
        walk.pairs.add(moved, state.sums.gradient - before, C)
        state.steps += ~walk.begins
        walk.begins[:] = False

    def _along_path(self, rows: Rows, C: Tensor) -> Tensor:
        """Steps of some tags as their path went over the last two strengths, (rows, dim + 1).

        Optima move almost steadily in log C where a tag is separable.
        """
        walk = self.walk
        # At the first strengths there is one way or none; ways of zeros do nothing.
        x, u = walk.state.x[rows], walk.state.u[rows]
        last, older = walk.last.take(rows), walk.second_last.take(rows)
        ways = [Direction(x - last.d, u - last.du), Direction(last.d - older.d, last.du - older.du)]
        beta = self._least(rows, C, ways)
        return beta[:, :1] * ways[0].d + beta[:, 1:] * ways[1].d

    def _directions(self, rows: Rows, C: Tensor) -> Tensor:
        """Directions of some tags, (rows, dim + 1)."""
        walk = self.walk
        hard = torch.nonzero(walk.hard & ~walk.begins).flatten()
        problem = self.problem
        self.guesses.renew(problem, walk.tags, hard, walk.state.u, C, walk.tries)
        walk.tries[hard] += 1
        diagonal = problem.prior_diagonal(C)[rows]
        at = torch.nonzero(walk.hard[rows]).flatten()

        def guess(q: Tensor) -> Tensor:
            solved = q * diagonal
            if len(hard):
                solved[at] = self.guesses.apply(walk.tags[hard], q[at])
            return solved

        g = gradient(walk.state, C)[rows]
        d = walk.pairs.take(rows).direction(g, C[rows], walk.hard[rows], guess)
        steepest = -g / dot(g, g).sqrt().clamp_min(1)[:, None]
        return torch.where((dot(g, d) < 0)[:, None], d, steepest)

    def _least(self, rows: Rows, C: Tensor, ways: list[Direction]) -> Tensor:
        """Coordinates along the ways of about the least objective, (rows, ways)."""
        state = self.walk.state
        x, u, C = state.x[rows], state.u[rows], C[rows]
        plane = Plane.make(self.problem.take(rows), x, u, C, ways)
        return plane.least(objective(x, state.sums.loss[rows], C)).to(x.dtype)

    def _in_double(self) -> Found:
        """Continue in float64 with tags whose gradient float32 rounds above the tolerance."""
        walk = _Walk.joined(self.stuck)
        self.stuck.clear()
        self.walk = walk
        self.problem = self.whole.take(walk.tags)
        C = walk.strength
        found = Solution.of(self.problem, walk.state, C)
        dim = self.problem.features.V.shape[0]
        double = self.problem.double()
        for some in torch.arange(len(C), device=C.device).split(WorkingSetPreconditioner.fits(dim)):
            problem = double.take(some)
            state = State.at(problem, walk.state.x[some].double())
            state.steps += walk.state.steps[some]
            path = Path(problem, state, C[some, None].double(), self.tol, self.max_iter, exact=True)
            for solved in path.solve():
                found.put(some[solved.tags], solved.solution)
        walk.state = State.at(self.problem, found.x.to(walk.state.x.dtype))
        tags, k = walk.tags, walk.k.clone()
        self._go_on(torch.arange(len(C), device=C.device), torch.arange(0, device=C.device))
        return Found(tags, k, found)


def _rows(mask: Tensor) -> Rows:
    """Index of the rows in a mask: a slice, which copies nothing, where that is all of them."""
    return slice(None) if mask.all() else torch.nonzero(mask).flatten()


def _some(rows: Rows) -> bool:
    return isinstance(rows, slice) or len(rows) > 0
