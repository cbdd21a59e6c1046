"""The comparison on one HTML page that needs nothing but itself, in the look of the report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from retailtag.images.sources import ImageSource
from retailtag.report.drift.figures import properties_drawing, tags_drawing
from retailtag.report.drift.words import (
    ACTIONS,
    FAMILY_NAMES,
    FIGURE_NAMES,
    effect,
    p_text,
    percent,
    verdict,
)
from retailtag.report.gallery import SIDE, data_uri
from retailtag.report.page import template_environment
from retailtag.statistics.drift import DriftResult

SHOWN = 24  # of the most novel images
MAX_BYTES = 400_000  # of their base64 on the page


@dataclass(frozen=True)
class NovelImage:
    """One of the most novel images; no source if it cannot be read."""

    name: str
    p: float
    source: str


@dataclass(frozen=True)
class Part:
    """A section of the page."""

    key: str
    title: str


PARTS = (
    Part("tests", "What was tested"),
    Part("novel", "Most novel images"),
    Part("rates", "Tag rates"),
    Part("properties", "Image properties"),
    Part("method", "How it was compared"),
)


def drift_page(result: DriftResult, images: ImageSource, names: Sequence[str]) -> str:
    """Whole page as text.

    Parameters
    ----------
    result : DriftResult
    images : ImageSource
        Of the new images.
    names : sequence of str
        Their names by row of the source.
    """
    environment = template_environment()
    environment.filters.update(percent=percent, p=p_text)
    data = {
        "result": result,
        "verdict": verdict(result),
        "families": [(f, FAMILY_NAMES[f.name], effect(result, f.name)) for f in result.families],
        "figure_names": FIGURE_NAMES,
        "actions": ACTIONS,
        "novel": _novel_images(result, images, names),
        "tags_figure": tags_drawing(result) if result.tags else None,
        "properties_figure": properties_drawing(result),
    }

    def written(key: str) -> Markup:
        return Markup(environment.get_template(f"drift/{key}.html.jinja").render(data))

    return environment.get_template("report.html.jinja").render(
        title=f"retailtag drift: {verdict(result)}",
        headline=written("headline"),
        sections=[(part, written(part.key)) for part in PARTS],
    )


def _novel_images(
    result: DriftResult, images: ImageSource, names: Sequence[str]
) -> list[NovelImage]:
    """The most novel images within the budget of bytes."""
    rows = {str(name): row for row, name in enumerate(names)}
    found: list[NovelImage] = []
    left = MAX_BYTES
    for place in result.novelty.order[:SHOWN]:
        name = result.names[place]
        source = data_uri(images, rows[name], SIDE)
        left -= len(source)
        if left < 0:
            break
        found.append(NovelImage(name, result.novelty.p[place], source))
    return found
