import numpy as np
import pytest
import reference_probes as reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from retailtag.errors import DataError, Unavailable, UsageError
from retailtag.probes.scaling import Standardiser
from retailtag.probes.solver import path, preconditioners, torch_solver
from retailtag.probes.solver.fit import fit_probes, make_solver
from retailtag.probes.solver.fits import SINGLE_CLASS, STEP_LIMIT
from retailtag.probes.solver.torch_solver import TorchSolver

GRID = [1e-4, 1e-2, 1.0]


def _gap(fits, k, tag, X, Y):
    known = Y[:, tag] >= 0
    x, y = X[known], Y[known, tag]
    best = reference.optimum(x, y, fits.C[k])
    mine = reference.objective(fits.weight[k, tag], fits.bias[k, tag], x, y, fits.C[k])
    return (mine - best) / best


def test_objective_reaches_the_reference_within_its_own_bound(world):
    X, Y = world
    fits = fit_probes(X, Y, GRID)
    for k in range(len(GRID)):
        for tag in range(6):
            gap = _gap(fits, k, tag, X, Y)
            assert fits.gap[k, tag] <= 1e-4
            assert -1e-6 < gap <= fits.gap[k, tag] + 1e-6
            assert fits.gap[k, tag] <= 1e-4


def test_what_is_solved_in_float64_states_its_own_objective(world):
    X, Y = world
    X = X * np.geomspace(1e-2, 1e2, X.shape[1], dtype=np.float32)  # too unlike for float32
    fits = fit_probes(X, Y, GRID)
    for k, C in enumerate(GRID):
        for tag, labels in enumerate(Y.T):
            known = labels >= 0
            if fits.status[k, tag] == SINGLE_CLASS:
                continue
            head = fits.weight[k, tag], fits.bias[k, tag]
            true = reference.objective(*head, X[known], labels[known], C)
            assert fits.objective[k, tag] == pytest.approx(true, rel=1e-5)


@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(20, 200),
    dim=st.integers(1, 40),
    positives=st.integers(1, 10),
    scale=st.sampled_from([1e-3, 1.0, 1e3]),
    c=st.sampled_from([1e-4, 1e-2, 1.0, 1e2, 1e4]),
    seed=st.integers(0, 2**16),
)
def test_certificate_holds_on_odd_problems(n, dim, positives, scale, c, seed):
    """Collinear and constant features, duplicate rows, more features than images."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, dim)) * scale
    X[:, dim // 2] = X[:, 0]
    X[n // 2] = X[0]
    y = np.zeros((n, 1), np.int8)
    y[rng.choice(n, positives, replace=False)] = 1
    Z = Standardiser.fit(X.astype(np.float32)).transform(X.astype(np.float32))
    fits = fit_probes(Z, y, [c])
    assert fits.gap[0, 0] <= 1e-4
    assert _gap(fits, 0, 0, Z, y) <= fits.gap[0, 0] + 1e-5


def test_separable_tags_take_few_iterations_at_large_strengths():
    """Few positives and many features: the factored Hessian guides where the diagonal is lost."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((3000, 60)).astype(np.float32)
    Y = np.zeros((3000, 4), np.int8)
    for tag, positives in enumerate((3, 8, 20, 40)):
        Y[rng.choice(3000, positives, replace=False), tag] = 1
    fits = fit_probes(X, Y, np.logspace(0, 5, 11))
    assert (fits.gap <= 1e-4).all()
    assert fits.iterations.mean() < 12
    for k in (5, 10):
        for tag in range(4):
            assert -1e-5 < _gap(fits, k, tag, X, Y) <= fits.gap[k, tag] + 1e-5


