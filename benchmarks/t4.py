"""What the roofline gives for a T4 and for this machine, against what was measured.

    python benchmarks/t4.py                  # predicted against published and against this machine
    python benchmarks/t4.py --fit            # the shares of the peaks, fitted anew

The shares in `retailtag/backbones/roofline.py` are fitted to ResNet-50 and BERT; ResNeXt-101 was
left out of the fit and shows how far a new model is off, as was the one published training that
names everything needed to count it: a Wide ResNet-28-10 on CIFAR-10, steps of 128 images and
evaluation of 256. Rows of this machine use the same formula with rates of a short product,
convolution and copy.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache

import numpy as np
import timm
import torch
from record import append, stamp
from torch import Tensor, nn

from retailtag.allocator import keep_freed_memory
from retailtag.backbones import load_backbone
from retailtag.backbones.operations import Kernels, count_kernels, embedding_kernels
from retailtag.backbones.roofline import BANDWIDTH, PEAK, T4, Estimated, Rates, measure_rates
from retailtag.tagger.latency import Schedule, time_in_turn

NVIDIA = "NVIDIA DeepLearningExamples"
CNN_SOURCE = f"{NVIDIA} 291f0d02, PyTorch/Classification/ConvNets, container 21.03"
BERT_SOURCE = f"{NVIDIA} 002bcd8c, TensorFlow/LanguageModeling/BERT, container 20.06"
CNN_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
BERT_BATCHES = (1, 2, 4, 8)
# Images or sentences per second by model, tokens and arithmetic, as published for one T4.
PUBLISHED = {
    ("resnet50", 0, "float32"): (98, 186, 325, 363, 409, 420, 428, 426, 415),
    ("resnet50", 0, "float16"): (79, 156, 317, 652, 1050, 1128, 1165, 1190, 1198),
    ("resnext101_32x4d", 0, "float32"): (56, 109, 151, 164, 172, 180, 178, 172, 161),
    ("resnext101_32x4d", 0, "float16"): (44, 87, 178, 371, 553, 578, 591, 597, 598),
    ("bert-base", 128, "float16"): (91.93, 148.08, 215.45, 289.52),
    ("bert-base", 384, "float16"): (60.75, 82.85, 97.78, 106.78),
    ("bert-base", 128, "float32"): (54.28, 71.75, 88.01, 98.92),
    ("bert-base", 384, "float32"): (25.83, 29.08, 30.33, 31.8),
    ("bert-large", 128, "float16"): (40.31, 63.79, 87.4, 107.5),
    ("bert-large", 384, "float16"): (23.05, 29.59, 34.27, 38.29),
    ("bert-large", 128, "float32"): (21.52, 25.4, 28.19, 30.14),
    ("bert-large", 384, "float32"): (8.46, 9.29, 9.55, 9.75),
}
HELD_OUT = "resnext101_32x4d"
WRN = "wide_resnet28_10"
WRN_SOURCE = "ceshine/apex_pytorch_cifar_experiment 487f7ab4, PyTorch 1.1, CUDA 10.0"
WRN_IMAGES, WRN_BATCHES = 10_000, 40  # of an evaluation; the last batch is small
# Seconds of 130 training steps, and batches a second of an evaluation, as its logs have them;
# float16 by apex O2 (float32 normalisation and weights of the optimiser).
WRN_TIMES = {"float32": (108.0, 2.28), "float16": (55.6, 4.21)}
STEP = "training step"
WRN_STEPS, WRN_TRAIN, WRN_EVALUATED = 130, 128, 256
SGD_VALUES = 5  # with momentum: weight and moment read and written, gradient read
SGD_KERNELS = 4  # of each tensor, in the PyTorch of that time
BERT = {"bert-base": (768, 12, 12), "bert-large": (1024, 16, 24)}  # width, heads, layers
BACKBONES = ("demo:cnn", "demo:dino", "timm:mobilenetv2_100", "timm:resnet18")
BATCHES = (1, 8)
SCHEDULE = Schedule(turns=6, calls=3, warm_up=1, extra_seconds=1.0)


class Layer(nn.Module):
    """One layer of BERT: attention and perceptron, each followed by its normalisation."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.after_attention, self.after_perceptron = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (n, tokens, width) to tokens."""
        n, tokens, width = x.shape
        q, k, v = (
            linear(x).view(n, tokens, self.heads, -1).transpose(1, 2)
            for linear in (self.query, self.key, self.value)
        )
        weights = (q @ k.transpose(-1, -2) / math.sqrt(width / self.heads)).softmax(-1)
        mixed = (weights @ v).transpose(1, 2).reshape(n, tokens, width)
        x = self.after_attention(x + self.out(mixed))
        return self.after_perceptron(x + self.narrow(nn.functional.gelu(self.wide(x))))


