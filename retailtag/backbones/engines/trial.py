"""Trials of engines on a sample of images: how close the embeddings are, and how fast."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from retailtag.backbones.engines.names import EAGER, EngineName
from retailtag.backbones.engines.parity import EXACT, FAST, Tolerance, centred_cosine
from retailtag.errors import RetailtagError

if TYPE_CHECKING:
    from torch import Tensor

    from retailtag.backbones.backbone import Backbone
    from retailtag.backbones.engines.embedder import EngineEmbedder

# An engine is timed for at least this long and this many passes; the fastest pass counts.
MIN_TIMED_SECONDS = 1.0
MIN_TIMED_PASSES = 3
# Seconds to build and first use an engine: about three times (OpenVINO) and twice (ONNX Runtime)
# the 1.3 to 2.8 s and 4 to 8 s that a ResNet-50 or a ViT took on two fast cores (results/LOG.md,
# 2026-11-28), so that slower machines do not build in vain. compile takes minutes.
BUILD_SECONDS = {"eager": 2.0, "openvino": 8.0, "onnxruntime": 16.0, "compile": 180.0}
EXPECTED_SAVING = 0.5  # a guess: share of the eager time that an engine saves


@dataclass(frozen=True)
class Parity:
    """How close an engine's embeddings of a sample are to those of eager float32."""

    cosine: float  # smallest; 1 for equal embeddings
    centred: float  # smallest after the mean of eager's embeddings is subtracted from both
    centred_mean: float  # mean of these
    n: int  # images of the sample

    @classmethod
    def of(
        cls, eager: NDArray[np.float32], other: NDArray[np.float32], limit: Tolerance = EXACT
    ) -> Parity:
        """Compare embeddings (n, dim), n at least 1."""
        if not np.isfinite(other).all():
            return cls(math.nan, math.nan, math.nan, len(eager))
        zero = np.zeros(eager.shape[1])
        plain = centred_cosine(eager, other, zero, limit)
        # a single image is its own mean: its centred cosine is the plain one
        mean = eager.mean(axis=0, dtype=np.float64) if len(eager) > 1 else zero
        centred = centred_cosine(eager, other, mean, limit)
        return cls(float(plain.min()), float(centred.min()), float(centred.mean()), len(eager))

    def problem(self, precision: str) -> str:
        """Why the embeddings are too far from eager float32; empty if they are close enough.

        ``exact`` requires both cosines to be at least 0.99999, ``fast`` the centred one to be at
        least 0.99.
        """
        if math.isnan(self.cosine):
            return f"embeddings of {self.n} images are not all finite"
        if precision == "exact" and self.cosine < EXACT.cosine:
            return f"smallest cosine {self.cosine:.6f} on {self.n} images, below {EXACT.cosine}"
        limit = _tolerance(precision).cosine
        if self.centred < limit:
            return f"smallest centred cosine {self.centred:.6f} on {self.n} images, below {limit}"
        return ""


@dataclass(frozen=True)
class Trial:
    """Result of trying one engine; None where something was not measured."""

    name: EngineName
    rate: float | None = None  # images per second, without decoding
    parity: Parity | None = None  # with eager float32
    problem: str = ""  # why it was rejected; empty if it may be used

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
            return f"{self.name} rejected ({self.problem})"
        return f"{self.name} {self.rate:,.1f} images/s"


def fastest(trials: Sequence[Trial]) -> Trial:
    """The trial with the largest rate among those without a problem; the first of equals."""
    return max((trial for trial in trials if not trial.problem), key=_rate)


def _rate(trial: Trial) -> float:
    return trial.rate or 0.0


def pays(name: EngineName, eager_seconds: float) -> bool:
    """Whether an engine is likely to save more than `eager_seconds`, eager's time, costs to build.

    An engine without an entry in `BUILD_SECONDS` never is.
    """
    return EXPECTED_SAVING * eager_seconds > BUILD_SECONDS.get(name.engine, math.inf)


@dataclass(frozen=True, eq=False)
class Bench:
    """A sample of images on which engines are tried."""

    pixels: Tensor  # uint8 (n, 3, h, w), at least one image
    eager: Backbone  # eager float32, the reference
    precision: str  # numeric precision, exact or fast
    clock: Callable[[], float] = time.perf_counter  # seconds

    def try_all(self, engines: Mapping[EngineName, EngineEmbedder], n: int) -> list[Trial]:
        """Try the engines that are worth building for `n` images, then eager float32.

        Only the fastest so far stays built. If none is worth building, eager float32 has the rate
        of its first pass.
        """
        eager_seconds = n * self._reference[1] / len(self.pixels)
        trials: list[Trial] = []
        for name, engine in engines.items():
            if pays(name, eager_seconds):
                trials.append(self.try_out(name, engine))
            else:
                trials.append(Trial(name, problem=f"not worth building for {n:,} images"))
            leader = max(trials, key=_rate).name
            for other in engines.keys() - {leader}:
                engines[other].release()
        tried = any(trial.rate is not None for trial in trials)
        rate = self.rate(self.eager) if tried else len(self.pixels) / self._reference[1]
        return [*trials, Trial(EAGER, rate, Parity(1.0, 1.0, 1.0, len(self.pixels)))]

    def try_out(self, name: EngineName, engine: EngineEmbedder) -> Trial:
        """Build an engine, compare its embeddings, and time it if they are close enough."""
        try:
            parity = self.compare(engine)
        except RetailtagError as error:
            return Trial(name, problem=str(error).rstrip("."))
        if problem := parity.problem(self.precision):
            return Trial(name, parity=parity, problem=problem)
        return Trial(name, self.rate(engine), parity)

    def compare(self, embedder: Backbone | EngineEmbedder) -> Parity:
        """Parity of an engine with eager float32 on the sample."""
        again = _rows(embedder, self.pixels)
        return Parity.of(self._reference[0], again, _tolerance(self.precision))

    def rate(self, embedder: Backbone | EngineEmbedder) -> float:
        """Images per second in the fastest of several passes over the sample."""
        start, best, passes = self.clock(), math.inf, 0
        while passes < MIN_TIMED_PASSES or self.clock() - start < MIN_TIMED_SECONDS:
            before = self.clock()
            _rows(embedder, self.pixels)
            best = min(best, self.clock() - before)
            passes += 1
        return len(self.pixels) / max(best, 1e-9)

    @cached_property
    def _reference(self) -> tuple[NDArray[np.float32], float]:
        """Embeddings (n, dim) by eager float32, and the seconds that this first pass took."""
        start = self.clock()
        return _rows(self.eager, self.pixels), max(self.clock() - start, 1e-9)


def _tolerance(precision: str) -> Tolerance:
    return EXACT if precision == "exact" else FAST


def _rows(embedder: Backbone | EngineEmbedder, pixels: Tensor) -> NDArray[np.float32]:
    """Embeddings (n, dim) in main memory; the copy also waits for a GPU."""
    rows: NDArray[np.float32] = embedder.embed(pixels).cpu().numpy()
    return rows
