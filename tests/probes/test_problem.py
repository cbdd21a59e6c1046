"""The pieces of a pass over the images: what is quicker than the textbook gives the same."""

import numpy as np
import pytest
import torch

from retailtag.probes.problem import FEW, _logits, _softplus


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_log_loss_keeps_its_digits_far_on_either_side(dtype):
    m = torch.linspace(-80, 80, 20_001, dtype=dtype)
    expected = np.logaddexp(0, m.double().numpy())
    few = 4 * torch.finfo(dtype).eps
    np.testing.assert_allclose(_softplus(m).double(), expected, rtol=few, atol=0)


@pytest.mark.parametrize("n_tags", [1, FEW, FEW + 1])
def test_logits_are_the_same_in_either_order_of_the_product(n_tags):
    rng = np.random.default_rng(0)
    x, Z = rng.standard_normal((n_tags, 6)), rng.standard_normal((40, 5))
    found = _logits(torch.from_numpy(x), torch.from_numpy(Z))
    np.testing.assert_allclose(found, x[:, :-1] @ Z.T + x[:, -1:], rtol=1e-12, atol=1e-12)
    assert found.is_contiguous()
