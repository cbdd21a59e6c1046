"""What a finished stage leaves behind, so that a second run does only what is missing or stale."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from retailtag.errors import DataError
from retailtag.files import file_sha256, read_json, write_json
from retailtag.runs.measure import StageCost

FORMAT = 1
RECORD = "stage.json"


@dataclass(frozen=True)
class StageRecord:
    """A stage's inputs, outputs and cost; written last, so that it exists only for whole stages.

    Parameters
    ----------
    inputs : dict
        Everything that the outputs depend on, as JSON-able values (digests for data).
    outputs : dict of str to str
        SHA-256 of every file, by its name in the stage's folder.
    seconds : float
        Wall time.
    peak_memory_mib : float
    facts : dict
        What later stages or the report want to know.
    machine : dict
        Where the cost was measured, as `describe_machine` gives it; not an input, for the
        outputs stay good on another machine. Empty where it was not recorded.
    """

    inputs: dict[str, Any]
    outputs: dict[str, str]
    seconds: float
    peak_memory_mib: float
    facts: dict[str, Any]
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
    """Seal a stage whose `files` are in `folder`; `cost` as measured, 0 where it was not."""
    outputs = {name: file_sha256(folder / name) for name in files}
    cost = cost or StageCost()
    record = StageRecord(
        inputs, outputs, cost.seconds, cost.peak_memory_mib, facts or {}, machine or {}
    )
    write_json(folder / RECORD, {"format": FORMAT, **asdict(record)})
    return record


def read_record(folder: Path) -> StageRecord | None:
    """Record of a finished stage; None if there is none that can be read."""
    try:
        value = read_json(folder / RECORD)
        if value.pop("format") != FORMAT:
            return None
        record = StageRecord(**value)
    except (DataError, KeyError, TypeError, AttributeError):
        return None
    objects = (record.inputs, record.outputs, record.facts, record.machine)
    numbers = (record.seconds, record.peak_memory_mib)
    sound = all(isinstance(o, dict) for o in objects)
    return record if sound and all(isinstance(n, int | float) for n in numbers) else None


def why_stale(folder: Path, inputs: dict[str, Any]) -> str | None:
    """Why a stage must run, in a few words; None if it is current.

    A stage is current if it was sealed with equal `inputs` and every output still has the bytes
    it was sealed with. Only the names in `inputs` are compared.
    """
    record = read_record(folder)
    if record is None:
        return "not done"
    differing = [name for name in inputs if record.inputs.get(name) != inputs[name]]
    if differing:
        return f"{', '.join(differing)} changed"
    for name, digest in record.outputs.items():
        if not (folder / name).is_file() or file_sha256(folder / name) != digest:
            return f"{name} is missing or damaged"
    return None
