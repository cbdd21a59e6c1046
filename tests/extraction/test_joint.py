"""Several backbones side by side, from the embeddings to the tagger."""

from dataclasses import replace

import numpy as np
import pytest

import retailtag as rt
from retailtag.backbones import load_backbone
from retailtag.bakeoffs.plan import plan_bakeoff
from retailtag.bakeoffs.request import Request, pair_folder
from retailtag.bakeoffs.run import run_bakeoff
from retailtag.cli.main import run as command
from retailtag.context import RunContext
from retailtag.errors import ArtefactError, DataError, UsageError
from retailtag.files import write_json
from retailtag.outcomes import recommended_folder
from retailtag.predictions import Predictions
from retailtag.probes.artefact import Probe
from retailtag.progress import SILENT
from retailtag.report.results import BakeoffResult
from retailtag.runs.embeddings import find_embeddings
from retailtag.settings import (
    BakeoffSettings,
    ComputeSettings,
    FinetuneSettings,
    ProbeSettings,
    ScoreSettings,
)
from retailtag.store import FeatureStore
from retailtag.tagger.loading import backbones_of, load_fitted

JOINT = "demo:cnn+demo:clip"


def _settings(root, **changes):
    values = {
        "backbones": (JOINT, "demo:cnn"),
        "out": root / "run",
        "compute": ComputeSettings(features=root / "features", device="cpu"),
        "probe": ProbeSettings(sweep_C="0.01", folds=2, heads="logistic"),
        "finetune": FinetuneSettings(epochs=0),
        "score": ScoreSettings(replicates=100),
    }
    return BakeoffSettings(**{**values, **changes})


class _Heard:
    """Silent progress that keeps what is said."""

    task = staticmethod(SILENT.task)

    def __init__(self):
        self.lines = []

    def say(self, line):
        self.lines.append(line)


@pytest.fixture(scope="module")
def finished(small, tmp_path_factory, quick_stages):
    """Root of a finished run, the run, what its plan said, and what was said on the way."""
    root, heard = tmp_path_factory.mktemp("joint"), _Heard()
    plan = plan_bakeoff(small, _settings(root))
    with quick_stages(timed=True):
        return root, run_bakeoff(small, _settings(root), progress=heard), plan, heard.lines


def test_it_is_a_pair_of_its_own_and_every_part_is_extracted_once(finished):
    _, run, plan, said = finished
    names = [f"{JOINT} · probe", "demo:cnn · probe", "demo:cnn · finetune"]
    assert [pair.name for pair in run.result.pairs] == names
    assert run.ran[:3] == ["extract demo:cnn", "extract demo:clip", f"probe {JOINT}"]
    assert [stage.name for stage in plan] == run.ran
    assert all(stage.why and stage.seconds > 0 for stage in plan)
    (line,) = [line for line in said if "skipped" in line]
    assert line.startswith(f"finetune {JOINT}: skipped. Several backbones")


def test_a_second_run_does_nothing_and_the_plan_knows(finished, small):
    root, first, _, _ = finished
    assert not any(stage.why for stage in plan_bakeoff(small, _settings(root)))
    again = run_bakeoff(small, _settings(root))
    assert again.ran == []
    assert again.reused == first.ran


def test_cost_is_that_of_both(finished, small):
    root, run, _, _ = finished
    joint, alone = run.result.pairs[:2]
    stores = [
        FeatureStore.find(root / "features", load_backbone(b).spec())
        for b in ("demo:cnn", "demo:clip")
    ]
    seconds = sum(len(small.rows("train")) * s.seconds / s.n_rows for s in stores)
    assert joint.cost.extract_seconds == pytest.approx(seconds)
    clip = load_backbone("demo:clip")
    assert joint.cost.parameters > alone.cost.parameters + sum(
        p.numel() for p in clip.module.parameters()
    )
    assert joint.cost.weights_mib > alone.cost.weights_mib


def test_tagger_runs_both_and_answers_as_the_predictions_do(finished, small):
    root = finished[0]
    folder = pair_folder(root / "run", JOINT, "probe")
    probe, predictions = Probe.load(folder), Predictions.load(folder / "predictions.npz")
    dims = [load_backbone(b).dim for b in ("demo:cnn", "demo:clip")]
    assert probe.weight.shape == (len(small.table.tags), sum(dims))
    assert (np.abs(probe.weight[:, : dims[0]]).max(), np.abs(probe.weight[:, dims[0] :]).max()) > (
        (0, 0)
    )
    rows = small.rows("test")[:5].tolist()
    place = [predictions.image_ids.tolist().index(small.image_ids[i]) for i in rows]
    logits = load_fitted(folder).logits([small.images.read(i) for i in rows])
    np.testing.assert_allclose(logits, predictions.logits[place], rtol=1e-3, atol=2e-3)
    assert backbones_of(folder) == ("demo:cnn", "demo:clip")


