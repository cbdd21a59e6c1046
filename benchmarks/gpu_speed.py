"""How fast a GPU is: probe sweeps, cuML beside them, extraction, an epoch of a fine-tune."""

from __future__ import annotations

import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from extract import model_rate
from finetune_step import STEP, make_bench
from gpu_runner import Figure, Skip, skipped
from gpu_world import CERTIFICATE, SEED, TimedSweep, Workload, World
from probe_check import objective, optimum
from probe_data import frequency_group
from probe_ours import all_folds, one_fold
from probe_rivals import TOLERANCES, cuml, fit_timed
from probe_sample import Measured, Pair, grid_seconds, one_per_stratum, sample_pairs

from retailtag.backbones import load_backbone
from retailtag.backbones.engines import with_engine
from retailtag.context import RunContext
from retailtag.extraction.embedder import Embedder, device_of
from retailtag.extraction.extract import extract
from retailtag.extraction.forward import BATCH_SIZES, Forward
from retailtag.finetuning.trainer import Training
from retailtag.probes.solver.fit import fit_probes
from retailtag.probes.solver.fits import STEP_LIMIT
from retailtag.settings import ComputeSettings

FOLDS = 5
ROUNDING = 1e-7  # a stated gap may fall short of the truth by this
NO_SHORTER_TYPE = "no type is faster than float32 here"
CALLS_AT_ONCE = 4  # forward passes of a GPU between two waits for it
NARROW_SECONDS, NARROW_FOLDS_SECONDS, WIDE_SECONDS = 10.0, 45.0, 40.0  # targets on an H200


def narrow_sweep(world: World) -> Iterator[Figure]:
    """Workload (b): the grid on all images, then five folds."""
    work = world.sizes.narrow
    sweep = _swept(world, work)
    yield from _grid_figures(sweep, world.time_limit(NARROW_SECONDS))
    world.sweep = sweep
    many = all_folds(sweep.X, sweep.Y, work.C, world.device, FOLDS)
    n_fits, seconds = many["n_fits"] + work.fits, sweep.found["seconds"]
    limit = world.time_limit(NARROW_FOLDS_SECONDS)
    yield Figure(
        f"{n_fits} fits, with {FOLDS} folds", many["seconds"] + seconds, "s", limit, headline=True
    )
    yield Figure("of that, in the solver", many["seconds_fitting"] + seconds, "s")
    yield Figure("largest stated gap of the folds", many["gap"], "", CERTIFICATE)
    yield from _audit(sweep, _strata(sweep))


def wide_sweep(world: World) -> Iterator[Figure]:
    """Workload (c): the grid on all images."""
    sweep = _swept(world, world.sizes.wide)
    yield from _grid_figures(sweep, world.time_limit(WIDE_SECONDS))
    # An optimum with 2,048 features takes seconds. Every fourth of the nine strata of three groups
    # and three ranges of C: each group once and each range once.
    yield from _audit(sweep, _strata(sweep)[::4])


def _swept(world: World, work: Workload) -> TimedSweep:
    X, Y = work.make()
    fit_probes(X[:200], np.arange(200)[:, None] % 2, [1.0], device=world.device)  # starts kernels
    found = one_fold(X, Y, work.C, world.device, world.folder)
    with np.load(world.folder / "fits.npz") as file:
        return TimedSweep(work, X, Y, found, dict(file))


def _grid_figures(sweep: TimedSweep, limit: float | None) -> Iterator[Figure]:
    work, found = sweep.work, sweep.found
    size = f"{work.fits} fits, {work.images} x {work.dim}"
    yield Figure(size, found["seconds"], "s", limit, headline=True)
    yield Figure("iterations a fit", found["iterations"])
    yield Figure("largest stated gap", float(np.nanmax(sweep.fits["gap"])), "", CERTIFICATE)
    stopped = float(found["status"].get(STEP_LIMIT, 0))
    yield Figure("fits that did not converge", stopped, "", 0.0)


def _strata(sweep: TimedSweep) -> list[Pair]:
    """One (tag, C) of each frequency group and third of the grid."""
    rng = np.random.default_rng(SEED)
    group = frequency_group(sweep.Y)
    return one_per_stratum(sample_pairs(group, sweep.work.strengths, 1, rng))


