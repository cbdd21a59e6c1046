"""The numbers of a training, written as JSON lines and sent to experiment trackers.

`open_logs` gives one `Logs` that writes to all of them. Settings are written once, numbers under
the step that they belong to. Opened with ``resume_at=s``, a log continues after step s: what an
interrupted run wrote after its last snapshot is removed or hidden, so that the log of a resumed run
equals that of an uninterrupted one.

===============  ===================================  ==========================================
log              where                                needs
===============  ===================================  ==========================================
(always)         ``log.jsonl``                        nothing
``tensorboard``  ``tensorboard/``                     ``pip install "retailtag[tensorboard]"``
``mlflow``       set by ``MLFLOW_TRACKING_URI`` and   ``pip install "retailtag[mlflow]"``
                 ``MLFLOW_EXPERIMENT_NAME``
``wandb``        set by ``WANDB_PROJECT`` and the     ``pip install "retailtag[wandb]"``
                 like
===============  ===================================  ==========================================

A line of ``log.jsonl`` is ``{"settings": {...}}`` or ``{"step": 120, "loss": 0.031, ...}``; numbers
that are not finite are null.
"""

from __future__ import annotations

import errno
import importlib
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from retailtag.errors import Unavailable, UsageError
from retailtag.files import make_folder, parse_json, read_json, write_json, write_whole

Say = Callable[[str], None]
Metrics = Mapping[str, float | None]


class Logs:
    """Several logs as one."""

    def __init__(self, logs: Sequence[JsonLines | _TensorBoard | _Mlflow | _Wandb] = ()) -> None:
        self._logs = tuple(logs)

    def settings(self, values: Mapping[str, Any]) -> None:
        """Write the settings of the run, JSON-able, once at the start."""
        for log in self._logs:
            log.settings(values)

    def metrics(self, step: int, values: Metrics) -> None:
        """Write numbers at `step`, which never decreases; None where a number is undefined."""
        for log in self._logs:
            log.metrics(step, values)

    def __enter__(self) -> Logs:
        return self

    def __exit__(self, *_: object) -> None:
        for log in self._logs:
            log.close()


def open_logs(
    folder: Path,
    trackers: Sequence[str] = (),
    *,
    resume_at: int | None = None,
    say: Say = lambda line: None,
) -> Logs:
    """Open ``log.jsonl`` in `folder`, whose name is the run's in trackers, and the `trackers`.

    `resume_at` is the last step to keep; by default a fresh log replaces what is there. `say` gets
    a sentence when a tracker stops answering; training continues without it. Raises `UsageError` if
    a tracker is unknown, `Unavailable` if its package is not installed, with what to install.
    """
    for name in trackers:
        if name not in _TRACKERS:
            raise UsageError(f"--log {name} is unknown; choose among {', '.join(_TRACKERS)}.")
    opened = [_TRACKERS[name](folder, resume_at, say) for name in dict.fromkeys(trackers)]
    return Logs([JsonLines(folder / "log.jsonl", resume_at), *opened])


class JsonLines:
    """One JSON object per line, appended; lines of steps after `resume_at` are removed first."""

    def __init__(self, path: Path, resume_at: int | None = None) -> None:
        make_folder(path.parent)
        kept = [] if resume_at is None else _lines_until(path, resume_at)
        with write_whole(path) as handle:
            handle.write(b"".join(kept))
        self._path = path
        self._settings = [parse_json(line).get("settings") for line in kept]
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND)

    def settings(self, values: Mapping[str, Any]) -> None:
        """Write a line of settings, unless the log has the same line already."""
        if values not in self._settings:
            self._write({"settings": dict(values)})

    def metrics(self, step: int, values: Metrics) -> None:
        """Write a line of numbers."""
        self._write({"step": step, **{name: _plain(value) for name, value in values.items()}})

    def close(self) -> None:
        """Make the lines durable."""
        if self._file >= 0:
            os.fsync(self._file)
            os.close(self._file)
            self._file = -1

    def _write(self, row: dict[str, Any]) -> None:
        line = (json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n").encode()
        try:
            # One unbuffered call: a kill loses at most the line that is being written.
            written = os.write(self._file, line)
        except OSError as error:
            error.filename = str(self._path)
            raise
        if written < len(line):  # a disk that becomes full takes part of the line
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path))


