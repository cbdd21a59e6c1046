from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retailtag.report.decision import decide
from retailtag.report.figures.cost import clear_places, quality_cost_figure
from retailtag.report.figures.ranking import ranking_figure
from retailtag.report.figures.summary import summary_figure
from retailtag.report.figures.tail import (
    count_bins,
    gaps_figure,
    rivals,
    tail_figure,
    widest_gaps,
)
from retailtag.report.report import Report
from retailtag.report.sections.families import families
from retailtag.report.theme import (
    NARROW,
    WIDE,
    short_backbones,
    short_names,
    strategy_name,
    style,
)

DISCS = st.lists(st.tuples(st.floats(0, 300), st.floats(0, 200)), min_size=1, max_size=8)


@settings(max_examples=40, deadline=None)
@given(DISCS, st.floats(3.5, 10))
def test_a_label_stands_beside_its_own_bubble(centres, radius):
    offsets = clear_places(centres, [radius] * len(centres), 7.0)
    reach = [np.hypot(*offset) for offset in offsets]
    assert all(radius + 7 < r < radius + 20 for r in reach)


def test_labels_avoid_bubbles_and_one_another():
    centres = [(50.0, 50.0), (50.0, 54.0), (50.0, 80.0), (70.0, 50.0)]
    radii = [10.0, 4.0, 6.0, 8.0]
    offsets = clear_places(centres, radii, 7.0)
    labels = [(x + dx, y + dy) for (x, y), (dx, dy) in zip(centres, offsets, strict=True)]
    discs = [*zip(centres, radii, strict=True), *((at, 7.0) for at in labels)]
    for k, at in enumerate(labels):
        others = [d for j, d in enumerate(discs) if j not in (k, len(centres) + k)]
        assert all(np.hypot(at[0] - u, at[1] - v) >= 7 + r - 1e-6 for (u, v), r in others)


@pytest.mark.parametrize("layout", [WIDE, NARROW], ids=lambda layout: layout.name)
def test_text_is_legible_and_inside_the_figure(bakeoff, layout, must_be_legible):
    decision = decide(bakeoff)
    with style():
        figures = [
            ranking_figure(bakeoff, decision, layout),
            quality_cost_figure(bakeoff, decision, layout),
            tail_figure(bakeoff, decision, layout),
            gaps_figure(bakeoff, rivals(bakeoff, decision), layout),
            *([summary_figure(bakeoff, decision)] if layout is WIDE else []),
        ]
        for figure in figures:
            must_be_legible(figure, layout)


def test_bins_cover_every_defined_tag_once_and_end_at_the_cutoffs(bakeoff):
    rows = bakeoff.pairs[0].scorecard.tags
    bins = count_bins(rows, [37, 450])
    columns = [j for b in bins for j in b.columns]
    assert sorted(columns) == [j for j, r in enumerate(rows) if r.support]
    assert not any(b.low < 37 < b.high or b.low < 450 < b.high for b in bins)


def test_gains_come_before_losses_and_rare_tags_stay_out(bakeoff):
    probe, tuned = rivals(bakeoff, decide(bakeoff))
    assert (probe.backbone, probe.strategy, tuned.strategy) == (
        tuned.backbone, "probe", "finetune",
    )  # fmt: skip
    gaps = [b.f1 - a.f1 for a, b in widest_gaps(probe, tuned)]
    assert gaps == sorted(gaps, reverse=True)
    assert not any(a.low_support for a, _ in widest_gaps(probe, tuned))


def test_no_gap_figure_without_both_strategies(bakeoff):
    probes = replace(bakeoff, pairs=tuple(p for p in bakeoff.pairs if p.strategy == "probe"))
    assert families(Report(probes, decide(probes))).gaps is None


def test_short_names_stay_apart(bakeoff):
    first, second = bakeoff.pairs[0], bakeoff.pairs[2]
    twins = replace(
        bakeoff,
        pairs=(
            replace(first, backbone="timm:resnet50.a1_in1k"),
            replace(second, backbone="timm:resnet50.a2_in1k"),
        ),
    )
    assert len(set(short_backbones(twins).values())) == 2
    assert short_names(bakeoff)[first.name] == "resnet50 · probe"


def test_a_probe_is_named_by_its_head(bakeoff):
    first = bakeoff.pairs[0]
    for head, name in (("ridge", "ridge probe"), ("knn", "nearest-neighbour probe"), (3, "probe")):
        card = replace(first.scorecard, provenance={"predictions": {"head": head}})
        assert strategy_name(replace(first, scorecard=card)) == name


def test_short_name_of_several_backbones_keeps_each(bakeoff):
    name = "timm:resnet50.a1_in1k+open_clip:ViT-B-32/openai"
    pairs = (replace(bakeoff.pairs[0], backbone=name), *bakeoff.pairs[1:])
    assert short_backbones(replace(bakeoff, pairs=pairs))[name] == "resnet50+ViT-B-32"
