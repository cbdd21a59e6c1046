"""Another tool's scores joined with thresholds and a catalogue."""

from dataclasses import replace

import numpy as np
import pytest

from retailtag.errors import ArtefactError, DataError, SplitOverlap, UsageError
from retailtag.runs.foreign import Declared, foreign_predictions
from retailtag.scoring.score import score_predictions
from retailtag.thresholds.tuning import Tuning


@pytest.fixture
def shop(tiny):
    """The small world with some of its training images as a validation split."""
    split = tiny.split.copy()
    split[tiny.rows("train")[:30]] = "val"
    return tiny.with_split(split)


@pytest.fixture
def probabilities(shop):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=shop.table.labels.shape) + 2.0 * (shop.table.labels == 1) - 1.0
    return 1 / (1 + np.exp(-logits))


@pytest.fixture
def table(shop, probabilities, tmp_path):
    """NPZ of probabilities with the tags the other way round."""
    path = tmp_path / "scores.npz"
    tags = np.array(shop.table.tags)[::-1]
    np.savez(path, image_ids=shop.image_ids, tags=tags, scores=probabilities[:, ::-1])
    return path


def test_tuned_thresholds_are_those_of_the_rule_on_the_tuning_split(shop, probabilities, table):
    made = foreign_predictions(table, shop, Declared("probabilities", tune="shrunk"), "test")
    rows = shop.rows("val")
    logits = np.log(probabilities[rows] / (1 - probabilities[rows])).astype(np.float32)
    tuned = Tuning("shrunk").tune(logits, shop.table.labels[rows], shop.table.group)
    expected = tuned.thresholds
    np.testing.assert_allclose(made.thresholds[::-1], expected, rtol=1e-4)
    assert set(made.fitted_ids) == set(shop.image_ids[shop.rows("train", "val")])
    card = score_predictions(made, shop)
    assert card.n_images == len(shop.rows("test"))
    assert {row.rule for row in card.tags} == {"shrunk"}


def test_auto_on_a_split_without_folds_is_shrunk_or_group_and_said(shop, table):
    made = foreign_predictions(table, shop, Declared("probabilities", tune="auto"), "test")
    val = shop.rows("val")
    positives = (shop.table.labels[val] == 1).sum(axis=0)[shop.table.group == "tail"]
    rule = "group" if np.median(positives) <= 2 else "shrunk"
    assert made.provenance["thresholds"] == rule
    named = foreign_predictions(table, shop, Declared("probabilities", tune=rule), "test")
    np.testing.assert_array_equal(made.thresholds, named.thresholds)


def test_given_thresholds_decide_as_on_the_declared_scale(shop, probabilities, table, tmp_path):
    cuts = np.linspace(0.2, 0.8, len(shop.table.tags))
    file = tmp_path / "thresholds.csv"
    rows = [f"{tag},{cut!r}" for tag, cut in zip(shop.table.tags, cuts.tolist(), strict=True)]
    file.write_text("\n".join(["tag,threshold", *rows]) + "\n")
    made = foreign_predictions(table, shop, Declared("probabilities", thresholds=file), "test")
    assert np.array_equal(made.predicted[:, ::-1], probabilities >= cuts)
    assert set(made.fitted_ids) == set(shop.image_ids[shop.rows("train")])
    assert made.provenance["declared"]["thresholds"] == "thresholds.csv"


def test_scoring_the_split_it_was_declared_fitted_on_is_refused(shop, table):
    declared = Declared("probabilities", tune="group", fitted_split="test")
    made = foreign_predictions(table, shop, declared, "test")
    with pytest.raises(SplitOverlap):
        score_predictions(made, shop)


@pytest.mark.parametrize(
    ("declared", "what"),
    [
        (Declared(None), "--scores, one of logits, probabilities"),
        (Declared("odds", tune="group"), "--scores odds"),
        (Declared("probabilities"), "has no thresholds"),
        (Declared("probabilities", tune="best"), "--tune best"),
        (
            Declared("probabilities", tune="group", tune_split="test"),
            "chosen on the labels they are judged by",
        ),
        (Declared("probabilities", tune="group", tune_split="dev"), "--tune-split dev"),
        (Declared("probabilities", tune="group", fitted_split="dev"), "--fitted-split dev"),
    ],
)
def test_what_is_not_declared_is_not_guessed(shop, table, declared, what):
    with pytest.raises(UsageError, match=what):
        foreign_predictions(table, shop, declared, "test")


