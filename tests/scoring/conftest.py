"""One small world: rare tags, a tag without positives, one always on, ties, unknown labels."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from retailtag.catalog.catalog import Catalog
from retailtag.catalog.table import TagTable
from retailtag.predictions import Predictions

TAGS = ("always", "=frequent", "common", "rare", "single", "absent")
TRAIN = (600, 500, 60, 20, 1, 0)


@dataclass
class NoImages:
    def read(self, index: int) -> bytes:
        raise AssertionError("scoring reads no image")

    def name(self, index: int) -> str:
        return str(index)


def make_catalog(n_test: int = 120, n_train: int = 30) -> Catalog:
    rng = np.random.default_rng(7)
    n = n_test + n_train
    labels = (rng.random((n, len(TAGS))) < np.array([1.0, 0.5, 0.25, 0.08, 0, 0])).astype(np.int8)
    labels[3, 4] = 1
    labels[rng.random(labels.shape) < 0.04] = -1
    labels[3, 4] = 1
    labels[:, 5][labels[:, 5] == 1] = 0
    return Catalog(
        path=Path("catalogue.csv"),
        image_ids=np.array([f"i{k:03d}" for k in range(n)]),
        split=np.array(["test"] * n_test + ["train"] * n_train),
        group=np.array([f"p{k // 2:03d}" for k in range(n)]),
        title=np.full(n, ""),
        table=TagTable(TAGS, labels, np.array(TRAIN)),
        images=NoImages(),
    )


def make_predictions(catalog: Catalog, seed: int = 0, skill: float = 1.5, **changes):
    rng = np.random.default_rng(seed)
    truth = catalog.table.labels == 1
    logits = np.round(rng.normal(size=truth.shape) + skill * truth - skill / 2, 1)
    fields = {
        "image_ids": catalog.image_ids,
        "tags": catalog.table.tags,
        "logits": logits.astype(np.float32),
        "thresholds": np.full(len(catalog.table.tags), 0.2, np.float32),
        "fitted_ids": catalog.image_ids[catalog.rows("train")],
        "provenance": {"backbone": "demo:cnn", "strategy": "probe"},
    }
    return Predictions(**{**fields, **changes})


@pytest.fixture
def catalog() -> Catalog:
    return make_catalog()


@pytest.fixture
def predictions(catalog) -> Predictions:
    return make_predictions(catalog)


@pytest.fixture
def predict():
    """Function (catalog, seed, skill, **fields) to Predictions."""
    return make_predictions


@pytest.fixture(scope="session")
def some_scores():
    """Logits and labels of 300 images and 12 tags, every label known."""
    rng = np.random.default_rng(3)
    labels = (rng.random((300, 12)) < np.linspace(0.02, 0.6, 12)).astype(np.int8)
    logits = np.round(rng.normal(size=labels.shape) + labels, 1).astype(np.float32)
    return logits, labels
