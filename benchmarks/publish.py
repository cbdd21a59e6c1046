"""Publish a finished bake-off: its report, pictures and a table with command, machine and date.

python benchmarks/publish.py RUN results/NAME ["a sentence about the run"]
"""

from __future__ import annotations

import datetime
import shutil
import sys
from pathlib import Path

from retailtag.files import write_text
from retailtag.report.decision import decide
from retailtag.report.results import BakeoffResult, PairResult

FILES = ("report.html", "summary.png", "tail.png")
HEAD = (
    "| pair | macro-F1 (95 % interval) | tail macro-F1 (95 % interval) | macro-AP | micro-F1 "
    "| training, s | one image, ms | peak memory, MiB |"
)


def row(pair: PairResult) -> str:
    """One pair as a row of the table; scores times 100."""
    card, cost = pair.scorecard, pair.cost
    scores = [
        f"{100 * s.macro_f1:.2f} ({100 * s.macro_f1_low:.1f} to {100 * s.macro_f1_high:.1f})"
        for s in (card.summaries["all"], card.summaries["tail"])
    ]
    cells = [
        f"`{pair.backbone}` {pair.strategy}",
        *scores,
        f"{100 * card.summaries['all'].macro_ap:.2f}",
        f"{100 * card.micro_f1:.2f}",
        f"{cost.train_seconds:,.0f}",
        f"{cost.latency_ms_p50:.1f}",
        f"{cost.peak_memory_mib:,.0f}",
    ]
    return "| " + " | ".join(cells) + " |"


def page(result: BakeoffResult, sentence: str) -> str:
    """Markdown of one published bake-off."""
    decision = decide(result)
    catalog = result.catalog
    today = datetime.datetime.now(datetime.UTC).date()
    lines = [
        f"# {catalog['name']}, {today}",
        "",
        f"{catalog['images']['train']:,} training and {catalog['images']['test']:,} held-out "
        f"images, {catalog['tags']} tags ({catalog['tags_by_group'].get('tail', 0)} in the tail). "
        f"{sentence}",
        "",
        "```sh",
        result.command,
        "```",
        "",
        ", ".join(f"{name}: {value}" for name, value in result.machine.items()),
        "",
        HEAD,
        "|" + "---|" * (HEAD.count("|") - 1),
        *(row(pair) for pair in result.ranking),
        "",
        f"Recommended: **{decision.winner}**, decided by {decision.decided_by}.",
        "",
        *(f"- {reason}" for reason in decision.reasons),
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    """Copy the report and write the page."""
    run, destination = Path(sys.argv[1]), Path(sys.argv[2])
    destination.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        shutil.copyfile(run / name, destination / name)
    result = BakeoffResult.load(run / "bakeoff.json")
    write_text(destination / "README.md", page(result, " ".join(sys.argv[3:])))


if __name__ == "__main__":
    main()
