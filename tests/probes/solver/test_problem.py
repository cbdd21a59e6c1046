"""The pieces of a pass over the images: what is quicker than the textbook gives the same."""

import numpy as np
import pytest
import torch

from retailtag.probes.solver.eigenbasis import RotatedFeatures
from retailtag.probes.solver.problem import MAX_TAGS_IMAGES_FIRST, Problem, _logits, _softplus


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
    u = torch.empty_like(problem.neg_sign)
    sums = problem.sums(None, x, u)

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


def test_factors_of_all_curvature_are_those_of_the_hessian():
    rng = np.random.default_rng(0)
    X = rng.standard_normal((60, 4)).astype(np.float32)
    Y = rng.integers(0, 2, (60, 2)).astype(np.int8)
    features = RotatedFeatures.make(X, None, torch.device("cpu"), 1 << 20)
    problem, C = Problem.make(features, Y, None).double(), torch.tensor([0.3, 40.0])
    u = torch.from_numpy(rng.standard_normal((2, 60)))
    L = problem.hessian_factors(u, C.double(), 60, 1.0).tril().numpy()

    p = 1 / (1 + np.exp(-u.numpy()))
    Z = np.column_stack([features.Z.double().numpy(), np.ones(60)])
    for tag, c in enumerate(C.tolist()):
        H = c * (Z.T * (p[tag] * (1 - p[tag]))) @ Z + np.diag([1.0] * 4 + [0.0])
        np.testing.assert_allclose(L[tag] @ L[tag].T, H, rtol=1e-5)
