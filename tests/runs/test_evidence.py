"""What the stages record for the scorer's warnings."""

import shutil
from dataclasses import replace

import numpy as np
import pytest

from retailtag.backbones import load_backbone
from retailtag.catalog.folds import k_folds
from retailtag.catalog.readers import read_catalog
from retailtag.context import RunContext
from retailtag.extraction.extract import extract
from retailtag.runs import evidence
from retailtag.runs.evidence import copies_of_fitted, seen_in_training, threshold_f1
from retailtag.runs.probe import run_probe
from retailtag.scoring.checks import sampling_key
from retailtag.scoring.metrics import f1_from_counts, tag_counts
from retailtag.scoring.score import score_predictions
from retailtag.settings import ComputeSettings, ProbeSettings
from retailtag.thresholds.tuning import Tuning


@pytest.fixture(scope="module")
def copied(tiny_csv, tmp_path_factory):
    """The small world in which a test image has the bytes of a training image."""
    root = tmp_path_factory.mktemp("copied")
    shutil.copytree(tiny_csv.parent, root / "shop")
    shutil.copy(root / "shop/images/p000-0.png", root / "shop/images/p003-0.png")
    catalog = read_catalog(root / "shop/catalogue.csv")
    backbone = load_backbone("demo:cnn")
    compute = ComputeSettings(device="cpu", features=root / "features")
    return catalog, extract(RunContext(catalog, compute=compute), backbone).store


def test_copies_across_splits_are_recorded_and_found(copied, tmp_path):
    catalog, store = copied
    test, train = (catalog.image_ids[catalog.rows(s)] for s in ("test", "train"))
    by_file = {catalog.images.name(k).rsplit("/")[-1]: i
               for k, i in enumerate(catalog.image_ids.tolist())}  # fmt: skip
    expected = {by_file["p003-0.png"]: by_file["p000-0.png"]}
    assert copies_of_fitted(store, test, train) == expected
    run = run_probe(RunContext(catalog), store, tmp_path, ProbeSettings(sweep_C="0.1", folds=2))
    assert run.predictions.provenance["copies"] == expected
    assert run.predictions.provenance["similar"].items() >= expected.items()
    recorded = run.predictions.provenance["threshold_f1"]
    assert set(recorded["all"]) == {"in_sample", "cross_fit"}
    codes = [f.code for f in score_predictions(run.predictions, catalog).findings]
    assert "duplicated-images" in codes


def test_of_many_images_a_sample_is_compared(copied, monkeypatch):
    catalog, store = copied
    test, train = catalog.rows("test"), catalog.rows("train")
    everything = seen_in_training(catalog, store, test, train)
    assert set(everything) == {"copies", "similar"}
    monkeypatch.setattr(evidence, "MAX_COMPARED", 5)
    sampled = seen_in_training(catalog, store, test, train)
    compared = sorted(catalog.image_ids[test].tolist(), key=sampling_key)[:5]
    assert sampled["similar_up_to"] == sampling_key(compared[-1])
    assert sampled["copies"] == everything["copies"]
    inside = {i: j for i, j in everything["similar"].items() if i in compared}
    assert sampled["similar"] == inside


def test_cross_fit_f1_shows_what_tuning_on_chance_earns(tiny):
    """On scores without any skill, per-tag tuning gains in sample and not across."""
    rows = tiny.rows("train")
    logits = np.random.default_rng(0).normal(size=tiny.table.labels[rows].shape).astype(np.float32)
    labels, group = tiny.table.labels[rows], tiny.table.group
    tuned = Tuning("per-tag").tune(logits, labels, group).thresholds
    found = threshold_f1(tiny, rows, logits, tuned, Tuning("per-tag"))
    assert found["tail"]["in_sample"] > found["tail"]["cross_fit"]
    assert found == threshold_f1(tiny, rows, logits, tuned, Tuning("per-tag"))
    fixed = np.zeros_like(tuned)
    same = threshold_f1(tiny, rows, logits, fixed, Tuning("fixed"))
    assert same["all"]["in_sample"] == same["all"]["cross_fit"]


def test_a_scope_without_a_positive_is_left_out(tiny):
    rows = tiny.rows("train")
    labels = tiny.table.labels.copy()
    labels[:, tiny.table.group == "tail"] = 0
    bare = replace(tiny, table=replace(tiny.table, labels=labels))
    logits = np.zeros(labels[rows].shape, np.float32)
    found = threshold_f1(bare, rows, logits, np.zeros(len(bare.table.tags)), Tuning("fixed"))
    assert list(found) == ["all"]


def test_the_choice_of_the_rule_is_cross_fitted_too(tiny):
    """Each half chooses its rule from the other's folds and tunes by it; written out here."""
    rows, rng = tiny.rows("train"), np.random.default_rng(1)
    labels, group = tiny.table.labels[rows], tiny.table.group
    logits = (rng.normal(size=labels.shape) + 1.5 * (labels == 1) - 2).astype(np.float32)
    fold = rng.integers(0, 3, len(rows))
    tuned = Tuning().tune(logits, labels, group, fold)
    found = threshold_f1(tiny, rows, logits, tuned.thresholds, Tuning(), fold)
    half = k_folds(labels, tiny.group[rows], tiny.image_ids[rows], 2, 0)
    crossed = np.zeros(logits.shape, bool)
    for side in (0, 1):
        o = half != side
        rule = Tuning().tune(logits[o], labels[o], group, fold[o]).rule
        tuning = Tuning(rule, capped=True)
        crossed[~o] = logits[~o] >= tuning.tune(logits[o], labels[o], group).thresholds
    f1 = f1_from_counts(tag_counts(crossed, labels))
    assert found["all"]["cross_fit"] == pytest.approx(np.nanmean(f1))
