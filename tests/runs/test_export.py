"""`retailtag export`: what the folder holds, that it is checked, and that it appears whole."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

import retailtag as rt
from retailtag.backbones import load_backbone
from retailtag.cli.main import run
from retailtag.context import RunContext
from retailtag.errors import EXIT_STALE, EXIT_USAGE, ArtefactError, UsageError
from retailtag.files import file_sha256, read_json
from retailtag.finetuning.artefact import Checkpoint
from retailtag.predictions import Predictions
from retailtag.probes.artefact import Probe, load_out_of_fold
from retailtag.runs import export as exporting
from retailtag.runs.probe import run_probe
from retailtag.scoring.score import score_predictions
from retailtag.settings import ProbeSettings
from retailtag.tagger import exported
from retailtag.tagger.drift.reference import Reference
from retailtag.tagger.loading import load_fitted
from retailtag.tuning_scores import TuningScores


@pytest.fixture(scope="module")
def fitted(small, small_csv, small_store, tmp_path_factory):
    """Folder of a probe that records its catalogue, with its scorecard."""
    out = tmp_path_factory.mktemp("fitted") / "probe"
    where = {"catalog": str(small_csv), "catalog_args": {}}
    settings = ProbeSettings(sweep_C="1e-2", folds=3, heads="logistic")
    run_probe(RunContext(small, provenance=where), small_store, out, settings)
    score_predictions(Predictions.load(out / "predictions.npz"), small).save(out)
    return out


@pytest.fixture(autouse=True)
def _few_images(monkeypatch):
    monkeypatch.setattr(exporting, "CHECKED_IMAGES", 6)


@pytest.fixture(scope="module")
def made(fitted, small, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exporting, "CHECKED_IMAGES", 6)
        return rt.export(fitted, out=tmp_path_factory.mktemp("made") / "tagger", device="cpu")


def pictures(small, n=5):
    return [small.images.read(row) for row in small.rows("test")[:n].tolist()]


def test_the_folder_gives_what_the_model_gives_without_anything_else(made, fitted, small):
    loaded, model = rt.load(made.folder, device="cpu"), load_fitted(fitted)
    images = pictures(small)
    assert np.array_equal(loaded.logits(images), model.logits(images))
    assert loaded.tag(images) == model.tag(images)
    assert loaded.predict(images) == model.predict(images)  # calibrated both
    check = made.run.check
    assert (check.n_images, check.largest, check.n_other_tags) == (6, 0.0, 0)
    assert check.n_tags > 0
    assert made.run.files == {p.name: p.stat().st_size for p in made.folder.iterdir()}
    assert not made.run.notes
    header = read_json(made.folder / "tagger.json")
    assert header["provenance"]["model_sha256"] == file_sha256(fitted / "probe.json")
    assert header["provenance"]["catalog_digest"] == small.digest
    # neither paths nor image ids leave with it
    assert str(fitted.parent) not in (made.folder / "tagger.json").read_text()
    assert not header["facts"].keys() & {"catalog", "features_folder", "copies", "similar"}


def test_held_out_images_are_kept_to_compare_new_ones_with(made, small):
    kept = Reference.load(made.folder / "reference.npz")
    kept.check(made.tagger, made.folder)
    assert len(kept.sample) == len(small.rows("test"))
    assert kept.described == "test split of catalogue.csv"
    result = rt.drift(made.folder, small, workers=0, permutations=99)
    assert result.result.n_reference == len(kept.sample)
    assert any("of the new images are also in the reference" in n for n in result.result.notes)


def test_operating_points_are_tuned_on_the_kept_scores(made, fitted, small):
    tagger = made.tagger
    assert list(tagger.operating_points) == ["f1", "precision:0.8", "max-tags:12"]
    assert made.operating_points.column("name").to_pylist() == list(tagger.operating_points)
    assert np.array_equal(tagger.operating_points["f1"], Probe.load(fitted).thresholds)
    scores = load_out_of_fold(fitted)
    labels = small.table.labels[small.rows("train")]
    given = (scores.logits >= tagger.operating_points["max-tags:12"]) & (labels >= 0)
    assert given.sum(axis=1).mean() <= 12
    precise = (scores.logits >= tagger.operating_points["precision:0.8"]) & (labels >= 0)
    assert (labels[precise] == 1).mean() >= 0.8


def test_calibration_is_measured_out_of_fold_and_on_the_test_split(made):
    facts = read_json(made.folder / "tagger.json")["calibration"]
    assert facts["scores"] == "out-of-fold"
    table = made.calibration
    assert table.column("measured_on").to_pylist() == ["cross_fit", "cross_fit", "test", "test"]
    assert table.column("scope").to_pylist() == ["all", "tail"] * 2
    for name in ("brier", "calibration_error"):
        values = np.array([table.column(f"{name}_{when}") for when in ("before", "after")], float)
        assert np.isfinite(values).all()
        assert ((values >= 0) & (values <= 1)).all()


def test_the_card_has_scores_points_licences_and_limits(made, fitted):
    card = (made.folder / "README.md").read_text()
    summary = json.loads((fitted / "scorecard.json").read_text())["summaries"]["tail"]
    low, high = (f"{100 * summary[f'macro_f1_{end}']:.1f}" for end in ("low", "high"))
    row = next(line for line in card.splitlines() if line.startswith("| tail |"))
    assert f"({low} to {high})" in row
    for part in ("# demo:cnn, logistic probe", "## Limits", "| `precision:0.8` |", "Apache-2.0",
                 "| cross-fit | tail |", "On 6 test images its logits equal"):  # fmt: skip
        assert part in card
    assert " nan " not in card


def test_the_command_names_everything_and_refuses_an_existing_folder(fitted, tmp_path, capsys):
    out = tmp_path / "tagger"
    asked = ["export", str(fitted), "--out", str(out), "--device", "cpu"]
    assert run([*asked, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["out"] == str(out)
    assert said["operating_points"] == ["f1", "precision:0.8", "max-tags:12"]
    assert said["check"]["largest"] == 0
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    assert run(asked) == EXIT_USAGE
    assert "exists; name a new folder with --out" in capsys.readouterr().err
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before
    assert run(["export", str(out), "--out", str(tmp_path / "twice")]) == EXIT_USAGE
    assert "is an exported tagger already" in capsys.readouterr().err
    assert run(["export", str(fitted), "--pair", "a b", "--out", str(tmp_path / "x")]) == EXIT_USAGE
    assert "--pair a b is for a bake-off" in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir() if p.name != "cache") == ["tagger"]


def test_the_same_export_gives_the_same_bytes(made, fitted, tmp_path):
    again = rt.export(fitted, out=tmp_path / "again", device="cpu")
    for path in made.folder.iterdir():
        assert (again.folder / path.name).read_bytes() == path.read_bytes()


def test_predict_and_latency_take_the_folder(made, small, tmp_path, few_timed, capsys):
    image = tmp_path / "photo.png"
    image.write_bytes(pictures(small, 1)[0])
    assert run(["predict", str(made.folder), str(image), "--json", "--device", "cpu"]) == 0
    assert json.loads(capsys.readouterr().out)["tags"][str(image)] == made.tagger.tag([image])[0]
    asked = ["latency", str(made.folder), "--sample", str(image), "--engines", "eager"]
    asked += ["--batches", "1", "--device", "cpu", "--out", str(tmp_path / "latency.csv"), "--json"]
    from retailtag.runs import latency

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(latency, "SCHEDULE", latency.Schedule(2, 1, warm_up=1, extra_seconds=0))
        patch.setattr(latency, "LARGEST_BATCH", 1)
        assert run(asked) == 0
    row = json.loads(capsys.readouterr().out)["rows"][0]
    assert row["model"] == file_sha256(made.folder / "tagger.json")
    assert row["agreement"] == 1


def test_a_model_of_an_earlier_version_is_calibrated_by_the_export(fitted, small, tmp_path):
    folder = shutil.copytree(fitted, tmp_path / "earlier")
    probe = Probe.load(folder)
    replace(probe, calibration=None, out_of_fold=load_out_of_fold(fitted)).save(folder)
    assert not (folder / "calibration.safetensors").exists()
    assert load_fitted(folder).calibration is None
    made = rt.export(folder, out=tmp_path / "tagger", catalog=small, device="cpu")
    np.testing.assert_allclose(made.tagger.calibration.slope, probe.calibration.slope, rtol=0.02)


def test_without_the_catalogue_it_says_what_is_left_out(fitted, small, tmp_path):
    folder = shutil.copytree(fitted, tmp_path / "moved")
    predictions = Predictions.load(folder / "predictions.npz")
    where = {**predictions.provenance, "catalog": str(tmp_path / "gone.csv")}
    replace(predictions, provenance=where).save(folder / "predictions.npz")
    made = rt.export(folder, out=tmp_path / "tagger", device="cpu")
    assert "Not compared with its run, the error of its calibration not" in made.run.notes[0]
    assert made.run.check is None
    slope = load_fitted(folder).calibration.slope
    np.testing.assert_array_equal(made.tagger.calibration.slope, slope)
    assert list(made.tagger.operating_points) == ["f1"]
    card = (made.folder / "README.md").read_text()
    assert "Its error was not measured." in card
    assert "- Not compared with its run, the error of its calibration not measured." in card
    assert str(tmp_path) not in card
    with pytest.raises(UsageError, match=r"gone\.csv is not there"):
        rt.export(folder, out=tmp_path / "x", catalog=tmp_path / "gone.csv", device="cpu")


def test_a_model_without_kept_scores_keeps_its_calibration(fitted, small, tmp_path):
    folder = shutil.copytree(fitted, tmp_path / "early")
    Probe.load(fitted).save(folder)  # as an earlier version did
    made = rt.export(folder, out=tmp_path / "tagger", catalog=small, device="cpu")
    assert any("holds no out_of_fold.safetensors" in note for note in made.run.notes)
    assert made.run.calibration == {}
    slope = load_fitted(fitted).calibration.slope
    np.testing.assert_array_equal(made.tagger.calibration.slope, slope)
    assert made.run.check.n_images == 6


def test_a_tuned_model_keeps_the_name_of_its_thresholds(fitted, small, tmp_path):
    tuned = rt.tune(fitted, max_tags=1.5, out=tmp_path / "tuned", catalog=small)
    made = rt.export(tuned, out=tmp_path / "tagger", catalog=small, device="cpu")
    names = list(made.tagger.operating_points)
    assert names == ["max-tags:1.5", "f1", "precision:0.8", "max-tags:12"]
    assert np.array_equal(made.tagger.thresholds, tuned.thresholds)
    assert "Without scores" in made.run.notes[0]


def test_a_fine_tune_is_calibrated_on_its_validation_set(fitted, small, tmp_path):
    backbone, probe = load_backbone("demo:cnn"), Probe.load(fitted)
    scores, spec = load_out_of_fold(fitted), backbone.spec()
    state = {name: tensor + 0.01 for name, tensor in backbone.module.state_dict().items()}
    state = {n: t.to(backbone.module.state_dict()[n].dtype) for n, t in state.items()}
    facts = {
        **probe.facts,
        "strategy": "finetune",
        "model": [spec.architecture, spec.preprocessing],
    }
    numbers = probe.weight, probe.bias, probe.thresholds
    folder = tmp_path / "finetune"
    Checkpoint(
        "demo:cnn",
        state,
        probe.tags,
        *numbers,
        facts,
        TuningScores(scores.image_ids, scores.logits),
    ).save(folder)
    shutil.copy(fitted / "predictions.npz", folder)
    made = rt.export(folder, out=tmp_path / "tagger", catalog=small, device="cpu")
    images = pictures(small)
    assert np.array_equal(made.tagger.logits(images), load_fitted(folder).logits(images))
    assert made.run.calibration["scores"] == "validation"
    assert made.run.check.n_other_tags > 0  # its predictions are those of the probe
    assert "the run's predictions differ in" in made.run.checked


def test_a_folder_that_differs_from_the_model_is_not_kept(fitted, tmp_path, monkeypatch, capsys):
    def wrong(folder, tagger, about):
        other = replace(tagger.head, bias=tagger.head.bias + np.float32(0.01))
        exported.write_exported(folder, replace(tagger, head=other), about)

    monkeypatch.setattr(exporting, "write_exported", wrong)
    out = tmp_path / "runs" / "tagger"
    assert run(["export", str(fitted), "--out", str(out), "--device", "cpu"]) == EXIT_STALE
    assert "does not give what" in capsys.readouterr().err
    assert not list(out.parent.iterdir())


@pytest.mark.parametrize("stopped", ["write_exported", "load_fitted", "write_text"])
def test_a_stopped_export_leaves_no_folder_of_its_name(fitted, tmp_path, monkeypatch, stopped):
    class Killed(BaseException):
        pass

    def kill(*args, **kwargs):
        raise Killed

    out = tmp_path / "runs" / "tagger"
    monkeypatch.setattr(exporting, stopped, kill)
    # a real kill runs no clean-up either: only the hidden folder remains
    monkeypatch.setattr(exporting.shutil, "rmtree", lambda *args, **kwargs: None)
    with pytest.raises(Killed):
        rt.export(fitted, out=out, device="cpu")
    assert not out.exists()
    assert all(p.name.startswith(".tagger.") for p in out.parent.iterdir())
    monkeypatch.undo()
    monkeypatch.setattr(exporting, "CHECKED_IMAGES", 2)
    assert rt.load(rt.export(fitted, out=out, device="cpu").folder, device="cpu").tags


def test_a_half_written_folder_is_refused_by_every_reader(made, tmp_path):
    for path in made.folder.iterdir():
        if path.name not in ("README.md", "reference.npz"):
            folder = shutil.copytree(made.folder, tmp_path / path.stem)
            (folder / path.name).write_bytes(path.read_bytes()[:-9])
            with pytest.raises(ArtefactError):
                rt.load(folder)


def test_weights_for_a_folder_that_has_its_own_are_refused(made, tmp_path):
    with pytest.raises(UsageError, match="leave --weights out"):
        rt.load(made.folder, weights=str(tmp_path), device="cpu")


def test_attributes_that_are_named_are_recorded_with_the_export(fitted, small, tmp_path):
    made = rt.export(fitted, out=tmp_path / "tagger", one_of="colour", device="cpu")
    loaded = rt.load(made.folder, device="cpu")
    assert (loaded.exclusive, loaded.assignment) == (("colour",), "at-most-one")
    images = pictures(small, 20)
    colours = [[t for t in tags if t.startswith("colour:")] for tags in loaded.tag(images)]
    assert max(map(len, colours)) == 1
    assert (
        "Of `colour` an image is given at most one tag." in (made.folder / "README.md").read_text()
    )
    # another assignment can be chosen when it is loaded
    assert rt.load(made.folder, assign="independent", device="cpu").assignment == "independent"
