"""Checkpoints of a sweep: all tags of one fold at one strength, stored until the sweep is done.

A checkpoint is a file written whole or not at all that starts with a SHA-256 of what it depends on
and of what it holds. One that was cut, altered, moved or made from other inputs does not match and
counts as missing: it is fitted again.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from retailtag.files import write_whole
from retailtag.probes.solver.fits import ProbeFits

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

    The key names all that the fits depend on beside C: embeddings, labels, folds, scaling, solver.
    A checkpoint written under another one is not used.
    """

    folder: Path
    key: str

    def of(self, scale: str, fold: int) -> Checkpoints:
        """Checkpoints of one fold under one kind of scaling."""
        return Checkpoints(self.folder / scale / f"fold-{fold}", f"{self.key} {scale} {fold}")

    def clear(self) -> None:
        """Remove every checkpoint, of whatever key."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def save(self, fits: ProbeFits) -> None:
        """Store the fits of one strength."""
        from safetensors.numpy import save

        arrays = {name: np.ascontiguousarray(getattr(fits, name)) for name in TABLES}
        # safetensors holds no strings: the statuses go as the bytes of one text.
        arrays["status"] = np.frombuffer("\n".join(fits.status[0]).encode(), np.uint8)
        arrays["seconds"] = np.array(fits.seconds)
        body = save(arrays)
        C = float(fits.C[0])
        with write_whole(self._path(C)) as handle:
            handle.write(self._digest(C, body))
            handle.write(body)

    def load(self, C: float, n_tags: int, dim: int) -> ProbeFits | None:
        """Fits at strength C for `n_tags` tags; None without a sound checkpoint of this key."""
        from safetensors.numpy import load

        try:
            content = self._path(C).read_bytes()
        except OSError:
            return None
        body = content[DIGEST_BYTES:]
        if content[:DIGEST_BYTES] != self._digest(C, body):
            return None
        arrays = load(body)
        arrays["status"] = np.array([arrays["status"].tobytes().decode().split("\n")])
        seconds = float(arrays.pop("seconds"))
        fits = ProbeFits(C=np.array([C]), seconds=seconds, **arrays)
        return fits if fits.weight.shape == (1, n_tags, dim) else None

    def _path(self, C: float) -> Path:
        return self.folder / f"C-{C!r}.block"

    def _digest(self, C: float, body: bytes) -> bytes:
        stated = f"{self.key}\n{C!r}\n".encode()
        return hashlib.sha256(stated + hashlib.sha256(body).digest()).digest()


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
