"""What the reference job takes on one T4, by the plan's estimator at published speeds.

    python benchmarks/reference.py [--images 80000] [--test 5000] [--tags 250] [--backbones ...]

Prints the table of ``benchmarks/reference.md``: time and disk of every stage of a bake-off, which
nobody has measured here. The speeds are those that NVIDIA publishes for a T4 (DeepLearningExamples,
commits 291f0d02 and 002bcd8c: ResNet-50 and BERT), the data sheet's peak for products of large
matrices at two thirds, and a host of four cores.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from retailtag.backbones import components_of, resolve_id
from retailtag.backbones.cost import cost_of
from retailtag.backbones.factory import build_model
from retailtag.bakeoffs.estimates import Estimator
from retailtag.bakeoffs.speed import Speed
from retailtag.runs.stage import Estimate
from retailtag.settings import BakeoffSettings
from retailtag.verbs import resolve

# Operations per second of large batches
FLOAT32 = {"cnn": 3.5e12, "vit": 2.2e12, "clip": 2.2e12}
HALF = {"cnn": 9.8e12, "vit": 7e12, "clip": 7e12}
MATRIX_RATE = 8.1e12 * 2 / 3
SINGLE_SECONDS = 0.011  # of one image, whatever the precision: the launches of the kernels
HOST_CORES = 4
HOST_RATE = 1e11  # operations per second of float32 products on all of them
DECODE_SECONDS = 0.005  # per photograph of some 500 pixels a side on one of them
LOAD_SECONDS = 3.0


def speed_of(backbone: str, blocks: int) -> Speed:
    """Speed of one backbone on the T4, whose last `blocks` are trained in half precision."""
    cost = cost_of(backbone)
    with torch.device("meta"):
        model = build_model(resolve_id(backbone), random_weights=True)
    layout = model.layout
    shapes: list[torch.Size] = []
    first = model.module.get_submodule(layout.blocks[-blocks].runs[0])
    first.register_forward_pre_hook(lambda module, inputs: shapes.append(inputs[0].shape))
    with torch.device("meta"), torch.enable_grad():
        model.module.eval()(torch.zeros(1, 3, *cost.size))
    half = cost.flops / HALF[layout.family]
    trained = half * blocks / len(layout.blocks)
    return Speed(
        load=LOAD_SECONDS,
        decode=DECODE_SECONDS,
        forward=cost.flops / FLOAT32[layout.family],
        single=SINGLE_SECONDS,
        frozen=half - trained,
        trained=trained,
        step=3 * trained,
        activation_values=int(np.prod(shapes[0][1:])),
    )


def estimator(settings: BakeoffSettings, images: int, test: int, tags: int) -> Estimator:
    """Estimates for a catalogue of so many images, on the T4."""
    rows = {"train": images - test, "val": 0, "test": test}
    catalog = SimpleNamespace(
        table=SimpleNamespace(tags=("tag",) * tags), rows=lambda split: range(rows[split])
    )
    request = SimpleNamespace(
        context=SimpleNamespace(catalog=catalog, device="cuda", workers=HOST_CORES),
        settings=settings,
        strategies_of=lambda backbone: settings.strategies,
        fine_tuned=settings.backbones,
    )
    blocks = settings.finetune.trained_blocks
    assert isinstance(blocks, int)
    made = Estimator(request, lambda backbone, finetuned: speed_of(backbone, blocks))
    made.rate, made.host_rate = MATRIX_RATE, HOST_RATE
    return made


def stages(
    settings: BakeoffSettings, images: int, test: int, tags: int
) -> Iterator[tuple[str, Estimate]]:
    """Name and estimate of every stage."""
    made = estimator(settings, images, test, tags)
    for component in dict.fromkeys(c for b in settings.backbones for c in components_of(b)):
        yield f"extract {component}", made.extract(component, images)
    for backbone in settings.backbones:
        yield f"probe {backbone}", made.probe(backbone)
        yield f"finetune {backbone}", made.finetune(backbone)
    yield "report", made.report()


def table(found: Sequence[tuple[str, Estimate]]) -> str:
    """Markdown, with the sum."""
    total = Estimate(sum(e.seconds for _, e in found), sum(e.disk_bytes for _, e in found))
    lines = ["| stage | minutes | GB on disk |", "|---|---|---|"]
    for name, cost in [*found, ("all", total)]:
        lines.append(f"| {name} | {cost.seconds / 60:,.1f} | {cost.disk_bytes / 1e9:,.2f} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> str:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=80_000)
    parser.add_argument("--test", type=int, default=5_000)
    parser.add_argument("--tags", type=int, default=250)
    parser.add_argument("--backbones", default="cnn,dinov2,clip")
    args = parser.parse_args(argv)
    given = {"backbones": args.backbones, "augment": "none", "cache_gb": 100, "features": Path()}
    settings, _ = resolve("bakeoff", None, given)
    text = table(list(stages(settings, args.images, args.test, args.tags)))
    print(text)
    return text


if __name__ == "__main__":
    main()