def _lines_until(path: Path, step: int) -> list[bytes]:
    """Whole lines of a log that are settings or belong to steps up to `step`."""
    kept = []
    for line in path.read_bytes().splitlines(keepends=True) if path.exists() else []:
        try:
            row = parse_json(line.decode())
        except ValueError:
            continue  # torn by a kill
        at: Any = row.get("step", step) if isinstance(row, dict) else None
        if line.endswith(b"\n") and type(at) in (int, float) and at <= step:
            kept.append(line)
    return kept


class _TensorBoard:
    """Event files in ``tensorboard/`` of the run's folder."""

    def __init__(self, folder: Path, resume_at: int | None, say: Say) -> None:
        module = _package("torch.utils.tensorboard", "tensorboard")
        # Steps from purge_step on are hidden; 0 hides all that an earlier run wrote here.
        purge = 0 if resume_at is None else resume_at + 1
        self._writer = module.SummaryWriter(str(folder / "tensorboard"), purge_step=purge)

    def settings(self, values: Mapping[str, Any]) -> None:
        self._writer.add_text("settings", f"```\n{json.dumps(dict(values), indent=2)}\n```")

    def metrics(self, step: int, values: Metrics) -> None:
        for name, value in _finite(values).items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class _Mlflow:
    """A run in MLflow, found again by its id; a number written twice stays under its step."""

    def __init__(self, folder: Path, resume_at: int | None, say: Say) -> None:
        self._mlflow = _package("mlflow", "mlflow")
        self._say = say
        self._is_fresh = resume_at is None
        self._answers = True
        known = _stored_id(folder / "mlflow.json", resume_at)
        run = self._mlflow.start_run(run_id=known, run_name=None if known else folder.name)
        write_json(folder / "mlflow.json", {"id": run.info.run_id})

    def settings(self, values: Mapping[str, Any]) -> None:
        if self._is_fresh:  # MLflow refuses to change a parameter
            texts = {name: str(value)[:500] for name, value in values.items()}
            self._send(lambda: self._mlflow.log_params(texts))

    def metrics(self, step: int, values: Metrics) -> None:
        self._send(lambda: self._mlflow.log_metrics(_finite(values), step=step))

    def close(self) -> None:
        self._send(self._mlflow.end_run)

    def _send(self, call: Callable[[], object]) -> None:
        """Call once; after a failure nothing more is sent, and training continues."""
        if not self._answers:
            return
        try:
            call()
        except (OSError, self._mlflow.exceptions.MlflowException) as error:
            self._answers = False
            self._say(f"MLflow stopped answering ({error}); log.jsonl has all numbers.")


class _Wandb:
    """A run in Weights & Biases, found again by its id; steps that it has are ignored."""

    def __init__(self, folder: Path, resume_at: int | None, say: Say) -> None:
        wandb = _package("wandb", "wandb")
        make_folder(folder)
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "retailtag"),
            name=folder.name,
            dir=str(folder),
            id=_stored_id(folder / "wandb.json", resume_at),
            resume="allow",
        )
        write_json(folder / "wandb.json", {"id": self._run.id})

    def settings(self, values: Mapping[str, Any]) -> None:
        self._run.config.update(dict(values), allow_val_change=True)

    def metrics(self, step: int, values: Metrics) -> None:
        self._run.log(_finite(values), step=step)

    def close(self) -> None:
        self._run.finish()


_TRACKERS: dict[str, Callable[[Path, int | None, Say], _TensorBoard | _Mlflow | _Wandb]] = {
    "tensorboard": _TensorBoard,
    "mlflow": _Mlflow,
    "wandb": _Wandb,
}


def _package(module: str, extra: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise Unavailable(
            f"--log {extra} needs a package that is not installed; "
            f'run `pip install "retailtag[{extra}]"`.'
        ) from None


def _stored_id(path: Path, resume_at: int | None) -> str | None:
    """Id of the run to continue, None for a fresh one."""
    stored = read_json(path) if resume_at is not None and path.exists() else None
    return str(stored["id"]) if isinstance(stored, dict) and "id" in stored else None


def _plain(value: Any) -> Any:
    """Number as Python's own, None where it is not finite."""
    if value is None or isinstance(value, str):
        return value
    number = float(value)
    if not math.isfinite(number):
        return None
    return int(number) if number.is_integer() and not isinstance(value, float) else number


def _finite(values: Mapping[str, Any]) -> dict[str, float]:
    plain = {name: _plain(value) for name, value in values.items()}
    return {name: value for name, value in plain.items() if isinstance(value, int | float)}
