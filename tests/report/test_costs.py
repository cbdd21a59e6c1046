"""The section on costs: what is shared, the range of estimates, prices only where asked for."""

from dataclasses import replace

import pytest

from retailtag.report.beside import ranking_csv
from retailtag.report.decision import decide
from retailtag.report.page import render_page
from retailtag.report.report import Report
from retailtag.report.results import Rule, T4Cost
from retailtag.report.sections.costs import costs

T4 = {
    "float32": T4Cost((8.0, 2.0, 11.0), (400.0, 300.0, 500.0), (1, 1, 1), (60.0, 50.0, 90.0), {}),
    "float16": T4Cost((8.0, 2.0, 11.0), (1200.0, 900.0, 1500.0), (1, 1, 1), (36.0, 20.0, 54.0), {}),
}


@pytest.fixture
def timed(bakeoff):
    """The made-up bake-off as one of this version measures it."""
    known = {"latency_ms_low": 9.0, "latency_ms_high": 11.0, "probe_seconds": 30.0}
    stages = {"decode": 1.0, "preprocess": 2.0, "backbone": 6.0, "head": 0.5}
    t4 = {name: replace(cost, predicted_here={"1": 0.9, "32": 1.1}) for name, cost in T4.items()}
    pairs = tuple(
        replace(p, cost=replace(p.cost, **known, latency_ms_stages=stages, t4=t4))
        for p in bakeoff.pairs
    )
    return replace(bakeoff, pairs=pairs)


def test_every_pair_says_what_it_shares_and_what_a_t4_would_take(timed):
    data = costs(Report(timed, decide(timed)))
    assert {row.shared_by for row in data.rows} == {2}  # probe and fine-tune of each backbone
    assert data.rows[0].interval == "9\N{EN DASH}11"
    assert data.rows[0].stages == "decode 1, preprocess 2, backbone 6, head 0.5"
    t4 = data.rows[0].t4
    assert t4.latency == "8 (2\N{EN DASH}11)"
    assert t4.float16 == "1,200 (900\N{EN DASH}1,500)"
    assert t4.training == "36 s (20 s\N{EN DASH}54 s)"
    assert t4.error == "0.90 / 1.10"
    assert (data.has_t4, data.t4_is_measured) == (True, False)
    page = render_page(Report(timed, decide(timed)))
    assert "Estimates, not measurements" in page
    assert "shared by 2 pairs" in page
    assert "Price of" not in page


def test_prices_follow_from_the_price_of_an_hour(timed):
    priced = replace(timed, rule=Rule(price_per_hour=0.36))
    report = Report(priced, decide(priced))
    row = costs(report).rows[0]
    cost = row.pair.cost
    assert float(row.price.million) == pytest.approx(100 / cost.images_per_second, rel=0.01)
    assert float(row.price.training.replace(",", "")) == pytest.approx(
        cost.train_seconds / 1e4, rel=0.01
    )
    assert row.t4.price.million == "0.0833"
    assert row.t4.price.training == "0.0036"
    page = render_page(report)
    assert page.count("Price of a million images") == 2
    assert page.count("Price of the training") == 2


def test_a_bakeoff_of_an_earlier_version_has_no_t4_and_no_parts(bakeoff):
    data = costs(Report(bakeoff, decide(bakeoff)))
    assert not data.has_t4
    page = render_page(Report(bakeoff, decide(bakeoff)))
    assert "On a T4" not in page


def test_what_was_measured_on_a_t4_is_no_estimate(timed):
    measured = {"float32": replace(T4["float32"], is_measured=True)}
    pairs = tuple(replace(p, cost=replace(p.cost, t4=measured)) for p in timed.pairs)
    result = replace(timed, pairs=pairs)
    page = render_page(Report(result, decide(result)))
    assert "Measured on the T4 of this machine" in page
    assert "Estimates, not measurements" not in page


def test_tables_for_other_programs_have_one_number_a_cell(timed):
    header, first, *_ = ranking_csv(Report(timed, decide(timed))).splitlines()
    cells = dict(zip(header.split(","), first.split(","), strict=True))
    assert cells["latency_ms_decode"] == "1"
    assert cells["t4_float16_train_seconds_high"] == "54"
    assert "latency_ms_turns" not in cells


def test_what_was_merged_from_a_t4_names_its_machine(timed):
    there = "compile-float32, Xeon, Tesla T4, 2026-11-30"
    merged = {**T4, "float32": replace(T4["float32"], merged_from=there)}
    pairs = tuple(replace(p, cost=replace(p.cost, t4=merged)) for p in timed.pairs)
    page = render_page(Report(replace(timed, pairs=pairs), decide(timed)))
    assert page.count(there) == len(pairs)
    assert "were measured on it" in page
    assert "were measured on it" not in render_page(Report(timed, decide(timed)))
