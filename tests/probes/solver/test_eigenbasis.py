"""Features of the solver: where they lie, and that it changes no result."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from retailtag.probes.solver.eigenbasis import RotatedFeatures
from retailtag.probes.solver.fit import fit_probes
from retailtag.probes.solver.torch_solver import TorchSolver

CPU = torch.device("cpu")
GRID = np.array([1e-3, 1.0, 1e3])

CHILD = """
import resource, sys
import numpy as np
from pathlib import Path
from retailtag.probes.solver.fits import CONVERGED, SEPARABLE
from retailtag.probes.solver.torch_solver import TorchSolver

folder, memory, room = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
rng = np.random.default_rng(0)
# Large enough that threads and libraries have taken their buffers before the limit is set.
small = rng.standard_normal((20_000, 256)).astype(np.float32)
TorchSolver(memory=memory)(small, (rng.random((20_000, 2)) < 0.1).astype(np.int8), np.ones(1))
X = np.lib.format.open_memmap(folder / "X.npy", mode="r")
Y = np.load(folder / "Y.npy")
held = next(l for l in Path("/proc/self/status").read_text().splitlines() if "VmData" in l)
limit = int(held.split()[1]) * 1024 + room
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
fits = TorchSolver(memory=memory)(X, Y, np.array([1e-2]))
assert set(fits.status.ravel().tolist()) <= {CONVERGED, SEPARABLE}, fits.status
"""


class Lazy:
    """Nothing but what the solver may ask of features."""

    def __init__(self, X):
        self._X, self.shape = X, X.shape

    def __getitem__(self, rows):
        assert isinstance(rows, slice)
        return self._X[rows]


def test_rotation_keeps_logits_and_norms(world):
    X, _ = world
    features = RotatedFeatures.make(X, None, CPU, 10**9)
    x = torch.randn(3, X.shape[1] + 1, generator=torch.Generator().manual_seed(0))
    weight, bias = features.restore(x.double())
    there = X @ weight.numpy().T + bias.numpy()
    here = features.Z @ x[:, :-1].T + x[:, -1]
    np.testing.assert_allclose(there, here.numpy(), atol=1e-4)
    np.testing.assert_allclose(features.adopt(weight, bias), x, atol=1e-5)
    np.testing.assert_allclose(features.norms, (features.Z**2).sum(dim=1), rtol=1e-5)
    gram = features.Z.double().T @ features.Z.double()
    np.testing.assert_allclose(gram, torch.diag(features.eigenvalues).double(), atol=2e-2)


def test_features_of_very_different_scales_are_worked_on_in_float64(world):
    X, _ = world
    scale = np.geomspace(1e-3, 1e3, X.shape[1]).astype(np.float32)
    assert RotatedFeatures.make(X, None, CPU, 10**9).Z.dtype == torch.float32
    assert RotatedFeatures.make(X * scale, None, CPU, 10**9).Z.dtype == torch.float64


def test_streamed_features_give_the_fits_of_those_in_memory(world):
    X, Y = world
    here = TorchSolver()(X, Y, GRID)
    streamed = TorchSolver(memory=4096)(Lazy(X), Y, GRID)
    assert RotatedFeatures.make(X, None, CPU, 4096).block_numbers < X.size
    np.testing.assert_array_equal(here.status, streamed.status)
    np.testing.assert_allclose(here.objective, streamed.objective, rtol=2e-4)


def test_scratch_file_leaves_nothing_behind(world, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    TorchSolver(memory=4096)(*world, GRID)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is capped on Linux only")
def test_features_larger_than_the_memory_allowed_are_streamed(tmp_path):
    """80 MB of features under a cap of 70 MB: streamed they fit, held they do not."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((80_000, 256), np.float32)
    np.save(tmp_path / "X.npy", X)
    np.save(tmp_path / "Y.npy", (X[:, :2] + rng.logistic(size=(len(X), 2)) > 3).astype(np.int8))

    def run(memory):
        arguments = [str(tmp_path), str(memory), str(70 * 2**20)]
        return subprocess.run(
            [sys.executable, "-c", CHILD, *arguments],
            capture_output=True,
            text=True,
            check=False,
        )

    streamed, held = run(16 * 2**20), run(10**9)
    assert streamed.returncode == 0, streamed.stderr
    assert held.returncode != 0
    assert "allocate" in held.stderr  # of PyTorch or of NumPy


def test_weights_of_zero_leave_images_out_and_whole_ones_repeat_them(world):
    X, Y = world
    rng = np.random.default_rng(3)
    times = rng.integers(0, 3, len(X))
    weighted = fit_probes(X, Y, [0.1], sample_weight=times)
    repeated = fit_probes(np.repeat(X, times, axis=0), np.repeat(Y, times, axis=0), [0.1])
    np.testing.assert_allclose(weighted.objective, repeated.objective, rtol=2e-4)


def test_a_full_disk_is_an_error_not_a_signal(monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    X = np.random.default_rng(0).standard_normal((40, 4)).astype(np.float32)
    with pytest.raises(OSError, match="No space left"):
        RotatedFeatures.make(X, None, CPU, 100)
