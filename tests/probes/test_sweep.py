from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from retailtag.probes.choice import choose_candidate
from retailtag.probes.solver.fit import make_solver
from retailtag.probes.solver.fits import CONVERGED, SINGLE_CLASS
from retailtag.probes.sweep import Sweeper, sweep_rows
from retailtag.probes.sweep_findings import grid_findings, status_findings, troubled_tags

TAGS = tuple(f"t{i}" for i in range(8))
TAIL = np.array(["tail"] * 8)


def _ap(logits, labels):
    def one(z, y):
        known = y >= 0
        return average_precision_score(y[known], z[known]) if (y == 1).any() else np.nan

    return np.array([one(z, y) for z, y in zip(logits.T, labels.T, strict=True)])


def _sweeper(X, Y, **more):
    return Sweeper(X, Y, np.arange(len(X)) % 3, make_solver(), _ap, **more)


@pytest.fixture(scope="module")
def sweep(world):
    return _sweeper(*world).sweep(np.array([1e-3, 1e-1, 10.0]))


def test_out_of_fold_logits_come_from_models_that_did_not_see_the_row(world, sweep):
    X, _ = world
    pooled = sweep.logits(1)
    for k in range(3):
        rows = np.flatnonzero(sweep.fold == k)
        np.testing.assert_array_equal(pooled[rows], sweep.fits[k].scores(X[rows], 1))
        outside = X[sweep.fold != k]
        mean = sweep.fits[k].distinct.scaler.affine.mean
        np.testing.assert_allclose(mean, outside.mean(axis=0), atol=1e-5)


def test_labels_of_a_fold_do_not_reach_its_own_scores(world):
    """Flipping the labels of one fold leaves that fold's out-of-fold logits as they are."""
    X, Y = world
    fold = np.arange(len(X)) % 3
    flipped = Y.copy()
    flipped[fold == 0] = np.where(Y[fold == 0] >= 0, 1 - Y[fold == 0], -1)
    a, b = (_sweeper(X, y).sweep(np.array([0.1])).logits(0) for y in (Y, flipped))
    np.testing.assert_array_equal(a[fold == 0], b[fold == 0])
    assert np.abs(a[fold != 0] - b[fold != 0]).max() > 0.1


def test_half_precision_features_give_the_sweep_of_their_values(world):
    X, Y = world
    half = X.astype(np.float16)
    full, part = (_sweeper(x, Y).sweep(np.array([0.1])) for x in (half.astype(np.float32), half))
    np.testing.assert_array_equal(part.logits(0), full.logits(0))


def test_table_has_a_row_per_fold_C_and_tag(sweep):
    table = sweep_rows(sweep, TAGS, TAIL)
    assert {len(column) for column in table.values()} == {3 * 3 * 8}
    at = (table["tag"] == "t1") & (table["fold"] == 2) & (table["C"] == 10.0)
    assert table["objective"][at].item() == sweep.fits[2].cells("objective")[2, 1]
    assert table["status"][at].item() == CONVERGED
    assert table["out_of_fold_ap"][at].item() == sweep.ap[2, 1]
    assert set(table["scale"]) == {"standardise"}


def _with_ap(sweep, means):
    """The sweep with AP equal for all tags, `means` over the grid."""
    return replace(sweep, ap=np.broadcast_to(np.array(means)[:, None], sweep.ap.shape))


@pytest.mark.parametrize(
    ("means", "words"),
    [
        ([0.1, 0.2, 0.3], "The C of tail tags is the largest of the grid (10)."),
        ([0.3, 0.2, 0.1], "The C of tail tags is the smallest of the grid (0.001)."),
        ([0.1, 0.3, 0.2], None),
    ],
)
def test_an_end_of_the_grid_is_a_finding(sweep, means, words):
    found = grid_findings(_with_ap(sweep, means), TAIL, "per-group")
    assert [sentence for _, sentence, _ in found] == ([] if words is None else [words])
    assert all(code == "grid-edge" for code, _, _ in found)


def test_an_end_chosen_for_want_of_evidence_says_what_was_best(sweep):
    ap = np.tile([[0.5], [0.5], [0.4]], 8)
    ap[1, 0] = 0.9  # one tag alone prefers the second
    (found,) = grid_findings(replace(sweep, ap=ap), TAIL, "per-group")
    assert "smallest of the grid (0.001), within one standard error of the best (0.1)" in found[1]


def test_a_flat_curve_is_a_finding_and_not_widened(world):
    sweeper = _sweeper(*world)
    sweep = sweeper.sweep(np.array([1e-3, 1e-2, 1e-1, 1.0]))
    flat = _with_ap(sweep, [0.1, 0.4, 0.4004, 0.4008])
    assert sweeper.widened(flat, TAIL, "per-group") is flat
    (found,) = grid_findings(flat, TAIL, "per-group")
    assert found[0] == "flat-curve"
    assert "for tail tags: it is 0.400 to 0.401 from C = 0.01 to 1," in found[1]
    level = _with_ap(sweep, [0.4004, 0.4, 0.4003, 0.4])  # at the lower end: no reason to go down
    assert sweeper.widened(level, TAIL, "per-group") is level


