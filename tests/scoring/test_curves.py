"""Trade-offs, reliability and confused pairs on cases that can be counted by hand."""

import numpy as np
import pytest

from retailtag.scoring.aligned import Aligned
from retailtag.scoring.confusion import confused_pairs
from retailtag.scoring.curves import operating_point, reliability, trade_off


def aligned(logits, labels, thresholds, exclusive=()):
    logits = np.array(logits, np.float32)
    labels = np.array(labels, np.int8)
    thresholds = np.array(thresholds, np.float32)
    rows = np.arange(len(logits))
    given = logits >= thresholds
    return Aligned(rows, logits, given, thresholds, labels, np.array([]), tuple(exclusive))


def some(seed=0, n=300):
    rng = np.random.default_rng(seed)
    labels = (rng.random((n, 4)) < [0.5, 0.2, 0.1, 0.05]).astype(np.int8)
    return aligned(rng.normal(size=labels.shape) + 2 * labels, labels, [1, 1, 1, np.inf])


def test_a_point_counts_cells():
    one = aligned([[2, 0], [2, 2], [0, 0]], [[1, 1], [0, 1], [1, -1]], [1, 1])
    point = operating_point("now", one.predicted, one.labels, np.array([False, True]))
    assert point.tags_per_image == pytest.approx(1.0)
    assert point.precision == pytest.approx(2 / 3)
    assert point.recall == pytest.approx(2 / 4)
    assert point.tail_macro_f1 == pytest.approx(2 / 3)
    assert point.macro_f1 == pytest.approx((1 / 2 + 2 / 3) / 2)


def test_a_trade_off_goes_from_many_tags_to_few_through_the_thresholds_as_they_are():
    model = some()
    points = trade_off(model, np.array([False] * 3 + [True]))
    tags = [p.tags_per_image for p in points]
    assert tags == sorted(tags, reverse=True)
    assert [p.recall for p in points] == sorted((p.recall for p in points), reverse=True)
    (now,) = [p for p in points if p.shift == 0]
    assert now.tags_per_image == model.predicted.sum() / 300
    assert tags[0] > 2 * now.tags_per_image
    assert tags[-1] < 0.3 * now.tags_per_image
    for p in points:  # a tag that is never given stays so
        given = model.logits >= model.thresholds + np.float32(p.shift)
        assert p.tags_per_image == given.sum() / 300
        assert not given[:, 3].any()


def test_no_trade_off_without_a_tag_given():
    assert trade_off(aligned([[0.0]], [[1]], [np.inf]), np.array([True])) == ()


def test_reliability_of_probabilities_that_mean_what_they_say():
    rng = np.random.default_rng(1)
    logits = rng.uniform(-3, 3, (4000, 2)).astype(np.float32)
    labels = (rng.random(logits.shape) < 1 / (1 + np.exp(-logits))).astype(np.int8)
    bins = reliability(aligned(logits, labels, [0, 0]), np.array(["tail", "common"]))
    assert {b.group for b in bins} == {"tail", "common"}
    assert sum(b.n_cells for b in bins) == logits.size
    assert all(abs(b.predicted - b.present) < 0.12 for b in bins)
    off = reliability(aligned(logits + 2, labels, [0, 0]), np.array(["tail", "common"]))
    assert all(b.predicted > b.present for b in off if 0.2 < b.predicted < 0.9)


def test_confused_pairs_are_those_beyond_chance():
    tags = ("colour:blue", "colour:navy", "colour:all", "kind:dress")
    n = 200
    labels = np.zeros((n, 4), np.int8)
    given = np.zeros((n, 4), bool)
    labels[:40, 1] = 1  # navy
    given[:25, 0] = True  # 25 of them are given blue instead
    given[25:40, 1] = True
    given[:, 2] = True  # given to everything: meets every miss by chance
    given[:30, 3] = True  # on the same images, but of another attribute
    model = aligned(np.where(given, 1.0, -1.0), labels, [0, 0, 0, 0], ["colour"])
    (pair,) = confused_pairs(model, tags)
    assert (pair.true_tag, pair.given_tag, pair.n_images) == ("colour:navy", "colour:blue", 25)
    assert (pair.n_true, pair.attribute, pair.is_exclusive) == (40, "colour", True)
    assert pair.expected == pytest.approx(25 * 25 / n)
    assert confused_pairs(model, tags, n_pairs=0) == ()


def test_few_images_are_no_confusion():
    labels = np.zeros((50, 2), np.int8)
    labels[:2, 0] = 1
    model = aligned(np.where(labels[:, ::-1] == 1, 1.0, -1.0), labels, [0, 0])
    assert confused_pairs(model, ("a", "b")) == ()
