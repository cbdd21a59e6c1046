from dataclasses import replace

import numpy as np
import pytest
import sklearn.metrics

from retailtag.errors import ArtefactError, SplitOverlap, UsageError
from retailtag.scoring.score import score_predictions


def rows_of(predictions, catalog):
    return score_predictions(predictions, catalog, n_bootstrap=5).to_json()["tags"]


def test_rows_and_summaries_agree(catalog, predictions):
    card = score_predictions(predictions, catalog, n_bootstrap=50)
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


def test_zeros_included_equals_scikit_learn(catalog, predict):
    known = replace(catalog.table, labels=np.abs(catalog.table.labels))
    catalog = replace(catalog, table=known)
    predictions = predict(catalog)
    card = score_predictions(predictions, catalog, n_bootstrap=5)
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
    card = score_predictions(fewer, catalog, allow_missing=True, n_bootstrap=5)
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
        n_bootstrap=50,
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
    codes = [f.code for f in score_predictions(same, catalog, n_bootstrap=5).findings]
    assert "catalogue-changed" not in codes
