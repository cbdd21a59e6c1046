"""What it cost to fill a store: one JSON line per segment, append-only.

Times and library versions differ between runs that store equal data, so they live beside the
segments. The journal is a record, never a source of truth about rows: losing it loses only times.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

from retailtag.files import parse_json
from retailtag.store.identity import writable


class Journal:
    """Append-only JSON lines; lines that are cut short or damaged are skipped when reading."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def append(self, entry: dict[str, Any]) -> None:
        """Add one entry and bring it to the disk; raises `Unavailable` where that is full."""
        line = json.dumps(entry, sort_keys=True, allow_nan=False).encode() + b"\n"
        with writable(self._path), self._path.open("ab+") as handle:
            # A line cut short by a kill must not swallow the next one.
            if handle.tell() and not self._ends_with_newline():
                line = b"\n" + line
            handle.write(line)
            handle.flush()
            os.fsync(handle.fileno())

    def _ends_with_newline(self) -> bool:
        with self._path.open("rb") as handle:
            handle.seek(-1, os.SEEK_END)
            return handle.read(1) == b"\n"

    def entries(self) -> list[dict[str, Any]]:
        """Every whole entry, oldest first; none if there is no journal."""
        try:
            lines = self._path.read_bytes().splitlines()
        except FileNotFoundError:
            return []
        return [entry for entry in map(_parse, lines) if entry]

    def segment_seconds(self, segments: Collection[str]) -> float:
        """Wall seconds spent on these segments; one that was written twice counts its last time."""
        last = {
            entry["shard"]: float(entry["seconds"])
            for entry in self.entries()
            if entry.get("kind") == "shard" and {"seconds", "shard"} <= entry.keys()
        }
        return sum(seconds for name, seconds in last.items() if name in segments)


def _is_sound(entry: dict[str, Any]) -> bool:
    """Whether the fields of an entry, which nothing protects from a flipped bit, can be used."""
    shard, seconds, run = entry.get("shard", ""), entry.get("seconds", 0.0), entry.get("run", {})
    is_number = type(seconds) in (int, float) and 0 <= seconds < 1e12  # neither NaN nor infinite
    is_run = isinstance(run, dict) and isinstance(run.get("versions", {}), dict)
    return isinstance(shard, str) and is_number and is_run


def _parse(line: bytes) -> dict[str, Any]:
    """Entry on a line; empty if it was cut short or damaged."""
    try:
        entry = parse_json(line, strict=True)
    except ValueError:
        return {}
    return entry if isinstance(entry, dict) and _is_sound(entry) else {}
