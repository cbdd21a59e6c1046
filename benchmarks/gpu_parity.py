"""Whether a GPU computes what the CPU computes: solver, heads, engines, a fine-tune."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
from extract import nearness
from finetune_step import STEP, Bench, make_bench
from gpu_runner import Figure, Skip, skipped
from gpu_speed import NO_SHORTER_TYPE, model_images_s
from gpu_world import CERTIFICATE, SEED, World
from numpy.typing import NDArray
from probe_check import objectives_and_bounds

from retailtag.backbones import load_backbone
from retailtag.backbones.backbone import full_float32
from retailtag.backbones.engines import EAGER, embedder_of
from retailtag.backbones.engines.build import best_name, why_unavailable
from retailtag.backbones.engines.parity import EXACT, FAST
from retailtag.catalog.catalog import Catalog
from retailtag.finetuning.trainer import Training
from retailtag.probes.heads.head import Head
from retailtag.probes.heads.knn import KnnHead
from retailtag.probes.heads.text_prior import TextPriorHead
from retailtag.probes.solver.fit import fit_probes, make_solver
from retailtag.probes.solver.fits import ProbeFits

# Standard deviations, on average. Two fits within the certificate differ by more than rounding:
# this solver and scikit-learn at a tolerance of 1e-6, both on the CPU, by 0.0014.
TEXT_LOGITS = 0.01
SIMILARITY = 1e-5  # of unit vectors of a few hundred features in float32
VOTES = 1e-3  # of log-odds; equal neighbours give equal votes to rounding
VOTES_QUANTILE = 0.99  # the rest are votes whose last neighbour is another, by rounding
# Rounding of another library on the CPU (oneDNN off) gives at most 1e-7 and 4e-6 after eight steps.
LOSSES = 1e-4  # relative
TUNED_LOGITS = 1e-3  # standard deviations
NEAREST = 100  # neighbours


def solver(world: World) -> Iterator[Figure]:
    """Objectives, weights and statuses of a grid; and one with weights and unknown labels."""
    work = world.sizes.parity
    X, Y = work.make()
    cpu, gpu = (fit_probes(X, Y, work.C.tolist(), device=d) for d in ("cpu", world.device))
    f, g = (_objectives(X, Y, fits) for fits in (cpu, gpu))
    yield Figure("objectives, largest difference", _apart(f, g), "", CERTIFICATE, headline=True)
    yield Figure("largest stated gap", float(np.nanmax(gpu.gap)), "", CERTIFICATE)
    # ½‖w - w*‖² <= f(w) - f(w*) <= gap·f, as f is 1-strongly convex in w at the best intercept;
    # so two fits are at most √(2·gap·f) + √(2·gap'·f') apart, and what float32 rounds.
    apart = np.linalg.norm(cpu.weight.astype(np.float64) - gpu.weight, axis=2)
    bound = np.sqrt(2 * cpu.gap * f) + np.sqrt(2 * gpu.gap * g)
    bound += 1e-6 * np.linalg.norm(cpu.weight, axis=2)
    share = float(np.nanmax(apart / np.maximum(bound, 1e-12)))
    yield Figure("weights, distance over its bound", share, "", 1.0)
    yield Figure("statuses that differ", float((cpu.status != gpu.status).sum()), "fits")
    rng = np.random.default_rng(SEED)
    weight, unknown = rng.uniform(0.5, 2.0, len(X)), np.where(rng.random(Y.shape) < 0.05, -1, Y)
    both = (
        fit_probes(X, unknown, work.C.tolist(), sample_weight=weight, device=device).objective
        for device in ("cpu", world.device)
    )
    yield Figure("objectives, weighted and unknown", _apart(*both), "", CERTIFICATE)


def _objectives(
    X: NDArray[np.float32], Y: NDArray[np.int8], fits: ProbeFits
) -> NDArray[np.float64]:
    """Objective (n_C, n_tags) of fits in float64, by no solver under test."""
    x = X.astype(np.float64)
    heads = zip(fits.C.tolist(), fits.weight, fits.bias, strict=True)
    return np.array(
        [
            objectives_and_bounds(x, Y, c, W.astype(np.float64), b.astype(np.float64))[0]
            for c, W, b in heads
        ]
    )


def _apart(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Largest relative difference; tags without a fit are NaN in both."""
    return float(np.nanmax(np.abs(a - b) / np.abs(a)))


def knn(world: World) -> Iterator[Figure]:
    """Neighbours and votes of images that are not in the bank."""
    X, Y = world.sizes.parity.make()
    half = len(X) // 2
    fits = [KnnHead(device=d).fit(X[:half], Y[:half]) for d in ("cpu", world.device)]
    k = min(NEAREST, half)
    near = [each.bank.nearest(X[half:], k, each.device)[1] for each in fits]
    difference = float(np.abs(near[0] - near[1]).max())
    yield Figure("similarities, largest difference", difference, "", SIMILARITY, headline=True)
    for choice, name in enumerate(KnnHead().candidates):
        a, b = (each.scores(X[half:], choice) for each in fits)
        quantile = float(np.quantile(np.abs(a - b), VOTES_QUANTILE))
        yield Figure(f"votes at {name}, 99 % differ by", quantile, "", VOTES)