def test_bounds_hold_at_the_end_of_a_long_path():
    """Rounding of the logits does not add up from strength to strength."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((2000, 96)).astype(np.float32)
    Y = np.zeros((2000, 6), np.int8)
    for tag, positives in enumerate((4, 10, 20, 40, 80, 160)):
        score = X @ rng.standard_normal(96) / 10 + 0.3 * rng.standard_normal(2000)
        Y[np.argsort(-score)[:positives], tag] = 1
    C = np.geomspace(1e-6, 1e5, 45)
    fits = fit_probes(X, Y, C)
    for k in range(30, 45):
        for tag in range(6):
            head = fits.weight[k, tag], float(fits.bias[k, tag])
            true = reference.suboptimality(*head, X, Y[:, tag], C[k], 1.0)
            assert true <= fits.gap[k, tag] + 1e-5


def test_single_class_tags_are_a_status_not_a_crash(world):
    X, Y = world
    fits = fit_probes(X, Y, GRID)
    assert (fits.status[:, 6] == SINGLE_CLASS).all()
    assert (fits.status[:, 7] == SINGLE_CLASS).all()
    assert (fits.weight[:, 6:] == 0).all()
    assert (fits.bias[:, 6] < -5).all()
    assert (fits.bias[:, 7] > 5).all()


def test_step_limit_is_said(world):
    X, Y = world
    fits = TorchSolver(max_iter=1)(X, Y, np.array([10.0]))
    assert STEP_LIMIT in fits.status


def test_what_float32_does_not_solve_goes_on_in_float64(world, monkeypatch):
    """Also where some tags of a batch do and others do not, and in several batches."""
    X, Y = world
    plain = TorchSolver()(X, Y, np.array(GRID))
    calls = []
    in_double = path.Path._in_double
    monkeypatch.setattr(path.Path, "_in_double", lambda self: calls.append(1) or in_double(self))
    monkeypatch.setattr(path, "FLOAT32_ITERATIONS", 2)
    monkeypatch.setattr(torch_solver, "BATCH_NUMBERS", 3 * len(X))
    monkeypatch.setattr(preconditioners, "STORED_NUMBERS", 2 * (X.shape[1] + 1) ** 2)
    fits = TorchSolver()(X, Y, np.array(GRID))
    assert calls
    assert (fits.iterations < 2).any()
    np.testing.assert_array_equal(fits.status, plain.status)
    np.testing.assert_allclose(fits.objective, plain.objective, rtol=2e-4)


def test_unknown_labels_take_no_part(world):
    X, Y = world
    with_noise = X.copy()
    with_noise[Y[:, 0] < 0] = 100.0
    clean = fit_probes(X, Y[:, :1], [1.0])
    noisy = fit_probes(with_noise, Y[:, :1], [1.0])
    known = Y[:, 0] >= 0
    y = Y[known, 0]
    a, b = (
        reference.objective(f.weight[0, 0], f.bias[0, 0], X[known], y, 1.0) for f in (clean, noisy)
    )
    assert a == pytest.approx(b, rel=2e-4)


def test_torch_and_sklearn_agree_on_objectives(world):
    X, Y = world
    ours, theirs = fit_probes(X, Y, GRID), fit_probes(X, Y, GRID, solver="sklearn")
    np.testing.assert_allclose(ours.objective, theirs.objective, rtol=2e-4)
    np.testing.assert_array_equal(ours.status == SINGLE_CLASS, theirs.status == SINGLE_CLASS)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
def test_cpu_and_cuda_agree(world):
    X, Y = world
    cpu, cuda = fit_probes(X, Y, GRID), fit_probes(X, Y, GRID, device="cuda")
    np.testing.assert_allclose(cpu.objective, cuda.objective, rtol=2e-4)


def test_same_input_gives_the_same_bits(world):
    X, Y = world
    a, b = fit_probes(X, Y, GRID), fit_probes(X, Y, GRID)
    np.testing.assert_array_equal(a.weight, b.weight)


@pytest.mark.parametrize("solver", ["torch", "sklearn"])
def test_progress_counts_every_fit_once(world, solver):
    X, Y = world
    told = []
    make_solver(solver)(X, Y, np.array(GRID), told.append)
    assert sum(told) == len(GRID) * Y.shape[1]
    assert len(told) > 1


class RecordedCuml:
    """The documented signature of cuML's LogisticRegression, answering like scikit-learn."""

    def __init__(self, *, C, tol, max_iter, penalty_normalized, output_type):
        assert penalty_normalized is False
        assert output_type == "numpy"
        from sklearn.linear_model import LogisticRegression

        self._model = LogisticRegression(C=C, tol=tol, max_iter=max_iter)

    def fit(self, X, y, sample_weight=None, convert_dtype=True):
        assert X.dtype == np.float32
        assert y.ndim == 1
        self._model.fit(X, y, sample_weight)
        self.coef_, self.intercept_ = self._model.coef_, self._model.intercept_
        self.n_iter_ = self._model.n_iter_
        return self


def test_cuml_adapter_speaks_the_documented_signature(world, monkeypatch):
    from retailtag.probes.solver import library_solvers as solve_others

    X, Y = world
    monkeypatch.setattr(solve_others, "_cuml_logistic_regression", lambda: RecordedCuml)
    ours, theirs = fit_probes(X, Y, GRID), fit_probes(X, Y, GRID, solver="cuml")
    np.testing.assert_allclose(ours.objective, theirs.objective, rtol=2e-4)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_cuml_without_a_device_says_what_to_use(world):
    with pytest.raises(Unavailable, match="--solver torch"):
        fit_probes(*world, GRID, solver="cuml")


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"X": np.full((600, 12), np.nan)}, DataError, "Row 0"),
        ({"X": np.zeros((5, 12))}, DataError, "n_images"),
        ({"Y": np.full((600, 8), 3)}, DataError, "Labels"),
        ({"C_grid": [0.0]}, UsageError, "positive"),
        ({"solver": "magic"}, UsageError, "torch, cuml, sklearn"),
    ],
)
def test_bad_input_is_named(world, change, error, words):
    call = {"X": world[0], "Y": world[1], "C_grid": GRID, **change}
    with pytest.raises(error, match=words):
        fit_probes(**call)


def test_standardiser_folds_into_the_head():
    rng = np.random.default_rng(0)
    X = (rng.standard_normal((50, 4)) * [1, 10, 0.1, 0] + [0, 5, 1, 3]).astype(np.float32)
    scaler = Standardiser.fit(X)
    W, b = rng.standard_normal((3, 4)).astype(np.float32), np.ones(3, np.float32)
    raw_W, raw_b = scaler.unscale(W, b)
    np.testing.assert_allclose(
        X @ raw_W.T + raw_b, scaler.transform(X) @ W.T + b, rtol=1e-4, atol=1e-4
    )
    assert scaler.scale[3] == 1.0
