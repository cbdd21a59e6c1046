from dataclasses import replace

import numpy as np
import pytest
import sklearn.metrics

from retailtag.catalog.table import GroupCutoffs
from retailtag.errors import ArtefactError, DataError, SplitOverlap, UsageError
from retailtag.scoring.calibration import calibration_sums
from retailtag.scoring.ranking import sample_scores
from retailtag.scoring.score import score_predictions
from retailtag.statistics.exclusive import ASSIGNMENTS


def rows_of(predictions, catalog):
    return score_predictions(predictions, catalog).to_json()["tags"]


def test_rows_and_summaries_agree(catalog, predictions):
    card = score_predictions(predictions, catalog)
    every = card.summaries["all"]
    assert (card.n_images, card.n_products) == (120, 60)
    assert [row.tag for row in card.tags] == list(catalog.table.tags)
    assert (every.n_tags, every.n_undefined) == (5, 1)
    assert every.macro_f1 == pytest.approx(np.mean([r.f1 for r in card.tags if r.support]))
    assert [card.summaries[s].n_tags for s in ("tail", "common", "frequent")] == [2, 1, 2]
    assert card.summaries["tail"].n_undefined == 1
    assert every.macro_f1_low <= every.macro_f1_high
    assert [r.tag for r in card.undefined] == ["absent"]
    assert card.tags[4].low_support
    assert not card.tags[1].low_support


def test_scopes_hold_their_tags_and_every_mean_its_rows(catalog, predictions):
    card = score_predictions(predictions, catalog)
    low, middle, high = (card.summaries[s] for s in ("tail 0-9", "tail 10-19", "tail 20-49"))
    assert (low.n_tags, low.n_undefined) == (1, 1)
    assert (middle.n_tags, middle.n_undefined) == (0, 0)
    assert np.isnan([middle.macro_f1, middle.macro_f1_low, middle.brier]).all()
    assert high.macro_f1 == card.tags[3].f1
    every = card.summaries["all"]
    defined = [row for row in card.tags if row.support]
    assert every.macro_f1_oracle == pytest.approx(np.mean([r.f1_oracle for r in defined]))
    assert every.macro_f1_sklearn == pytest.approx(sum(r.f1 for r in defined) / len(card.tags))
    assert all(r.f1_low <= r.f1 <= min(r.f1_high, 1) for r in defined)
    assert all(r.f1 <= r.f1_oracle for r in defined)
    assert all(np.isnan([r.f1_low, r.f1_high]).all() for r in card.undefined)


def test_whole_image_and_calibration_metrics_are_those_of_the_scored_cells(catalog, predictions):
    rows = catalog.rows("test")
    logits, labels = predictions.logits[rows], catalog.table.labels[rows]
    card = score_predictions(predictions, catalog)
    assert card.samples == sample_scores(logits, predictions.predicted[rows], labels)
    known = labels[:, 1] >= 0
    common = card.summaries["common"]
    mask = catalog.table.group == "common"
    assert common.brier == calibration_sums(logits, labels).brier(mask)
    assert common.calibration_error == calibration_sums(logits, labels).error(mask)
    assert card.tags[1].support + card.tags[1].fp + card.tags[1].tn == known.sum()


def test_tags_never_given_are_counted_by_scope(catalog, predict):
    thresholds = np.array([0.2, 0.2, np.inf, np.inf, np.inf, np.inf], np.float32)
    card = score_predictions(predict(catalog, thresholds=thresholds), catalog)
    counts = {s: card.summaries[s].n_never_predicted for s in ("all", "tail", "common", "frequent")}
    assert counts == {"all": 3, "tail": 2, "common": 1, "frequent": 0}


def test_rows_say_where_thresholds_came_from(catalog, predict):
    rules = {"tail": "group", "rule": "per-tag"}
    for recorded, expected in (
        ({}, {"given"}),
        ({"settings": {"thresholds": "shrunk"}}, {"shrunk"}),
        ({"thresholds": rules}, {"group", "per-tag"}),
    ):
        card = score_predictions(predict(catalog, provenance=recorded), catalog)
        assert {row.rule for row in card.tags} == expected
    assert {r.rule for r in card.tags if r.group == "tail"} == {"group"}


