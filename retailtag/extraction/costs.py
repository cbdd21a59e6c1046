"""Where the time of an extraction goes, and which stage the others wait for."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any


@dataclass(frozen=True)
class Cost:
    """Seconds by stage of embedding some images.

    Parameters
    ----------
    n_computed : int
        Images embedded.
    seconds : float
        Wall time.
    read_seconds, decode_seconds : float
        Of the threads that load, summed over them: reading and hashing; decoding and resizing.
    wait_seconds : float
        Wall time that the model stood still for want of images.
    model_seconds : float
        Wall time of the model.
    write_seconds : float
        Of the thread that writes.
    stall_seconds : float
        Wall time that the model stood still because the disk was behind.

    Notes
    -----
    Where several backbones share a pass, each has its own model and writing, and an equal share
    of the rest.
    """

    n_computed: int = 0
    seconds: float = 0.0
    read_seconds: float = 0.0
    decode_seconds: float = 0.0
    wait_seconds: float = 0.0
    model_seconds: float = 0.0
    write_seconds: float = 0.0
    stall_seconds: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        names = [f.name for f in fields(self)]
        return Cost(**{name: getattr(self, name) + getattr(other, name) for name in names})

    def shared_by(self, n: int) -> Cost:
        """What one of `n` backbones bears of the times; the images are those of each."""
        times = {f.name: getattr(self, f.name) / n for f in fields(self) if f.name != "n_computed"}
        return Cost(self.n_computed, **times)

    @property
    def limit(self) -> str:
        """Stage that the others waited for: ``model``, ``decoding``, ``reading`` or ``disk``.

        The one in which the thread that drives the model spent most of its time; where that is
        waiting for images, the one that the loading threads spent more time on. Empty if nothing
        was computed.

        Examples
        --------
        >>> Cost(9, model_seconds=2.0, wait_seconds=6.0, decode_seconds=11.0).limit
        'decoding'
        """
        stages = {
            "model": self.model_seconds,
            "reading" if self.read_seconds > self.decode_seconds else "decoding": self.wait_seconds,
            "disk": self.stall_seconds,
        }
        return max(stages, key=lambda name: stages[name]) if self.n_computed else ""

    def shares(self) -> dict[str, float]:
        """Fractions of the wall time: model, waiting for images, waiting for the disk; writing.

        Writing goes on beside the model: its share is what it would add if it did not.
        """
        wall = self.seconds or 1.0
        return {
            "model": self.model_seconds / wall,
            "images": self.wait_seconds / wall,
            "disk": self.stall_seconds / wall,
            "writing": self.write_seconds / wall,
        }

    def to_json(self) -> dict[str, Any]:
        """Plain dictionary."""
        return {f.name: getattr(self, f.name) for f in fields(self)}
