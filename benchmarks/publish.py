"""Publish a finished bake-off: its report, pictures and a table with command, machine and date.

python benchmarks/publish.py RUN results/NAME ["a sentence about the run"]
"""

from __future__ import annotations

import datetime
import shutil
import sys
from pathlib import Path

from retailtag.files import write_text
from retailtag.report.beside import summary_md
from retailtag.report.decision import decide
from retailtag.report.report import Report
from retailtag.report.results import BakeoffResult

FILES = ("report.html", "summary.png", "tail.png")


def page(report: Report, sentence: str) -> str:
    """Markdown of one published bake-off."""
    today = datetime.datetime.now(datetime.UTC).date()
    return "\n\n".join(
        filter(None, [f"# {report.result.catalog['name']}, {today}", sentence, summary_md(report)])
    )


def main() -> None:
    """Copy the report and write the page."""
    run, destination = Path(sys.argv[1]), Path(sys.argv[2])
    destination.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        shutil.copyfile(run / name, destination / name)
    result = BakeoffResult.load(run / "bakeoff.json")
    report = Report(result, decide(result))
    write_text(destination / "README.md", page(report, " ".join(sys.argv[3:])))


if __name__ == "__main__":
    main()