def test_cutoffs_of_the_catalogue_decide_the_scopes(catalog, predictions):
    table = replace(catalog.table, cutoffs=GroupCutoffs.parse("coco-mlt"))
    card = score_predictions(predictions, replace(catalog, table=table))
    assert list(card.summaries)[4:] == ["tail 0-9", "tail 10-19"]
    assert card.provenance["cutoffs"] == {"tail": 20, "frequent": 101}


def test_zeros_included_equals_scikit_learn(catalog, predict):
    known = replace(catalog.table, labels=np.abs(catalog.table.labels))
    catalog = replace(catalog, table=known)
    predictions = predict(catalog)
    card = score_predictions(predictions, catalog)
    rows = catalog.rows("test")
    assert card.macro_f1_sklearn == pytest.approx(
        sklearn.metrics.f1_score(
            known.labels[rows], predictions.predicted[rows], average="macro", zero_division=0
        )
    )


def test_order_of_images_and_tags_does_not_matter(catalog, predictions):
    rng = np.random.default_rng(1)
    rows, tags = rng.permutation(len(catalog)), rng.permutation(len(catalog.table.tags))
    shuffled = replace(
        predictions,
        image_ids=predictions.image_ids[rows],
        tags=tuple(predictions.tags[j] for j in tags),
        logits=predictions.logits[rows][:, tags],
        thresholds=predictions.thresholds[tags],
    )
    assert rows_of(shuffled, catalog) == rows_of(predictions, catalog)


def test_images_of_other_splits_take_no_part(catalog, predictions):
    test = catalog.rows("test")
    only = replace(
        predictions, image_ids=predictions.image_ids[test], logits=predictions.logits[test]
    )
    assert rows_of(only, catalog) == rows_of(predictions, catalog)


def test_overlap_is_refused(catalog, predictions):
    leaking = replace(predictions, fitted_ids=catalog.image_ids[[0, 1, 2, 3, 140]])
    with pytest.raises(SplitOverlap, match=r"4 images of the test split \(i000, i001, i002 and 1"):
        score_predictions(leaking, catalog)


def test_lacking_images_are_refused_or_told(catalog, predictions):
    fewer = replace(predictions, image_ids=predictions.image_ids[2:], logits=predictions.logits[2:])
    with pytest.raises(ArtefactError, match=r"lack 2 of the 120 images .*i000, i001"):
        score_predictions(fewer, catalog)
    card = score_predictions(fewer, catalog, allow_missing=True)
    assert card.n_images == 118
    assert card.findings[0].code == "missing-images"


def test_no_prediction_at_all_is_refused_even_when_some_may_miss(catalog, predictions):
    none = replace(predictions, image_ids=predictions.image_ids[:0], logits=predictions.logits[:0])
    with pytest.raises(ArtefactError, match="lack 120"):
        score_predictions(none, catalog, allow_missing=True)


def test_other_tags_are_refused_by_name(catalog, predictions):
    renamed = replace(predictions, tags=("Always", *predictions.tags[1:]))
    with pytest.raises(ArtefactError, match=r"lack always and have Always that the catalogue"):
        score_predictions(renamed, catalog)


def test_unknown_and_empty_splits_are_refused(catalog, predictions):
    with pytest.raises(UsageError, match="'holdout' is unknown"):
        score_predictions(predictions, catalog, split="holdout")
    with pytest.raises(UsageError, match="no image in its val split"):
        score_predictions(predictions, catalog, split="val")


def test_findings_name_what_is_wrong(catalog, predictions):
    logits = predictions.logits.copy()
    logits[:, 2] = -5
    shared = catalog.group.copy()
    shared[-1] = shared[0]
    card = score_predictions(
        replace(predictions, logits=logits, provenance={"catalog_digest": "0" * 64}),
        replace(catalog, group=shared),
    )
    codes = [f.code for f in card.findings]
    assert codes == [
        "catalogue-changed",
        "shared-products",
        "constant-scores",
        "calibration",
        "undefined-tags",
        "tail-support",
        "never-predicted",
    ]
    assert "common" in card.findings[2].sentence


