"""The state of a training on the disk, so that a killed run goes on where it was.

One file, ``resume.pt``: the SHA-256 of what follows, then torch's archive of tensors and plain
values, which is read without running code. It is written whole or not at all, and belongs to one
training: a file of other settings or data, or a damaged one, is set aside and the training starts
anew.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import time
from pathlib import Path
from typing import Any

import torch

from retailtag.files import write_whole
from retailtag.progress import SILENT, Progress

FORMAT = 1
NAME = "resume.pt"
_DIGEST_BYTES = 32


class Snapshots:
    """Where a training keeps its state.

    Parameters
    ----------
    folder : Path
    key : str
        Digest of everything that the training depends on.
    minutes : float
        Longest time between two snapshots within an epoch.
    name : str
        Of the file.
    progress : Progress
        Told when a file cannot be used.
    """

    def __init__(
        self,
        folder: Path,
        key: str,
        minutes: float = 10.0,
        *,
        name: str = NAME,
        progress: Progress = SILENT,
    ) -> None:
        self.path = Path(folder) / name
        self._key, self._seconds, self._progress = key, 60 * minutes, progress
        self._written = time.monotonic()

    @property
    def is_due(self) -> bool:
        """Whether the last snapshot is older than the time between two."""
        return time.monotonic() - self._written >= self._seconds

    def save(self, state: dict[str, Any]) -> None:
        """Write the state whole, in place of the one before."""
        buffer = io.BytesIO()
        torch.save({"format": FORMAT, "key": self._key, "state": state}, buffer)
        body = buffer.getbuffer()
        with write_whole(self.path) as handle:
            handle.write(hashlib.sha256(body).digest())
            handle.write(body)
        self._written = time.monotonic()

    def load(self) -> dict[str, Any] | None:
        """The state of this training; None if there is none, with the reason told."""
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            self._set_aside(f"cannot be read ({error.strerror or error})")
            return None
        body = memoryview(content)[_DIGEST_BYTES:]
        if hashlib.sha256(body).digest() != content[:_DIGEST_BYTES]:
            self._set_aside("is damaged")
            return None
        try:
            saved = torch.load(io.BytesIO(body), map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, ValueError) as error:
            self._set_aside(f"cannot be read ({error})")
            return None
        if saved.get("format") != FORMAT or saved.get("key") != self._key:
            self._set_aside("belongs to other settings or data")
            return None
        state: dict[str, Any] = saved["state"]
        return state

    def _set_aside(self, why: str) -> None:
        self._progress.say(f"{self.path} {why}; the training starts anew")

    def remove(self) -> None:
        """Drop the file: the training has ended and its result is kept elsewhere."""
        self.path.unlink(missing_ok=True)
