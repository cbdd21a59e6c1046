"""The sheet of predictions: most uncertain images first, within a budget, one file."""

from __future__ import annotations

import base64
import io
import re
from functools import partial
from pathlib import Path

import pytest
from PIL import Image

from retailtag.errors import UnreadableImage, UsageError
from retailtag.report import prediction_sheet
from retailtag.report.prediction_sheet import Sheet, Shown


@pytest.fixture
def shown(picture):
    def make(name, n_uncertain=0, tags=(("red", 0.9),), read=None):
        uncertain = tuple((f"tag{i}", 0.5) for i in range(n_uncertain))
        return Shown(name, read or partial(picture, n_uncertain), tags, uncertain)

    return make


def test_the_images_with_the_most_uncertain_tags_are_kept_and_come_first(shown, tmp_path):
    sheet = Sheet(tmp_path / "a.html", max_images=3)
    for name, n in [("a", 1), ("b", 0), ("c", 2), ("d", 1), ("e", 0), ("f", 1)]:
        sheet.add(shown(name, n))
    assert [image.name for image in sheet.images] == ["c", "a", "d"]
    assert sheet.n == 6
    assert sheet.write("Tags") == 3
    page = (tmp_path / "a.html").read_text()
    assert "3 of 6 images: those with the most uncertain tags, first." in page


def test_a_page_needs_nothing_but_itself_and_escapes_names(shown, tmp_path, picture):
    sheet = Sheet(tmp_path / "a.html")
    tags = (("<b>red</b>", 0.91), ("tag0", 0.5))
    sheet.add(shown("<script>\x1b.jpg", 8, tags))
    sheet.write("Tags <of> it")
    page = (tmp_path / "a.html").read_text()
    assert "<script>" not in page
    assert "&lt;script&gt;\\x1b.jpg" in page
    assert "&lt;b&gt;red&lt;/b&gt; 0.91" in page
    assert '<li class="doubt">? tag0 0.50</li>' in page
    assert "? not tag1 0.50" in page
    assert "? and 2 more" in page
    assert not re.search(r"(src|href)=\"(?!data:)", page)
    (source,) = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', page)
    assert max(Image.open(io.BytesIO(base64.b64decode(source))).size) <= prediction_sheet.SIDE


@pytest.mark.parametrize("name", ["a.html", "a.PNG"])
def test_pictures_keep_to_the_budget(shown, tmp_path, monkeypatch, name):
    whole, less = Sheet(tmp_path / name), Sheet(tmp_path / name)
    for sheet in (whole, less):
        for number in range(12):
            sheet.add(shown(str(number)))
    assert whole.write("Tags") == 12
    budget = (tmp_path / name).stat().st_size * 4 // 5
    monkeypatch.setattr(prediction_sheet, "MAX_BYTES", 3000 if name == "a.html" else budget)
    n = less.write("Tags")
    assert 0 < n < 12
    if name == "a.html":
        assert f"{n} of 12 images" in (tmp_path / name).read_text()
    else:
        assert (tmp_path / name).stat().st_size <= budget


def test_an_image_that_is_gone_has_no_picture(shown, tmp_path):
    def gone():
        raise UnreadableImage("is missing")

    for name in ("a.html", "a.png"):
        sheet = Sheet(tmp_path / name)
        sheet.add(shown("gone.jpg", read=gone))
        assert sheet.write("Tags") == 1
    assert "<img" not in (tmp_path / "a.html").read_text()


def test_a_drawing_is_as_wide_as_it_says_and_breaks_long_names(shown, tmp_path):
    heights = []
    for name in ("x", "x" * 200):
        sheet = Sheet(tmp_path / "a.png")
        sheet.add(shown(name, 2, (("tag0", 0.5),)))
        sheet.write("Tags")
        with Image.open(tmp_path / "a.png") as drawn:
            assert drawn.width == prediction_sheet.WIDTH
            heights.append(drawn.height)
    assert heights[1] > heights[0] + 5 * prediction_sheet.FONT_SIZE


def test_another_ending_is_refused():
    with pytest.raises(UsageError, match=r"--contact-sheet a\.pdf must end in \.html or \.png"):
        Sheet(Path("a.pdf"))
