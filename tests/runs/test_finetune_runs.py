"""Fine-tunes as users start them: killed and started again, over seeds, refitted, searched."""

import json
import signal
import time
from dataclasses import asdict, replace

import numpy as np
import pytest

from retailtag.backbones import load_backbone
from retailtag.context import RunContext
from retailtag.errors import UsageError
from retailtag.files import read_json
from retailtag.finetuning.artefact import Checkpoint, load_scores
from retailtag.finetuning.validation import ModelSelector
from retailtag.predictions import Predictions
from retailtag.runs.finetune import FinetuneRun, run_finetune, run_seeds
from retailtag.runs.finetune_search import search_settings
from retailtag.runs.finetune_start import split_images
from retailtag.runs.probe import run_probe
from retailtag.runs.tune import CROSS_FIT, run_tune
from retailtag.scoring.files import seed_groups
from retailtag.settings import ComputeSettings, FinetuneSettings, ProbeSettings
from retailtag.thresholds.tuning import Tuning

QUICK = FinetuneSettings(epochs=1, batch_size=32, augment="none")
HERE = ComputeSettings(workers=0, device="cpu")


def context(catalog):
    return RunContext(catalog, compute=HERE)


@pytest.fixture(scope="module")
def probe(small, small_store, tmp_path_factory):
    settings = ProbeSettings(sweep_C="0.01", folds=2, heads="logistic")
    return run_probe(context(small), small_store, tmp_path_factory.mktemp("probe"), settings).probe


def load():
    return load_backbone("demo:cnn")


def test_cached_activations_give_the_same_predictions(small, small_store, probe, tmp_path):
    runs = []
    for gigabytes in (0, None):
        config = replace(QUICK, cache_gb=gigabytes, cache_dtype="float32")
        out = tmp_path / str(gigabytes)
        runs.append(run_finetune(context(small), small_store, load(), probe, out, config))
    root = small_store.path.parent
    kept = root.with_name(f"{root.name}-trunk")
    assert len(list(kept.glob("*/rows-*.bin"))) == 1
    plain, cached = (run.predictions.logits for run in runs)
    np.testing.assert_allclose(cached, plain, rtol=1e-4, atol=1e-4)
    assert [r.best_epoch for r in runs] == [runs[0].best_epoch] * 2


SCRIPT = """
from pathlib import Path
from retailtag.backbones import load_backbone
from retailtag.catalog.readers import read_catalog
from retailtag.settings import ComputeSettings, FinetuneSettings
from retailtag.extraction.embedder import identity
from retailtag.context import RunContext
from retailtag.runs.finetune import run_finetune
from retailtag.probes.artefact import Probe
from retailtag.store import FeatureStore
from retailtag.finetuning.validation import ModelSelector

# the probe solves this small world, but an epoch shall be kept
ModelSelector.choose_from = lambda self, candidates: len(candidates) - 1
csv, features, probe, out = sys.argv[1:]
run_finetune(
    RunContext(read_catalog(Path(csv)), compute=ComputeSettings(workers=0)),
    FeatureStore.find(Path(features), identity(load_backbone("demo:cnn"))),
    load_backbone("demo:cnn", random_weights=True),
    Probe.load(Path(probe)),
    Path(out),
    FinetuneSettings(epochs=2, batch_size=16, ema=0.9, refit=True, choose_epoch="macro-ap",
                     lr=1e-3, checkpoint_minutes=1e-6),
)
"""


def _kill_after(process, path, n_snapshots):
    """SIGKILL once `n_snapshots` snapshots were seen; whether that came before the end."""
    seen, last = 0, None
    while process.is_alive():
        stamp = path.stat().st_mtime_ns if path.exists() else None
        if stamp is not None and stamp != last:
            seen, last = seen + 1, stamp
            if seen >= n_snapshots:
                process.kill()
                break
        time.sleep(0.002)
    process.join()
    return process.exitcode == -signal.SIGKILL


