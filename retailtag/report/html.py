"""The report as one HTML page that needs nothing but itself.

Everything that comes from data (tags, ids, commands) goes through `esc`; the page's own words
are written here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from importlib.resources import files
from typing import Any

from retailtag.report import plots
from retailtag.report.decision import Decision
from retailtag.report.elements import breakable, esc, html_row, html_table
from retailtag.report.results import BakeoffResult, PairResult
from retailtag.report.rules import heads_table, rules_table
from retailtag.report.tables import duration, milliseconds, points
from retailtag.report.theme import short_backbones, short_names, strategy_name, style, to_svg
from retailtag.scoring.finding import Finding
from retailtag.scoring.scorecard import SCOPES, GroupSummary, TagRow

SECTIONS = (
    ("ranking", "Ranking"),
    ("cost", "Quality against cost"),
    ("tail", "The tail"),
    ("tags", "Tag by tag"),
    ("findings", "Findings"),
    ("repeat", "Provenance"),
)


def render_html(result: BakeoffResult, decision: Decision) -> str:
    """Whole page as text; deterministic for equal input."""
    body = "\n".join(
        [
            _answer(result, decision),
            _ranking(result, decision),
            _cost(result, decision),
            _tail(result, decision),
            _tags(result, decision),
            _findings(result),
            _provenance(result),
        ]
    )
    return (
        '<!doctype html>\n<html lang="en-GB">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>retailtag bake-off: {esc(short_names(result)[decision.winner])}</title>\n"
        f"<style>\n{_asset('report.css')}</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n"
        f"<script>\n{_asset('report.js')}</script>\n</body>\n</html>\n"
    )


def _asset(name: str) -> str:
    return files("retailtag.report").joinpath("assets", name).read_text(encoding="utf-8")


def _section(name: str, *parts: str) -> str:
    title = dict(SECTIONS)[name]
    inner = "\n".join(part for part in parts if part)
    return (
        f'<section id="{name}" aria-labelledby="{name}-title">\n'
        f'<h2 id="{name}-title">{title}</h2>\n{inner}\n</section>'
    )


def _figure(
    draw: Callable[[BakeoffResult, Decision], Any],
    result: BakeoffResult,
    decision: Decision,
    title: str,
    caption: str,
) -> str:
    """One inline figure; `title` and `caption` are escaped here."""
    with style(salt=draw.__name__):
        figure = draw(result, decision)
        if figure is None:
            return ""
        svg = to_svg(figure, esc(title), esc(caption))
    return f"<figure>\n{svg}\n<figcaption>{esc(caption)}</figcaption>\n</figure>"


def _interval(s: GroupSummary) -> str:
    if not s.n_tags:
        return "<td>–</td>"
    low, high = points(s.macro_f1_low), points(s.macro_f1_high)
    return f"<td>{points(s.macro_f1)}<small>{low} to {high}</small></td>"


# The answer ----------------------------------------------------------------------------------


def _answer(result: BakeoffResult, decision: Decision) -> str:
    winner = result.pair(decision.winner)
    name, verb = esc(short_backbones(result)[winner.backbone]), esc(strategy_name(winner))
    reasons = "".join(f"<li>{esc(_shortened(r, result))}</li>" for r in decision.reasons)
    links = "".join(f'<a href="#{key}">{title}</a>' for key, title in SECTIONS)
    return (
        f'<header>\n<p class="kicker">retailtag bake-off · {_catalogue_line(result)}</p>\n'
        f"<h1>Use <span>{name}</span> with a <span>{verb}</span></h1>\n"
        f"{_key_figures(winner)}\n"
        f'<h3>Why</h3>\n<ol class="reasons">{reasons}</ol>\n'
        f"<details><summary>The rule, as written before the scores were seen</summary>\n"
        f"<p>{esc(decision.rule)}</p>\n</details>\n"
        f'<nav aria-label="Sections">{links}</nav>\n</header>'
    )


def _shortened(sentence: str, result: BakeoffResult) -> str:
    """Sentence with pairs under the names that the figures use."""
    for full, short in short_names(result).items():
        sentence = sentence.replace(full, short)
    return sentence


def _catalogue_line(result: BakeoffResult) -> str:
    facts, images = result.catalog, result.catalog.get("images", {})
    parts = [
        esc(facts.get("name", "catalogue")),
        f"{facts.get('tags', 0):,} tags",
        f"{images.get('train', 0):,} training images",
        f"{result.pairs[0].scorecard.n_images:,} held-out images",
        f"{len(result.pairs)} pairs",
    ]
    return " · ".join(parts)


def _key_figures(winner: PairResult) -> str:
    every, tail = (winner.scorecard.summaries[scope] for scope in ("all", "tail"))
    cost = winner.cost
    figures = [
        ("Macro-F1, all tags", points(every.macro_f1), _range(every)),
        ("Macro-F1, tail tags", points(tail.macro_f1), _range(tail)),
        (
            "Latency of one image",
            f"{milliseconds(cost.latency_ms_p50)} ms",
            f"95 % of images within {milliseconds(cost.latency_ms_p95)} ms",
        ),
        (
            "Training",
            duration(cost.train_seconds),
            f"peak memory {milliseconds(cost.peak_memory_mib)} MiB",
        ),
    ]
    cells = "".join(
        f"<div><dt>{label}</dt><dd>{value}<small>{note}</small></dd></div>"
        for label, value, note in figures
    )
    return f'<dl class="figures">{cells}</dl>'


def _range(s: GroupSummary) -> str:
    if not s.n_tags:
        return "no tag with a held-out positive"
    return f"95 %: {points(s.macro_f1_low)} to {points(s.macro_f1_high)}, {s.n_tags} tags"


# Ranking, cost, tail -------------------------------------------------------------------------


def _standing(pair: PairResult, decision: Decision) -> str:
    if pair.name == decision.winner:
        return ' <span class="chip best">recommended</span>'
    return ' <span class="chip">tied</span>' if pair.name in decision.ties else ""


def _pair_head(pair: PairResult, result: BakeoffResult, decision: Decision) -> str:
    return breakable(short_names(result)[pair.name]) + _standing(pair, decision)


def _css(pair: PairResult, decision: Decision) -> str:
    return "winner" if pair.name == decision.winner else ""


def _ranking(result: BakeoffResult, decision: Decision) -> str:
    rows = [
        html_row(
            _pair_head(pair, result, decision),
            [
                *(_interval(pair.scorecard.summaries[scope]) for scope in SCOPES),
                f"<td>{points(pair.scorecard.summaries['all'].macro_ap)}</td>",
                f"<td>{points(pair.scorecard.micro_f1)}</td>",
            ],
            _css(pair, decision),
        )
        for pair in result.ranking
    ]
    counts = result.pairs[0].scorecard.summaries
    head = ["Pair", *(f"{s.capitalize()}<br>{counts[s].n_tags} tags" for s in SCOPES)]
    table = html_table(
        [*head, "Macro-AP", "Micro-F1"],
        rows,
        "Macro-F1 × 100 with 95 % intervals (products are the unit; the bias of F1 from few "
        "positives is taken off). Every average covers the tags with a positive among the "
        "held-out images, the same for all pairs.",
    )
    figure = _figure(
        plots.ranking_figure,
        result,
        decision,
        "Macro-F1 of every pair with its interval",
        "Macro-F1 over all tags and over the tail. Hollow: linear probe; filled: fine-tune. "
        "Overlapping intervals do not mean a tie: the rule compares pairs on the same images.",
    )
    return _section("ranking", figure, f'<div class="scroll">{table}</div>')


def _cost(result: BakeoffResult, decision: Decision) -> str:
    figure = _figure(
        plots.quality_cost_figure,
        result,
        decision,
        "Macro-F1 over latency",
        "Macro-F1 over all tags against the latency of one image; the bubble grows with training "
        "time. Dotted steps join the pairs that no other beats in both; without steps, one pair "
        "beats all.",
    )
    rows = [
        html_row(
            _pair_head(pair, result, decision),
            [
                f"<td>{points(pair.scorecard.summaries['all'].macro_f1)}</td>",
                f"<td>{milliseconds(pair.cost.latency_ms_p50)}"
                f"<small>p95 {milliseconds(pair.cost.latency_ms_p95)}</small></td>",
                f"<td>{milliseconds(pair.cost.images_per_second)}</td>",
                f"<td>{duration(pair.cost.train_seconds)}</td>",
                f"<td>{milliseconds(pair.cost.peak_memory_mib)}</td>",
                f"<td>{pair.cost.parameters / 1e6:,.1f}</td>",
                f"<td>{milliseconds(pair.cost.weights_mib)}</td>",
            ],
            _css(pair, decision),
        )
        for pair in result.ranking
    ]
    table = html_table(
        ["Pair", "Macro-F1", "Latency, ms", "Images / s", "Training", "Peak memory, MiB",
         "Parameters, M", "Weights, MiB"],
        rows,
        "Measured on this machine. Latency: one image, from its bytes to its tags. Training "
        "includes embedding the training images where a strategy reads them. Peak memory: the most "
        "that training took at one time, the model included, libraries not.",
    )  # fmt: skip
    return _section("cost", figure, f'<div class="scroll">{table}</div>')


def _tail(result: BakeoffResult, decision: Decision) -> str:
    cut = plots.cutoffs(result)["tail"]
    curve = _figure(
        plots.tail_figure,
        result,
        decision,
        "Mean F1 by number of training images",
        f"Tags grouped by their training images; shaded: the tail, under {cut}. Dashed and "
        "hollow: linear probe; solid: fine-tune.",
    )
    gaps = _figure(
        plots.gaps_figure,
        result,
        decision,
        "Tags whose F1 differs most between linear probe and fine-tune",
        "Tags with at least 10 held-out positives; the widest gains of fine-tuning first, then "
        "the widest losses. Single tags differ by chance too: read the pattern, not one row.",
    )
    smallest = decision.smallest_difference.get("tail")
    note = (
        f"<p>With these held-out images, a difference between two pairs on the tail shows "
        f"reliably from about {points(smallest)} points.</p>"
        if smallest is not None
        else ""
    )
    return _section("tail", note, curve, gaps, heads_table(result), rules_table(result))


# Tag by tag ----------------------------------------------------------------------------------


def _tags(result: BakeoffResult, decision: Decision) -> str:
    winner = result.pair(decision.winner)
    others = [p for p in result.ranking if p is not winner]
    short = short_backbones(result)
    names = [
        f"{breakable(short[p.backbone])}<br>{esc(strategy_name(p))}" for p in [winner, *others]
    ]
    head = ["Tag", "Group", "Training<br>images", "Held-out<br>positives", "AP of the<br>winner"]
    columns = [p.scorecard.tags for p in (winner, *others)]
    rows = [_tag_row(row, tuple(c[j] for c in columns)) for j, row in enumerate(columns[0])]
    table = html_table(
        [*head, *names],
        rows,
        "F1 × 100 of every pair, the recommended one first. Grey: fewer than 10 held-out "
        "positives. Click a heading to sort.",
        attributes=' id="tag-table" class="sortable"',
        sortable=True,
    )
    box = (
        '<p><input type="search" data-filters="tag-table" placeholder="Find a tag" '
        'aria-label="Find a tag"></p>'
    )
    return _section("tags", box, f'<div class="tall" tabindex="0">{table}</div>')


def _tag_row(row: TagRow, pairs: Sequence[TagRow]) -> str:
    css = ' class="low"' if row.low_support else ""
    cells = [
        f'<td class="text">{row.group}</td>',
        f'<td data-value="{row.train_count}">{row.train_count:,}</td>',
        f'<td data-value="{row.support}">{row.support:,}</td>',
        *(_value_cell(value, css) for value in (row.ap, *(p.f1 for p in pairs))),
    ]
    return html_row(esc(row.tag), cells)


def _value_cell(value: float, css: str) -> str:
    shown = "" if math.isnan(value) else f"{value:.4f}"
    return f'<td{css} data-value="{shown}">{points(value)}</td>'


# Findings and provenance ---------------------------------------------------------------------


def _findings(result: BakeoffResult) -> str:
    names = short_names(result)
    found: dict[str, list[tuple[str, Finding]]] = {}
    for finding in result.findings:
        found.setdefault(finding.code, []).append(("", finding))
    for pair in result.ranking:
        for finding in pair.scorecard.findings:
            found.setdefault(finding.code, []).append((names[pair.name], finding))
    if not found:
        return _section("findings", "<p>None.</p>")
    items = "".join(_finding(group, len(result.pairs)) for group in found.values())
    return _section("findings", f'<ol class="findings">{items}</ol>')


def _finding(group: Sequence[tuple[str, Finding]], n_pairs: int) -> str:
    """Findings of one code: said once where all pairs share it, else a line a pair."""
    sentences = {f.sentence for _, f in group}
    if len(sentences) == 1 and len(group) == n_pairs:
        group = [("", group[0][1])]
    lines = [f"{esc(name)}: {esc(f.sentence)}" if name else esc(f.sentence) for name, f in group]
    items = "".join(f"<li>{line}</li>" for line in lines)
    said = lines[0] if len(lines) == 1 else f"<ul>{items}</ul>"
    code, remedy = esc(group[0][1].code), esc(group[0][1].remedy)
    return f'<li><strong>{code}</strong> {said}<br><span class="note">{remedy}</span></li>'


def _engines(result: BakeoffResult) -> dict[str, str]:
    """What computed the embeddings of each backbone, where its predictions say."""
    found = {}
    for pair in result.pairs:
        stored = pair.scorecard.provenance.get("predictions", {}).get("stored_as", {})
        if "engine" in stored:
            found[f"Embeddings of {pair.backbone}"] = f"{stored['engine']}, as {stored['dtype']}"
    return found


def _provenance(result: BakeoffResult) -> str:
    facts: list[tuple[str, object]] = [
        ("Catalogue", f"{result.catalog.get('name')}, digest {result.catalog.get('digest')}"),
        ("Seed", result.seed),
        *((f"Machine: {key}", value) for key, value in result.machine.items()),
        *_engines(result).items(),
        *((p.name, json.dumps(p.scorecard.provenance, sort_keys=True)) for p in result.pairs),
    ]
    rows = "".join(f"<dt>{esc(key)}</dt><dd>{esc(value)}</dd>" for key, value in facts)
    return _section(
        "repeat",
        f"<p>To repeat it:</p>\n<pre><code>{esc(result.command)}</code></pre>",
        f"<details><summary>Everything that was read</summary>\n"
        f'<dl class="facts">{rows}</dl>\n</details>',
        '<p class="note">The figures behind this page are in <code>bakeoff.json</code> beside '
        "it.</p>",
    )
