"""The fine-tune stage alone: which probes it accepts, and a catalogue without a test split."""

from dataclasses import replace

import numpy as np
import pytest

from retailtag.backbones import load_backbone
from retailtag.context import RunContext
from retailtag.errors import ArtefactError, DataError
from retailtag.finetuning.artefact import Checkpoint
from retailtag.runs import finetune_training as stage
from retailtag.runs.finetune import run_finetune
from retailtag.runs.finetune_training import finetune_inputs
from retailtag.runs.probe import run_probe
from retailtag.settings import FinetuneSettings, ProbeSettings

QUICK = ProbeSettings(sweep_C="0.01", folds=2)
NO_EPOCH = FinetuneSettings(epochs=0)


@pytest.fixture(scope="module")
def probe(tiny, tiny_store, tmp_path_factory):
    return run_probe(RunContext(tiny), tiny_store, tmp_path_factory.mktemp("probe"), QUICK).probe


def test_a_catalogue_without_test_images_is_trained_and_saved(tiny, tiny_store, tmp_path):
    catalog = tiny.with_split(np.full(len(tiny), "train"))
    probe = run_probe(RunContext(catalog), tiny_store, tmp_path / "probe", QUICK).probe
    out = tmp_path / "tuned"
    run = run_finetune(
        RunContext(catalog), tiny_store, load_backbone("demo:cnn"), probe, out, NO_EPOCH
    )
    assert run.predictions.logits.shape == (0, len(catalog.table.tags))
    assert Checkpoint.load(out).tags == catalog.table.tags
    seen = run.predictions.provenance["threshold_f1"]["all"]
    assert 0 <= seen["cross_fit"] <= seen["in_sample"] <= 1


def test_the_checkpoint_is_kept_when_predicting_fails(
    tiny, tiny_store, probe, tmp_path, monkeypatch
):
    def fails(*args):
        raise DataError("the disk is gone")

    monkeypatch.setattr(stage, "predict", fails)
    with pytest.raises(DataError, match="disk"):
        run_finetune(
            RunContext(tiny), tiny_store, load_backbone("demo:cnn"), probe, tmp_path, NO_EPOCH
        )
    assert Checkpoint.load(tmp_path).tags == tiny.table.tags


def test_where_no_epoch_gains_the_result_is_the_probe(tiny, tiny_store, probe, tmp_path):
    run = run_finetune(
        RunContext(tiny),
        tiny_store,
        load_backbone("demo:cnn"),
        probe,
        tmp_path,
        replace(NO_EPOCH, refit=True),
    )
    known = set(tiny_store.known())
    test = [row for row in tiny.rows("test") if tiny.image_ids[row] in known]
    assert run.predictions.image_ids.tolist() == tiny.image_ids[test].tolist()
    X = tiny_store.load(tiny.image_ids[test]).X
    np.testing.assert_allclose(run.predictions.logits, probe.logits(X), rtol=1e-3, atol=1e-3)
    np.testing.assert_array_equal(run.predictions.thresholds, probe.thresholds)
    facts = run.checkpoint.facts
    assert facts["is_probe"]
    assert facts["thresholds"] == probe.facts["thresholds"]
    assert facts["n_fit"] == len(run.predictions.fitted_ids)


@pytest.mark.parametrize(
    ("head", "changes"),
    [
        ("ridge", {}),
        ("logistic", {"thresholds": "group"}),
        ("logistic", {"objective": "fbeta:2"}),
        ("logistic", {"blocks": "scratch"}),
    ],
)
def test_a_probe_of_another_kind_or_for_another_end_does_not_stand_in(
    tiny, tiny_store, probe, tmp_path, head, changes
):
    other = replace(probe, head=head, thresholds=probe.thresholds + 1)
    backbone, config = load_backbone("demo:cnn"), replace(NO_EPOCH, **changes)
    run = run_finetune(RunContext(tiny), tiny_store, backbone, other, tmp_path, config)
    assert not run.checkpoint.facts["is_probe"]
    assert not np.array_equal(run.predictions.thresholds, other.thresholds)


def _relabelled(probe, **facts):
    return replace(probe, facts={**probe.facts, **facts})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda p: _relabelled(p, catalog_digest="0" * 64), "images, labels or splits"),
        (lambda p: _relabelled(p, features="0" * 64, backbone="demo:dino"), "demo:dino there"),
        (lambda p: replace(p, tags=p.tags[::-1]), "other tags"),
        (lambda p: replace(p, tags=p.tags[:2], C=p.C[:2]), "2 there"),
        (lambda p: replace(p, facts={}), "embeddings"),
    ],
)
def test_a_probe_of_something_else_is_refused(tiny, tiny_store, probe, tmp_path, change, words):
    with pytest.raises(ArtefactError, match=f"{words}.*run `retailtag probe` again"):
        run_finetune(RunContext(tiny), tiny_store, None, change(probe), tmp_path, NO_EPOCH)
    assert list(tmp_path.iterdir()) == []


def test_a_probe_of_another_split_cannot_hide_an_overlap(tiny, tiny_store, probe, tmp_path):
    swapped = tiny.with_split(np.where(tiny.split == "test", "train", "test"))
    with pytest.raises(ArtefactError, match="splits"):
        run_finetune(RunContext(swapped), tiny_store, None, probe, tmp_path, NO_EPOCH)


def test_c_of_every_tag_counts_not_the_set_of_values(tiny, tiny_store, probe):
    strengths = np.where(np.arange(len(probe.C)) == 0, 0.1, 0.01)
    one = finetune_inputs(tiny, tiny_store, replace(probe, C=strengths), NO_EPOCH)
    other = finetune_inputs(tiny, tiny_store, replace(probe, C=strengths[::-1]), NO_EPOCH)
    assert one["C"] != other["C"]