def test_a_killed_run_goes_on_to_the_same_predictions(
    small_csv, small_store, probe, tmp_path, fork_script
):
    probe.save(tmp_path / "probe")
    args = (SCRIPT, small_csv, small_store.path.parent, tmp_path / "probe")
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    kills = [
        _kill_after(fork_script(*args, killed), killed / name, n)
        for name, n in (("resume.pt", 5), ("resume-refit.pt", 3))
    ]
    assert kills == [True, True]
    for out in (killed, whole):
        process = fork_script(*args, out)
        process.join()
        assert process.exitcode == 0
    a, b = (Predictions.load(out / "predictions.npz") for out in (killed, whole))
    np.testing.assert_array_equal(a.logits, b.logits)
    np.testing.assert_array_equal(a.thresholds, b.thresholds)
    losses = [
        [json.loads(line)["loss"] for line in (out / "history.jsonl").read_text().splitlines()]
        for out in (killed, whole)
    ]
    assert losses[0] == losses[1]
    assert not list(killed.glob("resume*"))


@pytest.fixture
def trained(monkeypatch):
    """Keep the best epoch, although the probe solves this small world."""
    monkeypatch.setattr(ModelSelector, "choose_from", lambda _, candidates: len(candidates) - 1)


@pytest.mark.usefixtures("trained")
def test_seeds_are_reused_and_are_one_model_to_the_scorer(small, small_store, probe, tmp_path):
    def load():
        return load_backbone("demo:cnn", random_weights=True)

    args = (context(small), small_store, load, probe, tmp_path)
    config = replace(QUICK, choose_epoch="macro-ap", interpolate="1")
    first = run_seeds(*args, config, 2)
    loaded = []

    def counted():
        loaded.append(1)
        return load()

    again = run_seeds(*(*args[:2], counted, *args[3:]), config, 3)
    assert len(loaded) == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["seed-0", "seed-1", "seed-2"]
    np.testing.assert_array_equal(again[0].predictions.logits, first[0].predictions.logits)
    assert again[0].history == first[0].history
    assert not np.array_equal(again[1].predictions.logits, again[0].predictions.logits)
    groups = seed_groups([run.predictions for run in again], ["a", "b", "c"])
    assert list(groups.values()) == [[0, 1, 2]]
    assert "3 seeds" in next(iter(groups))
    with pytest.raises(UsageError, match="--seeds 0"):
        run_seeds(*args, config, 0)


def test_a_run_is_read_back_from_its_folder(small, small_store, probe, tmp_path):
    run = run_finetune(context(small), small_store, load(), probe, tmp_path, QUICK)
    back = FinetuneRun.load(tmp_path)
    assert (back.history, back.best_epoch) == (run.history, run.best_epoch)
    assert FinetuneRun.load(tmp_path / "nothing") is None
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert rows[0]["settings"] == QUICK.recorded()
    assert [row["step"] for row in rows[1:]] == [0, 1]


@pytest.mark.usefixtures("trained")
def test_a_refit_sees_all_training_images(small, small_store, probe, tmp_path):
    config = replace(QUICK, epochs=2, choose_epoch="macro-ap", interpolate="1", lr=1e-3)
    once, twice = (
        run_finetune(
            context(small),
            small_store,
            load_backbone("demo:cnn", random_weights=True),
            probe,
            tmp_path / str(refit),
            replace(config, refit=refit),
        )
        for refit in (False, True)
    )
    assert once.best_epoch == twice.best_epoch > 0
    assert once.history[1]["loss"] == twice.history[1]["loss"]
    np.testing.assert_array_equal(once.checkpoint.thresholds, twice.checkpoint.thresholds)
    assert twice.checkpoint.facts["n_fit"] == len(small.rows("train"))
    assert once.checkpoint.facts["n_fit"] < len(small.rows("train"))
    assert not np.array_equal(once.predictions.logits, twice.predictions.logits)


