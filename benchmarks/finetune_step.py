"""An epoch from cached activations against a whole one, and our step against timm's.

    python benchmarks/finetune_step.py [--backbones a,b] [--images N] [--rounds N]
                                       [--quick] [--json] [--dry]

Random weights, generated JPEG photographs, the last four blocks and a head of 250 tags, batches of
32. All ratios are within one run, the rivals taking turns; a time is the least of the rounds.

* ``cached``: an epoch from cached activations (read from the disk, float16) against an epoch
  through the whole model from decoded pixels in memory (``plain``), and against one that decodes
  its images each time (``decoding``), both without augmentation. Arithmetic bounds the first:
  ``bound`` is the ratio of the operations of the two epochs, counted in forward and backward pass,
  which the ratio of times reaches where all work runs equally fast.
* ``timm``: timm's ``train.py`` step (its optimiser factory, autocast off, bytes normalised on the
  device as its prefetching loader does, PyTorch's own layers) with the same parameters frozen,
  against our plain step; ``speedup_timm`` is an epoch of such steps, data for nothing, against the
  epoch from cached activations, and ``bound_timm`` the same ratio of operations: a ViT's last block
  runs whole there. Times can be further apart: `retailtag.backbones.onednn` beats PyTorch's layers
  on some CPUs.
* ``waiting``: share of an epoch that the training waits for its next batch.
* ``loss_plain`` and ``loss_cached``: of one epoch from the same start, and ``scores_apart``: the
  largest difference of two logits after it, in standard deviations of the logits.
* ``peak_mib``: memory of one step above what stood before it, and the model's weights.
* ``saved_mib``: what autograd keeps for the backward pass of one image, counted through its hooks,
  and ``t4_batch``: the largest power of two whose activations, with weights, gradients, AdamW's two
  moments and 1.5 GiB for CUDA and workspaces, stay within 16 GiB (float32; on paper).

Appends to ``results/finetune_step.csv``.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from record import append, stamp
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.utils.flop_counter import FlopCounterMode

from retailtag.backbones import load_backbone, onednn
from retailtag.catalog.catalog import Catalog
from retailtag.catalog.readers import read_catalog
from retailtag.finetuning import image_loader as image_loader_module
from retailtag.finetuning.augment import Augment
from retailtag.finetuning.batch_loader import BatchLoader, Views, image_keys
from retailtag.finetuning.cached_loader import CachedImages, cached_batch_loader
from retailtag.finetuning.head import HeadInit
from retailtag.finetuning.image_loader import ImageLoader
from retailtag.finetuning.losses import LabelCounts, parse_loss
from retailtag.finetuning.network import Network
from retailtag.finetuning.trainer import Training
from retailtag.finetuning.training_step import TrainingStep
from retailtag.images.decode import MAX_PIXELS
from retailtag.runs.finetune_training import backbone_bytes
from retailtag.runs.measure import measured
from retailtag.settings import FinetuneSettings

BACKBONES = "dinov2,cnn,clip"
QUICK = "timm:vit_tiny_patch16_224?img_size=64,timm:resnet18?size=64"
BATCH, N_TAGS = 32, 250
STEP = FinetuneSettings(blocks=4, batch_size=BATCH, augment="none", mixed_precision="float32")
T4_BYTES, T4_SPARE = 16 << 30, 3 << 29


@dataclass(frozen=True, eq=False)
class Bench:
    """One backbone, its network, and the images."""

    catalog: Catalog
    labels: np.ndarray
    network: Network
    root: Path
    workers: int = 2  # processes that decode

    @property
    def rows(self) -> np.ndarray:
        """All images."""
        return np.arange(len(self.catalog))

    def images(self, *, cached: bool) -> ImageLoader:
        """Loader that caches what it has decoded, or not."""
        share, image_loader_module.MEMORY_SHARE = image_loader_module.MEMORY_SHARE, 0.25 * cached
        rows = self.rows.tolist()
        try:
            return ImageLoader(
                self.catalog,
                self.network.backbone,
                rows,
                workers=self.workers,
                max_pixels=MAX_PIXELS,
            )
        finally:
            image_loader_module.MEMORY_SHARE = share

    def views(self) -> Views:
        """The images as they are."""
        ids = self.catalog.image_ids.tolist()
        return Views(Augment.parse("none"), 0, image_keys(ids))

    def plain(self, *, cached: bool) -> BatchLoader:
        """Pixels through the whole model."""
        return BatchLoader(self.network, self.images(cached=cached), self.views())

    def cached(self) -> BatchLoader:
        """Cached activations, computed now."""
        ids = self.catalog.image_ids.tolist()
        images = CachedImages(ids, dict.fromkeys(ids, "0" * 64), self.rows, self.rows[:0])
        loader = cached_batch_loader(
            self.network,
            self.images(cached=True),
            images,
            self.network.backbone.spec(),
            self.root,
            10**12,
            self.views(),
            dtype="float16",  # by default, random weights may be stored in float32
        )
        assert loader is not None
        return loader

    def stepper(self, loader: BatchLoader) -> TrainingStep:
        """Steps of the trained part."""
        loss = parse_loss("bce").build(LabelCounts.of(self.labels))
        return TrainingStep(self.network, loader, loss)


def make_catalog(folder: Path, n: int, side: int) -> Catalog:
    """`n` JPEG photographs of `side` pixels: smooth noise, as hard to decode as a real one."""
    rng = np.random.default_rng(0)
    lines = ["path,tags,split"]
    for i in range(n):
        coarse = rng.integers(0, 256, (side // 8, side // 8, 3)).astype(np.uint8)
        Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC).save(
            folder / f"{i}.jpg", quality=90
        )
        lines.append(f"{i}.jpg,a,train")
    (folder / "catalogue.csv").write_text("\n".join(lines) + "\n")
    return read_catalog(folder / "catalogue.csv")


def make_bench(
    backbone_id: str,
    folder: Path,
    catalog: Catalog,
    config: FinetuneSettings = STEP,
    device: str = "cpu",
    workers: int = 2,
) -> Bench:
    """Network of random weights on the catalogue, with random labels of 250 tags."""
    rng = np.random.default_rng(1)
    labels = (rng.random((len(catalog), N_TAGS)) < 0.02).astype(np.int8)
    backbone = load_backbone(backbone_id, device=device, random_weights=True)
    nought, one = np.zeros(backbone.dim, np.float32), np.ones(backbone.dim, np.float32)
    weight = 0.01 * rng.standard_normal((N_TAGS, backbone.dim)).astype(np.float32)
    start = HeadInit(nought, one, weight, np.full(N_TAGS, -4, np.float32))
    network = Network(backbone, start, config)
    return Bench(catalog, labels, network, folder / "trunk", workers)


def epoch(bench: Bench, stepper: TrainingStep) -> tuple[float, float]:
    """Seconds of one epoch, and of those the seconds of waiting for batches."""
    bench.network.train()
    began, waited = time.perf_counter(), 0.0
    batches: Iterator[tuple[np.ndarray, Tensor]] = stepper.loader.batches(bench.rows, BATCH, 1)
    while True:
        asked = time.perf_counter()
        item = next(batches, None)
        waited += time.perf_counter() - asked
        if item is None:
            return time.perf_counter() - began, waited
        stepper.step(item[1], torch.from_numpy(bench.labels[item[0]]), 1e-3)


def timm_step(bench: Bench, batch: Tensor, targets: Tensor) -> Callable[[], float]:
    """One step as timm's ``train.py`` makes it, on a model frozen alike."""
    from timm.optim import create_optimizer_v2

    backbone, head = bench.network.backbone, bench.network.head
    model = torch.nn.Sequential(backbone.module, head)
    optimiser = create_optimizer_v2(model, opt="adamw", lr=1e-6, weight_decay=0.05)
    mean, std = (
        torch.tensor(v).view(1, 3, 1, 1)
        for v in (backbone.preprocess.mean, backbone.preprocess.std)
    )

    def step() -> float:
        onednn.enabled = False  # PyTorch's own layers
        bench.network.train()
        images = batch.float().sub(mean * 255).div(std * 255)
        loss = binary_cross_entropy_with_logits(model(images), targets.float())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        onednn.enabled = True
        return loss.item()

    return step


