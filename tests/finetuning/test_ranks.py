"""Several processes that divide every batch train what one process trains."""

from contextlib import suppress
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from retailtag.backbones import load_backbone
from retailtag.context import RunContext
from retailtag.errors import DataError, Unavailable, UsageError
from retailtag.finetuning.snapshots import Snapshots
from retailtag.finetuning.trainer import Training, refit
from retailtag.finetuning.training_step import MicroBatches, predict
from retailtag.finetuning.validation import ModelSelector
from retailtag.predictions import Predictions
from retailtag.ranks import ALONE, Ranks
from retailtag.runs.finetune import run_finetune
from retailtag.runs.probe import run_probe
from retailtag.runs.stage import read_record
from retailtag.scoring.score import score_predictions
from retailtag.settings import FinetuneSettings, ProbeSettings


@pytest.fixture
def world(world):
    """With two batches of eight images and one of a single image."""
    world.fit, world.val = world.fit[-17:], world.val[:6]
    return world


def _trained(network, loader, world, snapshots=None):
    """Weights after two epochs, and the scores of the validation images."""
    refit(network, loader, world.labels, world.fit, 2, 1.0, snapshots=snapshots)
    return network.state(), predict(network, loader, world.val, MicroBatches(16))


def _train(world, config, ranks=ALONE, snapshots=None):
    network = world.network(config, ranks=ranks)
    return _trained(network, world.loader(network), world, snapshots)


def _assert_same(found, expected):
    """Equal but for the order of sums; the processes among themselves bit for bit."""
    for state, logits in found:
        np.testing.assert_array_equal(logits, found[0][1])
        for name, value in state.items():
            assert torch.equal(value, found[0][0][name]), name
            torch.testing.assert_close(value, expected[0][name], rtol=1e-3, atol=1e-5)
    scale = np.abs(expected[1]).max()
    np.testing.assert_allclose(found[0][1], expected[1], atol=1e-4 * scale, rtol=0)


@pytest.mark.parametrize(
    ("size", "changes"),
    [
        (2, {"augment": "light", "ema": 0.9, "micro_batches": 3}),
        (3, {"sampler": "repeat:t=0.3", "loss": "db"}),
        (3, {"mix": "cutmix:p=1"}),
        (2, {"mix": "mixup", "augment": "light"}),
    ],
)
def test_several_processes_train_what_one_does(world, quick, together, size, changes):
    """With unknown labels, and a last batch of one image: some processes have none of it."""
    config = replace(quick, **changes)
    assert (world.labels[world.fit] < 0).any()
    found = together(size, lambda ranks: _train(world, config, ranks))
    expected = _train(world, config)
    start = world.network(config).state()
    assert not all(torch.equal(value, start[name]) for name, value in expected[0].items())
    _assert_same(found, expected)


def test_statistics_of_batches_are_means_over_the_processes(world, quick, together):
    """A running mean does not depend on the division of a batch; a variance does."""
    world.fit = world.fit[:16]
    config = replace(quick, blocks="all", batch_norm="batch", batch_size=16)

    def step(ranks):
        network = world.network(config, ranks=ranks)
        Training(network, world.loader(network), world.labels, world.fit).epoch(1)
        return network.state()

    one, other = together(2, step)
    assert all(torch.equal(one[name], other[name]) for name in one)
    name = next(name for name in one if name.endswith("running_mean"))
    torch.testing.assert_close(one[name], step(ALONE)[name])
    assert one[name].abs().sum() > 0


class _Killed(BaseException):
    """Simulates a kill: nothing catches it."""


def _stopped(world, config, ranks, snapshots, n_steps):
    """Train until before step number `n_steps` + 1."""
    real, done = Training._step, []

    def step(self, *given):
        if len(done) == n_steps:
            raise _Killed
        done.append(1)
        return real(self, *given)

    with pytest.MonkeyPatch.context() as patch, suppress(_Killed):
        patch.setattr(Training, "_step", step)
        _train(world, config, ranks, snapshots)


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 3)])
def test_a_training_continues_on_another_number_of_processes(
    world, quick, together, tmp_path, before, after
):
    """Killed in the middle of the second epoch of three batches."""
    always = partial(Snapshots, tmp_path, "key", minutes=1e-9)
    together(before, lambda ranks: _stopped(world, quick, ranks, always(ranks=ranks), 5))
    saved = Snapshots(tmp_path, "key").load()
    assert (saved["epoch"], saved["batch"]) == (2, 2)
    found = together(after, lambda ranks: _train(world, quick, ranks, always(ranks=ranks)))
    _assert_same(found, _train(world, quick))


