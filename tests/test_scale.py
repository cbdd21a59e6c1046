"""The benchmark of growth: its stages run, and an exponent is the slope that it says."""

from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def scale():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
        import scale

        yield scale


@pytest.mark.parametrize("stage", ["read", "split", "sweep", "neighbours", "score"])
def test_stages_run(scale, stage, tmp_path, monkeypatch):
    monkeypatch.setattr(scale, "DIM", 8)
    assert scale.STAGES[stage](1200, tmp_path) > 0
    left = {path.suffix for path in tmp_path.iterdir() if path.is_file()}
    assert left <= {".csv"}  # embeddings take gigabytes


def test_what_was_not_drawn_cannot_be_checked(scale, tmp_path):
    with pytest.raises(SystemExit, match="run the stage draw before"):
        scale.STAGES["check"](5, tmp_path)


def test_a_stage_is_measured_in_processes_of_its_own(scale, tmp_path):
    rows = list(scale.measure("score", (200, 400), tmp_path))
    assert [row["rows"] for row in rows] == [200, 400]
    assert all(row["peak_mib"] > 30 for row in rows)
    assert rows[0]["exponent"] == rows[1]["exponent"]


def test_the_exponent_is_the_slope_of_the_logarithms(scale):
    assert scale.exponent([10, 100, 1000], [0.3, 0.3 * 10**1.5, 0.3 * 10**3]) == pytest.approx(1.5)
