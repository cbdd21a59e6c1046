"""The rules against slow references, their algebra, and the choice between them."""

import numpy as np
import pytest
import reference_thresholds as reference
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from retailtag.errors import DataError, UsageError
from retailtag.statistics.one_standard_error import RESOLUTION
from retailtag.thresholds import ranking
from retailtag.thresholds.objectives import Objective
from retailtag.thresholds.per_tag import Replicates
from retailtag.thresholds.ranking import just_below_only, rank_tags
from retailtag.thresholds.tuning import PRECISION_RULES, RULES, Tuning

ONE = np.array(["tail"])
BETAS = st.sampled_from([0.5, 1.0, 2.0, 1 / 3])


def tune(logits, labels, group, rule="shrunk", *, objective="f1", seed=0):
    """Thresholds by one rule."""
    return Tuning(rule, objective, seed).tune(logits, labels, group).thresholds


def tied(n_tags):
    """Logits with many ties and labels with unknown cells, (n, n_tags) each."""
    n = st.integers(2, 30)
    cells = n.flatmap(
        lambda k: st.tuples(
            arrays(np.int8, (k, n_tags), elements=st.integers(-6, 6)),
            arrays(np.int8, (k, n_tags), elements=st.sampled_from([0, 0, 0, 1, -1])),
        )
    )
    return cells.map(lambda pair: (pair[0].astype(np.float32) / 3, pair[1]))


@settings(max_examples=150, deadline=None)
@given(tied(1), BETAS)
def test_own_threshold_is_the_best_of_all(cells, beta):
    logits, labels = cells
    objective = f"fbeta:{beta}"
    threshold = tune(logits, labels, ONE, "per-tag", objective=objective)[0]
    if (labels == 1).any():
        reached = reference.f_at(threshold, logits[:, 0], labels[:, 0], beta)
        assert reached == pytest.approx(reference.best_f(logits[:, 0], labels[:, 0], beta))
    else:
        assert threshold == 0


@settings(max_examples=100, deadline=None)
@given(tied(3), BETAS)
def test_shared_threshold_has_the_best_mean_of_all(cells, beta):
    logits, labels = cells
    labels[0, 0], group = 1, np.array(["tail"] * 3)
    objective = f"fbeta:{beta}"
    threshold = tune(logits, labels, group, "global", objective=objective)[0]
    columns = [j for j in range(3) if (labels[:, j] == 1).any()]
    reached = np.mean(
        [reference.f_at(threshold, logits[:, j], labels[:, j], beta) for j in columns]
    )
    assert reached == pytest.approx(reference.best_mean_f(logits, labels, beta))


def test_shared_threshold_is_exact_where_branches_are_cut_off(scores):
    """Enough distinct scores for several rounds of divided intervals."""
    logits, labels, _ = scores
    threshold = tune(logits, labels, np.full(6, "tail"), "group")[0]
    reached = [reference.f_at(threshold, logits[:, j], labels[:, j]) for j in range(5)]
    assert np.mean(reached) == pytest.approx(reference.best_mean_f(logits, labels))


@settings(max_examples=150, deadline=None)
@given(tied(1), st.sampled_from([0.2, 0.5, 0.75, 0.9, 1.0]))
def test_a_precision_is_reached_with_the_largest_recall_or_nothing_is_given(cells, precision):
    logits, labels = cells[0][:, 0], cells[1][:, 0]
    expected = reference.largest_recall_at(precision, logits, labels)
    objective = f"precision:{precision}"
    for rule in ("per-tag", "group", "global"):
        threshold = tune(*cells, ONE, rule, objective=objective)[0]
        if expected is None:
            assert threshold == np.inf
        else:
            tp, n_given, _ = reference.counts_at(threshold, logits, labels)
            assert tp == expected
            assert tp >= precision * n_given


@settings(max_examples=60, deadline=None)
@given(tied(1))
def test_best_f1_and_precision_are_those_of_scikit_learns_curve(cells):
    from sklearn.metrics import precision_recall_curve

    known = cells[1][:, 0] >= 0
    logits, labels = cells[0][known], cells[1][known]
    if not (labels == 1).any():
        return
    precision, recall, _ = precision_recall_curve(labels[:, 0], logits[:, 0])
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    threshold = tune(logits, labels, ONE, "per-tag")[0]
    assert reference.f_at(threshold, logits[:, 0], labels[:, 0]) == pytest.approx(f1.max())
    threshold = tune(logits, labels, ONE, "per-tag", objective="precision:0.6")[0]
    tp, _, positives = reference.counts_at(threshold, logits[:, 0], labels[:, 0])
    assert tp / positives == pytest.approx(recall[precision >= 0.6].max())


