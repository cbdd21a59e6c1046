"""Engines tried on a sample of images: whether the embeddings are the same, and how fast."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from retailtag.backbones.engines.names import EAGER, EngineName
from retailtag.backbones.engines.parity import EXACT, FAST, Tolerance, centred_cosine
from retailtag.errors import RetailtagError

if TYPE_CHECKING:
    from torch import Tensor

TIMED_SECONDS = 1.0  # an engine is timed for this long at least,
TIMED_PASSES = 3  # and this many times over the sample: the fastest pass counts
# What building and first using an engine costs, by itself, in seconds: some three times (OpenVINO)
# and twice (ONNX Runtime) what a ResNet-50 or a ViT took on two fast cores, 1.3 to 2.8 and 4 to 8.
BUILD_SECONDS = {"eager": 2.0, "openvino": 8.0, "onnxruntime": 16.0, "compile": 180.0}
GAIN = 0.5  # part of the eager time that an engine may be hoped to save


class Embeds(Protocol):
    """What is tried."""

    def embed(self, pixels: Tensor) -> Tensor:
        """Map uint8 (n, 3, h, w) to float32 (n, dim)."""
        ...


class Releasable(Embeds, Protocol):
    """What is tried and can be dropped from memory."""

    def release(self) -> None:
        """Drop what was built; it is built again where it is used again."""
        ...


@dataclass(frozen=True)
class Parity:
    """How near an engine's embeddings are to eager float32, over a sample; larger is nearer.

    Parameters
    ----------
    cosine : float
        Smallest cosine.
    centred : float
        Smallest cosine after the mean of the sample (of eager's embeddings) is taken off both.
    centred_mean : float
        Mean of those.
    n : int
        Images of the sample.
    """

    cosine: float
    centred: float
    centred_mean: float
    n: int

    @classmethod
    def of(
        cls, eager: NDArray[np.float32], other: NDArray[np.float32], limit: Tolerance = EXACT
    ) -> Parity:
        """Compare embeddings (n, dim), n at least 1.

        A single image has no mean but itself: its centred cosine is the plain one.
        """
        if not np.isfinite(other).all():
            return cls(math.nan, math.nan, math.nan, len(eager))
        zero = np.zeros(eager.shape[1])
        plain = centred_cosine(eager, other, zero, limit)
        mean = eager.mean(axis=0, dtype=np.float64) if len(eager) > 1 else zero
        centred = centred_cosine(eager, other, mean, limit)
        return cls(float(plain.min()), float(centred.min()), float(centred.mean()), len(eager))

    def keeps(self, precision: str) -> bool:
        """Whether it is near enough: 0.99999 for ``exact``, both ways; 0.99 centred for ``fast``.

        Embeddings that are not finite never are.
        """
        if precision == "exact":
            return min(self.cosine, self.centred) >= EXACT.cosine
        return self.centred >= FAST.cosine


@dataclass(frozen=True)
class Trial:
    """What came of trying one engine.

    Parameters
    ----------
    name : EngineName
    rate : float or None
        Images a second, without decoding; None if it was not measured.
    parity : Parity or None
        With eager float32; None if it was not measured.
    problem : str
        Why it was passed over; empty for one that may be taken.
    """

    name: EngineName
    rate: float | None = None
    parity: Parity | None = None
    problem: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain dictionary for ``--json``."""
        return {
            "engine": str(self.name),
            "images_per_second": self.rate,
            "parity": None if self.parity is None else asdict(self.parity),
            "problem": self.problem,
        }

    def __str__(self) -> str:
        if self.problem:
            return f"{self.name} passed over ({self.problem})"
        return f"{self.name} {self.rate:,.1f} images/s"


def fastest(trials: Sequence[Trial]) -> Trial:
    """Of the trials without a problem the one with the largest rate, the first of equals."""
    return max((trial for trial in trials if not trial.problem), key=_rate)


def _rate(trial: Trial) -> float:
    return trial.rate or 0.0


def pays(name: EngineName, eager_seconds: float) -> bool:
    """Whether trying an engine can save more than it costs.

    Parameters
    ----------
    name : EngineName
    eager_seconds : float
        What eager float32 would need for the images at hand.
    """
    return GAIN * eager_seconds > BUILD_SECONDS.get(name.engine, math.inf)


@dataclass(frozen=True, eq=False)
class Bench:
    """A sample of images on which engines are tried.

    Parameters
    ----------
    pixels : Tensor of uint8, shape (n, 3, h, w)
        At least one image.
    eager : Embeds
        Eager float32, what the others are compared with.
    precision : str
        ``exact`` or ``fast``: how near they must be.
    clock : callable
        Seconds.
    """

    pixels: Tensor
    eager: Embeds
    precision: str
    clock: Callable[[], float] = time.perf_counter

    def try_all(self, engines: Mapping[EngineName, Releasable], n: int) -> list[Trial]:
        """Try the engines whose building pays for `n` images, and eager float32, in that order.

        Only the fastest so far stays built. Where none pays, eager float32 alone has a rate, that
        of its first pass.
        """
        seconds = n * self._reference[1] / len(self.pixels)
        trials: list[Trial] = []
        for name, engine in engines.items():
            worth = pays(name, seconds)
            why_not = f"not worth building for {n:,} images"
            trials.append(self.try_out(name, engine) if worth else Trial(name, problem=why_not))
            leader = max(trials, key=_rate).name
            for other in engines.keys() - {leader}:
                engines[other].release()
        tried = any(trial.rate is not None for trial in trials)
        rate = self.rate(self.eager) if tried else len(self.pixels) / self._reference[1]
        return [*trials, Trial(EAGER, rate, Parity(1.0, 1.0, 1.0, len(self.pixels)))]

    def try_out(self, name: EngineName, engine: Embeds) -> Trial:
        """Build an engine, compare it, and time it if it is near enough."""
        try:
            parity = self.compare(engine)
        except RetailtagError as error:
            return Trial(name, problem=str(error).rstrip("."))
        if not parity.keeps(self.precision):
            return Trial(name, parity=parity, problem=too_far(parity, self.precision))
        return Trial(name, self.rate(engine), parity)

    def compare(self, embedder: Embeds) -> Parity:
        """Parity of an engine with eager float32 on the sample."""
        limit = EXACT if self.precision == "exact" else FAST
        return Parity.of(self._reference[0], _rows(embedder, self.pixels), limit)

    def rate(self, embedder: Embeds) -> float:
        """Images a second of the fastest of some passes over the sample."""
        start, best, passes = self.clock(), math.inf, 0
        while passes < TIMED_PASSES or self.clock() - start < TIMED_SECONDS:
            before = self.clock()
            _rows(embedder, self.pixels)
            best = min(best, self.clock() - before)
            passes += 1
        return len(self.pixels) / max(best, 1e-9)

    @cached_property
    def _reference(self) -> tuple[NDArray[np.float32], float]:
        """Embeddings (n, dim) by eager float32, and the seconds of that first pass."""
        start = self.clock()
        return _rows(self.eager, self.pixels), max(self.clock() - start, 1e-9)


def too_far(parity: Parity, precision: str) -> str:
    """Say by how much an engine misses the tolerance of a precision."""
    if math.isnan(parity.cosine):
        return f"embeddings of {parity.n} images are not all finite"
    if precision == "exact" and parity.cosine < EXACT.cosine:
        return f"smallest cosine {parity.cosine:.6f} on {parity.n} images, below {EXACT.cosine}"
    limit = EXACT if precision == "exact" else FAST
    return (
        f"smallest centred cosine {parity.centred:.6f} on {parity.n} images, below {limit.cosine}"
    )


def _rows(embedder: Embeds, pixels: Tensor) -> NDArray[np.float32]:
    """Embeddings (n, dim) in main memory, which also waits for a GPU."""
    rows: NDArray[np.float32] = embedder.embed(pixels).cpu().numpy()
    return rows
