"""Thresholds from the start of a fine-tune: out of fold, kept whole, and not from validation."""

import numpy as np
import pytest

from retailtag.finetuning.head import HeadInit
from retailtag.runs.probe import Features
from retailtag.runs.start_scores import MATCHED, StartScores, carried_from_start
from retailtag.thresholds.tuning import Tuning
from retailtag.tuning_scores import NO_FOLDS


def features(rows):
    return Features(rows, np.zeros((len(rows), 4), np.float32))


def constant(catalog, value=0):
    """A head with one logit for everything."""
    n_tags = len(catalog.table.tags)
    zeros, weight = np.zeros(4, np.float32), np.zeros((n_tags, 4), np.float32)
    return HeadInit(zeros, zeros + 1, weight, np.full(n_tags, value, np.float32))


@pytest.fixture(scope="module")
def fitted(small):
    """Scores that say which fit they are of, and the images of each fit."""
    seen = []

    def fit(images):
        seen.append(set(images.rows.tolist()))
        return constant(small, len(seen))

    rows = small.rows("train")
    val = np.full((15, len(small.table.tags)), 0.5, np.float32)
    train = features(rows[:-15])
    return StartScores.fit(small, train, val, fit, seed=0), train, rows[-15:], seen


def test_no_score_is_of_an_image_that_was_fitted(fitted, small):
    start, train, _, seen = fitted
    assert len(seen) == 5
    for row, fit in zip(train.rows.tolist(), start.train.logits[:, 0], strict=True):
        assert row not in seen[int(fit) - 1]
        products = small.group[sorted(seen[int(fit) - 1])]
        assert small.group[row] not in products
    assert set.union(*seen) == set(train.rows.tolist())


def test_what_is_stored_gives_the_scores_back(fitted, small):
    start, _, val, _ = fitted
    stored = start.stored(small.image_ids[val])
    assert (stored.fold == NO_FOLDS).sum() == len(val)
    back = StartScores.of(stored)
    np.testing.assert_array_equal(back.val, start.val)
    np.testing.assert_array_equal(back.train.logits, start.train.logits)
    np.testing.assert_array_equal(back.train.fold, start.train.fold)
    assert back.train.image_ids.tolist() == start.train.image_ids.tolist()


def test_a_single_product_has_no_folds(small):
    rows = small.rows("train")
    one = features(rows[:1])
    val = np.zeros((1, len(small.table.tags)), np.float32)
    assert StartScores.fit(small, one, val, lambda _: pytest.fail("fitted"), 0) is None


@pytest.fixture
def scored(small):
    """Scores with meaning of the start, and of another model on the same validation images."""
    rows = small.rows("train")
    labels, group = small.table.labels, small.table.group
    rng = np.random.default_rng(0)
    z = (4.0 * (labels == 1) - 3 + rng.normal(size=labels.shape)).astype(np.float32)
    train, val = features(rows[:-15]), rows[-15:]
    start = StartScores.fit(small, train, z[val], lambda _: constant(small), 0)
    start.train.logits[:] = z[train.rows]
    better = (2 * z[val] + 1 + rng.normal(size=z[val].shape)).astype(np.float32)
    return start, labels[train.rows], better, labels[val], group


def carried(scored, tuning, labels=None):
    """Thresholds of the other model."""
    start, fitted, logits, own, group = scored
    tuned = start.tune(tuning, fitted, group)
    labels = own if labels is None else labels
    return carried_from_start(start, tuned, logits, labels, group, tuning.max_tags)


@pytest.mark.parametrize("objective", ["f1", "fbeta:2", "precision:0.8"])
def test_each_group_is_given_as_often_as_by_the_start(scored, objective):
    start, fitted, logits, _, group = scored
    tuning = Tuning(objective=objective)
    made = carried(scored, tuning)
    own = start.tune(tuning, fitted, group).thresholds
    assert made.rule == MATCHED
    assert made.facts["objective"] == objective
    for name in np.unique(group):
        inside = group == name
        before = (start.val[:, inside] >= own[inside]).sum()
        assert (logits[:, inside] >= made.thresholds[inside]).sum() == before


def test_labels_of_the_validation_set_are_not_read(scored):
    other = 1 - np.abs(scored[3])
    made, same = carried(scored, Tuning()), carried(scored, Tuning(), other)
    np.testing.assert_array_equal(made.thresholds, same.thresholds)


def test_no_more_tags_than_asked_for(scored):
    logits = scored[2]
    free, few = carried(scored, Tuning()), carried(scored, Tuning(max_tags=1.0))
    assert (logits >= free.thresholds).sum() > len(logits)
    assert (logits >= few.thresholds).sum() <= len(logits)
    assert few.facts["shift"] > 0