def test_of_equal_f1_the_highest_threshold_is_taken():
    logits = np.array([[3.0], [2.0], [1.0], [0.0]], np.float32)
    labels = np.array([[1], [0], [0], [1]], np.int8)  # F1 2/3 after one image and after all four
    assert tune(logits, labels, ONE, "per-tag").tolist() == [2.5]
    assert tune(logits, labels, ONE, "group").tolist() == [2.5]


@pytest.mark.parametrize("rule", ["per-tag", "group"])
def test_neighbouring_floats_are_still_told_apart(rule):
    low = np.float32(1.0)
    logits = np.array([[np.nextafter(low, np.float32(2))], [low]])
    threshold = tune(logits, np.array([[1], [0]], np.int8), ONE, rule)
    assert (logits >= threshold)[:, 0].tolist() == [True, False]


@pytest.fixture
def scores():
    rng = np.random.default_rng(3)
    labels = (rng.random((500, 6)) < [0.5, 0.3, 0.1, 0.02, 0.004, 0]).astype(np.int8)
    labels[7, 4] = 1
    logits = (2 * labels + rng.standard_normal((500, 6)) - 2).astype(np.float32)
    labels[::50] = -1
    group = np.array(["frequent", "frequent", "common", "tail", "tail", "tail"])
    return logits, labels, group


def test_rules_order_as_their_freedom_does(scores):
    """In sample, per-tag beats group, group beats global: each contains the one before."""
    logits, labels, group = scores

    def mean_f1(rule):
        t = tune(logits, labels, group, rule)
        return np.mean([reference.f_at(t[j], logits[:, j], labels[:, j]) for j in range(5)])

    assert mean_f1("per-tag") >= mean_f1("group") >= mean_f1("global") > mean_f1("fixed")


def test_shrunk_is_the_stated_mean_of_own_and_group(scores):
    own, group, shrunk = (tune(*scores, rule) for rule in ("per-tag", "group", "shrunk"))
    positives = (scores[1] == 1).sum(axis=0)
    np.testing.assert_allclose(
        shrunk, (positives * own + 20 * group) / (positives + 20), rtol=1e-4, atol=1e-5
    )


def test_tag_or_group_without_positives_takes_the_threshold_of_the_next_larger_whole(scores):
    logits, labels, group = scores
    for rule in RULES[3:]:
        expected = tune(*scores, "group")[5]
        if rule == "bagged":
            continue  # shrunk to the plug-in, tested below
        assert tune(*scores, rule)[5] == pytest.approx(expected)
    bare = labels.copy()
    bare[:, 3:][bare[:, 3:] == 1] = 0
    everyone = tune(logits, bare, group, "global")[0]
    for rule in RULES[2:]:
        np.testing.assert_allclose(tune(logits, bare, group, rule)[3:], everyone)


@pytest.mark.parametrize("rule", RULES)
def test_unknown_labels_take_no_part(scores, rule):
    logits, labels, group = scores
    wild = logits.copy()
    wild[labels == -1] = 50.0
    np.testing.assert_array_equal(
        tune(logits, labels, group, rule), tune(wild, labels, group, rule)
    )


@pytest.mark.parametrize("decimals", [0, 6])
@pytest.mark.parametrize("rule", RULES)
def test_the_order_of_the_images_does_not_matter(scores, rule, decimals):
    logits, labels, group = scores
    logits = np.round(logits, decimals)  # 0: many ties
    order = np.random.default_rng(0).permutation(len(logits))
    np.testing.assert_array_equal(
        tune(logits, labels, group, rule),
        tune(logits[order], labels[order], group, rule),
    )


def test_zero_has_no_sign(scores):
    logits, labels, group = scores
    plain = np.abs(np.round(logits)) * np.sign(logits)
    plain[plain == 0] = 0.0
    signed = plain.copy()
    signed[(plain == 0) & (labels == 1)] = -0.0
    np.testing.assert_array_equal(
        tune(plain, labels, group, "bagged"),
        tune(signed, labels, group, "bagged"),
    )