def _audit(sweep: TimedSweep, pairs: Sequence[Pair]) -> Iterator[Figure]:
    """Suboptimality of some fits in float64, and how many state a gap that is below it."""
    x, C = sweep.X.astype(np.float64), sweep.work.C
    true, stated = [], []
    for pair in pairs:
        at = pair.k, pair.tag
        w, b = sweep.fits["weight"][at].astype(np.float64), float(sweep.fits["bias"][at])
        y, c = sweep.Y[:, pair.tag], float(C[pair.k])
        f = objective(x, y, c, w, b)
        sweep.best[pair] = optimum(x, y, c, w, b)
        true.append((f - sweep.best[pair]) / f)
        stated.append(float(sweep.fits["gap"][at]))
    name = f"suboptimality of {len(pairs)} fits, float64"
    yield Figure(name, max(true), "", CERTIFICATE, headline=True)
    false = sum(t > s + ROUNDING for t, s in zip(true, stated, strict=True))
    yield Figure("stated gaps below the truth", float(false), "fits", 0.0)


def beside_cuml(world: World) -> Iterator[Figure]:
    """One fit of each stratum of (b) by cuML, at its default tolerance and at ours."""
    if world.device != "cuda":
        raise Skip("cuML needs a CUDA device")
    try:
        cuml()
    except ImportError:
        raise Skip("cuML is not installed; pip install 'retailtag[gpu]'") from None
    sweep = world.sweep
    if sweep is None or sweep.best.keys() != set(_strata(sweep)):
        raise Skip("workload (b), which it is compared with, was not finished")
    x, pairs = sweep.X.astype(np.float64), list(sweep.best)
    fit_timed(cuml(C=1.0), sweep.X[:200], np.arange(200, dtype=np.float32) % 2)  # starts kernels

    def fitted(pair: Pair, tol: float) -> Measured:
        y, c = sweep.Y[:, pair.tag], float(sweep.work.C[pair.k])
        done = fit_timed(cuml(C=c, tol=tol), sweep.X, y.astype(np.float32))
        f = objective(x, y, c, done.weight, done.bias)
        return Measured(pair, done.seconds, (f - sweep.best[pair]) / f)

    def compared(name: str, found: list[Measured]) -> Iterator[Figure]:
        seconds, _ = grid_seconds(found)
        yield Figure(f"{name}: the grid, estimated", seconds, "s")
        ratio = seconds / sweep.found["seconds"]
        yield Figure(f"{name}: over our time", ratio, "times", headline=True)
        yield Figure(f"{name}: suboptimality", max(one.suboptimality for one in found))

    def within(one: Measured) -> Measured:
        """The first fit within the certificate at ever tighter tolerances, or the last."""
        tolerances = iter(TOLERANCES[1:])
        while one.suboptimality > CERTIFICATE and (tol := next(tolerances, None)):
            one = fitted(one.pair, tol)
        return one

    default = [fitted(pair, TOLERANCES[0]) for pair in pairs]
    yield from compared("default", default)
    yield from compared("matched", [within(one) for one in default])


def model_images_s(embedder: Embedder, world: World) -> float:
    """Images per second of a model whose images are in the memory of its device."""
    size = BATCH_SIZES[world.device] if not world.sizes.quick else world.sizes.batch
    pixels = torch.full((size, 3, *embedder.preprocess.size), 128, dtype=torch.uint8)
    pixels = pixels.to(world.device)

    def calls() -> None:
        outputs = [embedder.embed(pixels) for _ in range(CALLS_AT_ONCE)]
        outputs[-1].cpu()  # waits for all of them

    job = {"quick": world.sizes.quick, "seconds": world.sizes.model_seconds}
    return model_rate(calls, CALLS_AT_ONCE * size, job)


def extraction(name: str) -> Callable[[World], Iterator[Figure]]:
    """Model only, from decoded images in main memory, and from JPEG files to a feature store."""

    def figures(world: World) -> Iterator[Figure]:
        backbone_id = world.sizes.backbones[name]
        backbone = load_backbone(backbone_id, device=world.device, random_weights=True)
        for precision in ("exact", "fast"):
            embedder = with_engine(backbone, "eager", precision)
            if precision == "fast" and embedder is backbone:
                yield skipped(precision, NO_SHORTER_TYPE)
                continue
            label = embedder.spec().engine.removeprefix("eager-")
            alone = model_images_s(embedder, world)
            yield Figure(f"{label}: model only", alone, "images/s", headline=True)
            memory = _memory_images_s(embedder, world)
            yield Figure(f"{label}: decoded in memory", memory, "images/s", headline=True)
            yield Figure(f"{label}: decoded in memory, of model only", memory / alone)
            with tempfile.TemporaryDirectory(dir=world.folder) as features:
                compute = ComputeSettings(device=world.device, features=Path(features))
                done = extract(RunContext(world.catalog, compute=compute), embedder)
            jpeg = done.images_per_second
            yield Figure(f"{label}: from JPEG", jpeg, "images/s", headline=True)
            yield Figure(f"{label}: from JPEG, of model only", jpeg / alone)
            yield Figure(f"{label}: from JPEG, waiting for images", done.cost.shares()["images"])

    return figures


