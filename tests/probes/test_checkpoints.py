from dataclasses import replace

import numpy as np
import pytest

from retailtag.probes.checkpoints import (
    TABLES,
    Checkpoints,
    at_strength,
    joined,
    missing_runs,
)
from retailtag.probes.heads.logistic import LogisticHead
from retailtag.probes.solver.fit import make_solver

GRID = np.array([1e-3, 1e-2, 1e-1, 1.0])
ENDS = GRID[[0, -1]]
BLOCK = "C-0.001-1.0.block"


class Counting:
    """The solver, and the strengths it was asked for."""

    def __init__(self):
        self.asked = []

    def __call__(self, X, Y, C, advance, *, start=None):
        self.asked.append(C.tolist())
        return make_solver()(X, Y, C, advance, start=start)


@pytest.fixture(scope="module")
def whole(world):
    return LogisticHead(GRID, make_solver()).fit(*world)


def _same(a, b):
    """Equal to the last bit."""
    np.testing.assert_array_equal(a.fits.C, b.fits.C)
    for name in TABLES:
        np.testing.assert_array_equal(getattr(a.fits, name), getattr(b.fits, name))


def _filled(world, folder, key="key", grid=GRID):
    LogisticHead(grid, make_solver(), checkpoints=Checkpoints(folder, key)).fit(*world)


def _truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


def _flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(bytes(content))


def _empty(path):
    path.write_bytes(b"")


def _other_strengths(path):
    """Another grid with the same ends."""
    _filled((np.ones((3, 12), np.float32), np.eye(3, 8, dtype=np.int8)), path.parent, grid=ENDS)


@pytest.mark.parametrize("damage", [_truncate, _flip, _empty, _other_strengths])
def test_a_damaged_checkpoint_is_fitted_again_and_replaced(world, whole, tmp_path, damage):
    _filled(world, tmp_path)
    damage(tmp_path / BLOCK)
    for expected in ([GRID.tolist()], []):
        solver, told = Counting(), []
        head = LogisticHead(GRID, solver, checkpoints=Checkpoints(tmp_path, "key"))
        again = head.fit(*world, told.append)
        assert solver.asked == expected
        assert sum(told) == whole.fits.status.size
        _same(again, whole)
    assert again.resumed_seconds > 0


def test_a_wider_grid_takes_only_what_continues_the_same_fits(world, tmp_path):
    """The strengths above start from a solution: a block from another start is not used."""
    X, Y = world
    checkpoints = Checkpoints(tmp_path, "key")
    first = LogisticHead(GRID[1:3], make_solver(), checkpoints=checkpoints).fit(X, Y)
    wide = LogisticHead(GRID, make_solver(), checkpoints=checkpoints).fit(X, Y, before=first)
    solver = Counting()
    again = LogisticHead(GRID, solver, checkpoints=checkpoints).fit(X, Y, before=first)
    assert solver.asked == []
    _same(again, wide)
    moved = replace(first, fits=replace(first.fits, weight=first.fits.weight * 2))
    LogisticHead(GRID, solver, checkpoints=checkpoints).fit(X, Y, before=moved)
    assert solver.asked == [[1.0]]


def test_checkpoints_of_another_key_or_shape_are_not_used(world, tmp_path):
    X, Y = world
    _filled(world, tmp_path)
    solver = Counting()
    LogisticHead(GRID, solver, checkpoints=Checkpoints(tmp_path, "other")).fit(X, Y)
    assert solver.asked == [GRID.tolist()]
    assert Checkpoints(tmp_path, "other").load(GRID, None, 8, 12) is not None
    assert Checkpoints(tmp_path, "other").load(GRID, None, 7, 12) is None
    assert Checkpoints(tmp_path, "other").load(GRID, None, 8, 13) is None


def test_the_threads_of_all_that_was_served_or_stored_are_known(world, tmp_path):
    one, two = (Checkpoints(tmp_path, "key", threads) for threads in (1, 2))
    LogisticHead(GRID, make_solver(), checkpoints=one.of("l2", 0)).fit(*world)
    LogisticHead(GRID, Counting(), checkpoints=two.of("l2", 0)).fit(*world)
    LogisticHead(GRID, make_solver(), checkpoints=two.of("l2", 1)).fit(*world)
    assert one.seen == {1}
    assert two.seen == {1, 2}


def test_folds_and_scalings_do_not_share_checkpoints_and_clear_removes_all(world, tmp_path):
    sweep = Checkpoints(tmp_path / "sweep", "key")
    _filled(world, sweep.of("standardise", 0).folder, sweep.of("standardise", 0).key)
    path = sweep.of("standardise", 0).folder / BLOCK
    assert sweep.of("standardise", 0).load(GRID, None, 8, 12) is not None
    for scale, fold in (("standardise", 1), ("l2", 0)):
        other = sweep.of(scale, fold)
        other.folder.mkdir(parents=True)
        (other.folder / path.name).write_bytes(path.read_bytes())
        assert other.load(GRID, None, 8, 12) is None
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
