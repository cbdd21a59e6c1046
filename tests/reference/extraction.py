"""An extraction small enough to be run thousands of times, and all that it leaves to be served."""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from retailtag.catalog.catalog import Catalog
from retailtag.catalog.table import TagTable
from retailtag.context import RunContext
from retailtag.errors import DataError, UnreadableImage
from retailtag.settings import ComputeSettings, ExtractSettings
from retailtag.store import FeatureSpec, FeatureStore

if TYPE_CHECKING:
    import torch

# Seed of each image's pixels, None: no such file. Two commands over two states of the catalogue,
# and a third that computes all of the second again.
FIRST = {i: i for i in range(12)} | {5: None}
CHANGED = FIRST | {3: 103, 5: 5, 7: None, 12: 12, 13: 13}
COMMANDS = ((FIRST, False), (CHANGED, False), (CHANGED, True))


class StandIn:
    """The first six pixels: exact whatever the batch. `stop_at`: interrupted in that batch."""

    id, dim = "demo:stand-in", 6

    def __init__(self, stop_at: int = -1) -> None:
        self._left = stop_at

    def spec(self, engine: str = "eager-float32", dtype: str = "float32") -> FeatureSpec:
        return FeatureSpec(self.id, "ab" * 32, "{}", "avg", self.dim, "{}", engine, dtype)

    def preprocess(self, image: Image.Image) -> np.ndarray:
        return np.asarray(image).transpose(2, 0, 1)

    def embed(self, pixels: torch.Tensor) -> torch.Tensor:
        if self._left == 0:
            raise KeyboardInterrupt
        self._left -= 1
        return pixels.flatten(1)[:, : self.dim].float()


@dataclass(frozen=True)
class Drawn:
    seeds: dict[int, int | None]

    def stamp(self, index: int) -> None:
        """No file holds it."""

    def read(self, index: int) -> bytes:
        if self.seeds[index] is None:
            raise UnreadableImage("no such file")
        return png(self.seeds[index])

    def name(self, index: int) -> str:
        return f"row {index}"


@cache
def png(seed: int) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (2, 3, 3), np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def command(root: Path, number: int, stop_at: int = -1) -> None:
    """What the user runs: images in blocks of four."""
    from retailtag.extraction import extract as extract_module

    seeds, recompute = COMMANDS[number]
    ids, split = np.array([f"image-{i:02d}" for i in seeds]), np.full(len(seeds), "train")
    table = TagTable.build(("red",), np.ones((len(ids), 1), np.int8), split == "train")
    catalog = Catalog(Path("c.csv"), ids, split, ids, np.full(len(ids), ""), table, Drawn(seeds))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(extract_module, "IMAGES_PER_BLOCK", 4)
        backbone = StandIn(stop_at)
        compute = ComputeSettings(device="cpu", features=root / "f", workers=0)
        context = RunContext(catalog, compute=compute)
        settings = ExtractSettings(batch_size=4)
        extract_module.extract(context, backbone, settings, recompute=recompute)


@dataclass(frozen=True)
class Served:
    """All that a store answers: hash of every row, its embedding, and reason of every absence."""

    hashes: dict[str, str]
    rows: dict[str, bytes]
    absent: dict[str, str]

    @classmethod
    def none(cls) -> Served:
        return cls({}, {}, {})

    @classmethod
    def by(cls, root: Path) -> Served:
        """What is served by the store under `root`, nothing if there is none."""
        try:
            store = FeatureStore.find(root / "f", StandIn().spec())
        except DataError:
            return cls.none()
        view = store.load(list(store.known()))
        rows = dict(zip(view.image_ids.tolist(), (row.tobytes() for row in view.X), strict=True))
        return cls(store.known(), rows, {i: a.reason for i, a in store.absent().items()})

    def with_segment(self, path: Path) -> Served:
        """What is served once the segment at `path` is added."""
        one = FeatureStore(path.parent, StandIn().spec())._read(path)
        ids, gone = one.image_ids, {a.image_id: a.reason for a in one.absent}
        hashes = dict(zip(ids, (row.tobytes().hex() for row in one.sha256), strict=True))
        rows = dict(zip(ids, (row.tobytes() for row in one.embedding), strict=True))
        return Served(
            {k: v for k, v in (self.hashes | hashes).items() if k not in gone},
            {k: v for k, v in (self.rows | rows).items() if k not in gone},
            {k: v for k, v in (self.absent | gone).items() if k not in hashes},
        )


def segments(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in root.glob("f/*/shard-*.h5")}
