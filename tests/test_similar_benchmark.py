"""The benchmark of similar products: searches agree, and rows are those of the evaluation."""

import argparse
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def bench():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
        import similar

        yield similar


def test_three_searches_find_the_same(bench):
    rows = bench.timed(300, 8)
    assert [row["way"] for row in rows] == ["retailtag", "scikit-learn", "sort"]
    assert all(row["agrees"] == 1 for row in rows)


def test_rows_hold_every_metric(bench, small_csv, small_store):
    args = argparse.Namespace(
        catalogue=small_csv, backbones="demo:cnn", features=small_store.path.parent, weights=[]
    )
    rows = bench.evaluated(args, "small")
    assert len(rows) == 6 * 2
    assert {row["queries"] for row in rows} == {18}
    assert all(row["low"] <= row["value"] <= row["high"] for row in rows)
