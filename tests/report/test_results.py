import json
from contextlib import suppress
from dataclasses import replace

import pytest

from retailtag.errors import ArtefactError, DataError
from retailtag.report.decision import decide
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


def test_a_bakeoff_of_an_earlier_version_opens(bakeoff):
    value = json.loads(json.dumps(bakeoff.to_json()))
    later = ("latency_ms_low", "latency_ms_high", "latency_ms_turns", "latency_ms_stages")
    for pair in value["pairs"]:
        for name in (*later, "latency_group"):
            del pair["cost"][name]
    cost = BakeoffResult.from_json(value).pairs[0].cost
    assert cost.latency_ms_low != cost.latency_ms_low
    assert (cost.latency_ms_turns, cost.latency_ms_stages) == ((), {})


def test_ranking_is_by_macro_f1_in_the_population(bakeoff):
    scores = [p.scorecard.summaries["all"].macro_f1_population for p in bakeoff.ranking]
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


def _places(value, place=()):
    """Places of a JSON value, one of each list."""
    yield place
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _places(item, (*place, name))
    elif isinstance(value, list) and value:
        yield from _places(value[0], (*place, 0))


def _replaced(value, place, new):
    if not place:
        return new
    copy = value.copy()
    copy[place[0]] = _replaced(value[place[0]], place[1:], new)
    return copy


@pytest.fixture(scope="module")
def whole(bakeoff):
    """Two pairs with one tag, as JSON."""
    pairs = tuple(
        replace(pair, scorecard=replace(pair.scorecard, tags=pair.scorecard.tags[:1]))
        for pair in bakeoff.pairs[:2]
    )
    names = {pair.name for pair in pairs}
    between = tuple(c for c in bakeoff.comparisons if {c.a, c.b} == names)
    return replace(bakeoff, pairs=pairs, comparisons=between).to_json()


@pytest.mark.parametrize("new", [None, True, 9, 0.5, -(10**400), "", "inf", "text", [], {}, [[]]])
def test_whatever_a_field_becomes_it_is_refused_or_read(whole, new):
    refused = []
    for place in _places(whole):
        # verdicts are written for readers, and not read; an object of no fields is the default one
        is_default = place in (("rule",), ("families",)) and new == {}
        if "verdict" in place or is_default:
            continue
        changed = _replaced(whole, place, new)
        try:
            back = BakeoffResult.from_json(changed)
        except (DataError, ArtefactError) as error:
            refused.append(str(error))
        else:
            assert back.to_json() == changed, place
            with suppress(DataError):
                decide(back)
    assert len(refused) > 50
    assert not any("\n" in sentence for sentence in refused)


def test_the_file_is_named(whole, tmp_path):
    path = tmp_path / "bakeoff.json"
    path.write_text(json.dumps({**whole, "seed": "x"}))
    with pytest.raises(DataError, match=r"bakeoff\.json: The bake-off result is damaged.*again"):
        BakeoffResult.load(path)
