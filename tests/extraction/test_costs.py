"""What an extraction's time went to, and what it waited for."""

from __future__ import annotations

import pytest

from retailtag.extraction.costs import ExtractCost


@pytest.mark.parametrize(
    ("seconds", "limit"),
    [
        ({"model": 9, "wait": 1, "decode": 30}, "model"),
        ({"model": 1, "wait": 9, "decode": 30, "read": 1}, "decoding"),
        ({"model": 1, "wait": 9, "decode": 1, "read": 30}, "reading"),
        ({"model": 1, "wait": 2, "stall": 3, "decode": 30}, "disk"),
    ],
)
def test_the_limit_is_the_stage_that_the_others_waited_for(seconds, limit):
    cost = ExtractCost(5, **{f"{name}_seconds": value for name, value in seconds.items()})
    assert cost.limit == limit


def test_nothing_computed_has_no_limit_and_no_shares():
    assert ExtractCost().limit == ""
    assert set(ExtractCost().shares().values()) == {0.0}


def test_costs_add_up_and_are_shared():
    one = ExtractCost(4, 10.0, 1.0, 2.0, 3.0, 7.0, 0.5, 0.25)
    assert one + ExtractCost() == one
    both = one.shared_by(2) + one.shared_by(2)
    assert (both.n_computed, both.seconds, both.stall_seconds) == (8, 10.0, 0.25)
    assert one.shares() == {"model": 0.7, "images": 0.3, "disk": 0.025, "writing": 0.05}
    assert one.to_json()["decode_seconds"] == 2.0