def text_prior(world: World) -> Iterator[Figure]:
    """Logits of images that were not fitted, at every weight of the tag names."""
    work = world.sizes.parity
    X, Y = work.make()
    text = np.random.default_rng(SEED).standard_normal((work.tags, work.dim)).astype(np.float32)
    C = np.array([1e-3, 1e-2, 1e-1])

    def head(device: str) -> TextPriorHead:
        return TextPriorHead(text, C, make_solver("torch", device))

    half = len(X) // 2
    a, b = (_logits(head(d), X, Y, half) for d in ("cpu", world.device))
    apart = float((np.abs(a - b).mean(axis=(1, 2)) / a.std(axis=(1, 2))).max())
    yield Figure("logits, mean difference", apart, "sd", TEXT_LOGITS, headline=True)
    yield Figure("logits, largest difference", float(np.abs(a - b).max() / a.std()), "sd")


def _logits(
    head: Head, X: NDArray[np.float32], Y: NDArray[np.int8], half: int
) -> NDArray[np.float32]:
    """Logits (n_candidates, n_images, n_tags) of the second half by a head fitted on the first."""
    fits = head.fit(X[:half], Y[:half])
    return np.array([fits.scores(X[half:], k) for k in range(len(head.candidates))])


def ridge(world: World) -> Iterator[Figure]:
    """Nothing: there is one implementation."""
    raise Skip("NumPy computes it on the CPU, whatever the device")
    yield


def eager(world: World) -> Iterator[Figure]:
    """Embeddings by eager float32 on the device against those of the CPU."""
    for name, backbone_id in world.sizes.backbones.items():
        cpu, gpu = (load_backbone(backbone_id, random_weights=True, device=d) for d in both(world))
        yield from _near(f"{name}, float32", world.catalog, cpu, gpu, EXACT.cosine)


def both(world: World) -> tuple[str, str]:
    """The CPU and the device that is compared with it."""
    return "cpu", world.device


def engine(kind: str) -> Callable[[World], Iterator[Figure]]:
    """An engine in its exact and fast arithmetic against eager float32 on the same device.

    With random weights the mean of all embeddings is long and centred cosines say little, so only
    the plain cosine has a limit.
    """

    def figures(world: World) -> Iterator[Figure]:
        if kind == "compile" and world.device == "cpu":
            raise Skip("compiling takes up to a minute for each backbone on a CPU")
        for name, backbone_id in world.sizes.backbones.items():
            backbone = load_backbone(backbone_id, random_weights=True, device=world.device)
            for precision, limit in (("exact", EXACT.cosine), ("fast", FAST.cosine)):
                engine_name = best_name(kind, precision, world.device)
                label = f"{name}, {engine_name}"
                if engine_name == EAGER:
                    if precision == "fast":
                        yield skipped(f"{name}, fast", NO_SHORTER_TYPE)
                    continue
                if problem := why_unavailable(engine_name, world.device):
                    yield skipped(label, problem)
                    continue
                embedder = embedder_of(backbone, engine_name)
                yield from _near(label, world.catalog, backbone, embedder, limit)
                yield Figure(f"{label}: model only", model_images_s(embedder, world), "images/s")

    return figures


def _near(
    label: str, catalog: Catalog, reference: object, other: object, limit: float
) -> Iterator[Figure]:
    found = nearness(catalog, reference, other)
    smallest = found["cosine_min"]
    yield Figure(f"{label}: smallest cosine", smallest, "", limit, at_least=True, headline=True)
    yield Figure(f"{label}: centred cosine, mean", found["centred_cosine_mean"])


def finetune(world: World) -> Iterator[Figure]:
    """Losses of two short epochs in float32, and the logits after them; TF32 is off."""
    sizes = world.sizes
    config = replace(STEP, batch_size=sizes.batch)
    for name, backbone_id in sizes.finetuned.items():
        benches = (
            make_bench(backbone_id, world.folder, world.catalog, config, device, world.workers)
            for device in both(world)
        )
        cpu, gpu = (_tuned(bench, sizes.steps * sizes.batch) for bench in benches)
        yield Figure(f"{name}: losses, largest difference", _apart(cpu[0], gpu[0]), "", LOSSES)
        apart = float(np.abs(cpu[1] - gpu[1]).max() / cpu[1].std())
        yield Figure(
            f"{name}: logits, largest difference", apart, "sd", TUNED_LOGITS, headline=True
        )


def _tuned(bench: Bench, n: int) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    """Mean losses of two epochs on the first `n` images, and logits of these afterwards."""
    rows = bench.rows[:n]
    training = Training(bench.network, bench.plain(cached=True), bench.labels, rows)
    with full_float32(bench.network.device):
        losses = [training.epoch(epoch)[0] for epoch in (1, 2)]
        return np.array(losses), training.predict(rows)
