"""The gallery: which pictures stand for a tag, within how many bytes, and how they show."""

import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from retailtag.catalog.readers import read_catalog
from retailtag.report.decision import decide
from retailtag.report.drawing import Drawing
from retailtag.report.gallery import SIDE, Gallery, chosen_tags, examples, make_gallery
from retailtag.report.page import render_page
from retailtag.report.report import Report
from retailtag.scoring.aligned import Aligned
from retailtag.scoring.confusion import ConfusedPair

EVIL = '<script>alert("x")</script>'


@pytest.fixture(scope="module")
def shop():
    """Ten images, tag ``red`` on the first five; the last cannot be read."""
    pictures = [Image.new("RGB", (200, 150), (20 * k, 0, 0)) for k in range(9)]
    records = [
        {"image": p, "image_id": f"i{k}", "split": "test", "tags": ["red"] if k < 5 else ["blue"]}
        for k, p in enumerate(pictures)
    ]
    catalog = read_catalog(records)

    class Broken:
        def read(self, row):
            return b"no image" if row == 8 else catalog.images.read(row)

        def name(self, row):
            return f"images/{row}.jpg"

    return replace(catalog, images=Broken())


def scored(catalog, logits):
    labels = catalog.table.labels
    logits = np.stack([-np.array(logits), np.array(logits)], axis=1).astype(np.float32)
    thresholds = np.zeros(2, np.float32)
    rows = np.arange(len(labels))
    return Aligned(rows, logits, logits >= 0, thresholds, labels, np.array([]))


def test_examples_are_the_most_confident_of_each_kind(shop):
    assert shop.table.tags == ("blue", "red")
    model = scored(shop, [3, 1, 2, -1, -4, -2, 5, 0.5, -9])
    found = examples(model, 1, shop.group)
    assert found["hits"].tolist() == [0, 2, 1]
    one = np.full(9, "p")
    assert [len(rows) for rows in examples(model, 1, one).values()] == [1, 1, 1]
    assert found["misses"].tolist() == [4, 3]  # the lowest score first
    assert found["false_alarms"].tolist() == [6, 7]


def test_pictures_are_small_and_name_their_row(shop):
    made = make_gallery(scored(shop, [3, 1, 2, -1, -4, -2, 5, 0.5, 9]), shop)
    assert [t.tag for t in made.tags] == ["blue", "red"]
    red = made.tags[1]
    first = red.hits[0]
    assert (first.image_id, first.row, first.name) == ("i0", 1, "images/0.jpg")
    assert first.margin == pytest.approx(3)
    assert first.source.startswith("data:image/jpeg;base64,")
    unreadable = red.false_alarms[0]
    assert (unreadable.image_id, unreadable.source) == ("i8", "")
    assert len(first.source) < 4 * SIDE * SIDE


def test_the_bytes_are_bounded_tag_by_tag(shop):
    model = scored(shop, [3, 1, 2, -1, -4, -2, 5, 0.5, -9])
    whole = make_gallery(model, shop)
    sizes = [
        sum(len(p.source) for kind in (t.hits, t.misses, t.false_alarms) for p in kind)
        for t in whole.tags
    ]
    part = make_gallery(model, shop, max_bytes=sizes[0])
    assert part.tags == whole.tags[:1]
    assert part.n_left_out == 1
    assert make_gallery(model, shop, max_bytes=sizes[0] - 1).tags == ()


def test_tags_are_chosen_from_hard_to_easy_the_tail_first(shop):
    rng = np.random.default_rng(0)
    n_tags = 30
    labels = (rng.random((400, n_tags)) < 0.1).astype(np.int8)
    skill = np.linspace(0, 5, n_tags)
    logits = (rng.normal(size=labels.shape) + skill * (2 * labels - 1)).astype(np.float32)
    count = np.repeat([600, 60, 5], 10)
    labels[:, 25] = 0  # a tag without enough positives is not shown
    table = replace(
        shop.table, tags=tuple(f"t{k}" for k in range(n_tags)), labels=labels, train_count=count
    )
    model = Aligned(
        np.arange(400), logits, logits >= 0, np.zeros(n_tags, np.float32), labels, np.array([])
    )
    chosen = chosen_tags(model, table)
    assert len(chosen) == 12
    assert table.group[chosen].tolist() == ["tail"] * 6 + ["common"] * 3 + ["frequent"] * 3
    assert 25 not in chosen
    f1 = [2 * (model.predicted[:, k] & (labels[:, k] == 1)).sum()
          / (model.predicted[:, k].sum() + labels[:, k].sum()) for k in chosen]  # fmt: skip
    assert f1[:6] == sorted(f1[:6])


def page(report):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Drawing, "svg", lambda self: {"wide": "", "narrow": ""})
        return render_page(report)


def test_the_page_links_each_tag_to_its_row_and_escapes_names(bakeoff, shop):
    made = make_gallery(scored(shop, [3, 1, 2, -1, -4, -2, 5, 0.5, -9]), shop)
    evil = replace(made, tags=tuple(replace(t, tag=EVIL) for t in made.tags), n_left_out=3)
    pair = ConfusedPair(EVIL, "navy", 7, 14, 0.5, "colour", True)
    html = page(Report(bakeoff, decide(bakeoff), gallery=evil, confused=(pair,)))
    assert "What goes wrong" in html
    assert '<a href="#tag-1">' in html
    assert len(re.findall(r'<tr id="tag-1"', html)) == 1
    assert EVIL not in html
    assert "3 more tags were left out" in html
    assert "50.0 %" in html
    n = sum(bool(p.source) for t in made.tags for p in (*t.hits, *t.misses, *t.false_alarms))
    assert html.count("<img src=") == n


def test_without_pictures_there_is_no_gallery(bakeoff):
    assert "What goes wrong" not in page(Report(bakeoff, decide(bakeoff)))
    empty = page(Report(bakeoff, decide(bakeoff), gallery=Gallery(())))
    assert "<img" not in empty
