"""Where the numbers of a training run go: JSON lines always, and the trackers that are asked for.

`open_logs` gives one `RunLog` that writes to all of them. Settings go in once, numbers under the
step that they belong to. Reopened with ``resume_at=s``, a log continues after step s: what an
interrupted run wrote beyond its last checkpoint is dropped or hidden, so that a resumed run reads
like an uninterrupted one.

===============  ===================================  ==========================================
log              where                                needs
===============  ===================================  ==========================================
(always)         ``log.jsonl``                        nothing
``tensorboard``  ``tensorboard/``                     ``pip install "retailtag[tensorboard]"``
``mlflow``       as ``MLFLOW_TRACKING_URI`` and       ``pip install "retailtag[mlflow]"``
                 ``MLFLOW_EXPERIMENT_NAME`` say
``wandb``        as ``WANDB_PROJECT`` and the like    ``pip install "retailtag[wandb]"``
                 say
===============  ===================================  ==========================================

A line of ``log.jsonl`` is ``{"settings": {...}}`` or ``{"step": 120, "loss": 0.031, ...}``; numbers
that are not finite are null. Each line is written at once and whole: a kill loses at most the line
that was being written, and the next run removes what is left of it.
"""

from __future__ import annotations

import errno
import importlib
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from retailtag.errors import Unavailable, UsageError
from retailtag.files import make_folder, read_json, write_json, write_whole

Say = Callable[[str], None]
TRACKERS = ("tensorboard", "mlflow", "wandb")


class RunLog(Protocol):
    """What a training run tells its numbers to."""

    def settings(self, values: Mapping[str, Any]) -> None:
        """What the run was asked to do; JSON-able, told once at the start."""

    def metrics(self, step: int, values: Mapping[str, float | None]) -> None:
        """Numbers as they were at `step`, which never falls; None where there is none."""

    def close(self) -> None:
        """Write out what is pending."""


class Logs:
    """Several logs as one.

    Parameters
    ----------
    logs : sequence of RunLog
    """

    def __init__(self, logs: Sequence[RunLog]) -> None:
        self._logs = tuple(logs)

    def settings(self, values: Mapping[str, Any]) -> None:
        """Tell all."""
        for log in self._logs:
            log.settings(values)

    def metrics(self, step: int, values: Mapping[str, float | None]) -> None:
        """Tell all."""
        for log in self._logs:
            log.metrics(step, values)

    def close(self) -> None:
        """Close all."""
        for log in self._logs:
            log.close()

    def __enter__(self) -> Logs:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_logs(
    folder: Path,
    trackers: Sequence[str] = (),
    *,
    resume_at: int | None = None,
    say: Say = lambda line: None,
) -> Logs:
    """Open ``log.jsonl`` in `folder` and the `trackers`.

    Parameters
    ----------
    folder : Path
        Of the run; its name is the run's name in the trackers.
    trackers : sequence of str
        Among ``tensorboard``, ``mlflow``, ``wandb``.
    resume_at : int, optional
        Last step that is kept; a fresh run if left out, and then what stood there is replaced.
    say : callable
        Told when a tracker stops answering; training goes on without it.

    Raises
    ------
    UsageError
        If a tracker is unknown.
    Unavailable
        If its package is not installed; says what to install.
    """
    kinds: dict[str, Callable[[Path, int | None, Say], RunLog]]
    kinds = {"tensorboard": TensorBoard, "mlflow": Mlflow, "wandb": Wandb}
    for name in trackers:
        if name not in kinds:
            raise UsageError(f"--log {name} is unknown; choose among {', '.join(TRACKERS)}.")
    opened = [kinds[name](folder, resume_at, say) for name in dict.fromkeys(trackers)]
    return Logs([JsonLines(folder / "log.jsonl", resume_at), *opened])


class JsonLines:
    """One JSON object a line, appended.

    Parameters
    ----------
    path : Path
    resume_at : int, optional
        Lines of later steps, and a torn last line, are removed; all lines if left out.
    """

    def __init__(self, path: Path, resume_at: int | None = None) -> None:
        make_folder(path.parent)
        kept = [] if resume_at is None else _lines_until(path, resume_at)
        with write_whole(path) as handle:
            handle.write(b"".join(kept))
        self._path = path
        self._settings = [json.loads(line).get("settings") for line in kept]
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND)

    def settings(self, values: Mapping[str, Any]) -> None:
        """Write a line of settings, unless the log holds the same already."""
        if values not in self._settings:
            self._write({"settings": dict(values)})

    def metrics(self, step: int, values: Mapping[str, float | None]) -> None:
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
            written = os.write(self._file, line)  # one call: appended in one piece
        except OSError as error:
            error.filename = str(self._path)
            raise
        if written < len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path))


