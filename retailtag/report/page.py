"""The report as one HTML page that needs nothing but itself.

Every section is a function that gives plain data, and a template that writes it out:
``assets/sections/KEY.html.jinja``. Jinja2 escapes whatever comes from data (tags, ids, commands);
only SVG figures and line breaks made here are markup.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment
from markupsafe import Markup

from retailtag.report.report import Report
from retailtag.report.sections.costs import costs
from retailtag.report.sections.curves import curves
from retailtag.report.sections.families import families
from retailtag.report.sections.findings import findings
from retailtag.report.sections.gallery import gallery
from retailtag.report.sections.headline import headline
from retailtag.report.sections.provenance import provenance
from retailtag.report.sections.ranking import ranking
from retailtag.report.sections.tags import tags
from retailtag.report.sections.tradeoff import tradeoff
from retailtag.report.tables import duration, milliseconds, points
from retailtag.report.templates import environment
from retailtag.report.theme import strategy_name


@dataclass(frozen=True)
class Section:
    """One section of the page; one whose data are None is left out, title and all."""

    key: str  # anchor, and name of the template
    title: str
    data: Callable[[Report], Any]


SECTIONS = (  # in the order of the page, below the headline
    Section("ranking", "Ranking", ranking),
    Section("tradeoff", "Quality against cost", tradeoff),
    Section("families", "The tail", families),
    Section("costs", "Costs and latency", costs),
    Section("tags", "Tag by tag", tags),
    Section("gallery", "What goes wrong", gallery),
    Section("curves", "Curves", curves),
    Section("findings", "Findings", findings),
    Section("provenance", "Provenance", provenance),
)


def render_page(report: Report) -> str:
    """Whole page as text; deterministic for equal input."""
    templates = template_environment()

    def written(key: str, data: Any) -> Markup:
        template = templates.get_template(f"sections/{key}.html.jinja")
        return Markup(template.render(report=report, data=data))

    shown = [(section, section.data(report)) for section in SECTIONS]
    sections = [
        (section, written(section.key, data)) for section, data in shown if data is not None
    ]
    title = f"retailtag bake-off: {report.names[report.decision.winner]}"
    return templates.get_template("report.html.jinja").render(
        title=title,
        headline=written("headline", headline(report)),
        sections=sections,
    )


def template_environment() -> Environment:
    """Templates of the pages, which escape whatever comes from data, and their filters."""
    templates = environment(keep_trailing_newline=True)
    templates.filters.update(
        breakable=_breakable,
        duration=duration,
        milliseconds=milliseconds,
        points=points,
        sort_key=_sort_key,
        strategy=strategy_name,
        thousands="{:,}".format,
    )
    return templates


def _breakable(name: str) -> Markup:
    """Id that may break after an underscore."""
    return Markup("_<wbr>").join(name.split("_"))


def _sort_key(value: float) -> str:
    """What ``report.js`` sorts a cell by; empty values come last."""
    return "" if math.isnan(value) else f"{value:.4f}"
