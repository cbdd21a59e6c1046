"""What the checks on a GPU share: sizes, workloads, photographs, and the sweep that was timed."""

from __future__ import annotations

import csv
import os
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from extract import draw
from numpy.typing import NDArray
from probe_data import make_features, make_labels
from probe_sample import Pair

from retailtag.backbones.preprocess import Preprocess
from retailtag.backbones.registry import PRESETS
from retailtag.catalog.catalog import Catalog
from retailtag.catalog.readers import read_catalog
from retailtag.compute import MAX_WORKERS
from retailtag.images.loader import load_batches

SEED = 0
CERTIFICATE = 1e-4  # of the solver: (objective - optimum) / objective


@dataclass(frozen=True)
class Workload:
    """Size of a sweep: images, features, tags, and strengths C from 1e-6 to 1e5."""

    images: int
    dim: int
    tags: int
    strengths: int

    @property
    def C(self) -> NDArray[np.float64]:
        """The grid, ascending."""
        return np.geomspace(1e-6, 1e5, self.strengths)

    @property
    def fits(self) -> int:
        """Tags times strengths."""
        return self.tags * self.strengths

    def make(self) -> tuple[NDArray[np.float32], NDArray[np.int8]]:
        """Features (images, dim) and labels (images, tags)."""
        rng = np.random.default_rng(SEED)
        X = make_features(self.images, self.dim, rng)
        return X, make_labels(X, self.tags, rng)


@dataclass(frozen=True)
class Sizes:
    """How much every check computes."""

    parity: Workload
    narrow: Workload  # (b) of the reference workloads
    wide: Workload  # (c)
    backbones: dict[str, str]  # ids by name
    images: int
    drawn: int  # distinct photographs among them
    side: int  # of a photograph, about, pixels
    model_seconds: float  # least time that a model is fed from memory
    batch: int  # images per step of a fine-tune
    steps: int  # of an epoch of the fine-tune that runs on both devices
    quick: bool = False  # sizes without targets for times

    @property
    def finetuned(self) -> dict[str, str]:
        """Backbones that are fine-tuned: a CNN and a ViT."""
        return {name: self.backbones[name] for name in ("cnn", "dinov2")}


FULL = Sizes(
    parity=Workload(8_000, 256, 60, 15),
    narrow=Workload(75_000, 768, 250, 45),
    wide=Workload(75_000, 2048, 250, 45),
    backbones=PRESETS,
    images=4096,
    drawn=256,
    side=500,
    model_seconds=2.0,
    batch=64,
    steps=4,
)
TINY = Sizes(
    parity=Workload(300, 16, 8, 5),
    narrow=Workload(300, 16, 8, 5),
    wide=Workload(200, 24, 6, 4),
    backbones={"cnn": "demo:cnn", "dinov2": "demo:dino", "clip": "demo:clip"},
    images=4,
    drawn=2,
    side=64,
    model_seconds=0.0,
    batch=2,
    steps=2,
    quick=True,
)


@dataclass(frozen=True, eq=False)
class TimedSweep:
    """A workload that was swept: how long it took, its fits, and the optimum of some of them."""

    work: Workload
    X: NDArray[np.float32]
    Y: NDArray[np.int8]
    found: dict[str, Any]  # seconds, iterations, statuses; see `probe_ours.one_fold`
    fits: dict[str, NDArray[Any]]  # weight, bias and gap, as `probe_ours.one_fold` stores them
    best: dict[Pair, float] = field(default_factory=dict)  # least objective, in float64


@dataclass(eq=False)
class World:
    """Device, sizes and a folder for temporary files; what one check leaves for another."""

    device: str
    sizes: Sizes
    folder: Path
    sweep: TimedSweep | None = None  # of (b), once it has been timed

    @property
    def is_h200(self) -> bool:
        """Whether this is the device that the targets for times are stated for."""
        return self.device == "cuda" and "H200" in torch.cuda.get_device_name()

    @property
    def workers(self) -> int:
        """Processes that decode images."""
        return min(os.cpu_count() or 1, MAX_WORKERS)

    def time_limit(self, seconds: float) -> float | None:
        """A target in seconds; None in a tiny size and on a device that it is not meant for."""
        return seconds if self.is_h200 and not self.sizes.quick else None

    @cached_property
    def catalog(self) -> Catalog:
        """Photographs as JPEG files: `drawn` different ones, each under several names."""
        sizes = self.sizes
        folder = self.folder / "images"
        folder.mkdir()
        drawn = sorted(draw(folder, sizes.drawn, sizes.side).glob("*.jpg"))
        rows = [("path", "tags", "split")]
        for i in range(sizes.images):
            name = f"photo-{i:06d}.jpg"
            (folder / name).hardlink_to(drawn[i % len(drawn)])
            rows.append((name, f"tag{i % 3}", "test" if i % 10 == 0 else "train"))
        with (folder / "photos.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(rows)
        catalog = read_catalog(folder / "photos.csv")
        # Starts the processes that decode, so that no measurement waits for them.
        rows, step = range(min(8 * self.workers, len(catalog))), Preprocess((32, 32))
        for _ in load_batches(catalog.images, rows, step, batch_size=8, workers=self.workers):
            pass
        return catalog