@pytest.mark.usefixtures("trained")
def test_thresholds_come_from_the_start_and_are_tuned_again_from_it(
    small, small_store, probe, tmp_path
):
    out = tmp_path / "run"
    config = replace(QUICK, interpolate="1", lr=1e-3)
    run = run_finetune(context(small), small_store, load(), probe, out, config)
    facts = run.checkpoint.facts
    expected = {"rule": "matched", "objective": "f1", "capped": True, "cross_fit": {}}
    assert facts["thresholds"] == expected
    assert facts["threshold_f1"]["all"]["in_sample"] == facts["threshold_f1"]["all"]["cross_fit"]
    curves = Checkpoint.load(out).calibration
    assert (curves.slope > 0).all()
    assert curves.slope.shape == curves.offset.shape == (len(small.table.tags),)
    validation, start = load_scores(out)
    assert set(start.image_ids) == set(small.image_ids[small.rows("train")])
    assert set(start.image_ids[start.fold < 0]) == set(validation.image_ids)
    again = run_tune(out, Tuning(), tmp_path / "again", lambda _: small)
    np.testing.assert_allclose(again.tuned.thresholds, run.checkpoint.thresholds, atol=5e-3)
    assert load_scores(again.folder)[1].image_ids.tolist() == start.image_ids.tolist()
    assert CROSS_FIT not in again.given
    # a named rule is tuned on the validation set
    own = run_tune(out, Tuning("shrunk"), tmp_path / "own", lambda _: small)
    assert own.tuned.rule == "shrunk"
    assert CROSS_FIT in own.given
    config = replace(config, thresholds="shrunk")
    run = run_finetune(context(small), small_store, load(), probe, out, config)
    assert load_scores(out)[1] is None
    assert not (out / "start.safetensors").exists()


def test_a_refit_of_the_start_is_a_probe_of_all_training_images(
    small, small_store, probe, tmp_path
):
    config = replace(QUICK, epochs=0, refit=True)
    run = run_finetune(context(small), small_store, load(), probe, tmp_path, config)
    train = small.rows("train")
    X = small_store.load(small.image_ids[train].tolist()).X
    logits = X @ run.checkpoint.weight.T + run.checkpoint.bias
    expected = probe.logits(X)
    np.testing.assert_allclose(logits, expected, rtol=1e-2, atol=1e-2)


def test_a_refit_leaves_a_val_split_of_the_catalogue_alone(small, small_store, probe):
    split = small.split.copy()
    split[small.rows("train")[:20]] = "val"
    with pytest.raises(UsageError, match="has a val split of its own"):
        split_images(small.with_split(split), small_store, replace(QUICK, refit=True))


def test_the_best_of_a_search_is_trained(small, small_store, probe, tmp_path):
    pytest.importorskip("optuna")
    args = (context(small), small_store, load, probe, tmp_path, QUICK)
    best, ranking = search_settings(*args, 2)
    assert len(ranking) == 2
    assert {r.setting.loss for r in ranking} >= {"bce"}
    assert read_json(tmp_path / "search" / "search.json") == [asdict(row) for row in ranking]
    again, same = search_settings(*args, 2)
    assert (again, same) == (best, ranking)
    assert replace(best, loss="bce", sampler="shuffle", lr=3e-4, layer_decay=0.75) == QUICK


def test_from_scratch_nothing_of_the_pretrained_weights_is_used(
    small, small_store, probe, tmp_path
):
    config = replace(QUICK, blocks="scratch", epochs=0)
    runs = [
        run_finetune(
            context(small),
            small_store,
            load(),
            probe,
            tmp_path / str(s),
            replace(config, seed=s),
        )
        for s in (0, 1)
    ]
    pretrained = load().module.state_dict()
    states = [Checkpoint.load(tmp_path / str(s)).state for s in (0, 1)]
    weights = [name for name, t in pretrained.items() if t.ndim > 1]
    for name in weights:
        assert not np.array_equal(states[0][name], pretrained[name]), name
        assert not np.array_equal(states[0][name], states[1][name]), name
    assert np.ptp(runs[0].predictions.logits, axis=0).max() == 0  # the head starts at the prior


@pytest.mark.parametrize("means", [{"checkpoint_minutes": 0}, {"checkpoint_minutes": float("nan")}])
def test_a_bad_interval_of_snapshots_names_the_option(means):
    with pytest.raises(UsageError, match="--checkpoint-minutes"):
        FinetuneSettings(**means)
