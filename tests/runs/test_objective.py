"""A precision out of reach: the infinite threshold of a tag survives every file and reader."""

from dataclasses import replace

import numpy as np
import pytest

from retailtag.backbones import load_backbone
from retailtag.bakeoffs.request import Request
from retailtag.context import RunContext
from retailtag.errors import UsageError
from retailtag.predictions import Predictions
from retailtag.probes.artefact import Probe
from retailtag.runs.finetune import run_finetune
from retailtag.runs.probe import check_probe_settings, run_probe
from retailtag.scoring.score import score_predictions
from retailtag.scoring.scorecard import ScoreCard
from retailtag.settings import BakeoffSettings, FinetuneSettings, ProbeSettings
from retailtag.tagger.loading import load_fitted

QUICK = ProbeSettings(sweep_C="0.1", folds=3, objective="precision:1")


@pytest.fixture(scope="module")
def probed(tiny, tiny_store, tmp_path_factory):
    folder = tmp_path_factory.mktemp("precise")
    return folder, run_probe(RunContext(tiny), tiny_store, folder, QUICK)


def test_infinite_thresholds_survive_files_scorer_and_tagger(probed, tiny, tmp_path):
    folder, run = probed
    never = np.isinf(run.probe.thresholds)
    assert 0 < never.sum() < len(never)
    np.testing.assert_array_equal(Probe.load(folder).thresholds, run.probe.thresholds)
    predictions = Predictions.load(folder / "predictions.npz")
    np.testing.assert_array_equal(predictions.thresholds, run.probe.thresholds)
    assert not predictions.predicted[:, never].any()
    score_predictions(predictions, tiny).save(tmp_path)
    card = ScoreCard.load(tmp_path / "scorecard.json")
    for row, withheld in zip(card.tags, never.tolist(), strict=True):
        assert (row.threshold == np.inf) == withheld
        assert not (withheld and row.tp + row.fp)
    given = load_fitted(folder).tag([tiny.images.read(i) for i in range(20)])
    assert not {tag for tags in given for tag in tags} & set(np.array(tiny.table.tags)[never])


def test_probe_records_rule_objective_and_what_cross_fit_gave(probed, tiny, tiny_store, tmp_path):
    _, precise = probed
    assert precise.predictions.provenance["thresholds"] == {
        "rule": "shrunk",
        "objective": "precision:1",
        "cross_fit": {},
    }
    usual = run_probe(RunContext(tiny), tiny_store, tmp_path, replace(QUICK, objective="f1"))
    facts = Probe.load(tmp_path).facts["thresholds"]
    assert facts == usual.probe.facts["thresholds"]
    assert facts["rule"] in facts["cross_fit"]
    card = score_predictions(usual.predictions, tiny)
    assert {row.rule for row in card.tags} == {facts["rule"]}


def test_finetune_tunes_for_the_objective(probed, tiny, tiny_store, tmp_path):
    _, run = probed
    backbone = load_backbone("demo:cnn")
    config = FinetuneSettings(epochs=0, thresholds="global", objective="precision:1")
    tuned = run_finetune(RunContext(tiny), tiny_store, backbone, run.probe, tmp_path, config)
    assert len(np.unique(tuned.checkpoint.thresholds)) == 1
    facts = tuned.predictions.provenance["thresholds"]
    assert (facts["rule"], facts["objective"]) == ("global", "precision:1")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"objective": "f3"}, "--objective f3 is unknown"),
        ({"thresholds": "best"}, "--thresholds best is unknown"),
    ],
)
def test_bad_tuning_is_refused_before_anything_runs(tiny, changes, words):
    with pytest.raises(UsageError, match=words):
        check_probe_settings(ProbeSettings(**changes))
    settings = BakeoffSettings(("demo:cnn",), finetune=FinetuneSettings(**changes))
    with pytest.raises(UsageError, match=words):
        Request(RunContext(tiny), settings)
