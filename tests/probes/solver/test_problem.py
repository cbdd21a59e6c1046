"""The pieces of a pass over the images: what is quicker than the textbook gives the same."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from retailtag.probes.solver import preconditioners
from retailtag.probes.solver.eigenbasis import RotatedFeatures
from retailtag.probes.solver.fit import fit_probes
from retailtag.probes.solver.plane import Direction, Plane
from retailtag.probes.solver.preconditioners import WorkingSetPreconditioner, _Dense, _Woodbury
from retailtag.probes.solver.problem import (
    LEAST_BIAS_CURVATURE,
    MAX_TAGS_IMAGES_FIRST,
    Problem,
    _logits,
    _softplus,
    objective,
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_log_loss_keeps_its_digits_far_on_either_side(dtype):
    m = torch.linspace(-80, 80, 20_001, dtype=dtype)
    expected = np.logaddexp(0, m.double().numpy())
    few = 4 * torch.finfo(dtype).eps
    np.testing.assert_allclose(_softplus(m).double(), expected, rtol=few, atol=0)


@pytest.mark.parametrize("n_tags", [1, MAX_TAGS_IMAGES_FIRST, MAX_TAGS_IMAGES_FIRST + 1])
def test_logits_are_the_same_in_either_order_of_the_product(n_tags):
    rng = np.random.default_rng(0)
    x, Z = rng.standard_normal((n_tags, 6)), rng.standard_normal((40, 5))
    found = _logits(torch.from_numpy(x), torch.from_numpy(Z))
    np.testing.assert_allclose(found, x[:, :-1] @ Z.T + x[:, -1:], rtol=1e-12, atol=1e-12)
    assert found.is_contiguous()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sums_are_those_of_the_logits(dtype):
    rng = np.random.default_rng(0)
    X = rng.standard_normal((50, 4)).astype(np.float32)
    Y = rng.choice([1, 0, -1], (50, 3)).astype(np.int8)
    features = RotatedFeatures.make(X, None, torch.device("cpu"), 1 << 20)
    problem = Problem.make(features, Y, None)
    x = torch.from_numpy(rng.standard_normal((3, 5)).astype(np.float32))
    if dtype == torch.float64:
        problem, x = problem.double(), x.double()
    u = problem.logits(x)
    sums = problem.sums_at(u)

    Z, norms = features.Z.double().numpy(), features.norms.double().numpy()
    known = (Y >= 0).T
    logits = x[:, :-1].double().numpy() @ Z.T + x[:, -1:].double().numpy()
    p = 1 / (1 + np.exp(-logits))
    wrong = np.where(Y.T == 1, -logits, logits)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    for found, expected in [
        (u, logits),
        (sums.loss, (known * np.logaddexp(0, wrong)).sum(1)),
        (sums.gradient[:, :-1], (known * (p - (Y.T == 1))) @ Z),
        (sums.gradient[:, -1], (known * (p - (Y.T == 1))).sum(1)),
        (sums.curvature, (known * p * (1 - p)).sum(1)),
        (sums.spread, (known * p * (1 - p)) @ norms),
    ]:
        np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)


def _dense_hessians(problem, u, C, Z):
    p = 1 / (1 + np.exp(-u.numpy()))
    penalty = np.diag([1.0] * (Z.shape[1] - 1) + [0.0])
    return [c * (Z.T * (q * (1 - q))) @ Z + penalty for c, q in zip(C.tolist(), p, strict=True)]


@pytest.fixture
def small():
    """A problem of two tags in float64, logits, strengths and the features with a column of 1."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((60, 4)).astype(np.float32)
    Y = rng.integers(0, 2, (60, 2)).astype(np.int8)
    features = RotatedFeatures.make(X, None, torch.device("cpu"), 1 << 20)
    problem, C = Problem.make(features, Y, None).double(), torch.tensor([0.3, 40.0]).double()
    u = torch.from_numpy(rng.standard_normal((2, 60)))
    return problem, u, C, np.column_stack([features.Z.double().numpy(), np.ones(60)])


def test_a_working_set_of_all_images_has_their_hessian(small):
    problem, u, C, _ = small
    L = problem.working_set(u, C, 60, 1.0).hessian_factors().tril().numpy()
    for found, expected in zip(L @ L.mT, _dense_hessians(*small), strict=True):
        expected[-1, -1] *= 1 + LEAST_BIAS_CURVATURE
        np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_a_working_set_averages_the_images_that_it_leaves_out(small):
    problem, u, C, _ = small
    some = problem.working_set(u, C, 20, 1.0)
    H = (some.A.mT @ some.A + torch.diag_embed(some.diagonal)).numpy()
    for found, expected in zip(H, _dense_hessians(*small), strict=True):
        assert np.trace(found[:-1, :-1]) == pytest.approx(np.trace(expected[:-1, :-1]), rel=1e-6)
        assert found[-1, -1] == pytest.approx(expected[-1, -1], rel=1e-6)


