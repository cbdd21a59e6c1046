import json
from dataclasses import replace

import pytest

from retailtag.errors import ArtefactError, DataError
from retailtag.report.results import BakeoffResult


def test_json_round_trip_keeps_everything(bakeoff):
    text = json.dumps(bakeoff.to_json(), allow_nan=False)
    assert json.dumps(BakeoffResult.from_json(json.loads(text)).to_json()) == text


def test_unmeasured_cost_survives(bakeoff):
    pair = bakeoff.pairs[0]
    cost = replace(pair.cost, latency_ms_p50=float("nan"))
    result = replace(bakeoff, pairs=(replace(pair, cost=cost), *bakeoff.pairs[1:]))
    back = BakeoffResult.from_json(json.loads(json.dumps(result.to_json(), allow_nan=False)))
    assert back.pairs[0].cost.latency_ms_p50 != back.pairs[0].cost.latency_ms_p50


def test_ranking_is_by_macro_f1(bakeoff):
    scores = [p.scorecard.summaries["all"].macro_f1 for p in bakeoff.ranking]
    assert scores == sorted(scores, reverse=True)


def test_a_comparison_reads_in_both_directions(bakeoff):
    c = bakeoff.comparisons[0]
    back = bakeoff.comparison(c.b, c.a, c.scope)
    assert back.difference.value == -c.difference.value
    assert (back.difference.low, back.difference.high) == (-c.difference.high, -c.difference.low)
    assert bakeoff.comparison("nobody", c.a, "all") is None


def test_unlike_pairs_are_refused(bakeoff):
    pair = bakeoff.pairs[0]
    with pytest.raises(DataError, match="twice"):
        replace(bakeoff, pairs=(pair, pair))
    other = replace(pair, backbone="other", scorecard=replace(pair.scorecard, n_images=3))
    with pytest.raises(DataError, match="different splits"):
        replace(bakeoff, pairs=(pair, other))


def test_other_files_are_refused(bakeoff, tmp_path):
    with pytest.raises(ArtefactError, match="format 7"):
        BakeoffResult.from_json({**bakeoff.to_json(), "format": 7})
    with pytest.raises(DataError, match="damaged"):
        BakeoffResult.from_json({"format": 1, "pairs": []})
    with pytest.raises(DataError, match="not a bake-off result"):
        BakeoffResult.from_json({"pairs": []})
