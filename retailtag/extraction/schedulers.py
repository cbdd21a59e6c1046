"""The shard of this process by the variables that Slurm, torchrun or Kubernetes gave it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from retailtag.errors import UsageError
from retailtag.extraction.shards import Shard

AUTO = "auto"
_REMEDY = "give --shard I/N by number"
_NOTHING = (
    "--shard auto finds no number of this process: neither a Slurm array (SLURM_ARRAY_TASK_ID) or "
    "srun (SLURM_PROCID, SLURM_STEP_NUM_TASKS), nor torchrun (RANK, WORLD_SIZE), nor an indexed "
    f"job of Kubernetes (JOB_COMPLETION_INDEX, JOB_COMPLETIONS); {_REMEDY}."
)


class _Place(NamedTuple):
    """One of `of` processes or jobs, counted from 0, and what says so."""

    number: int
    of: int
    source: str


def shard_of(text: str, environment: Mapping[str, str]) -> tuple[Shard, str]:
    """Shard that ``I/N`` or ``auto`` names, and what numbered it; empty for ``I/N``.

    Parameters
    ----------
    text : str
        ``I/N``, or ``auto`` for the number that a scheduler gave to this process.
    environment : mapping
        Variables of this process.

    Raises
    ------
    UsageError
        If the text has another form, or the variables are absent or contradict each other.

    Notes
    -----
    Schedulers nest. The tasks of ``srun`` inside a Slurm array, and the processes of a torchrun
    that runs on one node alone (``GROUP_WORLD_SIZE`` 1), are numbered within each outer task. A
    torchrun over several nodes numbers the processes of all of them.

    Examples
    --------
    >>> shard_of("auto", {"RANK": "2", "WORLD_SIZE": "8"})
    (Shard(number=3, of=8), 'RANK')
    """
    if text != AUTO:
        return Shard.parse(text), ""
    torchrun = _place(environment, "RANK", "WORLD_SIZE")
    # Without GROUP_WORLD_SIZE it is a launcher other than torchrun, which numbers every process.
    if torchrun and _number(environment, "GROUP_WORLD_SIZE", 0) != 1:
        if _number(environment, "SLURM_ARRAY_TASK_COUNT", 1) > 1:
            raise UsageError(
                "--shard auto finds torchrun over several nodes in a Slurm array, and nothing "
                f"says whether each task of the array has its own; {_REMEDY}."
            )
        place: _Place | None = torchrun
    else:
        slurm = _nested(_slurm_array(environment), _slurm_step(environment))
        job = _kubernetes(environment)
        if slurm and job:
            raise UsageError(f"--shard auto finds both Slurm and Kubernetes; {_REMEDY}.")
        place = _nested(slurm or job, torchrun)
    if place is None:
        raise UsageError(_NOTHING)
    return Shard(place.number + 1, place.of), place.source


def _nested(outer: _Place | None, inner: _Place | None) -> _Place | None:
    """Number of an inner place among those of all outer ones."""
    if outer is None or inner is None:
        return outer or inner
    source = f"{outer.source} and {inner.source}"
    return _Place(outer.number * inner.of + inner.number, outer.of * inner.of, source)


def _slurm_array(environment: Mapping[str, str]) -> _Place | None:
    """Task of an array that is numbered from 0 or 1 without gaps."""
    if "SLURM_ARRAY_TASK_ID" not in environment:
        return None
    first, last, count = (
        _number(environment, f"SLURM_ARRAY_TASK_{what}") for what in ("MIN", "MAX", "COUNT")
    )
    if first > 1 or last - first + 1 != count:
        # Such as --array=3,5, to repeat two tasks of eight: they would become shards 1/2 and 2/2.
        raise UsageError(
            f"--shard auto needs an array of 0-{count - 1} or 1-{count}, but this one has {count} "
            f"tasks from {first} to {last}; to repeat some shards, {_REMEDY}."
        )
    index = _number(environment, "SLURM_ARRAY_TASK_ID") - first
    return _checked(_Place(index, count, "SLURM_ARRAY_TASK_ID"))


def _slurm_step(environment: Mapping[str, str]) -> _Place | None:
    """Task of srun; a batch script has SLURM_PROCID and SLURM_NTASKS too, but runs once."""
    if "SLURM_STEP_NUM_TASKS" not in environment:
        return None
    return _place(environment, "SLURM_PROCID", "SLURM_STEP_NUM_TASKS")


def _kubernetes(environment: Mapping[str, str]) -> _Place | None:
    """Pod of an indexed job."""
    if "JOB_COMPLETION_INDEX" in environment and "JOB_COMPLETIONS" not in environment:
        raise UsageError(
            "--shard auto finds JOB_COMPLETION_INDEX but not how many pods there are; set "
            "JOB_COMPLETIONS to the completions of the job in the pod's env."
        )
    return _place(environment, "JOB_COMPLETION_INDEX", "JOB_COMPLETIONS")


def _place(environment: Mapping[str, str], index: str, of: str) -> _Place | None:
    """Place by two variables; None where neither is set."""
    if index not in environment and of not in environment:
        return None
    return _checked(_Place(_number(environment, index), _number(environment, of), index))


def _checked(place: _Place) -> _Place:
    if place.number >= place.of:
        raise UsageError(
            f"--shard auto: {place.source} numbers this process {place.number + 1} of {place.of}; "
            f"set it and its count alike, or {_REMEDY}."
        )
    return place


def _number(environment: Mapping[str, str], name: str, default: int | None = None) -> int:
    """Whole number in a variable."""
    if name not in environment and default is not None:
        return default
    text = environment.get(name, "")
    if not (text.isascii() and text.isdecimal()):
        state = f"is {text!r}" if name in environment else "is not set"
        raise UsageError(f"--shard auto: {name} {state}, which is no number; {_REMEDY}.")
    return int(text)