@pytest.mark.parametrize("rule", RULES[1:])
def test_thresholds_move_with_the_logits(scores, rule):
    logits, labels, group = scores
    exact = np.round(logits * 64) / 64  # so that sums and midpoints are exact in float32
    np.testing.assert_allclose(
        tune(exact + 8, labels, group, rule),
        tune(exact, labels, group, rule) + 8,
        atol=2e-5,
    )


@pytest.mark.parametrize("rule", [r for r in PRECISION_RULES if r != "fixed"])
def test_thresholds_of_a_precision_move_with_the_logits(scores, rule):
    logits, labels, group = scores
    exact = np.round(logits * 64) / 64
    objective = "precision:0.6"
    np.testing.assert_allclose(
        tune(exact + 8, labels, group, rule, objective=objective),
        tune(exact, labels, group, rule, objective=objective) + 8,
    )


@pytest.mark.parametrize("rule", ["per-tag", "global", "shrunk", "bagged"])
def test_more_weight_on_recall_gives_tags_more_freely(scores, rule):
    low, high = (tune(*scores, rule, objective=f"fbeta:{beta}") for beta in (3.0, 1 / 3))
    assert (low <= high).all()
    assert (low < high).any()


def test_shrunken_precision_of_a_rare_tag_follows_its_group_and_that_of_a_frequent_one_itself():
    """A single positive on top is no proof of a precision of 0.9; 200 cells are."""
    rng = np.random.default_rng(1)
    labels = np.zeros((4000, 2), np.int8)
    labels[:1000, 0] = rng.random(1000) < 0.8  # the top quarter holds 80 %
    labels[0] = 0, 1
    logits = np.tile(np.linspace(5, -5, 4000, dtype=np.float32)[:, None], 2)
    group, objective = np.array(["tail", "tail"]), "precision:0.9"
    assert np.isfinite(tune(logits, labels, group, "per-tag", objective=objective)[1])
    shrunk = tune(logits, labels, group, "shrunk", objective=objective)
    assert shrunk[1] == np.inf
    objective = "precision:0.7"
    shrunk = tune(logits, labels, group, "shrunk", objective=objective)
    own = tune(logits, labels, group, "per-tag", objective=objective)
    assert shrunk[0] == pytest.approx(own[0], abs=0.2)


def test_infinite_scores_leave_no_nan(scores):
    logits, labels, group = scores
    logits[labels == 1] = np.inf
    logits[::3] = -np.inf
    for rule in RULES:
        assert not np.isnan(tune(logits, labels, group, rule)).any()


def test_bad_input_is_refused(scores):
    logits, labels, group = scores
    with pytest.raises(UsageError, match="bagged"):
        tune(*scores, "best")
    with pytest.raises(DataError, match="align"):
        tune(logits[1:], labels, group)
    logits[0, 0] = np.nan
    with pytest.raises(DataError, match="NaN"):
        tune(logits, labels, group)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("f2", "f2 is unknown"),
        ("fbeta", "fbeta is unknown"),
        ("fbeta:two", "fbeta:two is unknown"),
        ("fbeta:0", r"give 0\.001 to 1000"),
        ("fbeta:inf", r"give 0\.001 to 1000"),
        ("precision:0", "at most 1"),
        ("precision:90", "at most 1"),
        ("precision:nan", "is unknown"),
    ],
)
def test_bad_objectives_are_refused_by_name(text, said):
    with pytest.raises(UsageError, match=said):
        Tuning(objective=text)


def test_a_rule_without_a_form_for_a_precision_is_refused():
    with pytest.raises(UsageError, match="bagged maximises F-beta"):
        Tuning("bagged", "precision:0.9")


def _skilled(seed, n=4000, n_tags=40):
    """Scores whose best threshold is the same for all tags; positives from 2 to 400."""
    rng = np.random.default_rng(seed)
    count = np.geomspace(400, 2, n_tags)
    labels = (rng.random((n, n_tags)) < count / n).astype(np.int8)
    logits = (3 * labels + rng.standard_normal((n, n_tags)) - 5).astype(np.float32)
    group = np.where(count < 50, "tail", "common")
    return logits, labels, group, rng.integers(0, 5, n)


