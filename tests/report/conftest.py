"""A made-up bake-off of Zipf tags, with six pairs that resemble real ones, and a made-up drift."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from matplotlib.text import Text
from PIL import Image

from retailtag.catalog.catalog import Catalog
from retailtag.catalog.table import TagTable
from retailtag.images.memory import MemoryImages
from retailtag.predictions import Predictions
from retailtag.report.drift.page import drift_page
from retailtag.report.results import BakeoffResult, PairCost, PairResult, describe_catalog
from retailtag.scoring.compare import hold_contest
from retailtag.scoring.finding import Finding
from retailtag.scoring.score import score_predictions
from retailtag.statistics.drift import (
    FAMILIES,
    DriftResult,
    Embeddings,
    Estimate,
    Family,
    Novelty,
    Remedy,
    Shift,
    TagShift,
)

# backbone: separation of rare tags, gain per decade of training images, latency in ms,
# extraction seconds, parameters in millions
BACKBONES = {
    "timm:resnet50.a1_in1k": (1.75, 0.52, 19.0, 410.0, 25.6),
    "timm:vit_small_patch14_dinov2.lvd142m": (1.95, 0.62, 31.0, 640.0, 22.1),
    "open_clip:ViT-B-32/openai": (2.35, 0.45, 15.0, 380.0, 87.9),
}
# strategy: change of separation, of gain per decade, seconds beyond extraction, memory in MiB
STRATEGIES = {"probe": (0.0, 0.0, 35.0, 1900.0), "finetune": (-0.30, 0.22, 5200.0, 6400.0)}


@dataclass
class NoImages:
    def read(self, index: int) -> bytes:
        raise AssertionError("a report reads no image")

    def name(self, index: int) -> str:
        return str(index)


def draw_catalog(rng: np.random.Generator, n_test: int, n_tags: int, tags=None) -> Catalog:
    """Catalogue with `n_test` test images and Zipf training counts up to 40 % of 40,000."""
    rank = np.arange(1, n_tags + 1) * 250 / n_tags
    train_count = 16000 / rank**1.05 * np.exp(-np.maximum(rank - 180, 0) / 22)
    train_count = np.maximum(train_count, 2).astype(np.int64)
    rate = train_count / 40000
    labels = (rng.random((n_test, n_tags)) < rate).astype(np.int8)
    table = TagTable(tuple(tags or (f"tag {j:03d}" for j in range(n_tags))), labels, train_count)
    ids = np.array([f"img{i:05d}" for i in range(n_test)])
    product = np.array([f"p{i:05d}" for i in rng.integers(0, int(0.9 * n_test), n_test)])
    return Catalog(
        path=Path("catalogue.csv"),
        image_ids=ids,
        split=np.full(n_test, "test"),
        group=product,
        title=np.full(n_test, ""),
        table=table,
        images=NoImages(),
    )


def draw_predictions(catalog: Catalog, rng, shared, rare: float, per_decade: float, provenance):
    """Logits whose separation grows with the training images of the tag."""
    labels, count = catalog.table.labels, catalog.table.train_count
    separation = rare + per_decade * np.log10(count / 10 + 0.1) + 0.9
    own = rng.normal(size=labels.shape)
    logits = separation * (labels == 1) + 0.85 * shared + 0.53 * own
    rate = np.clip(count / 40000, 1e-6, 0.5)
    thresholds = separation / 2 + 0.6 * np.log((1 - rate) / rate) / separation
    return Predictions(
        image_ids=catalog.image_ids,
        tags=catalog.table.tags,
        logits=logits.astype(np.float32),
        thresholds=thresholds.astype(np.float32),
        fitted_ids=np.array(["training-1"]),
        provenance=provenance,
    )


def make_bakeoff(n_test: int = 5000, n_tags: int = 250, seed: int = 0, tags=None) -> BakeoffResult:
    """Whole bake-off, scored and compared by the real code."""
    rng = np.random.default_rng(seed)
    catalog = draw_catalog(rng, n_test, n_tags, tags)
    shared = rng.normal(size=(n_test, n_tags))
    models, pairs = {}, []
    for backbone, (rare, per_decade, latency, extract, millions) in BACKBONES.items():
        for strategy, (shift, steeper, seconds, memory) in STRATEGIES.items():
            provenance = {"backbone": backbone, "strategy": strategy}
            predictions = draw_predictions(
                catalog, rng, shared, rare + shift, per_decade + steeper, provenance
            )
            card = score_predictions(predictions, catalog)
            models[card.model] = [predictions]
            cost = PairCost(
                extract_seconds=extract if strategy == "probe" else 0.0,
                train_seconds=seconds + (extract if strategy == "probe" else 6 * extract),
                peak_memory_mib=memory,
                latency_ms_p50=latency * (1.0 if strategy == "probe" else 1.02),
                latency_ms_p95=latency * 1.4,
                images_per_second=3200 / latency,
                parameters=int(millions * 1e6),
                weights_mib=millions * 3.81,
            )
            pairs.append(PairResult(backbone, strategy, card, cost))
    facts = describe_catalog(catalog)
    facts["images"] = {"train": 36000, "val": 4000, "test": n_test}
    return BakeoffResult(
        catalog=facts,
        pairs=tuple(pairs),
        comparisons=hold_contest(models, catalog, n_bootstrap=400).comparisons,
        machine={"processor": "AMD EPYC, 2 cores", "memory": "24 GiB", "torch": "2.15.0"},
        command="retailtag bakeoff catalogue.csv --out runs/first --seed 0",
        seed=0,
        findings=(Finding("small-val", "The val split has 4,000 images.", "Enlarge it."),),
    )


@pytest.fixture(scope="session")
def bakeoff() -> BakeoffResult:
    """Small bake-off that the room's tests share."""
    return make_bakeoff(n_test=600, n_tags=60)


