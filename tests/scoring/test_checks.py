"""Findings that need cells: each fires where it should, and only there."""

from dataclasses import dataclass, replace

import numpy as np
import pytest

from retailtag.catalog.table import TagTable
from retailtag.scoring import findings as found
from retailtag.scoring.checks import copies, expected_given, sampling_key
from retailtag.scoring.score import score_predictions


def codes(predictions, catalog):
    return [f.code for f in score_predictions(predictions, catalog).findings]


@pytest.fixture
def counted(catalog):
    """The small world with training counts that its own training images give."""
    table = TagTable.build(
        catalog.table.tags, catalog.table.labels, catalog.split == "train", catalog.table.cutoffs
    )
    return replace(catalog, table=table)


def calibrated(catalog, seed=0):
    """Logits whose logistic is the prevalence, with noise too small to matter."""
    rate = np.clip((catalog.table.labels == 1).mean(axis=0), 0.001, 0.999)
    noise = np.random.default_rng(seed).normal(scale=0.01, size=catalog.table.labels.shape)
    return (np.log(rate / (1 - rate)) + noise).astype(np.float32)


def test_infinite_scores_are_found(catalog, predict):
    logits = calibrated(catalog)
    clean = predict(catalog, logits=logits)
    assert "non-finite-scores" not in codes(clean, catalog)
    broken = logits.copy()
    broken[3, 1] = np.inf
    card = score_predictions(predict(catalog, logits=broken), catalog)
    (finding,) = [f for f in card.findings if f.code == "non-finite-scores"]
    assert "1 score of 1 tag are infinite (=frequent)" in finding.sentence


def test_copies_are_found_by_the_bytes_that_the_predictions_record(catalog, predict):
    seen = {"i001": "i130", "i140": "i131"}  # i140 is not in the scored split
    predictions = predict(catalog, provenance={"copies": seen})
    assert copies(predictions, catalog, catalog.rows("test"))[0] == [("i001", "i130")]
    card = score_predictions(predictions, catalog)
    (finding,) = [f for f in card.findings if f.code == "duplicated-images"]
    assert "1 image of the 120" in finding.sentence
    assert "i001 = i130" in finding.sentence
    assert "duplicated-images" not in codes(predict(catalog, provenance={"copies": {}}), catalog)


def test_images_similar_to_training_images_are_scored_apart(catalog, predict):
    """Logits that know the labels of the similar images alone."""
    test = catalog.rows("test")
    known = test[::2]
    logits = calibrated(catalog)
    logits[known] = np.where(catalog.table.labels[known] == 1, 9, -9)
    seen = dict.fromkeys(catalog.image_ids[known].tolist(), "i130")
    predictions = predict(catalog, logits=logits, provenance={"similar": seen})
    card = score_predictions(predictions, catalog)
    (finding,) = [f for f in card.findings if f.code == "similar-images"]
    assert f"{len(known)} images of the {len(test)} scored" in finding.sentence
    # of four tags one is so frequent that all images get it, rightly
    assert "macro-F1 is 100.0 on them and 25.0 on the others" in finding.sentence
    few = predict(catalog, logits=logits, provenance={"similar": {"i999": "i130"}})
    assert "similar-images" not in codes(few, catalog)


def test_too_few_others_give_no_score_for_new_products(catalog, predict):
    seen = dict.fromkeys(catalog.image_ids[catalog.rows("test")[3:]].tolist(), "i130")
    card = score_predictions(predict(catalog, provenance={"similar": seen}), catalog)
    (finding,) = [f for f in card.findings if f.code == "similar-images"]
    assert "the other 3 are too few to tell how new products would score" in finding.sentence
    assert found.similar_images(["a ~ b"], 101, (0.9, 0.1), 3, "test", 101) is None


def test_only_images_that_were_compared_count_as_not_similar(catalog, predict):
    """Four of the images were compared and two of them look like training images."""
    ids = sorted(catalog.image_ids[catalog.rows("test")].tolist(), key=sampling_key)

    def findings(n_similar, n_compared):
        last = sampling_key(ids[n_compared - 1]) if n_compared else ""
        seen = {"similar": dict.fromkeys(ids[:n_similar], "i130"), "similar_up_to": last}
        card = score_predictions(predict(catalog, provenance=seen), catalog)
        return [f.sentence for f in card.findings if f.code == "similar-images"]

    (sentence,) = findings(2, 4)
    assert f"2 images of the 4 compared, of {len(ids)} scored in the test split, look" in sentence
    assert findings(1, len(ids)) == []  # under a hundredth
    assert findings(1, 0) == []  # only images of another split were compared