def test_a_working_set_is_as_small_as_the_share_allows(small):
    problem, u, C, _ = small
    share = problem.cells(u, slice(None)).curvature * problem.features.norms
    for covered in (0.3, 0.9):
        some = problem.working_set(u, C, 60, covered)
        at_rest = share.sort(dim=1, descending=True).values.cumsum(dim=1) / share.sum(1)[:, None]
        needed = 1 + int((at_rest < covered).sum(dim=1).max())
        assert some.A.shape[1] == needed


@pytest.mark.parametrize("n_images", [3, 20, 60])
def test_woodbury_inverts_what_the_factors_do(small, n_images):
    problem, u, C, _ = small
    some = problem.working_set(u, C, n_images, 1.0)
    q = torch.from_numpy(np.random.default_rng(1).standard_normal((2, 5)))
    np.testing.assert_allclose(_Woodbury.of(some).apply(q), _Dense.of(some).apply(q), rtol=1e-3)


def test_guesses_are_found_again_in_any_order(small, monkeypatch):
    """Stacked as on a GPU and one by one as on a CPU; and dropped where memory is full."""
    problem, u, C, _ = small
    guesses = WorkingSetPreconditioner(4, 2, torch.device("cpu"))
    everyone = torch.arange(2)
    no_step = torch.zeros(2, dtype=torch.int64)
    guesses.renew(problem, everyone, everyone, u, C, no_step)
    q = torch.from_numpy(np.random.default_rng(1).standard_normal((2, 5)))
    found = guesses.apply(everyone, q)
    np.testing.assert_array_equal(guesses.apply(everyone.flip(0), q.flip(0)).flip(0), found)

    monkeypatch.setattr(preconditioners, "STORED_NUMBERS", 1)
    guesses.renew(problem, everyone, torch.tensor([1]), u, C * 10, no_step)
    assert list(guesses.guess) == [1]
    assert guesses.made_at[0] == 0


@pytest.mark.parametrize("n_ways", [1, 2])
def test_the_least_of_a_plane_is_found(small, n_ways):
    problem, u, C, _ = small
    rng = np.random.default_rng(2)
    x = torch.from_numpy(rng.standard_normal((2, 5)) * 0.1)
    u = problem.logits(x)
    ways = [torch.from_numpy(rng.standard_normal((2, 5))) for _ in range(n_ways)]
    plane = Plane.make(problem, x, u, C, [Direction(d, problem.logits(d)) for d in ways])

    def f(beta, tag):
        moved = x[tag] + sum(b * d[tag] for b, d in zip(beta, ways, strict=True))
        loss = problem.sums_at(problem.logits(moved[None].expand(2, -1).clone())).loss[tag]
        return float(objective(moved[None], loss[None], C[tag : tag + 1]))

    at_zero = objective(x, problem.sums_at(u).loss, C)
    beta = plane.least(at_zero).numpy()
    for tag in range(2):
        least = minimize(f, np.zeros(n_ways), args=(tag,), method="Nelder-Mead", tol=1e-9).fun
        gained = float(at_zero[tag]) - least
        assert f(beta[tag], tag) - least < 0.05 * gained + 1e-4 * least


def test_nothing_is_worse_than_staying(small):
    """A direction that only goes up, and one whose logits overflow."""
    problem, u, C, _ = small
    x = torch.zeros(2, 5).double()
    best = fit_probes(problem.features.Z.numpy(), (problem.neg_sign.T < 0).numpy(), [1.0])
    x[:, :4], x[:, 4] = torch.from_numpy(best.weight[0]), torch.from_numpy(best.bias[0])
    for size in (1.0, 1e200):
        d = torch.full((2, 5), size, dtype=torch.float64)
        u = problem.logits(x)
        start = objective(x, problem.sums_at(u).loss, C * 0 + 1)
        plane = Plane.make(problem, x, u, C * 0 + 1, [Direction(d, problem.logits(d))])
        moved = x + plane.least(start) * d
        reached = objective(moved, problem.sums_at(problem.logits(moved)).loss, C * 0 + 1)
        assert (reached <= start * (1 + 1e-6)).all()
