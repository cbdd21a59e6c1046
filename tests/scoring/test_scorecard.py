import csv
import io
import json
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retailtag.errors import ArtefactError, DataError
from retailtag.scoring.csvs import FORMULA_STARTS, csv_text, safe_cell
from retailtag.scoring.score import score_predictions
from retailtag.scoring.scorecard import AssignmentRow, ScoreCard


@pytest.fixture
def card(catalog, predict):
    thresholds = np.array([0.2, 0.2, 0.2, 0.2, np.inf, -np.inf], np.float32)
    return score_predictions(predict(catalog, thresholds=thresholds), catalog)


def test_json_round_trip_keeps_everything(card):
    text = json.dumps(card.to_json(), allow_nan=False)
    back = ScoreCard.from_json(json.loads(text))
    assert json.dumps(back.to_json()) == json.dumps(card.to_json())
    assert math.isinf(back.tags[4].threshold)
    assert math.isnan(back.tags[5].f1)


def test_a_card_with_the_intervals_of_earlier_versions_loads(card):
    """Percentile and BCa intervals stood on cards until 2026-11-29."""
    old = card.to_json()
    old["tags"] = [{**row, "f1_bca_low": 0.1, "f1_percentile_high": None} for row in old["tags"]]
    old["summaries"]["all"] = {**old["summaries"]["all"], "macro_f1_bca_high": 0.5}
    assert ScoreCard.from_json(old).to_json() == card.to_json()


def test_a_card_without_the_estimate_for_the_population_is_ranked_as_counted(card):
    """The estimate is on cards since 2026-11-30."""
    old = card.to_json()
    del old["summaries"]["all"]["macro_f1_population"]
    summary = ScoreCard.from_json(old).summaries["all"]
    assert math.isnan(summary.macro_f1_population)
    assert summary.best_estimate == summary.macro_f1
    assert card.summaries["all"].best_estimate == card.summaries["all"].macro_f1_population


def test_a_card_without_assignments_loads_as_independent(card):
    """Attributes with one value an image are on cards since 2026-11-29."""
    old = card.to_json()
    del old["assignment"], old["assignments"]
    assert ScoreCard.from_json(old).assignment == "independent"
    assert ScoreCard.from_json(old).assignments == ()


def test_assignments_are_written_and_read_again(card, tmp_path):
    row = AssignmentRow("size", "exactly-one", 3, 0.5, 0.4, 0.6, 20, 0.75)
    replace(card, assignments=(row,)).save(tmp_path)
    assert ScoreCard.load(tmp_path).assignments == (row,)
    assert (tmp_path / "assignments.csv").read_text().splitlines()[1].startswith("size,exactly-one")
    card.save(tmp_path)
    assert not (tmp_path / "assignments.csv").exists()


def test_files_are_equal_for_equal_input(card, catalog, predict, tmp_path):
    thresholds = np.array([row.threshold for row in card.tags], np.float32)
    again = score_predictions(predict(catalog, thresholds=thresholds), catalog)
    card.save(tmp_path / "a")
    again.save(tmp_path / "b")
    names = sorted(p.name for p in (tmp_path / "a").iterdir())
    assert names == ["groups.csv", "per_tag.csv", "scorecard.json", "undefined_tags.csv"]
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert ScoreCard.load(tmp_path / "a").to_json() == card.to_json()


def test_csv_holds_the_rows_and_no_formula(card, tmp_path):
    card.save(tmp_path)
    with (tmp_path / "per_tag.csv").open() as handle:
        rows = list(csv.DictReader(handle))
    assert [r["tag"] for r in rows][:2] == ["always", "'=frequent"]
    assert rows[5]["f1"] == ""
    assert rows[5]["threshold"] == "-inf"
    assert float(rows[1]["f1"]) == pytest.approx(card.tags[1].f1, rel=1e-5)
    with (tmp_path / "undefined_tags.csv").open() as handle:
        assert [r["tag"] for r in csv.DictReader(handle)] == ["absent"]
    with (tmp_path / "groups.csv").open() as handle:
        assert [r["scope"] for r in csv.DictReader(handle)] == [
            *("all", "tail", "common", "frequent"),
            *("tail 0-9", "tail 10-19", "tail 20-49"),
        ]


@settings(max_examples=40, deadline=None)
@given(st.text(max_size=5), st.sampled_from(["", *FORMULA_STARTS]))
def test_no_text_cell_can_begin_a_formula(text, start):
    assert not safe_cell(start + text).startswith(FORMULA_STARTS)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(st.sampled_from("a,\"\n\r\t =+-@é'"), max_size=6), min_size=1, max_size=4))
def test_any_text_reads_back_as_one_cell(names):
    """Parity with Python's own reader, whatever the tags are made of."""
    text = csv_text(["tag", "f1"], [SimpleNamespace(tag=name, f1=0.5) for name in names])
    rows = list(csv.reader(io.StringIO(text, newline=""), strict=True))
    assert rows == [["tag", "f1"], *([safe_cell(name), "0.5"] for name in names)]


def test_other_files_are_refused(card, tmp_path):
    with pytest.raises(ArtefactError, match="format 99"):
        ScoreCard.from_json({**card.to_json(), "format": 99})
    with pytest.raises(
        ArtefactError, match="format 1, this version reads 2; run `retailtag score`"
    ):
        ScoreCard.from_json({**card.to_json(), "format": 1})
    with pytest.raises(DataError, match="not a scorecard"):
        ScoreCard.from_json({"tags": []})
    with pytest.raises(DataError, match="damaged"):
        ScoreCard.from_json({**card.to_json(), "tags": [{"tag": "x"}]})
    with pytest.raises(DataError, match="does not exist"):
        ScoreCard.load(tmp_path / "nothing.json")
