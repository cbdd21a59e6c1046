"""The page of a drift comparison: whole, escaped, small, and legible on a phone."""

import io
import re
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from retailtag.images.memory import MemoryImages
from retailtag.report.drift.page import MAX_BYTES, drift_page
from retailtag.report.drift.tables import drift_tables
from retailtag.report.drift.words import verdict
from retailtag.statistics.drift import (
    FAMILIES,
    DriftResult,
    Embeddings,
    Estimate,
    Family,
    Novelty,
    Remedy,
    Shift,
    TagShift,
)

EVIL = '<script>alert("x")</script>'
HALF = Estimate(0.5, 0.4, 0.6)


@pytest.fixture(scope="module")
def result():
    """A comparison in which tags and properties drifted, with names that are markup."""
    p = dict.fromkeys(FAMILIES, 0.4) | {"tags": 0.002, "properties": 0.01}
    rates = Estimate(0.1, 0.08, 0.12), Estimate(0.3, 0.25, 0.36), Estimate(0.2, 0.15, 0.25)
    tags = [TagShift(EVIL, *rates, 0.001)]
    tags += [TagShift(f"tag {k}", HALF, HALF, Estimate(0, -0.1, 0.1), 0.9) for k in range(14)]
    less = Estimate(0.1, 0, 0.2)
    bins = (0.0, 1.0, 2.0), (0.5, 0.5), (0.1, 0.9)
    return DriftResult(
        n_reference=500,
        n_new=3,
        n_reference_groups=200,
        n_new_groups=3,
        alpha=0.05,
        permutations=999,
        p=0.005,
        families=tuple(Family(k, v, v, v < 0.05) for k, v in p.items()),
        embeddings=Embeddings(0.001, 12.5, HALF, 0.7),
        novelty=Novelty(0.05, Estimate(0.04, 0.01, 0.1), (2, 0, 1), (0.5, 1.0, 0.02)),
        confidences=(Shift("top_logit", 500, 3, (0, 1, 2), (0, 1, 2), HALF, 0.1, 0.9, *bins),),
        properties=(
            Shift("sharpness", 500, 3, (5, 9, 12), (1, 2, 3), less, 0.9, 0.01, *bins),
            Shift("jpeg_quality", 0, 0, (0, 0, 0), (0, 0, 0), HALF, 0, 1.0),
        ),
        kinds={"JPEG": (1.0, 0.5), "PNG": (0.0, 0.5)},
        kinds_p=0.2,
        tags=tuple(tags),
        names=("a/one.jpg", f"{EVIL}.jpg", "gone.jpg"),
        reference="test split",
        remedies=(Remedy("input", "It is so.", "Do that."),),
        notes=("A note.",),
        facts={"model": "abc"},
    )


@pytest.fixture(scope="module")
def page(result):
    picture = Image.effect_noise((300, 200), 90).convert("RGB")
    images = MemoryImages(Path(), list(result.names), [picture, picture, b"damaged"])
    return drift_page(result, images, result.names)


def test_the_page_holds_everything_and_loads_nothing(page):
    assert page.startswith("<!doctype html>") or "<!doctype html>" in page[:400]
    assert not re.search(r'(?:src|href)="(?!data:image/jpeg|#)', page)
    assert "http" not in re.sub(r"data:image/jpeg;base64,[^\"]+", "", page)
    for title in ("Most novel images", "Tag rates", "Image properties", "How it was compared"):
        assert title in page
    assert page.count("<svg") == 4  # two figures, wide and narrow
    assert "unreadable" in page


def test_names_cannot_become_markup(page):
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert" in page


def test_the_most_novel_image_comes_first_with_its_share(page):
    captions = re.findall(r"<figcaption>(.*?)<br>(.*?)</figcaption>", page)
    assert captions[0] == ("gone.jpg", "2.0 %")
    assert captions[1] == ("one.jpg", "50.0 %")


def test_pictures_stay_within_their_budget(result, monkeypatch):
    monkeypatch.setattr("retailtag.report.drift.page.MAX_BYTES", 9000)
    picture = Image.effect_noise((96, 96), 90).convert("RGB")
    images = MemoryImages(Path(), list(result.names), [picture] * 3)
    page = drift_page(result, images, result.names)
    assert 1 <= page.count('src="data:') < 3
    assert MAX_BYTES < 500_000


def test_what_is_printed_fits_a_terminal_of_80_columns(result):
    console = Console(width=80, file=io.StringIO(), markup=False)
    for part in drift_tables(result):
        console.print(part)
    text = console.file.getvalue()
    assert max(map(len, text.splitlines())) <= 80
    assert "Drift: tag rates, image properties" in text
    assert "1. Fix the input. It is so. Do that." in text


def test_the_verdict_names_what_drifted(result):
    quiet = replace(result, families=tuple(replace(f, has_drifted=False) for f in result.families))
    assert verdict(quiet) == "No drift"
    assert not quiet.moved_tags
    assert not quiet.moved_properties
    assert result.to_json()["families"][0]["name"] == "embeddings"