def test_a_card_has_no_finding_about_a_catalogue_that_did_not_change(catalog, predictions):
    same = replace(predictions, provenance={"catalog_digest": catalog.digest})
    codes = [f.code for f in score_predictions(same, catalog).findings]
    assert "catalogue-changed" not in codes


def _with_attributes(catalog):
    """The catalogue with its first three tags as one attribute, one value an image at most."""
    labels = catalog.table.labels.copy()
    labels[:, 0] = 0
    labels[:, 1:3][(labels[:, 1] == 1) & (labels[:, 2] == 1)] = [1, 0]
    tags = ("size:L", "size:M", "size:S", *catalog.table.tags[3:])
    table = replace(catalog.table, tags=tags, labels=labels, exclusive=("size",))
    return replace(catalog, table=table)


def test_all_assignments_are_shown_and_one_is_counted(catalog, predict):
    shop = _with_attributes(catalog)
    predictions = predict(shop)
    free = score_predictions(predictions, shop)
    cards = {a: score_predictions(predictions, shop, assignment=a) for a in ASSIGNMENTS}
    assert free.to_json() == cards["independent"].to_json()
    assert {c.assignments for c in cards.values()} == {free.assignments}
    assert [(r.attribute, r.assignment) for r in free.assignments] == [
        (name, a) for name in ("", "size") for a in ASSIGNMENTS
    ]
    for row in free.assignments[:3]:  # of all tags
        assert row.macro_f1 == cards[row.assignment].summaries["all"].macro_f1
    one, exact = cards["at-most-one"], cards["exactly-one"]
    size = slice(0, 3)
    assert sum(r.tp + r.fp for r in one.tags[size]) < sum(r.tp + r.fp for r in free.tags[size])
    assert one.tags[3:5] == exact.tags[3:5] == free.tags[3:5]
    # unknown cells are not counted, so of exactly one value per image some are missing
    assert sum(r.tp + r.fp for r in exact.tags[size]) <= exact.n_images
    assert [r.ap for r in one.tags] == pytest.approx([r.ap for r in free.tags], nan_ok=True)


def test_the_share_given_the_right_value_alone_is_counted_by_image(catalog, predict):
    shop = _with_attributes(catalog)
    labels = shop.table.labels[shop.rows("test")][:, :3]
    has_value = (labels == 1).any(axis=1)
    perfect = predict(shop, logits=np.where(shop.table.labels == 1, 5, -5).astype(np.float32))
    row = score_predictions(perfect, shop).assignments[3]
    assert (row.attribute, row.n_images, row.right) == ("size", has_value.sum(), 1.0)
    silent = replace(perfect, thresholds=np.full(6, np.inf, np.float32))
    right = {r.assignment: r.right for r in score_predictions(silent, shop).assignments[3:]}
    assert right == {"independent": 0.0, "at-most-one": 0.0, "exactly-one": 1.0}


def test_attributes_that_only_the_predictions_record_count_too(catalog, predict):
    shop = _with_attributes(catalog)
    bare = replace(shop, table=replace(shop.table, exclusive=()))
    with pytest.raises(UsageError, match="--one-of"):
        score_predictions(predict(bare), bare, assignment="exactly-one")
    recorded = predict(bare, provenance={"exclusive": ["size"]})
    card = score_predictions(recorded, bare, assignment="exactly-one")
    same = score_predictions(predict(shop), shop, assignment="exactly-one")
    assert (card.micro_f1, card.assignments) == (same.micro_f1, same.assignments)


def test_a_split_without_a_tag_is_one_sentence(catalog, predictions):
    labels = catalog.table.labels.copy()
    labels[catalog.rows("test")] = 0
    untagged = replace(catalog, table=replace(catalog.table, labels=labels))
    with pytest.raises(DataError, match=r"None of the 120 scored images .* there is nothing to sc"):
        score_predictions(predictions, untagged)
