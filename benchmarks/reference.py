"""What the reference job takes on one T4, by the plan's estimator at published speeds.

    python benchmarks/reference.py [--images 80000] [--test 5000] [--tags 250] [--backbones ...]

Prints the table of ``benchmarks/reference.md``: time, with its range, and disk of every stage of a
bake-off, which nobody has measured here. The speeds of the T4 are those of
`retailtag.backbones.roofline`, which was fitted to published times; those of the host, of four
cores, are assumptions.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from retailtag.backbones import resolve_id
from retailtag.backbones.factory import build_model
from retailtag.backbones.operations import embedding_kernels, training_kernels
from retailtag.backbones.roofline import T4
from retailtag.bakeoffs.estimates import Estimator
from retailtag.bakeoffs.speed import Speed
from retailtag.runs.stage import Estimate
from retailtag.settings import BakeoffSettings
from retailtag.verbs import resolve

RANGE = ("usual", "fast", "slow")  # rates of the T4
HOST_CORES = 4
HOST_RATE = 1e11  # operations per second of float32 products on all of them
DECODE_SECONDS = 0.005  # per photograph of some 500 pixels a side on one of them
LOAD_SECONDS = 3.0
BATCH = 64  # images of a pass


def speed_of(backbone: str, blocks: int, n_tags: int, rates: str) -> Speed:
    """Speed of one backbone on the T4, whose last `blocks` are trained in half precision."""
    exact, half = (getattr(T4[name], rates) for name in ("float32", "float16"))
    batch = embedding_kernels(backbone, BATCH)
    with torch.device("meta"):
        model = build_model(resolve_id(backbone), random_weights=True)
        pixels = torch.zeros(1, 3, *model.preprocess.size)
    shapes: list[torch.Size] = []
    last = model.layout.blocks[-blocks:]
    first = model.module.get_submodule(last[0].runs[0])
    first.register_forward_pre_hook(lambda module, inputs: shapes.append(inputs[0].shape))
    model.module.eval()(pixels)
    step = half.seconds(training_kernels(backbone, BATCH, n_tags, blocks)) / BATCH
    forward = half.seconds(batch) / BATCH
    # A step runs the whole model forward, and the last blocks backward at twice their cost.
    trained = (step - forward) / 2
    return Speed(
        load=LOAD_SECONDS,
        decode=DECODE_SECONDS,
        forward=exact.seconds(batch) / BATCH,
        single=exact.seconds(embedding_kernels(backbone, 1)),
        frozen=forward - trained,
        trained=trained,
        step=3 * trained,
        activation_values=int(np.prod(shapes[0][1:])),
    )


def estimator(settings: BakeoffSettings, args: argparse.Namespace, rates: str) -> Estimator:
    """Estimates for a catalogue of so many images, on the T4."""
    rows = {"train": args.images - args.test, "val": 0, "test": args.test}
    catalog = SimpleNamespace(
        table=SimpleNamespace(tags=("tag",) * args.tags), rows=lambda split: range(rows[split])
    )
    request = SimpleNamespace(
        context=SimpleNamespace(catalog=catalog, device="cuda", workers=HOST_CORES),
        settings=settings,
        strategies_of=lambda backbone: settings.strategies,
        fine_tuned=settings.backbones,
    )
    blocks = settings.finetune.trained_blocks
    assert isinstance(blocks, int)
    made = Estimator(request, lambda name, finetuned: speed_of(name, blocks, args.tags, rates))
    made.rate = getattr(T4["float32"], rates).product
    made.host_rate = HOST_RATE
    return made


def stages(
    settings: BakeoffSettings, made: Estimator, n_images: int
) -> Iterator[tuple[str, Estimate]]:
    """Name and estimate of every stage."""
    for backbone in settings.backbones:
        yield f"extract {backbone}", made.extract(backbone, n_images)
    for backbone in settings.backbones:
        yield f"probe {backbone}", made.probe(backbone)
        yield f"finetune {backbone}", made.finetune(backbone)
    parts = [made.latency(b) for b in settings.backbones for _ in settings.strategies]
    yield "latency", Estimate(sum(p.seconds for p in parts), sum(p.disk_bytes for p in parts))
    yield "report", made.report()


def table(found: dict[str, list[tuple[str, Estimate]]]) -> str:
    """Markdown, with the sum."""
    lines = ["| stage | minutes | range | GB on disk |", "|---|---|---|---|"]
    rows = [
        (stage[0][0], [cost for _, cost in stage]) for stage in zip(*found.values(), strict=True)
    ]
    totals = [
        Estimate(sum(c.seconds for _, c in of), sum(c.disk_bytes for _, c in of))
        for of in found.values()
    ]
    for name, costs in [*rows, ("all", totals)]:
        usual, fast, slow = (cost.seconds / 60 for cost in costs)
        disk = costs[0].disk_bytes / 1e9
        lines.append(f"| {name} | {usual:,.1f} | {fast:,.1f} to {slow:,.1f} | {disk:,.2f} |")
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
    found = {}
    for rates in RANGE:
        made = estimator(settings, args, rates)
        found[rates] = list(stages(settings, made, args.images))
    text = table(found)
    print(text)
    return text


if __name__ == "__main__":
    main()
