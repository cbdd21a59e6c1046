"""Curves as figures, as data and on the page; the part on families."""

import json
from dataclasses import replace

import numpy as np
import pytest

from retailtag.report.curves import Curves, LearningCurve, StrengthCurve
from retailtag.report.decision import decide
from retailtag.report.figures.curves import (
    learning_figure,
    reliability_figure,
    strengths_figure,
    trade_off_figure,
)
from retailtag.report.report import Report
from retailtag.report.sections.curves import curves as curves_section
from retailtag.report.sections.family_comparison import family_comparison
from retailtag.report.theme import NARROW, WIDE, style
from retailtag.report.write import curves_json
from retailtag.scoring.curves import OperatingPoint, ReliabilityBin
from retailtag.scoring.families import (
    FAMILIES,
    ONLY,
    OUT_OF_FOLD,
    SCORED,
    STRATEGIES,
    BinDifference,
    FamilyComparison,
    Member,
    OwnedTag,
    TextGain,
)


def made(backbone):
    points = tuple(
        OperatingPoint("", s, 12 - s, 0.3 + s / 20, 0.8 - s / 15, 0.3, float("nan"))
        for s in np.linspace(-3, 3, 9)
    )
    named = tuple(replace(points[k], name=name) for k, name in ((4, "f1, as fitted"), (6, "few")))
    return Curves(
        strengths=(
            StrengthCurve(backbone, "tail", (0.01, 0.1, 1.0), (0.1, 0.3, 0.2), (0.1,)),
            StrengthCurve(backbone, "common", (0.01, 0.1, 1.0), (0.4, 0.5, 0.4), (0.1,)),
        ),
        learning=(LearningCurve(backbone, (0, 1, 2), (0.3, 0.4, 0.35), (0.1, 0.2, 0.1), 1),),
        trade_off=points,
        points=named,
        reliability=(ReliabilityBin("tail", 90, 0.05, 0.04), ReliabilityBin("tail", 9, 0.5, 0.4)),
    )


@pytest.fixture
def report(bakeoff):
    decision = decide(bakeoff)
    return Report(bakeoff, decision, curves=made(bakeoff.pair(decision.winner).backbone))


@pytest.mark.parametrize("layout", [WIDE, NARROW], ids=lambda layout: layout.name)
def test_text_is_legible_and_inside_the_figure(report, layout, must_be_legible):
    found = report.curves
    names = {c.backbone: "a long name of a backbone with arguments" for c in found.learning}
    with style():
        figures = [
            strengths_figure(found.strengths, layout),
            learning_figure(found.learning, names, dict.fromkeys(names, "#3b7dd8"), layout),
            trade_off_figure(found, layout),
            reliability_figure(found, layout),
        ]
        for figure in figures:
            must_be_legible(figure, layout)


def test_curves_are_written_as_data(report):
    value = json.loads(curves_json(report))
    assert [len(value[k]) for k in ("strengths", "learning", "trade_off", "points")] == [2, 1, 9, 2]
    assert value["points"][0]["tail_macro_f1"] is None
    nothing = json.loads(curves_json(replace(report, curves=None)))
    assert set(nothing) == set(value)
    assert not any(nothing.values())


def test_figures_without_data_are_left_out(report):
    assert [d.key for d in curves_section(report).figures] == [
        "trade-off", "strengths", "learning", "reliability",
    ]  # fmt: skip
    only = Curves(points=report.curves.points)
    assert curves_section(replace(report, curves=only)).figures == ()
    assert curves_section(replace(report, curves=None)) is None


def difference(kind, metric, a, b, value, p_holm, span=(0, 9)):
    return BinDifference(
        kind, metric, a, b, *span, 7, value, value - 0.02, value + 0.02, p_holm / 2, p_holm
    )


def with_families(bakeoff, chosen_by=OUT_OF_FOLD, clear=0.01):
    first, second = bakeoff.pairs[0], bakeoff.pairs[2]
    tuned = next(p for p in bakeoff.pairs if p.backbone == first.backbone and p is not first)
    found = FamilyComparison(
        members=(
            Member("supervised", first.name, chosen_by, (tuned.name,)),
            Member("image-text", second.name, ONLY),
        ),
        differences=(
            difference(FAMILIES, "F1", first.name, second.name, -0.1, clear),
            difference(FAMILIES, "AP", first.name, second.name, 0.01, 1.0),
            difference(STRATEGIES, "F1", tuned.name, first.name, 0.001, 1.0),
        ),
        owned=(OwnedTag("velvet", "image-text", 9, 5, 0.4, 0.1, 0.02),),
        n_compared=30,
        text=(TextGain(second.backbone, 0, 9, 12, 0.1, 0.12, 0.01, 0.03),),
    )
    return replace(bakeoff, families=found)


def test_conclusions_say_what_is_clear_and_what_is_not(bakeoff):
    result = with_families(bakeoff)
    view = family_comparison(Report(result, decide(result)))
    text = " ".join(view.conclusions)
    assert "By F1, image-text is ahead of supervised on tags with 0–9 training images" in text
    assert "(10.0 points)" in text
    assert "By AP the data do not tell the families apart" in text
    assert "By F1 the data do not tell fine-tune and probe apart" in text
    assert "Of the 30 tags" in text
    assert "image-text owns 1" in text
    assert "The text tower helps on tags with 0–9 training images (+2.0 points of AP)" in text
    assert view.bins == ("0–9",)
    assert view.families[0].cells == (("-10.0 (-12.0 to -8.0)", True),)
    assert "without these images" in view.chosen


def test_nothing_clear_is_no_advantage_and_a_choice_on_these_images_is_said(bakeoff):
    result = with_families(bakeoff, SCORED, clear=0.2)
    view = family_comparison(Report(result, decide(result)))
    assert not any("is ahead" in sentence for sentence in view.conclusions)
    assert "chosen on these images" in view.chosen
    assert family_comparison(Report(bakeoff, decide(bakeoff))) is None
