"""How to repeat the bake-off, and everything that it read."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from retailtag.report.report import Report
from retailtag.report.results import BakeoffResult


@dataclass(frozen=True)
class Provenance:
    """The command, and facts on what was read as (name, value)."""

    command: str
    facts: list[tuple[str, Any]]


def provenance(report: Report) -> Provenance:
    """Catalogue, seed, machine, engines, and the provenance of every pair."""
    result = report.result
    facts = [
        ("Catalogue", f"{result.catalog.get('name')}, digest {result.catalog.get('digest')}"),
        ("Seed", result.seed),
        *((f"Machine: {key}", value) for key, value in result.machine.items()),
        *_engines(result).items(),
        *((p.name, json.dumps(p.scorecard.provenance, sort_keys=True)) for p in result.pairs),
    ]
    return Provenance(result.command, facts)


def _engines(result: BakeoffResult) -> dict[str, str]:
    """What computed the embeddings of each backbone, where its predictions say."""
    found = {}
    for pair in result.pairs:
        stored = pair.scorecard.provenance.get("predictions", {}).get("stored_as", {})
        if "engine" in stored:
            found[f"Embeddings of {pair.backbone}"] = f"{stored['engine']}, as {stored['dtype']}"
    return found
