"""The script that compares plans with runs, in a tiny size."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def script(monkeypatch, quick_bakeoffs):
    """The script, and the command line of a run without training."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import plan

    return plan


def test_estimates_stand_beside_what_was_measured_and_recorded(
    script, small_csv, tmp_path, monkeypatch
):
    sets = ("probe.folds=2", "probe.heads=logistic", "probe.sweep_C=0.01", "finetune.epochs=0")
    written = []
    monkeypatch.setattr(script, "append", lambda name, rows: written.append((name, rows)))
    words = [str(small_csv), "--images", "60", "--backbones", "demo:cnn"]
    words += [word for setting in sets for word in ("--set", setting)]
    rows = script.main(words)
    assert written == [("plan.csv", rows)]
    stages = ["extract", "probe demo:cnn", "finetune demo:cnn"]
    assert [row["stage"] for row in rows][:3] == stages
    assert rows[-1]["stage"] == "report"
    assert {row["images"] for row in rows} == {60}
    for row in rows:
        assert row["estimated_s"] > 0
        assert row["ratio_s"] == pytest.approx(row["estimated_s"] / row["measured_s"], rel=0.5)
    assert all(row["measured_bytes"] > 10_000 for row in rows if row["stage"] in stages)


def test_a_finished_run_is_read_from_its_records(
    script, small_csv, small_store, tmp_path, monkeypatch
):
    from retailtag.bakeoffs.run import run_bakeoff
    from retailtag.catalog.readers import read_catalog
    from retailtag.settings_file import write_settings
    from retailtag.verbs import USES, resolve

    given = {"backbones": "demo:cnn", "strategies": "probe", "device": "cpu"}
    given |= {"out": tmp_path / "run", "features": small_store.path.parent}
    sets = (
        "probe.folds=2",
        "probe.heads=logistic",
        "probe.sweep_C=0.01",
        f"catalog.path={small_csv}",
    )
    settings, _ = resolve("bakeoff", None, given, sets=sets)
    run_bakeoff(read_catalog(small_csv), settings)
    write_settings(tmp_path / "run" / "settings.toml", settings, (*USES["bakeoff"], "catalog.path"))
    extract, probe = script.main(["--finished", str(tmp_path / "run"), "--dry"])
    assert (extract["stage"], probe["stage"]) == ("extract", "probe demo:cnn")
    files = (tmp_path / "run" / "demo-cnn" / "probe").iterdir()
    assert 0 < probe["measured_bytes"] < sum(f.stat().st_size for f in files if f.is_file())


def test_the_reference_job_has_a_time_and_a_range_for_every_stage(script):
    import reference

    text = reference.main(["--images", "2000", "--test", "200", "--backbones", "demo:cnn"])
    rows = [line.strip("| ").split(" | ") for line in text.splitlines()[2:]]
    names = ["extract demo:cnn", "probe demo:cnn", "finetune demo:cnn", "latency", "report", "all"]
    assert [row[0] for row in rows] == names
    for _, usual, both, _ in rows:
        fast, slow = map(float, both.split(" to "))
        assert fast <= float(usual) <= slow
