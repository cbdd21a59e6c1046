"""The page of a drift comparison: whole, escaped, small, and legible on a phone."""

import io
import re
from dataclasses import replace
from pathlib import Path

from PIL import Image
from rich.console import Console

from retailtag.images.memory import MemoryImages
from retailtag.report.drift.page import MAX_BYTES, drift_page
from retailtag.report.drift.tables import drift_tables
from retailtag.report.drift.words import verdict


def test_the_page_holds_everything_and_loads_nothing(drift_html):
    assert drift_html.startswith("<!doctype html>") or "<!doctype html>" in drift_html[:400]
    assert not re.search(r'(?:src|href)="(?!data:image/jpeg|#)', drift_html)
    assert "http" not in re.sub(r"data:image/jpeg;base64,[^\"]+", "", drift_html)
    for title in ("Most novel images", "Tag rates", "Image properties", "How it was compared"):
        assert title in drift_html
    assert drift_html.count("<svg") == 4  # two figures, wide and narrow
    assert "unreadable" in drift_html


def test_names_cannot_become_markup(drift_html):
    assert "<script>alert" not in drift_html
    assert "&lt;script&gt;alert" in drift_html


def test_the_most_novel_image_comes_first_with_its_share(drift_html):
    captions = re.findall(r"<figcaption>(.*?)<br>(.*?)</figcaption>", drift_html)
    assert captions[0] == ("gone.jpg", "2.0 %")
    assert captions[1] == ("one.jpg", "50.0 %")


def test_pictures_stay_within_their_budget(drift, monkeypatch):
    monkeypatch.setattr("retailtag.report.drift.page.MAX_BYTES", 9000)
    picture = Image.effect_noise((96, 96), 90).convert("RGB")
    images = MemoryImages(Path(), list(drift.names), [picture] * 3)
    page = drift_page(drift, images, drift.names)
    assert 1 <= page.count('src="data:') < 3
    assert MAX_BYTES < 500_000


def test_what_is_printed_fits_a_terminal_of_80_columns(drift):
    console = Console(width=80, file=io.StringIO(), markup=False)
    for part in drift_tables(drift):
        console.print(part)
    text = console.file.getvalue()
    assert max(map(len, text.splitlines())) <= 80
    assert "Drift: tag rates, image properties" in text
    assert "1. Fix the input. It is so. Do that." in text


def test_the_verdict_names_what_drifted(drift):
    quiet = replace(drift, families=tuple(replace(f, has_drifted=False) for f in drift.families))
    assert verdict(quiet) == "No drift"
    assert not quiet.moved_tags
    assert not quiet.moved_properties
    assert drift.to_json()["families"][0]["name"] == "embeddings"
