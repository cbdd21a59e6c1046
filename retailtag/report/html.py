"""The report as one HTML page that needs nothing but itself; the page's words are its template's.

The template is ``assets/report.html.jinja``. Jinja2 escapes whatever comes from data (tags, ids,
commands); only the SVG figures and the line breaks made here are markup.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from retailtag.report import plots
from retailtag.report.decision import RULE, Decision
from retailtag.report.results import BakeoffResult
from retailtag.report.rules import heads_tried, rules_tried
from retailtag.report.tables import duration, milliseconds, points
from retailtag.report.theme import short_backbones, short_names, strategy_name, style, to_svg
from retailtag.scoring.finding import Finding
from retailtag.scoring.scorecard import SCOPES

SECTIONS = {
    "ranking": "Ranking",
    "cost": "Quality against cost",
    "tail": "The tail",
    "tags": "Tag by tag",
    "findings": "Findings",
    "repeat": "Provenance",
}
FIGURES = {
    "ranking": plots.ranking_figure,
    "cost": plots.quality_cost_figure,
    "tail": plots.tail_figure,
    "gaps": plots.gaps_figure,
}


def render_html(result: BakeoffResult, decision: Decision) -> str:
    """Whole page as text; deterministic for equal input."""
    environment = Environment(
        loader=PackageLoader("retailtag.report", "assets"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(
        breakable=_breakable,
        duration=duration,
        milliseconds=milliseconds,
        points=points,
        sort_key=_sort_key,
        strategy=strategy_name,
        thousands="{:,}".format,
        with_short_names=lambda sentence: _with_short_names(sentence, result),
    )
    winner = result.pair(decision.winner)
    return environment.get_template("report.html.jinja").render(
        result=result,
        decision=decision,
        winner=winner,
        winner_first=[winner, *(p for p in result.ranking if p is not winner)],
        names=short_names(result),
        backbones=short_backbones(result),
        sections=SECTIONS,
        rule=RULE,
        scopes=SCOPES,
        tail_cutoff=plots.cutoffs(result)["tail"],
        draw=_drawer(result, decision),
        heads_tried=heads_tried(result),
        rules_tried=rules_tried(result),
        findings=_findings(result),
        provenance=_provenance(result),
    )


def _drawer(result: BakeoffResult, decision: Decision) -> Callable[[str, str, str], Markup]:
    """Function (name, title, caption) that gives one figure as SVG, empty if it shows nothing."""

    def draw(name: str, title: str, caption: str) -> Markup:
        make = FIGURES[name]
        with style(salt=make.__name__):
            figure = make(result, decision)
            if figure is None:
                return Markup()
            # the title and caption are escaped here; the rest is matplotlib's SVG, which escapes
            return Markup(to_svg(figure, str(escape(title)), str(escape(caption))))

    return draw


def _breakable(name: str) -> Markup:
    """Id that may break after an underscore."""
    return Markup("_<wbr>").join(name.split("_"))


def _sort_key(value: float) -> str:
    """What ``report.js`` sorts a cell by; empty values come last."""
    return "" if math.isnan(value) else f"{value:.4f}"


def _with_short_names(sentence: str, result: BakeoffResult) -> str:
    """Sentence with pairs under the names that the figures use."""
    for full, short in short_names(result).items():
        sentence = sentence.replace(full, short)
    return sentence


@dataclass(frozen=True)
class _SharedFinding:
    """Findings of one code: one line where all pairs share it, else one line per pair."""

    code: str
    remedy: str
    lines: list[str]


def _findings(result: BakeoffResult) -> list[_SharedFinding]:
    names = short_names(result)
    by_code: dict[str, list[tuple[str, Finding]]] = {}
    for finding in result.findings:
        by_code.setdefault(finding.code, []).append(("", finding))
    for pair in result.ranking:
        for finding in pair.scorecard.findings:
            by_code.setdefault(finding.code, []).append((names[pair.name], finding))
    found = []
    for code, group in by_code.items():
        lines = [f"{name}: {f.sentence}" if name else f.sentence for name, f in group]
        if len({f.sentence for _, f in group}) == 1 and len(group) == len(result.pairs):
            lines = [group[0][1].sentence]
        found.append(_SharedFinding(code, group[0][1].remedy, lines))
    return found


def _engines(result: BakeoffResult) -> dict[str, str]:
    """What computed the embeddings of each backbone, where its predictions say."""
    found = {}
    for pair in result.pairs:
        stored = pair.scorecard.provenance.get("predictions", {}).get("stored_as", {})
        if "engine" in stored:
            found[f"Embeddings of {pair.backbone}"] = f"{stored['engine']}, as {stored['dtype']}"
    return found


def _provenance(result: BakeoffResult) -> list[tuple[str, Any]]:
    """Everything that the bake-off read, as (name, value)."""
    return [
        ("Catalogue", f"{result.catalog.get('name')}, digest {result.catalog.get('digest')}"),
        ("Seed", result.seed),
        *((f"Machine: {key}", value) for key, value in result.machine.items()),
        *_engines(result).items(),
        *((p.name, json.dumps(p.scorecard.provenance, sort_keys=True)) for p in result.pairs),
    ]
