"""A record of how many models have been scored on a split, so that reuse of it can be reported."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from retailtag.files import parse_json
from retailtag.scoring.finding import Finding
from retailtag.scoring.findings import often_scored

NAME = "scored.jsonl"


def state_folder() -> Path:
    """Folder of the files that retailtag keeps between runs.

    ``$RETAILTAG_STATE``, else ``$XDG_STATE_HOME/retailtag``, else ``~/.local/state/retailtag``;
    `RuntimeError` without a home.
    """
    if own := os.environ.get("RETAILTAG_STATE"):
        return Path(own)
    if state := os.environ.get("XDG_STATE_HOME"):
        return Path(state) / "retailtag"
    return Path.home() / ".local" / "state" / "retailtag"


def record_scored(
    catalog: str, split: str, predictions: Iterable[str], folder: Path | None = None
) -> int | None:
    """Record that predictions were scored on a split and count the distinct ones so far.

    `catalog` and `predictions` are digests. None if the folder (`state_folder` by default) can be
    neither read nor written, which never stops scoring.
    """
    new = set(predictions)
    try:
        path = (folder or state_folder()) / NAME
        known = _known(path, catalog, split)
    except (OSError, RuntimeError):
        return None
    lines = "".join(_line(catalog, split, digest) for digest in sorted(new - known))
    if not lines:
        return len(known)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as handle:
            handle.write(lines)
    except OSError:  # read-only home: the recorded ones still count
        return len(known | new) if known else None
    return len(known | new)


def reused_split(digests: Sequence[tuple[str, str]], split: str) -> list[Finding]:
    """Record scored `digests` (catalogue, predictions); findings about splits scored often."""
    by_catalog: dict[str, set[str]] = {}
    for catalog, digest in digests:
        by_catalog.setdefault(catalog, set()).add(digest)
    maybe = [
        often_scored(record_scored(catalog, split, models), len(models), split)
        for catalog, models in by_catalog.items()
    ]
    return [finding for finding in maybe if finding is not None]


def _line(catalog: str, split: str, digest: str) -> str:
    now = datetime.now(UTC).isoformat(timespec="seconds")
    entry = {"catalogue": catalog, "split": split, "predictions": digest, "date": now}
    return json.dumps(entry) + "\n"


def _known(path: Path, catalog: str, split: str) -> set[str]:
    """Digests recorded before; lines cut short by a kill are skipped."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return set()
    found = set()
    for line in text.splitlines():
        try:
            entry = parse_json(line, strict=True)
            if (entry["catalogue"], entry["split"]) == (catalog, split):
                found.add(str(entry["predictions"]))
        except (ValueError, KeyError, TypeError):
            continue
    return found
