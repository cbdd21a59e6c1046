from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from retailtag.report import plots
from retailtag.report.decision import decide
from retailtag.report.theme import short_backbones, short_names, style


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(0, 100), min_size=1, max_size=8), st.floats(0.1, 10))
def test_spread_labels_stand_apart_and_keep_their_order(values, apart):
    placed = plots.spread(values, apart)
    order = np.argsort(values, kind="stable")
    assert np.diff(np.sort(placed)).min(initial=apart) >= apart - 1e-6
    distinct = [k for k in order if values.count(values[k]) == 1]
    assert (np.diff([placed[k] for k in distinct]) > 0).all()
    assert abs(np.mean(placed) - np.mean(values)) < 1e-6


def test_bins_cover_every_defined_tag_once_and_end_at_the_cutoffs(bakeoff):
    rows = bakeoff.pairs[0].scorecard.tags
    bins = plots.count_bins(rows, [37, 450])
    columns = [j for b in bins for j in b.columns]
    assert sorted(columns) == [j for j, r in enumerate(rows) if r.support]
    assert not any(b.low < 37 < b.high or b.low < 450 < b.high for b in bins)


def test_gains_come_before_losses_and_rare_tags_stay_out(bakeoff):
    probe, tuned = plots.rivals(bakeoff, decide(bakeoff))
    assert (probe.backbone, probe.strategy, tuned.strategy) == (
        tuned.backbone, "probe", "finetune",
    )  # fmt: skip
    gaps = [b.f1 - a.f1 for a, b in plots.widest_gaps(probe, tuned)]
    assert gaps == sorted(gaps, reverse=True)
    assert not any(a.low_support for a, _ in plots.widest_gaps(probe, tuned))


def test_no_gap_figure_without_both_strategies(bakeoff):
    probes = replace(bakeoff, pairs=tuple(p for p in bakeoff.pairs if p.strategy == "probe"))
    with style():
        assert plots.gaps_figure(probes, decide(probes)) is None


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
    assert short_names(bakeoff)[first.name] == "resnet50 · linear probe"


def test_short_name_of_several_backbones_keeps_each(bakeoff):
    name = "timm:resnet50.a1_in1k+open_clip:ViT-B-32/openai"
    pairs = (replace(bakeoff.pairs[0], backbone=name), *bakeoff.pairs[1:])
    assert short_backbones(replace(bakeoff, pairs=pairs))[name] == "resnet50+ViT-B-32/openai"
