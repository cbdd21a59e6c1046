"""The state of a training on the disk, so that a killed run continues where it was.

One file, ``resume.pt``: the SHA-256 of the rest, then torch's archive of tensors and plain values,
which is read without running code. A file of other settings or data, or a damaged one, is ignored,
and the training starts again.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import time
import warnings
from pathlib import Path
from typing import Any

import torch

from retailtag.files import write_whole
from retailtag.progress import SILENT, Progress
from retailtag.ranks import ALONE, Ranks

FORMAT = 3
NAME = "resume.pt"
_DIGEST_BYTES = 32


class Snapshots:
    """Where a training stores its state: the file `name` in `folder`.

    `key` is a digest of everything that the training depends on; two snapshots within an epoch are
    `minutes` apart. Of several processes the first one writes, and all get what it reads; their
    number may change in between.
    """

    def __init__(
        self,
        folder: Path,
        key: str,
        minutes: float = 10.0,
        *,
        name: str = NAME,
        progress: Progress = SILENT,
        ranks: Ranks = ALONE,
    ) -> None:
        self.path = Path(folder) / name
        self._key = key
        self._seconds = 60 * minutes
        self._progress = progress
        self._ranks = ranks
        self._saved_at = time.monotonic()
        # Counts of threads that the training was computed with
        self.threads = {torch.get_num_threads()}

    @property
    def is_due(self) -> bool:
        """Whether it is for this process to save, the last time being long enough ago."""
        return self._ranks.is_first and time.monotonic() - self._saved_at >= self._seconds

    def save(self, state: dict[str, Any]) -> None:
        """Replace the snapshot by this state, whole or not at all."""
        if not self._ranks.is_first:
            return
        buffer = io.BytesIO()
        threads = sorted(self.threads)
        saved = {"format": FORMAT, "key": self._key, "threads": threads, "state": state}
        torch.save(saved, buffer)
        body = buffer.getbuffer()
        with write_whole(self.path) as handle:
            handle.write(hashlib.sha256(body).digest())
            handle.write(body)
        self._saved_at = time.monotonic()

    def load(self) -> dict[str, Any] | None:
        """The stored state; None, with the reason told, if there is none of this training."""
        return self._ranks.from_first(self._load)

    def _load(self) -> dict[str, Any] | None:
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            return self._ignored(f"cannot be read ({error.strerror or error})")
        body = memoryview(content)[_DIGEST_BYTES:]
        if hashlib.sha256(body).digest() != content[:_DIGEST_BYTES]:
            return self._ignored("is damaged")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # of a pickle that torch did not write
                saved = torch.load(io.BytesIO(body), map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, ValueError, LookupError) as error:
            return self._ignored(f"cannot be read ({error})")
        facts = saved if isinstance(saved, dict) and isinstance(saved.get("state"), dict) else {}
        if facts.get("format") != FORMAT or facts.get("key") != self._key:
            return self._ignored("belongs to other settings or data")
        self.threads.update(saved.get("threads", ()))
        if len(self.threads) > 1:
            counts = ", ".join(map(str, sorted(self.threads)))
            self._progress.say(f"{self.path} was begun with another number of threads ({counts})")
        state: dict[str, Any] = saved["state"]
        return state

    def _ignored(self, why: str) -> dict[str, Any] | None:
        self._progress.say(f"{self.path} {why}; the training starts again")
        return None

    def remove(self) -> None:
        """Delete the file of a finished training."""
        if self._ranks.is_first:
            self.path.unlink(missing_ok=True)