def test_activations_are_cached_by_one_process_and_read_by_all(world, quick, together, tmp_path):
    config = replace(quick, augment="cached:2")

    def work(ranks):
        network = world.network(config, ranks=ranks)
        if not ranks.is_first:  # computes nothing of the frozen part
            network.frozen_part = lambda pixels: pytest.fail("computed twice")
        loader = world.cached(network, tmp_path / "cache", dtype="float32")
        return _trained(network, loader, world)

    _assert_same(together(2, work), _train(world, config))


def test_a_process_that_cannot_read_the_cache_says_so(world, quick, together, tmp_path):
    def work(ranks):
        network = world.network(quick, ranks=ranks)
        try:
            world.cached(network, tmp_path / f"cache-{ranks.rank}")
        except Unavailable as error:
            return str(error)

    told = together(2, work)
    assert told[0] is None
    assert "cache-1 lacks activations that the first process has cached" in told[1]


# -- runs ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def probe(small, small_store, tmp_path_factory):
    settings = ProbeSettings(sweep_C="0.01", folds=2, heads="logistic")
    return run_probe(
        RunContext(small), small_store, tmp_path_factory.mktemp("probe"), settings
    ).probe


def test_a_run_of_two_processes_has_the_scorecard_of_one(
    small, small_store, probe, together, tmp_path, monkeypatch
):
    """Its files too, written by the first process."""
    config = FinetuneSettings(
        epochs=1, batch_size=16, lr=1e-3, cache_gb=0, refit=True, choose_epoch="macro-ap"
    )
    # An epoch is chosen, whatever its scores: else the result is the probe.
    monkeypatch.setattr(ModelSelector, "choose_from", lambda self, measured: len(measured) - 1)

    def work(ranks, out="tuned"):
        context = RunContext(small, ranks=ranks)
        backbone = load_backbone("demo:cnn")
        return run_finetune(context, small_store, backbone, probe, tmp_path / out, config)

    expected = work(ALONE, "alone")
    for run in together(2, work):
        assert run.record == read_record(tmp_path / "tuned")
        found = Predictions.load(tmp_path / "tuned" / "predictions.npz")
        np.testing.assert_array_equal(run.predictions.logits, found.logits)
        np.testing.assert_allclose(found.logits, expected.predictions.logits, atol=1e-3)
        np.testing.assert_allclose(found.thresholds, expected.predictions.thresholds, atol=1e-3)
        assert run.best_epoch == expected.best_epoch > 0
        assert run.checkpoint.facts["processes"] == 2
        ours, theirs = (score_predictions(p, small) for p in (found, expected.predictions))
        assert ours.micro_f1 == theirs.micro_f1
        for name in ("macro_f1", "macro_ap", "brier", "macro_f1_population"):
            here, there = (getattr(card.summaries["all"], name) for card in (ours, theirs))
            assert here == pytest.approx(there, rel=1e-5), name
    names = {path.name for path in (tmp_path / "alone").iterdir()}
    assert {path.name for path in (tmp_path / "tuned").iterdir()} == names


def test_processes_with_other_settings_or_without_images_are_refused(
    small, small_store, probe, together, tmp_path
):
    def refused(ranks, config):
        with pytest.raises((DataError, UsageError)) as caught:
            run_finetune(
                RunContext(small, ranks=ranks),
                small_store,
                load_backbone("demo:cnn"),
                probe,
                tmp_path / "tuned",
                config,
            )
        return str(caught.value)

    told = together(2, lambda ranks: refused(ranks, FinetuneSettings(seed=ranks.rank)))
    assert all("read different catalogues, features, probes" in words for words in told)
    told = refused(Ranks(1, 3), FinetuneSettings(batch_size=2))
    assert "--batch-size 2 cannot be divided over 3 processes" in told
