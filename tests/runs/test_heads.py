"""Which head is taken: by the tags it would give, and on a tie the first."""

from dataclasses import dataclass

import numpy as np
import pytest

from retailtag.errors import UsageError
from retailtag.runs.heads import (
    ALL_HEADS,
    HEADS,
    MAX_IMAGES_FOR_KNN,
    MAX_TAGS_FOR_TEXT,
    ScoredHead,
    choose_head,
    competing,
    head_rows,
    parse_heads,
)
from retailtag.thresholds.tuning import Tuning

N, TAGS = 600, 24
GROUP = np.where(np.arange(TAGS) < 12, "tail", "common")
FOLD = np.arange(N) % 3


@dataclass
class Scores:
    """Stands for fits of every fold: the out-of-fold logits themselves."""

    values: np.ndarray

    def logits(self, choice):
        return self.values


def _labels(rng):
    positives = np.where(GROUP == "tail", 12, 120)
    return (positives > rng.permuted(np.tile(np.arange(N), (TAGS, 1)), axis=1).T).astype(np.int8)


def _head(name, logits, ap):
    candidates = np.array([np.zeros(TAGS), np.full(TAGS, ap)])
    index = np.ones(TAGS, np.intp)
    return ScoredHead(name, ("weak", "strong"), candidates, Scores(logits), index)


def _case(skills, aps=(0.5, 0.5), shifts=(0.0, 0.0)):
    """Two heads on the same labels: logits of a skill, shifted, with the AP that they claim."""
    rng = np.random.default_rng(0)
    labels = _labels(rng)
    heads = []
    for name, skill, ap, shift in zip(("logistic", "ridge"), skills, aps, shifts, strict=True):
        noise = rng.standard_normal((N, TAGS))
        heads.append(_head(name, (skill * (labels - 0.5) + noise + shift).astype("f4"), ap))
    return heads, labels


def test_a_head_that_gives_better_tags_is_taken():
    heads, labels = _case((3, 5))
    taken = choose_head(heads, Tuning("per-tag"), labels, GROUP, FOLD)
    assert taken.head is heads[1]
    np.testing.assert_array_equal(taken.scores, heads[1].logits())
    alone = Tuning("per-tag").tune(heads[1].logits(), labels, GROUP, FOLD)
    np.testing.assert_array_equal(taken.tuned.thresholds, alone.thresholds)


def test_of_heads_that_folds_cannot_tell_apart_the_first_is_taken():
    heads, labels = _case((3.0, 3.0))
    for order in (heads, heads[::-1]):
        taken = choose_head(order, Tuning("per-tag"), labels, GROUP, FOLD)
        assert taken.head is order[0]
    worse = max(taken.facts.values(), key=lambda row: row["behind"])
    assert 0 < worse["behind"] <= worse["se"]


def test_a_better_order_does_not_win_where_it_gives_a_tag_to_every_image():
    heads, labels = _case((3, 5), aps=(0.5, 0.9), shifts=(0, 20))
    taken = choose_head(heads, Tuning("fixed"), labels, GROUP, FOLD)
    assert taken.facts["ridge"]["macro_ap"] > taken.facts["logistic"]["macro_ap"]
    assert taken.head.name == "logistic"


def test_under_a_precision_the_average_precision_decides():
    heads, labels = _case((5, 3), aps=(0.5, 0.9))
    taken = choose_head(heads, Tuning(objective="precision:0.5"), labels, GROUP, FOLD)
    assert taken.head.name == "ridge"
    assert taken.facts["ridge"] == {"macro_ap": pytest.approx(0.9), "behind": 0.0, "se": 0.0}


def test_facts_state_what_each_head_earns():
    heads, labels = _case((3, 5))
    taken = choose_head(heads, Tuning("per-tag"), labels, GROUP, FOLD)
    f = taken.tuned.f
    row = taken.facts["ridge"]
    assert row["macro_f"] == pytest.approx(f.mean())
    assert row["tail_macro_f"] == pytest.approx(f[GROUP == "tail"].mean())
    other = Tuning("per-tag").tune(heads[0].logits(), labels, GROUP, FOLD).f
    assert taken.facts["logistic"]["behind"] == pytest.approx((f - other).mean())
    assert taken.facts["logistic"]["se"] == pytest.approx((f - other).std(ddof=1) / TAGS**0.5)


def test_without_a_positive_the_first_is_taken():
    heads, labels = _case((3, 5))
    taken = choose_head(heads, Tuning(), np.zeros_like(labels), GROUP, FOLD)
    assert taken.head is heads[0]
    assert "macro_f" not in taken.facts["ridge"]


def test_the_table_has_every_candidate_of_every_tag_once():
    heads, _ = _case((3, 5), aps=(0.25, 0.75))
    tags = tuple(f"t{j}" for j in range(TAGS))
    rows = head_rows(heads, tags, GROUP)
    assert {len(column) for column in rows.values()} == {2 * 2 * TAGS}
    cells = list(zip(rows["head"], rows["setting"], rows["tag"], strict=True))
    assert len(set(cells)) == len(cells)
    at = cells.index(("ridge", "strong", "t3"))
    assert (rows["out_of_fold_ap"][at], rows["chosen"][at], rows["group"][at]) == (
        0.75,
        True,
        "tail",
    )
    assert not rows["chosen"][cells.index(("ridge", "weak", "t3"))]


def test_neighbours_compete_by_default_while_every_two_images_can_be_compared():
    assert competing(ALL_HEADS, MAX_IMAGES_FOR_KNN, MAX_TAGS_FOR_TEXT) == HEADS
    assert competing(ALL_HEADS, MAX_IMAGES_FOR_KNN + 1, 9) == ("logistic", "ridge", "text")
    assert competing("logistic,knn", MAX_IMAGES_FOR_KNN + 1, 9) == ("logistic", "knn")
    assert competing(ALL_HEADS, 9, MAX_TAGS_FOR_TEXT + 1) == ("logistic", "ridge", "knn")
    assert competing("logistic,text", 9, MAX_TAGS_FOR_TEXT + 1) == ("logistic", "text")


@pytest.mark.parametrize("heads", ["ridge", "logistic,forest", "logistic,knn,knn", ""])
def test_bad_lists_of_heads_are_refused(heads):
    with pytest.raises(UsageError, match="write logistic, then any of ridge, knn, text"):
        parse_heads(heads)