def test_two_kinds_of_thresholds_are_refused(shop, table, tmp_path):
    both = Declared("probabilities", thresholds=tmp_path / "t.csv", tune="group")
    with pytest.raises(UsageError, match="exclude each other"):
        foreign_predictions(table, shop, both, "test")


def test_nothing_to_tune_on_is_refused(tiny, shop, probabilities, tmp_path):
    path = tmp_path / "few.npz"
    test = shop.rows("test")
    np.savez(
        path,
        image_ids=shop.image_ids[test],
        tags=np.array(shop.table.tags),
        scores=probabilities[test],
    )
    with pytest.raises(ArtefactError, match="of the val split"):
        foreign_predictions(path, shop, Declared("probabilities", tune="group"), "test")
    with pytest.raises(UsageError, match="no image in its val split"):
        foreign_predictions(path, tiny, Declared("probabilities", tune="group"), "test")


def rewritten(path, shop, probabilities, spell, more=()):
    """The table with its ids spelt otherwise, and columns that are no tags."""
    header = ",".join(["image_id", *shop.table.tags, *more])
    rows = zip(shop.image_ids.tolist(), probabilities.tolist(), strict=True)
    lines = [",".join([spell(i), *map(repr, p), *("0" for _ in more)]) for i, p in rows]
    path.write_text("\n".join([header, *lines]) + "\n")
    return path


def test_ids_spelt_otherwise_are_shown_and_matched_if_asked(shop, probabilities, table, tmp_path):
    path = rewritten(tmp_path / "a.csv", shop, probabilities, "images/{}.jpg".format, ["index"])
    declared = Declared("probabilities", tune="shrunk")
    first = shop.image_ids[shop.rows("test", "val")][0]
    with pytest.raises(DataError, match=rf"such as images/.*\.jpg.*{first}.*--map-ids matches"):
        foreign_predictions(path, shop, declared, "test")
    made = foreign_predictions(path, shop, replace(declared, map_ids=True), "test")
    expected = foreign_predictions(table, shop, declared, "test")
    card, plain = score_predictions(made, shop), score_predictions(expected, shop)
    assert card.summaries["all"].macro_f1 == plain.summaries["all"].macro_f1
    assert [f.code for f in card.findings[:2]] == ["foreign-file", "foreign-file"]
    assert "ignoring folder" in card.findings[0].sentence
    assert "column 'index'" in card.findings[1].sentence


def test_ids_that_nothing_explains_or_that_are_in_doubt_are_refused(shop, probabilities, tmp_path):
    path = rewritten(tmp_path / "a.csv", shop, probabilities, lambda i: f"{i} item")
    declared = Declared("probabilities", tune="shrunk", map_ids=True)
    with pytest.raises(DataError, match=r"such as .* item.*; write the catalogue's ids"):
        foreign_predictions(path, shop, replace(declared, map_ids=False), "test")
    with pytest.raises(ArtefactError, match="lack"):
        foreign_predictions(path, shop, declared, "test")
    ids = shop.image_ids.tolist()
    path = rewritten(tmp_path / "a.csv", shop, probabilities, lambda i: i + ".jpg" * (i != ids[0]))
    twice = path.read_text().replace(f"{ids[1]}.jpg", f"{ids[0]}.jpg")
    path.write_text(twice)
    with pytest.raises(DataError, match=r"--map-ids cannot decide: .* could both be"):
        foreign_predictions(path, shop, declared, "test")


def test_columns_that_are_no_tags_are_named_first(shop, probabilities, tmp_path):
    path = rewritten(tmp_path / "a.csv", shop, probabilities * 9, str, ["loss"])
    with pytest.raises(DataError, match=r"not tags of the catalogue \(loss\)"):
        foreign_predictions(path, shop, Declared("probabilities", tune="group"), "test")
