"""How long each stage of a bake-off takes and what it writes, from counted operations."""

from __future__ import annotations

import time
from functools import cache, cached_property

from retailtag.backbones import components_of
from retailtag.backbones.cost import Cost, cost_of_all
from retailtag.bakeoffs.pairs import LATENCY_IMAGES
from retailtag.bakeoffs.request import Request
from retailtag.probes.grid import parse_grid
from retailtag.probes.heads.text_prior import WEIGHTS
from retailtag.probes.scaling import parse_scales
from retailtag.runs.heads import parse_heads
from retailtag.runs.stage import Estimate

# Rough: an estimate is within a factor of three of the measured time.
NETWORK_SHARE = 0.3  # of the rate of a large matrix product that a network reaches
DECODE_SECONDS = 0.002  # per image of shop size on one core
CELL_SECONDS = 20e-9  # per (image, tag) of a solver iteration, apart from its matrix products
ITERATIONS_PER_FIT = 6  # mean over the grid of C
# A fit with texts takes 20 to 55 ms where one of the sweep takes 2 (results/LOG.md, 2026-11-29).
ITERATIONS_PER_TEXT_FIT = 40
TEXT_STRENGTHS = 5  # those of the groups and their neighbours: 4 to 6 in recorded runs
TRAINED_SHARE = 0.5  # of the operations of a forward pass that lie in the last blocks
REPORT_SECONDS = 20.0
REPORT_BYTES = 3e6
LATENCY_RECORD_BYTES = 2e3
STORED_FACTS_BYTES = 64  # per image: id and SHA-256
MEASURE_SECONDS = 0.2  # of matrix products behind `matrix_rate`
BYTES_FLOAT32 = 4


def matrix_rate(device: str) -> float:
    """Operations per second of a 1,024 x 1,024 float32 product on `device`, measured briefly."""
    import torch

    a = torch.ones(1024, 1024, device=device)
    (a @ a).sum().item()
    start = time.perf_counter()
    n_products = 0
    while time.perf_counter() - start < MEASURE_SECONDS:
        (a @ a).sum().item()  # waits for the device
        n_products += 1
    # An n x n product is n^3 multiply-adds, each two operations.
    return 2 * 1024**3 * n_products / (time.perf_counter() - start)


@cache
def _model_cost(backbone: str) -> Cost:
    return cost_of_all(components_of(backbone))


class Estimator:
    """Estimates of the stages of one bake-off; neither weights nor images are read."""

    def __init__(self, request: Request) -> None:
        self.request = request
        catalog = request.context.catalog
        self.n_tags = len(catalog.table.tags)
        self.n_train = len(catalog.rows("train"))
        self.n_held_out = len(catalog.rows("val", "test"))

    @cached_property
    def rate(self) -> float:
        """See `matrix_rate`."""
        return matrix_rate(self.request.context.device)

    def extract(self, backbone: str, n_new: int) -> Estimate:
        """Embed and store `n_new` images."""
        value_bytes = 2 if self.request.settings.extract.dtype == "float16" else 4
        image_bytes = _model_cost(backbone).dim * value_bytes + STORED_FACTS_BYTES
        return Estimate(self._embed_seconds(backbone, n_new), float(n_new) * image_bytes)

    def probe(self, backbone: str) -> Estimate:
        """Sweep C out of fold under every scaling, and fit the text head."""
        probe = self.request.settings.probe
        model = _model_cost(backbone)
        scales = parse_scales(probe.scale)
        iterations = ITERATIONS_PER_FIT * len(parse_grid(probe.sweep_C)) * len(scales)
        if model.has_text and "text" in parse_heads(probe.heads) and "standardise" in scales:
            iterations += ITERATIONS_PER_TEXT_FIT * TEXT_STRENGTHS * len(WEIGHTS)
        # Left out: ridge is one eigendecomposition per fold, neighbours one product of matrices.
        # An iteration multiplies by X and by its transpose: 4 n dim operations per tag.
        iteration = self.n_train * (CELL_SECONDS + 4 * model.dim / self.rate)
        seconds = self.n_tags * probe.folds * iterations * iteration
        # Weights, and logits of the held-out images.
        values = self.n_tags * (model.dim + self.n_held_out)
        return Estimate(seconds, float(BYTES_FLOAT32 * values))

    def finetune(self, backbone: str) -> Estimate:
        """Train, and predict the held-out images."""
        epochs = self.request.settings.finetune.epochs
        # The backward pass of the trained blocks costs twice their forward pass.
        forwards = epochs * self.n_train * (1 + 2 * TRAINED_SHARE) + self.n_held_out
        logit_bytes = float(BYTES_FLOAT32 * self.n_tags * self.n_held_out)
        return Estimate(
            self._embed_seconds(backbone, round(forwards)),
            _model_cost(backbone).weight_bytes + logit_bytes,
        )

    def latency(self, backbone: str) -> Estimate:
        """Embed the test images one by one, and again in batches."""
        return Estimate(self._embed_seconds(backbone, 2 * LATENCY_IMAGES), LATENCY_RECORD_BYTES)

    def report(self) -> Estimate:
        """Score, compare and draw."""
        return Estimate(REPORT_SECONDS, REPORT_BYTES)

    def _embed_seconds(self, backbone: str, n_images: int) -> float:
        decode = DECODE_SECONDS / max(self.request.context.workers, 1)
        forward = _model_cost(backbone).flops / (NETWORK_SHARE * self.rate)
        return n_images * (forward + decode)
