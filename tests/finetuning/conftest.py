"""A small training: the tiny catalogue, a head of random numbers, and a selector."""

from __future__ import annotations

import hashlib
import itertools
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch

from retailtag.backbones import load_backbone
from retailtag.finetuning.augment import Augment
from retailtag.finetuning.batch_loader import BatchLoader, Views, image_keys
from retailtag.finetuning.cached_loader import CachedImages, cached_batch_loader
from retailtag.finetuning.head import HeadInit
from retailtag.finetuning.image_loader import ImageLoader
from retailtag.finetuning.network import Network
from retailtag.finetuning.trainer import train
from retailtag.finetuning.validation import Measured, ModelSelector
from retailtag.images.decode import MAX_PIXELS
from retailtag.progress import SILENT
from retailtag.settings import FinetuneSettings


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """One thread: small models on a busy machine are slower with more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make_start(dim: int, n_tags: int, seed: int = 0) -> HeadInit:
    """A head of random numbers."""
    rng = np.random.default_rng(seed)
    return HeadInit(
        rng.standard_normal(dim).astype(np.float32),
        (1 + rng.random(dim)).astype(np.float32),
        0.01 * rng.standard_normal((n_tags, dim)).astype(np.float32),
        rng.standard_normal(n_tags).astype(np.float32),
    )


def accuracy_of(labels):
    """Measure by the share of right cells, which needs no thresholds."""

    def measure(logits):
        right = np.where(labels >= 0, (logits > 0) == (labels == 1), np.nan)
        share = np.nanmean(right, axis=0)
        return Measured(share, share)

    return measure


@dataclass
class World:
    """What a training in these tests needs."""

    catalog: Any
    hashes: dict[str, str]
    name: str = "demo:cnn"

    def __post_init__(self):
        rows = self.catalog.rows("train")[:54]  # 40 to fit: five batches of eight
        self.fit, self.val = rows[: len(rows) * 3 // 4], rows[len(rows) * 3 // 4 :]
        self.labels = self.catalog.table.labels

    def backbone(self):
        return load_backbone(self.name, random_weights=True)

    def images(self, backbone):
        rows = self.catalog.rows("train").tolist()
        return ImageLoader(
            self.catalog, backbone, rows, workers=0, max_pixels=MAX_PIXELS, sha256=self.hashes
        )

    def network(self, config, backbone=None, **options):
        backbone = backbone or self.backbone()
        start = make_start(backbone.dim, len(self.catalog.table.tags))
        return Network(backbone, start, config, **options)

    def views(self, config):
        keys = image_keys(self.catalog.image_ids.tolist())
        return Views(Augment.parse(config.augment), config.seed, keys)

    def loader(self, network):
        return BatchLoader(network, self.images(network.backbone), self.views(network.config))

    def cached(self, network, root, *, budget=10**9, **options):
        images = CachedImages(self.catalog.image_ids.tolist(), self.hashes, self.fit, self.val)
        return cached_batch_loader(
            network,
            self.images(network.backbone),
            images,
            network.backbone.spec(),
            root,
            budget,
            self.views(network.config),
            **options,
        )

    def selector(self, choose="macro-ap"):
        tail = np.zeros(self.labels.shape[1], bool)
        tail[:2] = True
        return ModelSelector(accuracy_of(self.labels[self.val]), tail, choose)

    def rising(self):
        """A selector by which every state is better than those measured before."""
        values, n_tags = itertools.count(1), self.labels.shape[1]

        def measure(logits):
            value = np.full(n_tags, next(values) / 1000)
            return Measured(value, value)

        return replace(self.selector(), measure=measure)

    def train(self, config=None, network=None, loader=None, selector=None, **options):
        network = network or self.network(config)
        loader = loader or self.loader(network)
        selector = selector or self.selector()
        return train(network, loader, self.labels, self.fit, self.val, selector, **options)


class Said:
    """A progress that records its lines."""

    def __init__(self):
        self.lines = []

    def say(self, line):
        self.lines.append(line)

    def task(self, name, total, unit="images"):
        return SILENT.task(name, total, unit)


@pytest.fixture
def said():
    """A progress whose `lines` are what was said."""
    return Said()


@pytest.fixture(scope="session")
def hashes(tiny):
    """SHA-256 of every image's bytes, by id."""
    return {
        str(i): hashlib.sha256(tiny.images.read(row)).hexdigest()
        for row, i in enumerate(tiny.image_ids)
    }


@pytest.fixture
def world(tiny, hashes):
    """Random demo:cnn on the tiny catalogue."""
    return World(tiny, hashes)


QUICK = FinetuneSettings(
    epochs=2, batch_size=8, augment="none", interpolate="1", choose_epoch="macro-ap"
)


@pytest.fixture
def quick():
    """Two epochs without augmentation and without interpolation."""
    return QUICK