def test_the_export_of_a_pair_has_the_weights_of_both(finished, small, tmp_path):
    run = finished[0] / "run"
    exported = rt.export(
        run, pair=f"{JOINT} probe", out=tmp_path / "tagger", catalog=small, device="cpu"
    )
    names = {"head", "backbone-1", "backbone-2"}
    assert {p.stem for p in exported.folder.glob("*.safetensors")} == names
    images = [small.images.read(i) for i in small.rows("test")[:3].tolist()]
    tagger = load_fitted(pair_folder(run, JOINT, "probe"))
    assert np.array_equal(
        rt.load(exported.folder, device="cpu").logits(images), tagger.logits(images)
    )
    assert exported.run.check.largest == 0
    # the short name of the pair does, the recommended one needs none, and another is refused
    assert recommended_folder(run, "demo:cnn · finetune")[0] == run / "demo-cnn" / "finetune"
    assert recommended_folder(run)[0].is_dir()
    with pytest.raises(UsageError, match=r"--pair cnn is no pair .* 'demo:cnn · finetune'"):
        recommended_folder(run, "cnn")
    # what its report recommends counts, whatever today's rule would
    result = BakeoffResult.load(run / "bakeoff.json")
    assert result.recommended == finished[1].decision.winner
    other = next(p for p in result.pairs if p.name != result.recommended)
    (tmp_path / "run").mkdir()
    write_json(tmp_path / "run" / "bakeoff.json", replace(result, recommended=other.name).to_json())
    found, _ = recommended_folder(tmp_path / "run")
    assert found == pair_folder(tmp_path / "run", other.backbone, other.strategy)
    with pytest.raises(DataError, match="recommends nothing, which is none of its pairs"):
        replace(result, recommended="nothing")


def test_a_fine_tune_that_kept_its_probe_is_calibrated_as_the_probe(finished, small, tmp_path):
    run = finished[0] / "run"
    folder = run / "demo-cnn" / "finetune"
    assert Predictions.load(folder / "predictions.npz").provenance["is_probe"]
    exported = rt.export(folder, out=tmp_path / "tagger", catalog=small, device="cpu")
    assert exported.run.calibration["scores"] == "out-of-fold"
    assert len(exported.tagger.operating_points) == 3


def test_tagger_refuses_other_weights_of_a_part(finished, tmp_path):
    folder = pair_folder(finished[0] / "run", JOINT, "probe")
    probe = Probe.load(folder)
    replace(probe, facts={**probe.facts, "backbone": "demo:clip+demo:cnn"}).save(tmp_path)
    with pytest.raises(ArtefactError, match=r"other weights.*demo:clip\+demo:cnn"):
        load_fitted(tmp_path)
    with pytest.raises(UsageError, match="ID=PATH for each"):
        load_fitted(tmp_path, weights=tmp_path)
    assert backbones_of(tmp_path / "nowhere") == ()


def test_stores_are_found_together_or_the_missing_one_is_named(finished, small):
    compute = _settings(finished[0]).compute
    context = RunContext(small, compute=compute)
    assert find_embeddings(context, JOINT).spec.backbone == JOINT
    alone = find_embeddings(context, "demo:clip")
    assert isinstance(alone, FeatureStore)
    with pytest.raises(DataError, match="--backbone demo:dino"):
        find_embeddings(context, "demo:cnn+demo:dino")


def test_it_cannot_be_fine_tuned(small, tmp_path):
    with pytest.raises(UsageError, match=r"demo:cnn\+demo:clip: .*Add probe to --strategies"):
        Request(RunContext(small), _settings(tmp_path, strategies=("finetune",)))
    with pytest.raises(UsageError, match="twice"):
        _settings(tmp_path, backbones=(JOINT, JOINT))
    assert Request(RunContext(small), _settings(tmp_path)).fine_tuned == ("demo:cnn",)


def test_commands_take_it(finished, small_csv, tmp_path, monkeypatch, capsys):
    root = finished[0]
    monkeypatch.chdir(tmp_path)
    names = ["--features", str(root / "features"), "--backbone", JOINT, "--device", "cpu"]
    given = [str(small_csv), *names, "--quiet"]
    assert command(["probe", *given, "--sweep-C", "0.1", "--folds", "2"]) == 0
    image = str(small_csv.parent / "images" / "p003-0.png")
    assert command(["predict", "runs/demo-cnn+demo-clip/probe", image]) == 0
    assert f"{image}: " in capsys.readouterr().out
    for verb in ("extract", "finetune"):
        assert command([verb, *given]) == 2
        assert "name one backbone here" in capsys.readouterr().err
    bad = ["predict", "runs/demo-cnn+demo-clip/probe", image, "--weights", str(tmp_path)]
    assert command(bad) == 2
    assert "write --weights ID=PATH" in capsys.readouterr().err