def test_cross_fit_counts_each_fold_at_thresholds_of_the_others():
    logits, labels, group, fold = _skilled(0)
    scores = Tuning().tune(logits, labels, group, fold).cross_fit
    for rule in RULES:
        crossed = np.zeros(logits.shape, bool)
        for k in range(5):
            others = logits[fold != k], labels[fold != k], group
            t = Tuning(rule, capped=True).tune(*others).thresholds
            crossed[fold == k] = logits[fold == k] >= t
        if rule == "bagged":
            continue  # its replicates are drawn for all images at once
        f = np.array(
            [
                reference.f_at(0.5, crossed[:, j].astype(float), labels[:, j])
                for j in range(len(group))
            ]
        )
        has = (labels == 1).any(axis=0)
        assert scores[rule]["all"] == pytest.approx(f[has].mean())
        assert scores[rule]["tail"] == pytest.approx(f[has & (group == "tail")].mean())


def test_a_tie_within_one_standard_error_goes_to_the_more_restrained_rule():
    choice = Tuning().tune(*_skilled(0))
    rows = choice.cross_fit
    near = [r for r in RULES if rows[r]["behind"] <= rows[r]["se"] + RESOLUTION]
    assert choice.rule == near[0]
    assert len(near) > 1
    assert min(row["behind"] for row in choice.cross_fit.values()) == 0


def test_equal_rules_go_to_the_first():
    """Without any score to tell images apart all rules but the fixed one give everything."""
    labels = np.ones((20, 2), np.int8)
    logits = np.full((20, 2), -1.0, np.float32)
    choice = Tuning().tune(logits, labels, np.array(["tail", "tail"]), np.arange(20) % 2)
    assert choice.rule == "global"
    assert choice.cross_fit["fixed"]["all"] == 0


def test_cross_fit_does_not_pick_the_rule_that_wins_in_sample():
    logits, labels, group, fold = _skilled(2)
    in_sample = {
        rule: np.mean(
            [
                reference.f_at(t, logits[:, j], labels[:, j])
                for j, t in enumerate(tune(logits, labels, group, rule))
            ]
        )
        for rule in RULES
    }
    assert max(in_sample, key=in_sample.__getitem__) == "per-tag"
    choice = Tuning().tune(logits, labels, group, fold)
    assert choice.rule != "per-tag"
    assert choice.cross_fit["per-tag"]["all"] < in_sample["per-tag"] - 0.02


def test_auto_is_the_chosen_rule_and_a_forced_rule_still_shows_the_table():
    logits, labels, group, fold = _skilled(1)
    auto = Tuning().tune(logits, labels, group, fold)
    facts = {"rule": auto.rule, "objective": "f1", "capped": True, "cross_fit": auto.cross_fit}
    assert auto.facts == facts
    forced = Tuning("bagged").tune(logits, labels, group, fold)
    assert (forced.rule, forced.cross_fit.keys()) == ("bagged", auto.cross_fit.keys())
    np.testing.assert_array_equal(forced.thresholds, tune(logits, labels, group, "bagged"))


def test_the_choice_does_not_depend_on_the_order_of_the_images():
    logits, labels, group, fold = _skilled(1)
    order = np.random.default_rng(5).permutation(len(logits))
    here = Tuning().tune(logits, labels, group, fold)
    there = Tuning().tune(logits[order], labels[order], group, fold[order])
    assert here.facts == there.facts


def test_without_folds_auto_is_shrunk_or_group_where_the_tail_has_too_few():
    logits, labels, group, _ = _skilled(0)
    assert Tuning().tune(logits, labels, group).rule == "shrunk"
    few = labels.copy()
    for j in np.flatnonzero(group == "tail"):
        few[np.flatnonzero(few[:, j] == 1)[2:], j] = 0
    assert Tuning().tune(logits, few, group).rule == "group"
    assert Tuning(objective="precision:0.5").tune(logits, few, group).rule == "shrunk"


def test_labels_without_any_positive_still_have_thresholds():
    labels = np.zeros((10, 2), np.int8)
    logits = np.zeros((10, 2), np.float32)
    fold, group = np.arange(10) % 2, np.array(["tail", "tail"])
    tuned = Tuning().tune(logits, labels, group, fold)
    assert (tuned.rule, tuned.cross_fit) == ("shrunk", {})
    assert not (logits >= tuned.thresholds).any()  # nothing tells these images apart
    assert Tuning("shrunk").tune(logits, labels, group, fold).thresholds.tolist() == [0, 0]
    precise = Tuning(objective="precision:0.9").tune(logits, labels, group, fold)
    assert precise.thresholds.tolist() == [np.inf, np.inf]


