"""Thresholds tuned again on the scores that a model kept."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import retailtag as rt
from retailtag import api
from retailtag.cli.main import run
from retailtag.context import RunContext
from retailtag.errors import EXIT_USAGE, ArtefactError, DataError, UsageError
from retailtag.files import read_json, write_json
from retailtag.finetuning.artefact import Checkpoint
from retailtag.predictions import Predictions
from retailtag.probes.artefact import Probe, load_out_of_fold
from retailtag.runs.probe import run_probe
from retailtag.runs.tune import AFTER, BEFORE, CROSS_FIT, run_tune
from retailtag.settings import ProbeSettings
from retailtag.thresholds.ranking import rank_tags
from retailtag.thresholds.tuning import Tuning, smallest_shift
from retailtag.tuning_scores import TuningScores


@pytest.fixture(scope="module")
def fitted(small, small_csv, small_store, tmp_path_factory):
    """Folder of a probe that records its catalogue."""
    out = tmp_path_factory.mktemp("fitted") / "probe"
    where = {"catalog": str(small_csv), "catalog_args": {}}
    settings = ProbeSettings(sweep_C="1e-4,1e-2", folds=3, heads="logistic")
    run_probe(RunContext(small, provenance=where), small_store, out, settings)
    return out


def tune(fitted, small, out, *args, **more):
    return run_tune(fitted, Tuning(*args, **more), out, lambda _: small)


def test_kept_scores_are_those_of_the_training_images(fitted, small):
    scores = load_out_of_fold(fitted)
    train = small.rows("train")
    assert scores.image_ids.tolist() == small.image_ids[train].tolist()
    assert scores.logits.shape == (len(train), len(small.table.tags))
    assert sorted(set(scores.fold.tolist())) == [0, 1, 2]
    for k in set(scores.fold.tolist()):  # no product in two folds
        inside = small.group[train][scores.fold == k]
        assert not set(inside) & set(small.group[train][scores.fold != k])


def test_the_same_tuning_gives_the_same_thresholds_to_half_precision(fitted, small, tmp_path):
    made = tune(fitted, small, tmp_path / "again")
    before, after = Probe.load(fitted), Probe.load(tmp_path / "again")
    assert (
        after.facts["thresholds"]["rule"] == before.facts["thresholds"]["rule"] == made.tuned.rule
    )
    np.testing.assert_allclose(after.thresholds, before.thresholds, rtol=2e-3, atol=2e-3)
    assert made.given[AFTER].macro_f1 == pytest.approx(made.given[BEFORE].macro_f1, abs=0.01)


def test_a_precision_is_reached_on_the_scores_and_the_model_is_written_whole(
    fitted, small, tmp_path
):
    made = tune(fitted, small, tmp_path / "precise", "per-tag", "precision:0.9")
    scores = load_out_of_fold(fitted)
    labels = small.table.labels[small.rows("train")]
    cells = (scores.logits >= made.tuned.thresholds) & (labels >= 0)
    hits, n = (cells & (labels == 1)).sum(axis=0), cells.sum(axis=0)
    assert (hits[n > 0] >= 0.9 * n[n > 0]).all()
    assert (n > 0).any()
    probe, predictions = Probe.load(made.folder), Predictions.load(made.folder / "predictions.npz")
    for written in (probe.thresholds, predictions.thresholds):
        np.testing.assert_array_equal(written, made.tuned.thresholds)
    np.testing.assert_array_equal(probe.weight, Probe.load(fitted).weight)
    np.testing.assert_array_equal(probe.calibration.slope, Probe.load(fitted).calibration.slope)
    assert probe.facts["settings"]["objective"] == "precision:0.9"
    assert predictions.provenance["thresholds"] == made.tuned.facts
    # and it can be tuned once more
    assert tune(made.folder, small, tmp_path / "twice").n_images == made.n_images


def test_no_more_tags_than_asked_for(fitted, small, tmp_path):
    made = tune(fitted, small, tmp_path / "few", max_tags=1.5)
    assert made.given[BEFORE].tags_per_image > 1.5
    assert made.given[AFTER].tags_per_image <= 1.5
    assert made.tuned.facts["max_tags"] == 1.5
    assert made.tuned.facts["shift"] > 0
    assert made.given[CROSS_FIT].tags_per_image < 2.5
    roomy = tune(fitted, small, tmp_path / "roomy", max_tags=100)
    assert roomy.tuned.shift == 0


@given(st.lists(st.integers(-4, 4), min_size=8, max_size=8), st.floats(0.05, 5), st.booleans())
def test_the_shift_is_the_smallest_that_suffices(cells, max_tags, unknown):
    logits = np.array(cells, np.float32).reshape(4, 2)
    labels = np.array([[1, 0], [0, 1], [1, -1 if unknown else 0], [0, 1]], np.int8)
    thresholds = np.array([0.0, -1.0], np.float32)
    shift = smallest_shift(rank_tags(logits, labels), thresholds, max_tags)

    def given_per_image(rise):
        cells = (logits >= thresholds + rise) & (labels >= 0)
        return float((cells.sum(axis=0) / (labels >= 0).sum(axis=0)).sum())

    assert shift >= 0
    assert given_per_image(shift) <= max_tags * (1 + 1e-6)
    if shift:  # with the next lower cells it would be more
        margins = (logits - thresholds)[labels >= 0]
        assert given_per_image(margins[margins < shift].max()) > max_tags


def test_a_folder_that_holds_something_is_not_written_to(fitted, small, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="exists; name a new folder"):
        tune(fitted, small, tmp_path)
    assert [p.name for p in tmp_path.iterdir() if p.name != "cache"] == ["notes.txt"]


def test_a_probe_of_an_earlier_version_says_what_to_do(fitted, small, tmp_path):
    replace(Probe.load(fitted), facts=dict(Probe.load(fitted).facts)).save(tmp_path / "old")
    (tmp_path / "old" / "predictions.npz").write_bytes((fitted / "predictions.npz").read_bytes())
    assert not (tmp_path / "old" / "out_of_fold.safetensors").exists()
    with pytest.raises(ArtefactError, match=r"holds no out_of_fold.*run the same command again"):
        tune(tmp_path / "old", small, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_scores_of_another_fit_are_refused(fitted, small, tmp_path):
    Probe.load(fitted)
    for path in fitted.iterdir():
        if path.is_file():
            (tmp_path / path.name).write_bytes(path.read_bytes())
    scores = load_out_of_fold(fitted)
    other = replace(scores, logits=scores.logits + 1)
    (tmp_path / "out_of_fold.safetensors").write_bytes(other.to_bytes())
    with pytest.raises(ArtefactError, match="not written together"):
        tune(tmp_path, small, tmp_path / "new")


def test_labels_that_changed_are_refused(fitted, small, tmp_path):
    labels = small.table.labels.copy()
    labels[small.rows("train")[0], 0] ^= 1
    changed = replace(small, table=replace(small.table, labels=labels))
    with pytest.raises(ArtefactError, match="has changed since the model was fitted"):
        tune(fitted, changed, tmp_path / "new")


def finetuned(fitted, small, folder, **facts):
    """A fine-tune with kept scores, as `run_finetune` writes it."""
    probe = Probe.load(fitted)
    scores = load_out_of_fold(fitted)
    Checkpoint(
        "demo:cnn",
        {"w": torch.zeros(1)},
        probe.tags,
        probe.weight,
        probe.bias,
        probe.thresholds,
        {**probe.facts, "strategy": "finetune", **facts},
        None if facts else TuningScores(scores.image_ids, scores.logits),
    ).save(folder)
    (folder / "predictions.npz").write_bytes((fitted / "predictions.npz").read_bytes())
    return folder


def test_a_fine_tune_is_tuned_on_its_validation_set(fitted, small, tmp_path):
    folder = finetuned(fitted, small, tmp_path / "finetune")
    made = tune(folder, small, tmp_path / "new", "shrunk", "fbeta:2")
    assert made.is_validation
    written = Checkpoint.load(made.folder)
    np.testing.assert_array_equal(written.thresholds, made.tuned.thresholds)
    assert (made.folder / "validation.safetensors").exists()


def test_a_call_that_is_refused_leaves_no_folder(tmp_path):
    with pytest.raises(DataError, match="holds no probe or fine-tune"):
        api.tune(tmp_path / "none")
    assert not list(tmp_path.iterdir())


def test_a_fine_tune_that_kept_its_probe_points_to_it(fitted, small, tmp_path):
    folder = finetuned(fitted, small, tmp_path / "finetune", is_probe=True)
    with pytest.raises(DataError, match="name the folder of the probe"):
        tune(folder, small, tmp_path / "new")
    with pytest.raises(DataError, match="holds no probe or fine-tune"):
        tune(tmp_path, small, tmp_path / "new")


def test_the_command_reads_the_recorded_catalogue(fitted, capsys):
    assert run(["tune", str(fitted), "--max-tags", "2", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["out"] == f"{fitted}-tuned"
    assert said["given"]["after"]["tags_per_image"] <= 2
    assert run(["tune", str(fitted)]) == EXIT_USAGE
    assert "exists; name a new folder with --out" in capsys.readouterr().err
    assert run(["tune", str(fitted), "--max-tags", "0", "--out", f"{fitted}-none"]) == EXIT_USAGE


def test_the_function_gives_the_table_and_the_tagger(fitted, small, tmp_path):
    made = rt.tune(fitted, objective="precision:0.8", catalog=small, out=tmp_path / "new")
    assert "Folder:" in str(made)
    np.testing.assert_array_equal(made.tagger.head.thresholds, made.thresholds)


def test_ids_that_do_not_fit_are_refused(fitted, small, tmp_path):
    scores = load_out_of_fold(fitted)
    ids = scores.image_ids.astype("<U20")
    ids[0] = "unknown"
    probe = replace(Probe.load(fitted), out_of_fold=replace(scores, image_ids=ids))
    probe.save(tmp_path / "odd")
    (tmp_path / "odd" / "predictions.npz").write_bytes((fitted / "predictions.npz").read_bytes())
    with pytest.raises(ArtefactError, match=r"lacks \(unknown\)"):
        tune(tmp_path / "odd", small, tmp_path / "new")
    header = read_json(tmp_path / "odd" / "probe.json")
    write_json(tmp_path / "odd" / "probe.json", {**header, "scale": "none"})
    with pytest.raises(ArtefactError, match="altered or damaged"):
        tune(tmp_path / "odd", small, tmp_path / "new")
