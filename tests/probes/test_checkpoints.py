import numpy as np
import pytest

from retailtag.probes.checkpoints import (
    Checkpoints,
    at_strength,
    joined,
    missing_runs,
)
from retailtag.probes.heads.logistic import LogisticHead
from retailtag.probes.solver.fit import make_solver

GRID = np.array([1e-3, 1e-2, 1e-1, 1.0])


class Counting:
    """The solver, and the strengths it was asked for."""

    def __init__(self, stop_after=None):
        self.asked, self.started, self.stop_after = [], [], stop_after

    def __call__(self, X, Y, C, advance, *, start=None, on_strength):
        self.asked += C.tolist()
        self.started.append(start)

        def told(k, fits):
            on_strength(k, fits)
            if self.stop_after == k + 1:
                raise KeyboardInterrupt

        return make_solver()(X, Y, C, advance, start=start, on_strength=told)


@pytest.fixture(scope="module")
def whole(world):
    return LogisticHead(GRID, make_solver()).fit(*world)


def _same(a, b, taken_over):
    """Checkpoints taken over are equal to the last bit; the rest is as good, by its certificate."""
    np.testing.assert_array_equal(a.fits.C, b.fits.C)
    np.testing.assert_array_equal(a.fits.status, b.fits.status)
    for name in ("weight", "bias", "objective", "gap", "iterations"):
        mine, other = getattr(a.fits, name), getattr(b.fits, name)
        np.testing.assert_array_equal(mine[:taken_over], other[:taken_over])
    np.testing.assert_allclose(a.fits.objective, b.fits.objective, rtol=2e-4)


def test_an_interrupted_fit_continues_after_its_last_checkpoint(world, whole, tmp_path):
    checkpoints = Checkpoints(tmp_path, "key")
    with pytest.raises(KeyboardInterrupt):
        LogisticHead(GRID, Counting(stop_after=2), checkpoints=checkpoints).fit(*world)
    solver, told = Counting(), []
    again = LogisticHead(GRID, solver, checkpoints=checkpoints).fit(*world, told.append)
    assert solver.asked == GRID[2:].tolist()
    np.testing.assert_array_equal(solver.started[0][0], whole.fits.weight[1])
    np.testing.assert_array_equal(solver.started[0][1], whole.fits.bias[1])
    _same(again, whole, taken_over=2)
    assert sum(told) == whole.fits.status.size
    assert again.resumed_seconds > 0


def _filled(world, folder, key="key"):
    LogisticHead(GRID, make_solver(), checkpoints=Checkpoints(folder, key)).fit(*world)


def _truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


def _flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(bytes(content))


def _empty(path):
    path.write_bytes(b"")


def _other_strength(path):
    path.write_bytes((path.parent / "C-0.001.block").read_bytes())


@pytest.mark.parametrize("damage", [_truncate, _flip, _empty, _other_strength])
def test_a_damaged_checkpoint_is_fitted_again_and_replaced(world, whole, tmp_path, damage):
    _filled(world, tmp_path)
    damage(tmp_path / "C-0.1.block")
    for expected in ([0.1], []):
        solver = Counting()
        again = LogisticHead(GRID, solver, checkpoints=Checkpoints(tmp_path, "key")).fit(*world)
        assert solver.asked == expected
        _same(again, whole, taken_over=2)


def test_checkpoints_of_another_key_or_shape_are_not_used(world, tmp_path):
    X, Y = world
    _filled(world, tmp_path)
    solver = Counting()
    LogisticHead(GRID, solver, checkpoints=Checkpoints(tmp_path, "other")).fit(X, Y)
    assert solver.asked == GRID.tolist()
    assert Checkpoints(tmp_path, "other").load(0.1, 8, 12) is not None
    assert Checkpoints(tmp_path, "other").load(0.1, 7, 12) is None
    assert Checkpoints(tmp_path, "other").load(0.1, 8, 13) is None


def test_folds_and_scalings_do_not_share_checkpoints_and_clear_removes_all(world, tmp_path):
    sweep = Checkpoints(tmp_path / "sweep", "key")
    _filled(world, sweep.of("standardise", 0).folder, sweep.of("standardise", 0).key)
    path = sweep.of("standardise", 0).folder / "C-0.1.block"
    assert sweep.of("standardise", 0).load(0.1, 8, 12) is not None
    for scale, fold in (("standardise", 1), ("l2", 0)):
        other = sweep.of(scale, fold)
        other.folder.mkdir(parents=True)
        (other.folder / path.name).write_bytes(path.read_bytes())
        assert other.load(0.1, 8, 12) is None
    sweep.clear()
    assert list(tmp_path.iterdir()) == []


def test_fits_taken_apart_and_joined_in_any_order_are_the_same(whole):
    parts = [at_strength(whole.fits, k) for k in (2, 0, 3, 1)]
    back = joined(parts)
    np.testing.assert_array_equal(back.C, whole.fits.C)
    np.testing.assert_array_equal(back.weight, whole.fits.weight)
    assert back.seconds == pytest.approx(whole.fits.seconds)


def test_missing_runs_cover_what_is_missing():
    known = np.array([False, True, True, False, False])
    covered = np.zeros(5, bool)
    for run in missing_runs(known):
        covered[run] = True
    np.testing.assert_array_equal(covered, ~known)