@pytest.fixture(scope="session")
def must_be_legible():
    """Check that a figure's text is large enough for its layout, and inside it."""

    def check(figure, layout):
        texts = figure.findobj(lambda artist: isinstance(artist, Text))
        assert min(text.get_fontsize() for text in texts if text.get_text().strip()) >= 11
        figure.canvas.draw()
        around = figure.get_tightbbox(figure.canvas.get_renderer())  # in inches
        assert around.x0 > -0.02
        assert around.x1 < layout.inches + 0.02
        assert around.y0 > -0.02
        assert around.y1 < figure.get_size_inches()[1] + 0.02

    return check


# Names that are markup, of tags and of files
EVIL = '<script>alert("x")</script>'
HALF = Estimate(0.5, 0.4, 0.6)


@pytest.fixture(scope="module")
def drift():
    """A comparison in which tags and properties drifted, with names that are markup."""
    p = dict.fromkeys(FAMILIES, 0.4) | {"tags": 0.002, "properties": 0.01}
    rates = Estimate(0.1, 0.08, 0.12), Estimate(0.3, 0.25, 0.36), Estimate(0.2, 0.15, 0.25)
    tags = [TagShift(EVIL, *rates, 0.001)]
    tags += [TagShift(f"tag {k}", HALF, HALF, Estimate(0, -0.1, 0.1), 0.9) for k in range(14)]
    less = Estimate(0.1, 0, 0.2)
    bins = (0.0, 1.0, 2.0), (0.5, 0.5), (0.1, 0.9)
    return DriftResult(
        n_reference=500,
        n_new=3,
        n_reference_groups=200,
        n_new_groups=3,
        alpha=0.05,
        permutations=999,
        p=0.005,
        families=tuple(Family(k, v, v, v < 0.05) for k, v in p.items()),
        embeddings=Embeddings(0.001, 12.5, HALF, 0.7),
        novelty=Novelty(0.05, Estimate(0.04, 0.01, 0.1), (2, 0, 1), (0.5, 1.0, 0.02)),
        confidences=(Shift("top_logit", 500, 3, (0, 1, 2), (0, 1, 2), HALF, 0.1, 0.9, *bins),),
        properties=(
            Shift("sharpness", 500, 3, (5, 9, 12), (1, 2, 3), less, 0.9, 0.01, *bins),
            Shift("jpeg_quality", 0, 0, (0, 0, 0), (0, 0, 0), HALF, 0, 1.0),
        ),
        kinds={"JPEG": (1.0, 0.5), "PNG": (0.0, 0.5)},
        kinds_p=0.2,
        tags=tuple(tags),
        names=("a/one.jpg", f"{EVIL}.jpg", "gone.jpg"),
        reference="test split",
        remedies=(Remedy("input", "It is so.", "Do that."),),
        notes=("A note.",),
        facts={"model": "abc"},
    )


@pytest.fixture(scope="module")
def drift_html(drift):
    picture = Image.effect_noise((300, 200), 90).convert("RGB")
    images = MemoryImages(Path(), list(drift.names), [picture, picture, b"damaged"])
    return drift_page(drift, images, drift.names)
