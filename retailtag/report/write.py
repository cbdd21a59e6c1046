"""Write the files of a report, each whole or not at all."""

from __future__ import annotations

from pathlib import Path

from retailtag.files import write_json, write_text, write_whole
from retailtag.report import plots
from retailtag.report.decision import Decision
from retailtag.report.html import render_html
from retailtag.report.results import BakeoffResult
from retailtag.report.theme import style, to_png

PICTURES = {
    "summary.png": plots.summary_figure,
    "ranking.png": plots.ranking_figure,
    "quality_cost.png": plots.quality_cost_figure,
    "tail.png": plots.tail_figure,
}


def write_report(result: BakeoffResult, decision: Decision, out_dir: Path) -> Path:
    """Write ``report.html``, its pictures as PNG, and ``bakeoff.json`` into a folder.

    All are equal for equal results. Returns the path of ``report.html``, which is written last and
    needs none of the others.
    """
    out_dir = Path(out_dir)
    write_json(out_dir / "bakeoff.json", result.to_json())
    for name, draw in PICTURES.items():
        with style():
            picture = to_png(draw(result, decision))
        with write_whole(out_dir / name) as handle:
            handle.write(picture)
    page = out_dir / "report.html"
    write_text(page, render_html(result, decision))
    return page
