"""The comparison of predict and extract measures both over the same images."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import predict

    return predict


def test_both_are_timed_over_the_same_images(benchmark):
    (row,) = benchmark.measure(8, 40, 2, quick=True)
    assert set(row) == set(benchmark.COLUMNS)
    assert (row["backbone"], row["method"], row["images"]) == ("demo:cnn", "eager", 8)
    assert row["ratio_least"] <= row["ratio"] <= row["ratio_most"]
    assert row["predict_images_s"] > 0
