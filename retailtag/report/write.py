"""Write the files of a report, each whole or not at all."""

from __future__ import annotations

from pathlib import Path

from retailtag.files import write_json, write_text, write_whole
from retailtag.report.beside import per_tag_csv, ranking_csv, summary_md
from retailtag.report.curves import Curves
from retailtag.report.figures.cost import quality_cost_figure
from retailtag.report.figures.ranking import ranking_figure
from retailtag.report.figures.summary import summary_figure
from retailtag.report.figures.tail import tail_figure
from retailtag.report.page import render_page
from retailtag.report.report import Report
from retailtag.report.theme import style, to_png

PAGE = 3  # grows when the page or its figures change, so that reports written before are renewed

PICTURES = {
    "summary.png": summary_figure,
    "ranking.png": ranking_figure,
    "quality_cost.png": quality_cost_figure,
    "tail.png": tail_figure,
}


def curves_json(report: Report) -> str:
    """The curves as data; an empty object of each kind where the pairs are not at hand."""
    return (report.curves or Curves()).to_json()


TABLES = {
    "ranking.csv": ranking_csv,
    "per_tag.csv": per_tag_csv,
    "summary.md": summary_md,
    "curves.json": curves_json,
}


def write_report(report: Report, out_dir: Path) -> Path:
    """Write ``report.html``, its pictures and tables, and ``bakeoff.json`` into a folder.

    All are equal for equal results. Returns the path of ``report.html``, which is written last and
    needs none of the others.
    """
    out_dir = Path(out_dir)
    write_json(out_dir / "bakeoff.json", report.result.to_json())
    for name, table in TABLES.items():
        write_text(out_dir / name, table(report))
    for name, draw in PICTURES.items():
        with style():
            picture = to_png(draw(report.result, report.decision))
        with write_whole(out_dir / name) as handle:
            handle.write(picture)
    page = out_dir / "report.html"
    write_text(page, render_page(report))
    return page
