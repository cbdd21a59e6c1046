"""Stages of a run: what each reads, costs and writes, and whether it must run again."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from retailtag.errors import DataError
from retailtag.files import file_sha256, json_bytes, read_json, write_json
from retailtag.runs.measure import StageCost

FORMAT = 1
RECORD = "stage.json"
DIGEST = "sha256"  # of the record, within it
NOT_DONE = "not done"


@dataclass(frozen=True)
class StageRecord:
    """Inputs, outputs and cost of a finished stage."""

    inputs: dict[str, Any]  # everything that the outputs depend on; digests for data
    outputs: dict[str, str]  # SHA-256 of every file, by its name in the stage's folder
    seconds: float
    peak_memory_mib: float  # see `retailtag.runs.measure`
    facts: dict[str, Any]  # what later stages or the report need to know
    # Where the cost was measured, if that was recorded. Not an input: the outputs are valid on
    # another machine too.
    machine: dict[str, Any] = field(default_factory=dict)


def write_record(
    folder: Path,
    files: Sequence[str],
    inputs: dict[str, Any],
    cost: StageCost | None = None,
    *,
    facts: dict[str, Any] | None = None,
    machine: dict[str, Any] | None = None,
) -> StageRecord:
    """Record a stage whose `files` are complete in `folder`; without a `cost` it counts as 0."""
    # Written last, and atomically: a record exists only for stages that were not interrupted.
    outputs = {name: file_sha256(folder / name) for name in files}
    cost = cost or StageCost()
    record = StageRecord(
        inputs, outputs, cost.seconds, cost.peak_memory_mib, facts or {}, machine or {}
    )
    value = {"format": FORMAT, **asdict(record)}
    write_json(folder / RECORD, {**value, DIGEST: _digest(value)})
    return record


def _digest(value: Any) -> str:
    return hashlib.sha256(json_bytes(value)).hexdigest()


def read_record(folder: Path) -> StageRecord | None:
    """Record of a finished stage; None if there is none that can be read."""
    try:
        value = read_json(folder / RECORD)
        # A record that was altered is none. Those of earlier versions have no digest.
        digest = value.pop(DIGEST, None)
        if digest not in (None, _digest(value)) or value.pop("format") != FORMAT:
            return None
        record = StageRecord(**value)
    except (DataError, KeyError, TypeError, AttributeError):
        return None
    # A record with values of other kinds is as good as none: the stage runs again.
    is_number = [type(n) in (int, float) for n in (record.seconds, record.peak_memory_mib)]
    objects = (record.inputs, record.outputs, record.facts, record.machine)
    if not all([*is_number, *(isinstance(o, dict) for o in objects)]):
        return None
    return record if all(isinstance(digest, str) for digest in record.outputs.values()) else None


def why_stale(folder: Path, inputs: dict[str, Any]) -> str | None:
    """Why a stage must run, in a few words; None if its outputs are current.

    They are current if they were recorded with equal `inputs` and still have the recorded bytes.
    """
    record = read_record(folder)
    if record is None:
        return NOT_DONE
    # Only the names in `inputs` are compared: a plan loads no model, so it has no embedded texts.
    differing = [name for name in inputs if record.inputs.get(name) != inputs[name]]
    if differing:
        return f"{', '.join(differing)} changed"
    # Existence is not enough: a file that was replaced or cut short would feed later stages.
    for name, digest in record.outputs.items():
        if not (folder / name).is_file() or file_sha256(folder / name) != digest:
            return f"{name} is missing or damaged"
    return None


@dataclass(frozen=True)
class Estimate:
    """Estimate of a stage: wall time, and bytes that it leaves on the disk."""

    seconds: float
    disk_bytes: float


class Stage(ABC):
    """One step of a run; the plan and the run walk the same list of them."""

    name: str  # distinct within a run
    # Earlier stages whose new outputs always change the inputs of this one.
    needs: tuple[str, ...] = ()
    # Earlier stages of whose outputs this one reads only some, which may turn out equal.
    may_need: tuple[str, ...] = ()

    @abstractmethod
    def why_stale(self) -> str | None:
        """Why it must run, in a few words; None if its outputs are current.

        Called when no stage that it needs is going to run, or when all of them have run.
        """

    @abstractmethod
    def estimate(self) -> Estimate:
        """What running it takes."""

    @abstractmethod
    def run(self) -> None:
        """Make the outputs."""

    def update(self, announce: Callable[[str], None]) -> bool:
        """Run if it is stale, after announcing why; returns whether it ran."""
        why = self.why_stale()
        if why is None:
            return False
        announce(why)
        self.run()
        return True


class RecordedStage(Stage):
    """A stage whose outputs and record are files in a folder of its own."""

    folder: Path

    @abstractmethod
    def inputs(self) -> dict[str, Any]:
        """Everything that the outputs depend on, as JSON-able values.

        Evaluated late: most are digests of what earlier stages wrote.
        """

    def why_stale(self) -> str | None:
        """By comparing the inputs with the record, and the outputs with their digests."""
        return why_stale(self.folder, self.inputs())

    @property
    def record(self) -> StageRecord:
        """Record of the finished stage; raises `DataError` if there is none."""
        record = read_record(self.folder)
        if record is None:
            raise DataError(f"{self.folder} changed during the run; run the command again.")
        return record
