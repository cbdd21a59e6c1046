import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from retailtag.errors import UsageError
from retailtag.probes.fit import make_solver
from retailtag.probes.fits import CONVERGED
from retailtag.probes.sweep import (
    choose_C,
    parse_grid,
    sweep_findings,
    sweep_out_of_fold,
    sweep_rows,
)


def _ap(logits, labels):
    def one(z, y):
        known = y >= 0
        return average_precision_score(y[known], z[known]) if (y == 1).any() else np.nan

    return np.array([one(z, y) for z, y in zip(logits.T, labels.T, strict=True)])


@pytest.fixture(scope="module")
def sweep(world):
    X, Y = world
    fold = np.arange(len(X)) % 3
    return sweep_out_of_fold(X, Y, fold, np.array([1e-3, 1e-1, 10.0]), make_solver(), _ap)


def test_out_of_fold_logits_come_from_models_that_did_not_see_the_row(world, sweep):
    X, _ = world
    pooled = sweep.logits(1)
    for k in range(3):
        rows = np.flatnonzero(sweep.fold == k)[:5]
        by_hand = sweep.fits[k].logits(sweep.scalers[k].transform(X[rows]), 1)
        np.testing.assert_array_equal(pooled[rows], by_hand)
        outside = X[sweep.fold != k]
        np.testing.assert_allclose(sweep.scalers[k].mean, outside.mean(axis=0), atol=1e-5)


def test_labels_of_a_fold_do_not_reach_its_own_scores(world):
    """Flipping the labels of one fold leaves that fold's out-of-fold logits as they are."""
    X, Y = world
    fold = np.arange(len(X)) % 3
    flipped = Y.copy()
    flipped[fold == 0] = np.where(Y[fold == 0] >= 0, 1 - Y[fold == 0], -1)
    C = np.array([0.1])
    a, b = (sweep_out_of_fold(X, y, fold, C, make_solver(), _ap).logits(0) for y in (Y, flipped))
    np.testing.assert_array_equal(a[fold == 0], b[fold == 0])
    assert np.abs(a[fold != 0] - b[fold != 0]).max() > 0.1


def test_choice_takes_the_best_mean_of_the_group_and_the_smaller_of_equals():
    ap = np.array([[0.1, 0.9, np.nan], [0.5, 0.9, np.nan], [0.5, 0.2, np.nan]])
    group = np.array(["tail", "frequent", "tail"])
    assert choose_C(ap, group).tolist() == [1, 0, 1]
    assert choose_C(ap, group, "global").tolist() == [1, 1, 1]
    with pytest.raises(UsageError, match="per-group"):
        choose_C(ap, group, "best")


def test_table_has_a_row_per_fold_C_and_tag(sweep):
    tags = tuple(f"t{i}" for i in range(8))
    table = sweep_rows(sweep, tags, np.array(["tail"] * 8))
    assert {len(column) for column in table.values()} == {3 * 3 * 8}
    at = (table["tag"] == "t1") & (table["fold"] == 2) & (table["C"] == 10.0)
    assert table["objective"][at].item() == sweep.fits[2].objective[2, 1]
    assert table["status"][at].item() == CONVERGED
    assert table["out_of_fold_ap"][at].item() == sweep.ap[2, 1]


def test_edge_of_the_grid_is_a_finding(sweep):
    group = np.array(["tail"] * 8)
    found = sweep_findings(sweep, np.full(8, 2), group)
    assert found[0][0] == "grid-edge"
    assert "largest of the grid (10)" in found[0][1]
    codes = [code for code, _, _ in sweep_findings(sweep, np.full(8, 1), group)]
    assert codes == ["few-positives", "single-class"]


@pytest.mark.parametrize("text", ["", "a", "1:2", "0:1:3", "-1,2", "1:10:0", "1:2:3:4", "inf"])
def test_grids_that_are_none(text):
    with pytest.raises(UsageError, match="--sweep-C"):
        parse_grid(text)