class WideBlock(nn.Module):
    """Two convolutions after normalisation, beside a shortcut (Zagoruyko & Komodakis, 2016)."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.first, self.second = nn.BatchNorm2d(inside), nn.BatchNorm2d(outside)
        self.wide = nn.Conv2d(inside, outside, 3, padding=1)
        self.out = nn.Conv2d(outside, outside, 3, stride, padding=1)
        self.dropout = nn.Dropout(0.3)
        is_same = inside == outside and stride == 1
        self.shortcut = nn.Identity() if is_same else nn.Conv2d(inside, outside, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (n, inside, h, w) to (n, outside, h / stride, w / stride)."""
        inner = self.dropout(self.wide(self.first(x).relu()))
        return self.out(self.second(inner).relu()) + self.shortcut(x)


def wide_resnet(depth: int = 28, factor: int = 10, n_classes: int = 10) -> nn.Module:
    """A Wide ResNet for images of 32 pixels."""
    widths = (16, 16 * factor, 32 * factor, 64 * factor)
    blocks = []
    for stage, stride in enumerate((1, 2, 2)):
        for k in range((depth - 4) // 6):
            first = k == 0
            inside = widths[stage if first else stage + 1]
            blocks.append(WideBlock(inside, widths[stage + 1], stride if first else 1))
    head = (nn.BatchNorm2d(widths[-1]), nn.ReLU(), nn.AvgPool2d(8), nn.Flatten())
    first = nn.Conv2d(3, widths[0], 3, padding=1)
    return nn.Sequential(first, *blocks, *head, nn.Linear(widths[-1], n_classes))


@cache
def _network(name: str) -> nn.Module:
    with torch.device("meta"):
        if name == WRN:
            return wide_resnet()
        if name in BERT:
            width, heads, layers = BERT[name]
            return nn.Sequential(*(Layer(width, heads) for _ in range(layers))).eval()
        return timm.create_model(name).eval()


@cache
def kernels_of(name: str, tokens: int, batch_size: int) -> Kernels:
    """Kernels of a published model's forward pass."""
    shape = (batch_size, tokens, BERT[name][0]) if tokens else (batch_size, 3, 224, 224)
    network, inputs = _network(name), torch.zeros(shape, device="meta")
    with torch.no_grad():
        return count_kernels(lambda: network(inputs))


def published(batches: int | None = None) -> Iterator[tuple[str, int, str, int, float]]:
    """Model, tokens, arithmetic, batch size and seconds of a batch of every published figure."""
    for (name, tokens, arithmetic), rates in PUBLISHED.items():
        sizes = BERT_BATCHES if tokens else CNN_BATCHES
        for batch_size, rate in list(zip(sizes, rates, strict=True))[:batches]:
            yield name, tokens, arithmetic, batch_size, batch_size / rate


def trained() -> Iterator[tuple[str, str, int, float, Kernels]]:
    """Part, arithmetic, batch size, seconds and kernels of the published training."""
    network = _network(WRN)
    images = torch.zeros(WRN_TRAIN, 3, 32, 32, device="meta")
    labels = torch.zeros(WRN_TRAIN, dtype=torch.int64, device="meta")

    def step() -> None:
        nn.functional.cross_entropy(network.train()(images), labels).backward()

    sizes = np.array([p.numel() for p in network.parameters()], np.float64)
    moved = np.repeat(sizes * SGD_VALUES / SGD_KERNELS, SGD_KERNELS)
    none = np.zeros(len(moved))
    update = Kernels(none.astype(np.int8), none, moved, np.repeat(sizes, SGD_KERNELS))
    training = count_kernels(step) + update
    with torch.no_grad():
        more = torch.zeros(WRN_EVALUATED, 3, 32, 32, device="meta")
        evaluation = count_kernels(lambda: network.eval()(more))
    for arithmetic, (seconds, rate) in WRN_TIMES.items():
        yield STEP, arithmetic, WRN_TRAIN, seconds / WRN_STEPS, training
        one = WRN_BATCHES / rate / (WRN_IMAGES / WRN_EVALUATED)
        yield "evaluation", arithmetic, WRN_EVALUATED, one, evaluation


def trained_rows() -> list[dict[str, object]]:
    """Predicted against the published training."""
    what = f"T4, left out of the fit: {WRN_SOURCE}"
    rows = []
    for part, arithmetic, size, seconds, kernels in trained():
        device = T4[arithmetic]
        found = device.step_seconds(kernels) if part == STEP else device.seconds(kernels)
        rows.append(_row(what, f"{WRN}, {part}", arithmetic, size, seconds, found))
    return rows


def _row(what: str, name: str, arithmetic: str, size: int, measured: float, found: Estimated):
    inside = found.low <= measured <= found.high
    return {
        "what": what,
        "model": name,
        "arithmetic": arithmetic,
        "batch_size": size,
        "measured_ms": f"{1000 * measured:.4g}",
        "predicted_ms": f"{1000 * found.value:.4g}",
        "low_ms": f"{1000 * found.low:.4g}",
        "high_ms": f"{1000 * found.high:.4g}",
        "predicted_over_measured": f"{found.value / measured:.3f}",
        "in_range": inside if found.high > found.low else "",
    }


def published_rows(batches: int | None = None) -> list[dict[str, object]]:
    """Predicted against published."""
    rows = []
    for name, tokens, arithmetic, size, seconds in published(batches):
        found = T4[arithmetic].seconds(kernels_of(name, tokens, size))
        source = BERT_SOURCE if tokens else CNN_SOURCE
        what = f"T4, {'left out of the fit' if name == HELD_OUT else 'fitted'}: {source}"
        title = f"{name}, {tokens} tokens" if tokens else name
        rows.append(_row(what, title, arithmetic, size, seconds, found))
    return rows


def local_rows(backbones: Sequence[str], batches: Sequence[int]) -> list[dict[str, object]]:
    """Predicted against measured on this machine, all backbones in turn; weights are random."""
    rates = measure_rates("cpu")
    models = {name: load_backbone(name, random_weights=True) for name in backbones}

    def task(name: str, size: int):
        pixels = torch.zeros(size, 3, *models[name].preprocess.size, dtype=torch.uint8)

        def call() -> tuple[float, ...]:
            start = time.perf_counter()
            models[name].embed(pixels)
            return (0.0, 0.0, time.perf_counter() - start, 0.0)

        return call

    keys = {f"{name} {size}": (name, size) for name in backbones for size in batches}
    timed = time_in_turn({text: task(*key) for text, key in keys.items()}, SCHEDULE)
    rows = []
    for text, (name, size) in keys.items():
        one = rates.seconds(embedding_kernels(name, size))
        found = Estimated(one, one, one)
        measured = timed[text].typical().value
        rows.append(_row("this machine", name, "float32", size, measured, found))
    return rows


def fit() -> dict[str, float]:
    """Shares of the peaks and seconds per kernel nearest to the published times, HELD_OUT apart."""
    from scipy.optimize import minimize

    names = ("convolution float32", "convolution float16", "product float32", "product float16")
    fitted = [row for row in published() if row[0] != HELD_OUT]

    def rates(x: np.ndarray, arithmetic: str) -> Rates:
        share = dict(zip((*names, "bandwidth", "launch"), np.exp(x), strict=True))
        usual = T4[arithmetic].usual
        return replace(
            usual,
            convolution=PEAK[arithmetic] * share[f"convolution {arithmetic}"],
            product=PEAK[arithmetic] * share[f"product {arithmetic}"],
            bandwidth=BANDWIDTH * share["bandwidth"],
            launch=share["launch"],
        )

    def error(x: np.ndarray) -> float:
        ratios = [
            rates(x, arithmetic).seconds(kernels_of(name, tokens, size)) / seconds
            for name, tokens, arithmetic, size, seconds in fitted
        ]
        off = np.abs(np.log(ratios))
        return float(off.mean() + off.max() / 10)

    start = np.log([0.6, 0.3, 0.3, 0.15, 0.8, 60e-6])
    found = minimize(error, start, method="Nelder-Mead", options={"maxiter": 4000, "maxfev": 4000})
    return dict(zip((*names, "bandwidth", "launch"), np.exp(found.x).tolist(), strict=True))


def main() -> None:
    """Print and record the rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fit", action="store_true", help="fit the shares instead")
    parser.add_argument("--backbones", default=",".join(BACKBONES), help="timed on this machine")
    parser.add_argument("--here", action="store_true", help="this machine alone")
    parser.add_argument("--quick", action="store_true", help="two batch sizes, one backbone")
    parser.add_argument("--dry", action="store_true", help="record nothing")
    args = parser.parse_args()
    if args.fit:
        for name, value in fit().items():
            print(f"{name}: {value:.3g}")
        return
    keep_freed_memory()
    backbones = BACKBONES[:1] if args.quick else args.backbones.split(",")
    if not args.here:
        _finish(published_rows(2 if args.quick else None) + trained_rows(), args.dry)
    _finish(local_rows(backbones, BATCHES[:1] if args.quick else BATCHES), args.dry)


def _finish(rows: Sequence[dict[str, object]], dry: bool) -> None:
    for row in rows:
        print(*(row[name] for name in list(row)[1:]), row["what"])
    if not dry:
        append("t4.csv", [stamp() | row for row in rows])


if __name__ == "__main__":
    main()
