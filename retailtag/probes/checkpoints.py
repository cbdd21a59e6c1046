"""Checkpoints of a sweep: what whole calls of the solver found, stored until the sweep is done.

The path that a solver takes over its strengths depends on where it came from (L-BFGS pairs, the
direction of the path), which its solutions do not tell. A call that was not finished is therefore
computed again from its start, and a sweep that was killed ends in the same bytes.

A checkpoint is a file written whole or not at all that starts with a SHA-256 of what it depends on
and of what it holds. One that was cut, altered, moved or made from other inputs does not match and
counts as missing: it is fitted again.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from retailtag.files import write_whole
from retailtag.probes.solver.fits import ProbeFits
from retailtag.probes.solver.interface import Start

DIGEST_BYTES = 32
TABLES = tuple(f.name for f in fields(ProbeFits) if f.name not in ("C", "seconds"))


def at_strength(fits: ProbeFits, k: int) -> ProbeFits:
    """Fits at C[k] alone, with their share of the time."""
    tables = {name: getattr(fits, name)[k : k + 1] for name in TABLES}
    return ProbeFits(C=fits.C[k : k + 1], seconds=fits.seconds / len(fits.C), **tables)


def joined(fits: Sequence[ProbeFits]) -> ProbeFits:
    """Fits of the same tags at different strengths as one, strengths ascending."""
    C = np.concatenate([some.C for some in fits])
    order = np.argsort(C)
    tables = {
        name: np.concatenate([getattr(some, name) for some in fits])[order] for name in TABLES
    }
    return ProbeFits(C=C[order], seconds=sum(some.seconds for some in fits), **tables)


@dataclass(frozen=True)
class Checkpoints:
    """Checkpoints of a sweep, or `of` one fold of it, in a folder of their own.

    The key names all that the fits depend on beside C and start: embeddings, labels, folds,
    scaling, solver. A checkpoint written under another one is not used.
    """

    folder: Path
    key: str
    threads: int = 0  # of this process
    # Counts of threads that the fits served were computed with
    seen: set[int] = field(default_factory=set)

    def of(self, scale: str, fold: int) -> Checkpoints:
        """Checkpoints of one fold under one kind of scaling."""
        folder = self.folder / scale / f"fold-{fold}"
        return Checkpoints(folder, f"{self.key} {scale} {fold}", self.threads, self.seen)

    def clear(self) -> None:
        """Remove every checkpoint, of whatever key."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def save(self, fits: ProbeFits, start: Start | None) -> None:
        """Store what one call of the solver found from `start`."""
        from safetensors.numpy import save

        arrays = {name: np.ascontiguousarray(getattr(fits, name)) for name in TABLES}
        # safetensors holds no strings: the statuses go as the bytes of one text.
        arrays["status"] = np.frombuffer("\n".join(fits.status.ravel()).encode(), np.uint8)
        arrays["seconds"] = np.array(fits.seconds)
        arrays["threads"] = np.array(self.threads)
        body = save(arrays)
        with write_whole(self._path(fits.C)) as handle:
            handle.write(self._digest(fits.C, start, body))
            handle.write(body)
        self.seen.add(self.threads)

    def load(
        self, C: NDArray[np.float64], start: Start | None, n_tags: int, dim: int
    ) -> ProbeFits | None:
        """Fits of `n_tags` tags at C (n_C,) from `start`; None without a sound checkpoint."""
        from safetensors.numpy import load

        try:
            with self._path(C).open("rb") as handle:
                digest, body = handle.read(DIGEST_BYTES), handle.read()
        except OSError:
            return None
        if digest != self._digest(C, start, body):
            return None
        arrays = load(body)
        shape = arrays["bias"].shape
        arrays["status"] = np.array(arrays["status"].tobytes().decode().split("\n")).reshape(shape)
        seconds = float(arrays.pop("seconds"))
        threads = int(arrays.pop("threads"))
        fits = ProbeFits(C=C, seconds=seconds, **arrays)
        if fits.weight.shape != (len(C), n_tags, dim):
            return None
        self.seen.add(threads)
        return fits

    def _path(self, C: NDArray[np.float64]) -> Path:
        return self.folder / f"C-{float(C[0])!r}-{float(C[-1])!r}.block"

    def _digest(self, C: NDArray[np.float64], start: Start | None, body: bytes) -> bytes:
        begun = b"".join(part.tobytes() for part in start) if start else b""
        parts = (self.key.encode(), C.tobytes(), begun, body)
        return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).digest()


def missing_runs(known: NDArray[np.bool_]) -> list[slice]:
    """Longest runs of consecutive strengths that are not known.

    Examples
    --------
    >>> missing_runs(np.array([True, False, False, True, False]))
    [slice(1, 3, None), slice(4, 5, None)]
    """
    steps = np.diff(np.concatenate([[False], ~known, [False]]).astype(np.int8))
    starts = np.flatnonzero(steps == 1).tolist()
    stops = np.flatnonzero(steps == -1).tolist()
    return [slice(start, stop) for start, stop in zip(starts, stops, strict=True)]