def test_copies_are_found_by_their_files_where_no_bytes_are_recorded(catalog, predict):
    @dataclass
    class Files:
        def read(self, index):
            raise AssertionError("scoring reads no image")

        def name(self, index):
            return f"{5 if index == 135 else index}.png"

    predictions = predict(catalog)
    assert "duplicated-images" not in codes(predictions, catalog)
    twice = replace(catalog, images=Files())
    assert copies(predictions, twice, twice.rows("test")) == (
        [("i005", "i135")],
        "the names of their files",
    )


def test_scores_far_from_probabilities_are_found(catalog, predict):
    logits = calibrated(catalog)
    assert "calibration" not in codes(predict(catalog, logits=logits), catalog)
    assert "calibration" in codes(predict(catalog, logits=logits + 2), catalog)


def test_expected_tags_follow_training_prevalence_and_known_labels(counted):
    labels = counted.table.labels[counted.rows("test")]
    train = counted.table.labels[counted.rows("train")]
    slow = [
        (train[:, j] == 1).sum() / (train[:, j] != -1).sum() * (labels[:, j] != -1).sum()
        for j in range(labels.shape[1])
    ]
    np.testing.assert_allclose(expected_given(counted, labels), slow)


def test_counts_from_elsewhere_lead_to_no_expectation(catalog):
    assert expected_given(catalog, catalog.table.labels) is None


def test_giving_too_many_or_too_few_tags_is_found(counted, predict):
    truth = np.where(counted.table.labels == 1, 1.0, -1.0).astype(np.float32)
    fields = {"logits": truth, "thresholds": np.zeros(6, np.float32)}
    assert "prevalence" not in codes(predict(counted, **fields), counted)
    fields["thresholds"] = np.full(6, -2, np.float32)
    card = score_predictions(predict(counted, **fields), counted)
    assert any(f.code == "prevalence" and "too often" in f.sentence for f in card.findings)
    fields["thresholds"] = np.full(6, np.inf, np.float32)
    card = score_predictions(predict(counted, **fields), counted)
    assert any(f.code == "prevalence" and "too rarely" in f.sentence for f in card.findings)


@pytest.mark.parametrize(
    ("given", "expected", "fires"),
    [(19, 0.0, False), (20, 0.0, True), (49, 100.0, True), (50, 100.0, False),
     (200, 100.0, False), (201, 100.0, True)],
)  # fmt: skip
def test_the_bounds_of_prevalence(given, expected, fires):
    assert (found.prevalence_off("tail", given, expected) is not None) == fires


def test_threshold_optimism_comes_from_what_the_probe_recorded(catalog, predict):
    recorded = {"threshold_f1": {"all": {"in_sample": 0.50, "cross_fit": 0.49},
                                 "tail": {"in_sample": 0.50, "cross_fit": 0.40}}}  # fmt: skip
    card = score_predictions(predict(catalog, provenance=recorded), catalog)
    (finding,) = [f for f in card.findings if f.code == "threshold-optimism"]
    assert "Over tail tags" in finding.sentence
    assert "50.0 points" in finding.sentence
    assert "40.0" in finding.sentence
    assert found.threshold_optimism("all", 0.5, float("nan")) is None


@pytest.mark.parametrize(("recorded", "fires"), [(True, True), (False, False), (None, False)])
def test_a_fine_tune_that_kept_its_probe_says_so(catalog, predict, recorded, fires):
    card = score_predictions(predict(catalog, provenance={"is_probe": recorded}), catalog)
    assert any(f.code == "probe-kept" for f in card.findings) == fires


@pytest.mark.parametrize(("recorded", "fires"), [([1, 2], True), ([2], False), (None, False)])
def test_a_run_continued_with_other_threads_says_so(catalog, predict, recorded, fires):
    card = score_predictions(predict(catalog, provenance={"threads": recorded}), catalog)
    assert [f.sentence for f in card.findings if "threads (1, 2)" in f.sentence] == [
        f.sentence for f in card.findings if f.code == "threads"
    ]
    assert any(f.code == "threads" for f in card.findings) == fires


def test_provenance_holds_the_hash_of_everything_read(catalog, predict):
    facts = {"features": "f" * 64, "catalog_digest": catalog.digest, "settings": {"seed": 3}}
    card = score_predictions(predict(catalog, provenance=facts), catalog)
    p = card.provenance
    assert p["catalogue"]["digest"] == catalog.digest
    assert p["predictions"]["features"] == "f" * 64
    assert len(p["predictions"]["digest"]) == 64
    assert p["predictions"]["settings"]["seed"] == 3
    assert p["retailtag"]
