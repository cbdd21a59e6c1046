"""Rows of the published tables: with what was it measured, and on what."""

from __future__ import annotations

import csv
import datetime
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from retailtag.runs.machine import describe_machine

RESULTS = Path(__file__).parents[1] / "results"


def stamp() -> dict[str, object]:
    """Date, revision of the code, and the processor's name with its cores.

    The revision ends in ``-dirty`` if more than ``results/`` differs from it.
    """
    revision = _git("describe", "--always")
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!results")
    machine = describe_machine("cpu")
    return {
        "date": datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
        "revision": f"{revision}-dirty" if changed else revision,
        "cpu": machine["processor"],
        "cores": machine["cores"],
    }


def _git(*words: str) -> str:
    """What a command of git prints in the repository; empty outside one."""
    done = subprocess.run(
        ["git", *words], capture_output=True, text=True, check=False, cwd=RESULTS.parent
    )
    return done.stdout.strip()


def append(name: str | Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Add rows to the table `name` under ``results/``, or at a path, with its header if it is new.

    Raises
    ------
    ValueError
        If the table has other columns than the rows.
    """
    path = RESULTS / name  # an absolute path replaces the folder
    columns = list(rows[0])
    known = path.read_text(encoding="utf-8").splitlines()[:1] if path.exists() else []
    if known and known[0].split(",") != columns:
        raise ValueError(f"{path} has the columns {known[0]}; move it away first.")
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        if not known:
            writer.writeheader()
        writer.writerows(rows)
