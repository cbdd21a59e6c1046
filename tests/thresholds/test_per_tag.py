"""A tag's own threshold: averaged over bootstrap replicates."""

import numpy as np
import pytest
import reference_thresholds as reference

from retailtag.thresholds.objectives import Objective
from retailtag.thresholds.per_tag import N_REPLICATES, Replicates
from retailtag.thresholds.plug_in import plug_in_thresholds
from retailtag.thresholds.ranking import rank_tags
from retailtag.thresholds.rules import ThresholdRules
from retailtag.thresholds.tuning import Tuning


@pytest.fixture(scope="module")
def cells():
    """Logits (distinct) and labels (800, 3) with 300, 30 and 2 positives; unknown cells."""
    rng = np.random.default_rng(6)
    labels = np.zeros((800, 3), np.int8)
    for j, positives in enumerate([300, 30, 2]):
        labels[rng.choice(800, positives, replace=False), j] = 1
    logits = (1.5 * labels + rng.standard_normal(labels.shape)).astype(np.float32)
    labels[(rng.random(labels.shape) < 0.05) & (labels == 0)] = -1
    return logits, labels


@pytest.mark.parametrize("beta", [1.0, 2.0])
def test_bagged_threshold_is_the_mean_over_repeated_images(cells, beta):
    """Each replicate written out: the positive, or negative, at rank i as often as drawn."""
    logits, labels = cells
    draw = np.random.default_rng(9).poisson(1.0, (2, N_REPLICATES, 801))[..., 1:]
    replicates = Replicates(800, seed=9)
    for j, tag in enumerate(rank_tags(logits, labels)):
        order = [i for i in np.argsort(-logits[:, j]) if labels[i, j] >= 0]
        thresholds = []
        present = [i for i in order if labels[i, j] == 1]
        absent = [i for i in order if labels[i, j] == 0]
        for of_negatives, of_positives in zip(*draw, strict=True):
            weight = dict(zip(present, of_positives, strict=False))
            weight |= dict(zip(absent, of_negatives, strict=False))
            rows = np.repeat(order, [weight[i] for i in order])
            z, y = logits[rows, j], labels[rows, j]
            if not (y == 1).any():
                continue
            f = [reference.f_at(t, z, y, beta) for t in tag.cuts.threshold]
            thresholds.append(tag.cuts.threshold[int(np.argmax(f))])
        assert replicates.threshold(tag, Objective(beta=beta)) == pytest.approx(
            np.mean(thresholds, dtype=np.float64), rel=1e-6
        )


def test_bagged_rule_shrinks_the_mean_to_the_plug_in(cells):
    logits, labels = cells
    tags, group = rank_tags(logits, labels), np.array(["tail"] * 3)
    positives = (labels == 1).sum(axis=0)
    replicates = Replicates(max(len(tag.negated) for tag in tags), seed=3)
    own = np.array([replicates.threshold(tag, Objective()) for tag in tags])
    expected = (positives * own + 20 * plug_in_thresholds(tags, Objective())) / (positives + 20)
    found = Tuning("bagged", seed=3).tune(logits, labels, group).thresholds
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    other = Tuning("bagged", seed=4).tune(logits, labels, group).thresholds
    assert (other != found).any()


def test_replicates_without_a_positive_have_no_threshold_and_the_rule_takes_the_own():
    tag = rank_tags(np.array([[1.0], [0.0]], np.float32), np.array([[1], [0]], np.int8))[0]
    never = Replicates(2, seed=0)
    never._positives[:], never._negatives[:] = 0, 0
    assert np.isnan(never.threshold(tag, Objective()))
    rules = ThresholdRules([tag], np.array(["tail"]), Objective(), never)
    own, plug_in = 0.5, plug_in_thresholds([tag], Objective())[0]
    assert rules.thresholds("bagged")[0] == pytest.approx((own + 20 * plug_in) / 21)


def test_bagged_thresholds_stay_where_scores_are_off_by_little():
    """Cells that change places keep their weights; with weights on common ranks a third moved."""
    rng = np.random.default_rng(0)
    labels = (rng.random((900, 60)) < 0.03).astype(np.int8)
    logits = (1.5 * labels + rng.standard_normal(labels.shape) - 3).astype(np.float32)
    noisy = (logits * (1 + 1e-4 * rng.standard_normal(labels.shape))).astype(np.float32)
    replicates = Replicates(900, seed=0)
    before, after = (
        np.array([replicates.threshold(tag, Objective()) for tag in rank_tags(z, labels)])
        for z in (logits, noisy)
    )
    assert (np.abs(before - after) > 0.01).mean() <= 0.05