def least(calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Least seconds of each call; they take turns, after one round that does not count."""
    best = dict.fromkeys(calls, np.inf)
    for round_ in range(rounds + 1):
        for name, call in calls.items():
            began = time.perf_counter()
            call()
            if round_:
                best[name] = min(best[name], time.perf_counter() - began)
    return best


def saved_bytes(bench: Bench, batch: Tensor) -> int:
    """Bytes that autograd keeps for one image's backward pass, parameters not counted."""
    own = {p.data_ptr() for p in bench.network.backbone.module.state_dict().values()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in own:
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    bench.network.train()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        bench.network.logits(bench.network.activations(batch)).sum().backward()
    return sum(kept.values()) // len(batch)


def t4_batch(bench: Bench, per_image: int) -> int:
    """Largest power of two of images whose step fits a T4, on paper."""
    trained = sum(4 * p.numel() for p in bench.network.parameters())
    fixed = backbone_bytes(bench.network.backbone) + 3 * trained + T4_SPARE
    images = (T4_BYTES - fixed) // per_image
    return 1 << (images.bit_length() - 1) if images > 0 else 0


def operations(call: Callable[[], Any]) -> int:
    """Floating-point operations of `call`, those of its backward pass included."""
    torch.backends.mha.set_fastpath_enabled(False)  # one opaque call, which counts as nothing
    with FlopCounterMode(display=False) as counter:
        call()
    torch.backends.mha.set_fastpath_enabled(True)
    return counter.get_total_flops()


def bounds(bench: Bench, batch: Tensor) -> dict[str, float]:
    """How much less a step from cached activations computes than one through the whole model."""
    network = bench.network
    network.train()
    kept = network.activations(batch)
    rest = operations(lambda: network.logits(kept).sum().backward())
    trunk = operations(lambda: network.activations(batch))
    whole = operations(lambda: network.head(network.backbone.forward(batch)).sum().backward())
    return {"bound": (trunk + rest) / rest, "bound_timm": whole / rest}


def agreement(bench: Bench, loaders: dict[str, BatchLoader]) -> dict[str, float]:
    """Loss of an epoch from the same start by each loader, and how far scores are apart then."""
    origin, losses, scores = bench.network.state(), {}, []
    for name in ("plain", "cached"):
        bench.network.load(origin)
        run = Training(bench.network, loaders[name], bench.labels, bench.rows)
        losses[f"loss_{name}"], _ = run.epoch(1)
        scores.append(run.predict(bench.rows))
    bench.network.load(origin)
    apart = np.abs(scores[0] - scores[1]).max() / scores[0].std()
    return {**losses, "scores_apart": float(f"{apart:.2g}")}


def peak_mib(bench: Bench, loader: BatchLoader) -> float:
    """Memory of one step above what stood before it, and the model."""
    stepper = bench.stepper(loader)
    some, batch = next(iter(loader.batches(bench.rows[:BATCH], BATCH, 1)))
    bench.network.train()
    with measured("cpu", held=backbone_bytes(bench.network.backbone)) as cost:
        stepper.step(batch, torch.from_numpy(bench.labels[some]), 1e-3)
    return cost.peak_memory_mib


def measure(backbone_id: str, folder: Path, catalog: Catalog, rounds: int) -> dict[str, object]:
    """One row of the table."""
    bench = make_bench(backbone_id, folder, catalog)
    loaders = {
        "plain": bench.plain(cached=True),
        "decoding": bench.plain(cached=False),
        "cached": bench.cached(),
    }
    peaks = {name: peak_mib(bench, loaders[name]) for name in ("plain", "cached")}
    waits: dict[str, float] = {}

    def run(name: str, stepper: TrainingStep) -> Callable[[], None]:
        def one() -> None:
            seconds, waited = epoch(bench, stepper)
            waits[name] = waited / seconds

        return one

    epochs = least({n: run(n, bench.stepper(loader)) for n, loader in loaders.items()}, rounds)
    some, batch = next(iter(loaders["plain"].batches(bench.rows[:BATCH], BATCH)))
    targets = torch.from_numpy(bench.labels[some])
    stepper = bench.stepper(loaders["plain"])
    steps = least(
        {
            "ours": lambda: stepper.step(batch, targets, 1e-3),
            "timm": timm_step(bench, batch, targets),
        },
        2 * rounds,
    )
    per_image, bound = saved_bytes(bench, batch[:4]), bounds(bench, batch[:4])
    agree = agreement(bench, loaders)
    return {
        "backbone": backbone_id,
        "images": len(catalog),
        "plain_s": round(epochs["plain"], 3),
        "decoding_s": round(epochs["decoding"], 3),
        "cached_s": round(epochs["cached"], 3),
        "speedup": round(epochs["plain"] / epochs["cached"], 3),
        "bound": round(bound["bound"], 3),
        "speedup_timm": round(steps["timm"] * len(catalog) / BATCH / epochs["cached"], 3),
        "bound_timm": round(bound["bound_timm"], 3),
        "speedup_decoding": round(epochs["decoding"] / epochs["cached"], 3),
        "step_s": round(steps["ours"], 4),
        "timm_step_s": round(steps["timm"], 4),
        "against_timm": round(steps["timm"] / steps["ours"], 3),
        **{f"waiting_{name}": round(share, 4) for name, share in waits.items()},
        **{f"peak_mib_{name}": round(value) for name, value in peaks.items()},
        **{name: round(value, 6) for name, value in agree.items()},
        "saved_mib": round(per_image / 2**20, 2),
        "t4_batch": t4_batch(bench, per_image),
    }


def main() -> None:
    """Measure every backbone and append the rows."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--backbones", default="")
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--quick", action="store_true", help="toy sizes")
    parser.add_argument("--json", action="store_true", help="print one JSON object alone")
    parser.add_argument("--dry", action="store_true", help="record nothing")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    names = (args.backbones or (QUICK if args.quick else BACKBONES)).split(",")
    n, side = (64, 96) if args.quick else (args.images, 500)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        catalog = make_catalog(Path(folder), n, side)
        for name in names:
            rows.append(measure(name, Path(folder), catalog, 1 if args.quick else args.rounds))
            if not args.json:
                print(rows[-1])
    if args.json:
        print(json.dumps({"rows": rows}))
    if not (args.dry or args.quick):
        append("finetune_step.csv", [stamp() | row for row in rows])


if __name__ == "__main__":
    main()
