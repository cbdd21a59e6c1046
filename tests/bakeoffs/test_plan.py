"""The plan names the stages that the run then runs."""

import shutil
from dataclasses import replace

import pytest

from retailtag.bakeoffs.plan import plan_bakeoff
from retailtag.bakeoffs.run import run_bakeoff
from retailtag.settings import (
    BakeoffSettings,
    ComputeSettings,
    ExtractSettings,
    FinetuneSettings,
    ProbeSettings,
    ScoreSettings,
)

PROBE = ProbeSettings(sweep_C="0.01", folds=2, heads="logistic")


def _settings(root, **changes):
    values = {
        "backbones": ("demo:cnn",),
        "strategies": ("probe",),
        "out": root / "run",
        "compute": ComputeSettings(features=root / "features", device="cpu"),
        "probe": PROBE,
        "finetune": FinetuneSettings(epochs=0),
        "score": ScoreSettings(replicates=100),
    }
    return BakeoffSettings(**{**values, **changes})


@pytest.fixture(scope="module", autouse=True)
def _quick(quick_stages):
    """What the slow last stages write is no matter here, only whether they run."""
    with quick_stages():
        yield


@pytest.fixture(scope="module")
def finished(small, tmp_path_factory):
    """A run of both strategies without training, to copy."""
    root = tmp_path_factory.mktemp("plan")
    run_bakeoff(small, _settings(root, strategies=("probe", "finetune")))
    return root


def _nothing(run):
    pass


CHANGES = {
    "nothing": ({}, _nothing),
    "replicates": ({"score": ScoreSettings(replicates=150)}, _nothing),
    "other order": ({"strategies": ("finetune", "probe")}, _nothing),
    "one strategy": ({"strategies": ("probe",)}, _nothing),
    "folds": ({"probe": replace(PROBE, folds=3)}, _nothing),
    "grid": ({"probe": replace(PROBE, sweep_C="0.1")}, _nothing),
    "thresholds": ({"probe": replace(PROBE, thresholds="fixed")}, _nothing),
    "objective": ({"probe": replace(PROBE, objective="fbeta:2")}, _nothing),
    "dtype": ({"extract": ExtractSettings(dtype="float16")}, _nothing),
    "precision": ({"extract": ExtractSettings(engine="eager", precision="fast")}, _nothing),
    "no report": ({}, lambda run: (run / "report.html").unlink()),
    "no picture": ({}, lambda run: (run / "tail.png").unlink()),
    "bad result": ({}, lambda run: (run / "bakeoff.json").write_text("junk")),
    "bad card": ({}, lambda run: (run / "demo-cnn/probe/scorecard.json").write_text("junk")),
    "no record": ({}, lambda run: (run / "demo-cnn/probe/stage.json").write_text("{")),
    "no latency": ({}, lambda run: shutil.rmtree(run / "latency")),
}


@pytest.mark.parametrize("name", CHANGES)
def test_plan_and_run_agree(finished, small, tmp_path, name):
    shutil.copytree(finished, tmp_path / "copy")
    changes, damage = CHANGES[name]
    damage(tmp_path / "copy" / "run")
    settings = _settings(tmp_path / "copy", **{"strategies": ("probe", "finetune"), **changes})
    planned = plan_bakeoff(small, settings)
    ran = run_bakeoff(small, settings).ran
    certain = [stage.name for stage in planned if stage.why and stage.certain]
    possible = [stage.name for stage in planned if stage.why]
    assert set(certain) <= set(ran) <= set(possible)
    assert [s for s in possible if s in ran] == ran
    assert (possible == []) == (ran == [])
    assert not any(stage.why for stage in plan_bakeoff(small, settings))


def test_a_model_whose_kernels_cannot_be_counted_has_no_estimate_for_a_t4(
    finished, small, tmp_path, monkeypatch
):
    def fail(*given):
        raise NotImplementedError("no meta kernel\nof this operator")

    monkeypatch.setattr("retailtag.bakeoffs.stages.t4_cost", fail)
    shutil.copytree(finished, tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy" / "run" / "latency")
    run = run_bakeoff(small, _settings(tmp_path / "copy", strategies=("probe", "finetune")))
    assert run.ran == ["latency", "report"]
    assert all(pair.cost.t4 == {} for pair in run.result.pairs)


def test_the_plan_says_what_will_embed(finished, small, tmp_path):
    def why(root, **changes):
        return plan_bakeoff(small, _settings(root, **changes))[0].why

    assert why(tmp_path) == "72 new images, eager-float32"
    asked = ExtractSettings(engine="onnxruntime", precision="fast")
    assert why(tmp_path, extract=asked) == "72 new images, onnxruntime-float32"
    more = replace(small, image_ids=small.image_ids + "-new")
    settings = _settings(finished, extract=ExtractSettings(precision="fast"))
    assert plan_bakeoff(more, settings)[0].why == "72 new images, eager-float32"


def test_back_from_another_dtype(finished, small, tmp_path):
    """The float32 store is reused, but the probe in the folder was fitted on the float16 one."""
    shutil.copytree(finished, tmp_path / "copy")
    run_bakeoff(small, _settings(tmp_path / "copy", extract=ExtractSettings(dtype="float16")))
    back = _settings(tmp_path / "copy")
    planned = [stage.name for stage in plan_bakeoff(small, back) if stage.why]
    assert planned == run_bakeoff(small, back).ran
    assert "probe demo:cnn" in planned
