import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from retailtag.catalog.readers import read_catalog
from retailtag.report.contact_sheet import contact_sheet
from retailtag.report.decision import RULE, decide
from retailtag.report.drawing import Drawing
from retailtag.report.page import SECTIONS, render_page
from retailtag.report.report import Report
from retailtag.report.results import BakeoffResult
from retailtag.report.write import write_report
from retailtag.scoring.finding import Finding
from retailtag.scoring.scorecard import AssignmentRow
from retailtag.statistics.exclusive import ASSIGNMENTS

EVIL = ('<script>alert("x")</script>', "$a$ & b", "=HYPERLINK(1)", "日本 \n tag")


def render(result: BakeoffResult, *, drawn: bool = False) -> str:
    """Page whose figures are empty unless `drawn`: drawing takes most of the time."""
    with pytest.MonkeyPatch.context() as patch:
        if not drawn:
            patch.setattr(Drawing, "svg", lambda self: {"wide": "", "narrow": ""})
        return render_page(Report(result, decide(result)))


VOID = {"meta", "input", "br", "wbr", "img"}


class Nesting(HTMLParser):
    """Collects elements, checks that they nest, and gathers ids and alternative texts."""

    def __init__(self):
        super().__init__()
        self.open, self.ids, self.counts, self.links = [], [], {}, []

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.counts[tag] = self.counts.get(tag, 0) + 1
        self.ids += [attrs["id"]] if "id" in attrs else []
        self.links += [attrs[k] for k in ("src", "href") if k in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def hostile(bakeoff) -> BakeoffResult:
    """The bake-off with tags, a backbone and a command that try to be code."""
    pairs = []
    for pair in bakeoff.pairs:
        tags = list(pair.scorecard.tags)
        for j, name in enumerate(EVIL):
            tags[j] = replace(tags[j], tag=name, low_support=False, support=20)
            tags[j] = replace(tags[j], f1=1.0 if pair.strategy == "probe" else 0.0)
        pairs.append(replace(pair, scorecard=replace(pair.scorecard, tags=tuple(tags))))
    return replace(bakeoff, pairs=tuple(pairs), command="retailtag bakeoff '<b>&amp;</b>'")


@pytest.fixture(scope="module")
def page(hostile) -> str:
    return render(hostile, drawn=True)


def test_page_needs_nothing_but_itself(page):
    assert not re.findall(r"https?:|//[a-z]|url\((?!#)|@import|<link|<img|<iframe", page)
    parser = Nesting()
    parser.feed(page)
    assert all(link.startswith("#") for link in parser.links)


def test_elements_nest_and_ids_are_unique(page):
    parser = Nesting()
    parser.feed(page)
    assert parser.open == []
    assert len(parser.ids) == len(set(parser.ids))
    assert parser.counts["svg"] == parser.counts["desc"] >= 2 * 4  # wide and narrow
    assert parser.counts["script"] == 1
    assert parser.counts["table"] == parser.counts["caption"] >= 3


def test_names_from_data_are_escaped(page):
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(&#34;x&#34;)&lt;/script&gt;" in page
    assert "&lt;b&gt;&amp;amp;&lt;/b&gt;" in page
    assert "日本" in page


def test_sections_stand_in_order_and_the_navigation_names_each(page, bakeoff):
    parser = Nesting()
    parser.feed(page)
    report = Report(bakeoff, decide(bakeoff))
    keys = [section.key for section in SECTIONS if section.data(report) is not None]
    assert len(keys) == len(SECTIONS) - 2  # gallery and curves need more than the results
    assert [i for i in parser.ids if i in keys] == keys
    assert [link[1:] for link in parser.links if link[1:] in keys] == keys


def test_a_section_without_data_is_left_out(bakeoff, monkeypatch):
    kept = SECTIONS[0]
    without = replace(SECTIONS[1], data=lambda report: None)
    monkeypatch.setattr("retailtag.report.page.SECTIONS", (kept, without))
    page = render(bakeoff)
    assert f'id="{kept.key}"' in page
    assert without.title not in page


def test_every_tag_and_pair_is_on_the_page(page, hostile):
    table = page[page.index('<table id="tag-table"') :]
    assert table.count('<td class="text">') == len(hostile.pairs[0].scorecard.tags)
    assert page.count("recommended</span>") == page.count('<tr class="winner">') >= 2


def test_the_rule_is_on_the_page(page):
    assert RULE in page


def test_page_is_the_same_for_the_same_result(page, hostile):
    assert render(hostile, drawn=True) == page


def test_answer_comes_before_everything_else(page, hostile):
    winner = hostile.pair(decide(hostile).winner)
    assert page.index("<h1>Use") < page.index("<h2")
    summary, head = winner.scorecard.summaries["all"], page[: page.index("<h2")]
    assert f"<dd>{100 * summary.macro_f1_population:.1f}<" in head
    assert f"on these images: {100 * summary.macro_f1:.1f}" in head


def test_findings_of_one_kind_are_said_together(bakeoff):
    shared = Finding("edge", "Best C at the edge.", "Widen the grid.")
    pairs = tuple(
        replace(p, scorecard=replace(p.scorecard, findings=(shared,))) for p in bakeoff.pairs
    )
    two = (Finding("lost", "One image is lost.", "Mend it."), Finding("lost", "Two.", "Mend it."))
    page = render(replace(bakeoff, pairs=pairs, findings=two))
    assert page.count("Best C at the edge.") == page.count("Mend it.") == 1
    assert "<ul><li>One image is lost.</li><li>Two.</li></ul>" in page


def test_threshold_rules_are_shown_with_the_one_taken(bakeoff):
    cross_fit = {"fixed": {"all": 0.21, "tail": 0.05}, "<b>": {"all": 0.432}}
    facts = {"rule": "fixed", "objective": "f1", "cross_fit": cross_fit}
    first, *others = bakeoff.pairs
    told = {"predictions": {"thresholds": facts}}
    pair = replace(first, scorecard=replace(first.scorecard, provenance=told))
    page = render(replace(bakeoff, pairs=(pair, *others)))
    assert "<td><strong>21.0 (5.0)</strong></td><td>43.2</td>" in page
    assert "&lt;b&gt;</th>" in page
    assert "Rules for thresholds" not in render(bakeoff)


def test_heads_that_competed_are_shown_with_the_one_taken(bakeoff):
    heads = {"logistic": {"macro_f": 0.21, "tail_macro_f": 0.05}, "knn": {"macro_f": 0.432}}
    first, *others = bakeoff.pairs

    def page(facts):
        card = replace(first.scorecard, provenance={"predictions": facts})
        told = replace(bakeoff, pairs=(replace(first, scorecard=card), *others))
        return render(told)

    shown = page({"head": "logistic", "heads": heads})
    assert "<td><strong>21.0 (5.0)</strong></td><td>43.2</td>" in shown
    alone = page({"head": "logistic", "heads": {"logistic": heads["logistic"]}})
    assert "Heads, macro-F" not in alone


def test_files_are_written_whole(bakeoff, tmp_path):
    path = write_report(Report(bakeoff, decide(bakeoff)), tmp_path / "out")
    assert path == tmp_path / "out" / "report.html"
    assert sorted(p.name for p in path.parent.iterdir()) == [
        "bakeoff.json", "curves.json", "per_tag.csv", "quality_cost.png", "ranking.csv",
        "ranking.png", "report.html", "summary.md", "summary.png", "tail.png",
    ]  # fmt: skip
    assert BakeoffResult.load(path.with_name("bakeoff.json")).to_json() == bakeoff.to_json()
    with Image.open(path.with_name("summary.png")) as picture:
        assert picture.size == (1600, 640)
    assert path.with_name("summary.png").stat().st_size < 200_000


def test_one_pair_without_tail_or_rival_makes_a_page(bakeoff):
    pair = bakeoff.pairs[0]
    rows = tuple(r for r in pair.scorecard.tags if r.group != "tail")
    tail = replace(pair.scorecard.summaries["tail"], n_tags=0, macro_f1=float("nan"))
    card = replace(
        pair.scorecard, tags=rows, summaries={**pair.scorecard.summaries, "tail": tail}, findings=()
    )
    cost = replace(pair.cost, latency_ms_p50=float("nan"), train_seconds=float("nan"))
    single = replace(
        bakeoff, pairs=(replace(pair, scorecard=card, cost=cost),), comparisons=(), findings=()
    )
    page = render(single)
    assert "no other pair to compare" in page
    assert "no tag with a held-out positive" in page


def test_assignments_of_attributes_with_one_value_are_shown(bakeoff, page):
    assert "At most one" not in page
    evil = "<b>size</b>"
    rows = [
        AssignmentRow(name, how, 3, 0.5, 0.4, 0.6, 20, 0.75)
        for name in ("", evil)
        for how in ASSIGNMENTS
    ]
    pairs = [
        replace(p, scorecard=replace(p.scorecard, assignments=tuple(rows))) for p in bakeoff.pairs
    ]
    result = replace(bakeoff, pairs=tuple(pairs))
    shown = render(result)
    Nesting().feed(shown)
    assert shown.count("75.0 % right") == 3 * len(pairs) + 3  # all tags; attributes of the winner
    assert evil not in shown


def test_the_contact_sheet_of_similar_images_nests_and_escapes_names(picture):
    ids = [EVIL[0], "b", "c"]
    records = [{"image": picture(40), "image_id": i, "tags": "t"} for i in ids]
    records.append({"image": b"<html>", "image_id": "bad", "tags": "t"})
    page = contact_sheet(read_catalog(records), [np.array([0, 1]), np.array([2, 3])], EVIL[1])
    reader = Nesting()
    reader.feed(page)
    assert reader.open == []
    assert "script" not in reader.counts
    assert reader.counts["img"] == 3  # one image cannot be read
    assert "2 of 2 clusters" in page
