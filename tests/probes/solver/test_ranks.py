"""Processes that have a part of the images each fit what one process fits on all of them."""

import numpy as np
import pytest

from retailtag.api import fit_probes
from retailtag.errors import DataError, UsageError
from retailtag.probes.solver import fit
from retailtag.probes.solver.torch_solver import TorchSolver
from retailtag.ranks import Ranks

C = np.array([0.01, 1.0, 1000.0])


@pytest.fixture
def data():
    """Features far from 0 and labels: common, rare, unknown in part, one positive, none."""
    rng = np.random.default_rng(0)
    X = (rng.standard_normal((240, 12)) @ rng.standard_normal((12, 12)) + 5).astype(np.float32)
    logits = X @ rng.standard_normal((12, 5)) / 6 + rng.standard_normal((240, 5))
    Y = (logits - logits.mean(0) > [0, 0.5, 2.5, 0, 0]).astype(np.int8)
    Y[:90, 1] = -1
    Y[:, 3] = np.arange(240) == 3
    Y[:, 4] = 0
    return X, Y, rng.integers(0, 3, 240).astype(np.float64)


def _objective(X, Y, weight, bias, c, sample_weight):
    """½‖w‖² + C·Σ loss in float64, of one tag."""
    m = np.where(Y == 1, -1, 1) * (X.astype(np.float64) @ weight.astype(np.float64) + bias)
    loss = np.where(Y < 0, 0, np.logaddexp(0, m)) * sample_weight
    return 0.5 * np.square(weight.astype(np.float64)).sum() + c * loss.sum()


@pytest.mark.parametrize(
    ("weighted", "memory", "parts"),
    [(False, None, [70, 170]), (True, None, [120, 120]), (False, 3000, [30, 50, 160])],
)
def test_parts_are_fitted_as_the_whole(data, together, weighted, memory, parts):
    """With uneven parts; 3,000 bytes let one of them, and so all, stream from scratch files."""
    X, Y, counts = data
    m = counts if weighted else None
    ends = np.cumsum(parts)

    def work(ranks):
        own = slice(ends[ranks.rank] - parts[ranks.rank], ends[ranks.rank])
        solver = TorchSolver(memory=memory, ranks=ranks)
        return solver(X[own], Y[own], C, sample_weight=m if m is None else m[own])

    whole = TorchSolver()(X, Y, C, sample_weight=m)
    first, *others = together(len(parts), work)
    for other in others:
        for name in ("weight", "bias", "objective", "gap", "status"):
            np.testing.assert_array_equal(getattr(first, name), getattr(other, name), name)
    np.testing.assert_array_equal(first.status, whole.status)
    assert (first.status[:, 4] == "single class").all()
    ones = np.ones(len(X)) if m is None else m
    for k, tag in np.ndindex(len(C), 4):
        reached = _objective(X, Y[:, tag], first.weight[k, tag], first.bias[k, tag], C[k], ones)
        assert first.objective[k, tag] == pytest.approx(reached, rel=1e-5)
        assert first.gap[k, tag] <= 1e-4
        # Both are within their bounds of the one optimum.
        assert first.objective[k, tag] == pytest.approx(whole.objective[k, tag], rel=1e-4)


def test_the_api_takes_a_part_from_every_process(data, together):
    X, Y, _ = data
    whole = fit_probes(X, Y, C=[0.1], device="cpu", distributed=True)  # of one process

    def work(ranks):
        own = ranks.stretch(len(X))
        return fit_probes(X[own], Y[own], C=[0.1], device="cpu", distributed=True)

    for found in together(2, work):
        np.testing.assert_allclose(found.objective, whole.objective, rtol=1e-4)
        np.testing.assert_allclose(found.bias[:, 4], whole.bias[:, 4])  # a constant: the prior


def test_parts_that_do_not_fit_together_are_refused(data, together):
    X, Y, _ = data

    def work(ranks):
        with pytest.raises(DataError, match="differ in number; give each some rows") as caught:
            fit.fit_probes(X, Y[:, : 2 + ranks.rank], [0.1], ranks=ranks)
        return str(caught.value)

    assert len(set(together(2, work))) == 1
    with pytest.raises(UsageError, match="--solver sklearn fits in one process; use torch"):
        fit.make_solver("sklearn", ranks=Ranks(0, 2))
