"""The stand-in accelerator, for the tests of `paths.py` and their process alone."""

import pytest
import torch


@pytest.fixture(scope="session")
def sim():
    """Name of the stand-in device, registered; see `tests/reference/accelerator.py`."""
    from reference_accelerator import NAME, register

    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        register(patch)
        yield NAME


@pytest.fixture(autouse=True)
def _uses_the_device(sim):
    """Every test computes on the device: one that never reaches it would prove nothing."""
    from reference_accelerator import SimTensor

    before = SimTensor.n_calls
    yield
    assert SimTensor.n_calls > before