def test_a_chosen_end_widens_the_grid_and_fits_only_what_is_new(world):
    X, Y = world
    asked = []

    class Recording:
        def __call__(self, X, Y, C, advance, *, start=None):
            asked.append((C.tolist(), start is not None))
            return make_solver()(X, Y, C, advance, start=start)

    sweeper = Sweeper(X, Y, np.arange(len(X)) % 3, Recording(), _ap)
    first = sweeper.sweep(np.array([1e-6, 1e-5]))
    gains = _with_ap(first, [0.1, 0.2])
    asked.clear()
    wider = sweeper.widened(gains, TAIL, "per-group")
    np.testing.assert_allclose(wider.C[:5], 10.0 ** np.arange(-6, -1))
    assert all(1e-6 not in C and 1e-5 not in C for C, _ in asked)
    assert all(started for _, started in asked)
    np.testing.assert_array_equal(wider.ap[:2], gains.ap)
    direct = sweeper.sweep(wider.C)
    # Another road to each optimum: equal within the certificate of the fits, not to the last bit.
    for one, other in zip(wider.fits, direct.fits, strict=True):
        assert one.cells("gap")[one.cells("status") != SINGLE_CLASS].max() <= 1e-4
        np.testing.assert_allclose(one.cells("objective"), other.cells("objective"), rtol=1e-4)
    codes = [code for code, _, _ in grid_findings(wider, TAIL, "per-group")]
    assert codes[0] == "grid-widened"
    sentence = grid_findings(wider, TAIL, "per-group")[0][1]
    assert f"1e-06 to 1e-05, was widened to 1e-06 to {wider.C[-1]:.3g}" in sentence


def test_a_grid_is_widened_three_times_at_most_and_downwards_too(sweep, world):
    class Downhill(Sweeper):
        def _extended(self, sweep, C, before):
            wider = super()._extended(sweep, C, before)
            return _with_ap(wider, np.linspace(1, 0.1, len(C)))

    X, Y = world
    sweeper = Downhill(X, Y, np.arange(len(X)) % 3, make_solver(), _ap)
    grid = np.array([0.1, 0.2])
    wider = sweeper.widened(sweeper.sweep(grid), TAIL, "per-group")
    np.testing.assert_allclose(wider.C, 0.2 * 0.5 ** np.arange(10, -1, -1))


def test_a_single_strength_is_a_wish_and_not_widened(world):
    sweeper = _sweeper(*world)
    one = sweeper.sweep(np.array([0.1]))
    assert sweeper.widened(one, TAIL, "per-group") is one
    assert grid_findings(one, TAIL, "per-group") == []


def test_tags_that_went_wrong_at_their_chosen_C_are_named(sweep):
    choice = choose_candidate(sweep.ap, TAIL)
    final = np.full(8, CONVERGED, "<U16")
    final[2] = "step limit"
    troubled = troubled_tags(sweep, choice, final, TAGS)
    # t5 has one positive, so one fold's complement lacks it; t6 has none and t7 nothing else
    assert troubled == {
        "few positives": ["t4", "t5"],
        "single class": ["t5", "t6", "t7"],
        "step limit": ["t2"],
    }
    few, single, limit = status_findings(sweep, troubled)
    assert "at the chosen C: t4, t5." in few[1]
    assert single[0] == "single-class"
    n = int((sweep.status == "single class").sum())
    assert f"{n:,} of 72 fits of the sweep" in single[1]
    assert "at the chosen C: t5, t6, t7." in single[1]
    assert limit[1].startswith("0 of 72 fits")
    assert "t2" in limit[1]
    assert all(remedy for _, _, remedy in (few, single, limit))


def test_trouble_only_away_from_the_chosen_C_says_so(sweep):
    found = status_findings(sweep, {})
    assert [code for code, _, _ in found] == ["few-positives", "single-class"]
    assert all(sentence.endswith("none at a chosen C.") for _, sentence, _ in found)


@pytest.mark.parametrize("choice", [1, np.array([0, 1, 2, 2, 1, 0, 1, 1, 0, 0])])
def test_tags_on_the_same_images_are_fitted_once(world, choice):
    """Two tags repeat others: 8 of 10 are fitted, and each has the logits of its own fit."""
    X, Y = world
    of_tag = np.array([0, 1, 2, 3, 4, 5, 6, 7, 3, 0])
    fitted = []

    class Recording:
        def __call__(self, X, Y, *others, **more):
            fitted.append(Y.shape[1])
            return make_solver()(X, Y, *others, **more)

    counted = []

    class Counting:
        @contextmanager
        def task(self, name, total, unit):
            yield counted.append
            assert sum(counted) == total

    grid = np.array([1e-3, 1e-1, 10.0])
    sweeper = Sweeper(X, Y[:, of_tag], np.arange(len(X)) % 3, Recording(), _ap, progress=Counting())
    repeated = sweeper.sweep(grid)
    assert fitted == [8, 8, 8]
    single = _sweeper(X, Y).sweep(grid)
    for at in range(3):
        np.testing.assert_array_equal(repeated.logits(at), single.logits(at)[:, of_tag])
    logits = repeated.logits(choice)
    chosen = np.broadcast_to(choice, 10)
    expected = np.stack([single.logits(c)[:, of_tag[t]] for t, c in enumerate(chosen)], axis=1)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(repeated.status, single.status[..., of_tag])
    np.testing.assert_array_equal(repeated.ap, single.ap[:, of_tag])