def test_f_is_zero_where_nothing_is_given_and_nothing_there():
    assert Objective().f(np.zeros(1), np.zeros(1), 0).tolist() == [0.0]


@pytest.mark.parametrize("objective", ["f1", "fbeta:2"])
def test_many_tags_at_once_take_the_thresholds_of_a_loop(monkeypatch, objective):
    """Ties, unknown cells, infinite scores, tags without a positive, two groups."""
    rng = np.random.default_rng(0)
    logits = (rng.integers(-6, 7, (20, 60)) / 3).astype(np.float32)
    logits[rng.random(logits.shape) < 0.02] = -np.inf
    labels = (rng.random(logits.shape) < 0.08).astype(np.int8)
    labels[rng.random(logits.shape) < 0.05] = -1
    labels[:, 7] = -1
    logits[labels == 1] += 0.5
    group = np.where(np.arange(60) < 45, "tail", "common")
    loop = {rule: tune(logits, labels, group, rule, objective=objective) for rule in RULES}
    monkeypatch.setattr(ranking, "MANY_TAGS", 2)
    for rule, expected in loop.items():
        found = tune(logits, labels, group, rule, objective=objective)
        if rule == "bagged":  # means of bins are summed in another order
            np.testing.assert_allclose(found, expected, rtol=1e-5)
        else:
            np.testing.assert_array_equal(found, expected)


@settings(max_examples=50, deadline=None)
@given(tied(6))
def test_a_tag_with_one_positive_has_one_cut(cells):
    tags = [tag for tag in rank_tags(*cells) if tag.positives == 1]
    expected = [tag.cuts.threshold.item() for tag in tags]
    assert just_below_only(tags).tolist() == expected
    replicates = Replicates(len(cells[0]), 0)
    for tag, threshold in zip(tags, expected, strict=True):
        assert replicates.draw_one
        assert replicates.threshold(tag, Objective()) == threshold


@settings(max_examples=100, deadline=None)
@given(tied(3), BETAS)
def test_auto_gives_no_tag_more_often_than_its_positives_allow(cells, beta):
    logits, labels = cells
    group = np.array(["tail", "tail", "common"])
    tuned = Tuning(objective=f"fbeta:{beta}").tune(logits, labels, group)
    plain = Tuning(tuned.rule, f"fbeta:{beta}").tune(logits, labels, group)
    assert tuned.capped
    assert not plain.capped
    assert (tuned.thresholds >= plain.thresholds).all()
    known = labels >= 0
    n_given = ((logits >= tuned.thresholds) & known).sum(axis=0)
    n_plain = ((logits >= plain.thresholds) & known).sum(axis=0)
    positives = (labels == 1).sum(axis=0)
    for j in range(3):
        most = (1 + beta**2) * max(positives[j], 0.5)
        assert n_given[j] <= most + 1e-6
        if n_plain[j] <= most:  # nothing is changed where nothing has to be
            assert tuned.thresholds[j] == plain.thresholds[j]
        else:  # and no more is taken away than equal scores force
            last = logits[known[:, j], j][logits[known[:, j], j] < tuned.thresholds[j]].max()
            assert ((logits[:, j] >= last) & known[:, j]).sum() > most


def test_noise_is_not_given_to_every_image():
    rng = np.random.default_rng(0)
    labels = (rng.random((400, 30)) < 0.02).astype(np.int8)
    logits = rng.standard_normal(labels.shape).astype(np.float32)
    fold = np.arange(400) % 5
    group = np.full(30, "tail")
    free = Tuning("per-tag").tune(logits, labels, group)
    assert (logits >= free.thresholds).sum() > 5 * labels.sum()
    for folds in (None, fold):
        tuned = Tuning().tune(logits, labels, group, folds)
        assert (logits >= tuned.thresholds).sum() <= 2 * labels.sum()


def test_a_precision_has_no_cap(scores):
    tuned = Tuning(objective="precision:0.1").tune(*scores)
    assert not tuned.capped
    assert "capped" not in tuned.facts
