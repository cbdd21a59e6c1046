"""Finished blocks of a sweep: all tags of one fold at one strength, kept until the sweep is done.

A block is a file written whole or not at all that starts with a SHA-256 of what it depends on and
of what it holds. One that was cut, altered, moved or made from other inputs does not match it and
counts as not there: it is fitted again, never served.
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

DIGEST = 32  # bytes of a SHA-256
TABLES = tuple(f.name for f in fields(ProbeFits) if f.name not in ("C", "seconds"))


def at_strength(fits: ProbeFits, k: int) -> ProbeFits:
    """Fits at C[k] alone, with their share of the time."""
    tables = {name: getattr(fits, name)[k : k + 1] for name in TABLES}
    return ProbeFits(C=fits.C[k : k + 1], seconds=fits.seconds / len(fits.C), **tables)


def joined(parts: Sequence[ProbeFits]) -> ProbeFits:
    """Fits of the same tags at different strengths as one, strengths ascending."""
    C = np.concatenate([part.C for part in parts])
    order = np.argsort(C)
    tables = {
        name: np.concatenate([getattr(part, name) for part in parts])[order] for name in TABLES
    }
    return ProbeFits(C=C[order], seconds=sum(part.seconds for part in parts), **tables)


@dataclass(frozen=True)
class FoldCheckpoints:
    """Blocks of one fold in a folder.

    Parameters
    ----------
    folder : Path
    key : str
        Names everything that the fits depend on beside C: embeddings, labels, folds, scaling,
        solver. A block written under another key is not served.
    """

    folder: Path
    key: str

    def save(self, fits: ProbeFits) -> None:
        """Keep the fits of one strength."""
        from safetensors.numpy import save

        arrays = {name: np.ascontiguousarray(getattr(fits, name)) for name in TABLES}
        arrays["status"] = np.frombuffer("\n".join(fits.status[0]).encode(), np.uint8)
        arrays["seconds"] = np.array(fits.seconds)
        body = save(arrays)
        C = float(fits.C[0])
        with write_whole(self._path(C)) as handle:
            handle.write(self._digest(C, body))
            handle.write(body)

    def load(self, C: float, n_tags: int, dim: int) -> ProbeFits | None:
        """Fits of strength C for `n_tags` tags; None unless a sound block of this key is there."""
        from safetensors.numpy import load

        try:
            content = self._path(C).read_bytes()
        except OSError:
            return None
        if content[:DIGEST] != self._digest(C, content[DIGEST:]):
            return None
        arrays = load(content[DIGEST:])
        arrays["status"] = np.array([arrays["status"].tobytes().decode().split("\n")])
        seconds = float(arrays.pop("seconds"))
        fits = ProbeFits(C=np.array([C]), seconds=seconds, **arrays)
        return fits if fits.weight.shape == (1, n_tags, dim) else None

    def _path(self, C: float) -> Path:
        return self.folder / f"C-{C!r}.block"

    def _digest(self, C: float, body: bytes) -> bytes:
        stated = f"{self.key}\n{C!r}\n".encode()
        return hashlib.sha256(stated + hashlib.sha256(body).digest()).digest()


@dataclass(frozen=True)
class SweepCheckpoints:
    """Blocks of a whole sweep, a folder for each kind of scaling and fold.

    Parameters
    ----------
    folder : Path
        Held by nothing else; removed by `clear`.
    key : str
        Of everything that all fits depend on; see `FoldCheckpoints`.
    """

    folder: Path
    key: str

    def of(self, scale: str, fold: int) -> FoldCheckpoints:
        """Blocks of one fold under one kind of scaling."""
        return FoldCheckpoints(self.folder / scale / f"fold-{fold}", f"{self.key} {scale} {fold}")

    def clear(self) -> None:
        """Remove every block, of whatever key."""
        shutil.rmtree(self.folder, ignore_errors=True)


def missing_runs(known: NDArray[np.bool_]) -> list[slice]:
    """Longest runs of consecutive strengths that are not known.

    Examples
    --------
    >>> missing_runs(np.array([True, False, False, True, False]))
    [slice(1, 3, None), slice(4, 5, None)]
    """
    steps = np.diff(np.concatenate([[False], ~known, [False]]).astype(np.int8))
    starts, stops = np.flatnonzero(steps == 1), np.flatnonzero(steps == -1)
    return [slice(int(a), int(b)) for a, b in zip(starts, stops, strict=True)]