def _memory_images_s(embedder: Embedder, world: World) -> float:
    """Images per second of an extraction's forward passes over pixels in main memory."""
    size = BATCH_SIZES[device_of(embedder)]
    pixels = np.full((world.sizes.images, 3, *embedder.preprocess.size), 128, np.uint8)
    forward = Forward(embedder, size)
    forward.finish(forward.start(pixels[:size]))
    running: deque[list[torch.Tensor]] = deque()
    start = time.perf_counter()
    for at in range(0, len(pixels), size):
        running.append(forward.start(pixels[at : at + size]))
        if len(running) > 1:  # the next batch is on its way while this one is copied back
            forward.finish(running.popleft())
    for outputs in running:
        forward.finish(outputs)
    return len(pixels) / (time.perf_counter() - start)


def finetune_epoch(precision: str) -> Callable[[World], Iterator[Figure]]:
    """An epoch of the last four blocks on decoded images, in ``fp16`` or ``bf16``."""

    def figures(world: World) -> Iterator[Figure]:
        if problem := _why_not(precision, world.device):
            raise Skip(problem)
        sizes = world.sizes
        config = replace(STEP, batch_size=sizes.batch, mixed_precision=precision)
        for name, backbone_id in sizes.finetuned.items():
            bench = make_bench(
                backbone_id, world.folder, world.catalog, config, world.device, world.workers
            )
            loader = bench.plain(cached=True)
            training = Training(bench.network, loader, bench.labels, bench.rows)
            decoding, _ = _seconds(training, 1)
            seconds, loss = _seconds(training, 2)
            yield Figure(f"{name}: epoch, images decoded", seconds, "s")
            yield Figure(f"{name}: epoch that decodes", decoding, "s")
            rate = len(bench.rows) / seconds
            yield Figure(f"{name}: training", rate, "images/s", headline=True)
            yield Figure(f"{name}: mean loss", loss)
            if precision == "fp16":
                scale = training.stepper.scaler.get_scale()
                yield Figure(f"{name}: loss scale at the end", scale, "", 1.0, at_least=True)
            yield _busy(f"{name}: GPU busy", training, seconds, world.device)

    return figures


def _why_not(precision: str, device: str) -> str:
    """Why a device does not train in this precision; empty if it does."""
    if device == "cuda":
        without = not torch.cuda.is_bf16_supported(including_emulation=False)
        return "this GPU computes no bfloat16" if precision == "bf16" and without else ""
    return "fp16 with a GradScaler needs a CUDA device" if precision == "fp16" else ""


def _seconds(training: Training, epoch: int) -> tuple[float, float]:
    """Seconds of an epoch and its mean loss, which is read from the device at the end."""
    start = time.perf_counter()
    loss, _ = training.epoch(epoch)
    return time.perf_counter() - start, loss


def _busy(name: str, training: Training, seconds: float, device: str) -> Figure:
    """Share of an unprofiled epoch's `seconds` in which kernels run, by profiling one more."""
    if device != "cuda":
        return skipped(name, "kernels are timed on a CUDA device only")
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        training.epoch(3)
        torch.cuda.synchronize()
    kernels = [
        (event.time_range.start, event.time_range.end)
        for event in profiler.events()
        if event.device_type == DeviceType.CUDA
        and not getattr(event, "is_user_annotation", False)
        and not event.name.startswith(("Memcpy", "Memset"))
    ]
    return Figure(name, covered(kernels) / 1e6 / seconds, headline=True)  # from microseconds


def covered(spans: Sequence[tuple[float, float]]) -> float:
    """Length of the union of intervals."""
    total, end = 0.0, -np.inf
    for first, last in sorted(spans):
        total += max(last - max(first, end), 0.0)
        end = max(end, last)
    return total