def _lines_until(path: Path, step: int) -> list[bytes]:
    """Whole lines of a log that are settings or belong to steps up to `step`."""
    kept = []
    for line in path.read_bytes().splitlines(keepends=True) if path.exists() else []:
        try:
            row = json.loads(line)
        except ValueError:
            continue  # torn by a kill
        if line.endswith(b"\n") and isinstance(row, dict) and row.get("step", step) <= step:
            kept.append(line)
    return kept


class TensorBoard:
    """Event files in ``tensorboard/`` of the run's folder.

    Parameters
    ----------
    folder : Path
    resume_at : int, optional
        Later steps of an interrupted run are hidden.
    say : callable
    """

    def __init__(self, folder: Path, resume_at: int | None, say: Say) -> None:
        module = _package("torch.utils.tensorboard", "tensorboard")
        # A fresh run hides whatever an earlier one wrote into the same folder.
        purge = 0 if resume_at is None else resume_at + 1
        self._writer = module.SummaryWriter(str(folder / "tensorboard"), purge_step=purge)

    def settings(self, values: Mapping[str, Any]) -> None:
        """Write the settings as a text of JSON."""
        self._writer.add_text("settings", f"```\n{json.dumps(dict(values), indent=2)}\n```")

    def metrics(self, step: int, values: Mapping[str, float | None]) -> None:
        """Write the finite numbers."""
        for name, value in _finite(values).items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Write out what is pending."""
        self._writer.close()


class Mlflow:
    """A run in MLflow, found again by the id in ``mlflow.json``.

    Parameters
    ----------
    folder : Path
    resume_at : int, optional
        Continues the run of that id; MLflow keeps what was written twice, under the same step.
    say : callable
    """

    def __init__(self, folder: Path, resume_at: int | None, say: Say) -> None:
        self._mlflow, self._say = _package("mlflow", "mlflow"), say
        self._fresh = resume_at is None
        self._alive = True
        known = _held_id(folder / "mlflow.json", resume_at)
        run = self._mlflow.start_run(run_id=known, run_name=None if known else folder.name)
        write_json(folder / "mlflow.json", {"id": run.info.run_id})

    def settings(self, values: Mapping[str, Any]) -> None:
        """Write the settings as parameters, on a fresh run; MLflow never changes one."""
        if self._fresh:
            texts = {name: str(value)[:500] for name, value in values.items()}
            self._tell(lambda: self._mlflow.log_params(texts))

    def metrics(self, step: int, values: Mapping[str, float | None]) -> None:
        """Write the finite numbers."""
        self._tell(lambda: self._mlflow.log_metrics(_finite(values), step=step))

    def close(self) -> None:
        """End the run."""
        self._tell(self._mlflow.end_run)

    def _tell(self, call: Callable[[], object]) -> None:
        """Call once; a server that does not answer is given up and training goes on."""
        if not self._alive:
            return
        try:
            call()
        except (OSError, self._mlflow.exceptions.MlflowException) as error:
            self._alive = False
            self._say(f"MLflow takes no more numbers ({error}); log.jsonl has them all.")


class Wandb:
    """A run in Weights & Biases, found again by the id in ``wandb.json``.

    Parameters
    ----------
    folder : Path
    resume_at : int, optional
        Continues the run of that id; steps that it already has are passed over by the service.
    say : callable
    """

    def __init__(self, folder: Path, resume_at: int | None, say: Say) -> None:
        wandb = _package("wandb", "wandb")
        make_folder(folder)
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "retailtag"),
            name=folder.name,
            dir=str(folder),
            id=_held_id(folder / "wandb.json", resume_at),
            resume="allow",
        )
        write_json(folder / "wandb.json", {"id": self._run.id})

    def settings(self, values: Mapping[str, Any]) -> None:
        """Write the settings as the run's configuration."""
        self._run.config.update(dict(values), allow_val_change=True)

    def metrics(self, step: int, values: Mapping[str, float | None]) -> None:
        """Write the finite numbers; sent in the background."""
        self._run.log(_finite(values), step=step)

    def close(self) -> None:
        """Send what is pending."""
        self._run.finish()


def _package(module: str, extra: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise Unavailable(
            f"--log {extra} needs a package that is not installed; "
            f'run `pip install "retailtag[{extra}]"`.'
        ) from None


def _held_id(path: Path, resume_at: int | None) -> str | None:
    """Id of the run to continue, None for a fresh one."""
    held = read_json(path) if resume_at is not None and path.exists() else None
    return str(held["id"]) if isinstance(held, dict) and "id" in held else None


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
