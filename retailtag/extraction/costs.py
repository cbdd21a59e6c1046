"""Where the time of an extraction goes, and which step the others wait for."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from typing import Any


@dataclass(frozen=True)
class ExtractCost:
    """Seconds of embedding some images, by step.

    Where several backbones share a pass, each has its own model and writing, and an equal share
    of the rest.
    """

    n_computed: int = 0  # images embedded
    seconds: float = 0.0  # wall time
    read_seconds: float = 0.0  # reading and hashing, summed over the loading threads
    decode_seconds: float = 0.0  # decoding and resizing, likewise
    wait_seconds: float = 0.0  # wall time that the model waited for images
    model_seconds: float = 0.0  # wall time of the model
    write_seconds: float = 0.0  # time of the writing thread
    stall_seconds: float = 0.0  # wall time that the model waited for the disk

    def __add__(self, other: ExtractCost) -> ExtractCost:
        names = [f.name for f in fields(self)]
        return ExtractCost(**{name: getattr(self, name) + getattr(other, name) for name in names})

    def within(self, seconds: float) -> ExtractCost:
        """The same shares in another wall time: that of one of several processes side by side."""
        scale = seconds / self.seconds if self.seconds else 0.0
        return replace(
            self,
            seconds=seconds,
            wait_seconds=self.wait_seconds * scale,
            model_seconds=self.model_seconds * scale,
        )

    def shared_by(self, n: int) -> ExtractCost:
        """The share of one of `n` backbones: an n-th of the times, and all the images."""
        times = {name: value / n for name, value in self.to_json().items() if name != "n_computed"}
        return ExtractCost(self.n_computed, **times)

    @property
    def limit(self) -> str:
        """Step that the others waited for: ``model``, ``decoding``, ``reading`` or ``disk``.

        The one in which the thread that drives the model spent most of its time; where that is
        waiting for images, the one that the loading threads spent more time on. Empty if nothing
        was computed.

        Examples
        --------
        >>> ExtractCost(9, model_seconds=2.0, wait_seconds=6.0, decode_seconds=11.0).limit
        'decoding'
        """
        loading = "reading" if self.read_seconds > self.decode_seconds else "decoding"
        steps = {
            "model": self.model_seconds,
            loading: self.wait_seconds,
            "disk": self.stall_seconds,
        }
        return max(steps, key=lambda name: steps[name]) if self.n_computed else ""

    def shares(self) -> dict[str, float]:
        """Fractions of the wall time: model, waiting for images and for the disk, and writing."""
        wall = self.seconds or 1.0
        return {
            "model": self.model_seconds / wall,
            "images": self.wait_seconds / wall,
            "disk": self.stall_seconds / wall,
            # Writing runs beside the model: its share is what it would add if it did not.
            "writing": self.write_seconds / wall,
        }

    def to_json(self) -> dict[str, Any]:
        """Plain dictionary."""
        return asdict(self)
