"""Images a second of `predict` beside `extract`, and the processor time of tagging one image.

    python benchmarks/predict.py [--images 600] [--rounds 5] [--quick] [--dry]

Both run over the same files in one process, in turn and in changing order, with the same backbone,
engine, batch size and number of decoding processes; `extract` writes a feature store, `predict` a
CSV with the tags of 250 heads. `ratio` is the median over the rounds of predict's rate over
extract's in the same round. Building the engine comes before the clock starts on both sides.

Method `one image`: user and system seconds of ``retailtag predict MODEL one.jpg``, its decoding
process included, and of ``import torch`` alone, in turn; the least of the rounds of each, because
other programs on the machine only add.

Images are those of `extract.py`, weights are random: times do not depend on them. Appends to
``results/predict.csv``; `--quick` takes 8 images and records nothing.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from extract import draw
from record import append, stamp

import retailtag as rt
from retailtag.allocator import keep_freed_memory
from retailtag.backbones import load_backbone
from retailtag.backbones.engines.build import embedder_of
from retailtag.backbones.engines.names import EngineName
from retailtag.catalog.named import named_images
from retailtag.catalog.readers import read_catalog
from retailtag.context import RunContext
from retailtag.extraction.embed import Loading
from retailtag.extraction.extract import extract
from retailtag.probes.artefact import Probe
from retailtag.runs.predict import Predicting
from retailtag.runs.prediction_files import written
from retailtag.settings import ComputeSettings, ExtractSettings
from retailtag.tagger.predicting import Choice
from retailtag.tagger.tagger import Tagger

BACKBONES = ("timm:mobilenetv2_100.ra_in1k", "timm:resnet50.a1_in1k")
ENGINES = ("eager", "onnxruntime")
BATCH = 16
N_TAGS = 250
Row = dict[str, Any]
COLUMNS = (
    *("backbone", "method", "images", "extract_images_s", "predict_images_s", "ratio"),
    *("ratio_least", "ratio_most", "cpu_seconds", "torch_cpu_seconds"),
)


def tagger_of(backbone: str, engine: str) -> Tagger:
    """A tagger with a random head, whose engine is built."""
    model = load_backbone(backbone, random_weights=True)
    embedder = embedder_of(model, EngineName(engine), batch_size=BATCH)
    weight = np.random.default_rng(0).normal(size=(N_TAGS, model.dim)).astype(np.float32)
    zeros = np.zeros(N_TAGS, np.float32)
    tags = tuple(f"tag{i:03d}" for i in range(N_TAGS))
    head = Probe(tags, weight, zeros, zeros, np.ones(N_TAGS), facts={})
    return Tagger((embedder,), head, "probe")


def rates(backbone: str, engine: str, images: Path, rounds: int) -> Row:
    """One row: both rates and their ratio."""
    catalog = read_catalog(images / "all.csv")
    tagger = tagger_of(backbone, engine)
    (embedder,) = tagger.embedders
    loading = Loading(BATCH, os.cpu_count() or 1)

    def extracting() -> None:
        with tempfile.TemporaryDirectory() as features:
            compute = ComputeSettings(features=Path(features), workers=loading.workers)
            context = RunContext(catalog, compute=compute)
            extract(context, embedder, ExtractSettings(batch_size=BATCH))

    def predicting() -> None:
        found = Predicting(tagger, named_images([images]), Choice(), loading)
        with tempfile.TemporaryDirectory() as out, written("csv", Path(out, "tags.csv")) as rows:
            for batch in found:
                rows.add(batch)
            assert rows.n == len(catalog)

    methods = {"extract": extracting, "predict": predicting}
    for run in methods.values():
        run()  # starts the decoding processes, builds the engine
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    for number in range(rounds):
        for name in (*methods,) if number % 2 else (*reversed(methods),):
            start = time.perf_counter()
            methods[name]()
            seconds[name].append(time.perf_counter() - start)
    ratios = [e / p for e, p in zip(seconds["extract"], seconds["predict"], strict=True)]
    return {
        "backbone": backbone,
        "method": engine,
        "images": len(catalog),
        **{f"{n}_images_s": len(catalog) / statistics.median(s) for n, s in seconds.items()},
        "ratio": statistics.median(ratios),
        "ratio_least": min(ratios),
        "ratio_most": max(ratios),
    }


def cpu_seconds(command: list[str]) -> float:
    """User and system seconds of a command and of all that it waited for."""
    before = os.times()
    subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL)
    after = os.times()
    user = after.children_user - before.children_user
    return user + after.children_system - before.children_system


def one_image(images: Path, rounds: int) -> Row:
    """The row of tagging one image from the command line."""
    with tempfile.TemporaryDirectory() as folder:
        features, out = Path(folder, "features"), Path(folder, "probe")
        options = {"features": features, "device": "cpu"}
        # Every tenth image is in the test split; a probe of few needs only to be one.
        rt.extract(images / "all.csv", "demo:cnn", **options)
        rt.probe(
            images / "all.csv", "demo:cnn", out=out, sweep_C="0.1", folds=2, heads="logistic",
            **options,
        )  # fmt: skip
        predict = ["-m", "retailtag", "predict", str(out), str(images / "000000.jpg")]
        predict += ["--device", "cpu", "--quiet"]
        pairs = [(cpu_seconds(predict), cpu_seconds(["-c", "import torch"])) for _ in range(rounds)]
    least = [min(column) for column in zip(*pairs, strict=True)]
    cpu = dict(zip(("cpu_seconds", "torch_cpu_seconds"), least, strict=True))
    return {"backbone": "demo:cnn", "method": "one image", "images": 1, **cpu}


def measure(n: int, side: int, rounds: int, *, quick: bool = False) -> list[Row]:
    """All rows; `quick`: of one small backbone in eager mode."""
    pairs = [("demo:cnn", "eager")] if quick else [(b, e) for b in BACKBONES for e in ENGINES]
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "images").mkdir()
        images = draw(Path(folder) / "images", n, side)
        rows = [rates(backbone, engine, images, rounds) for backbone, engine in pairs]
        if not quick:
            rows.append(one_image(images, rounds))
    return [dict.fromkeys(COLUMNS) | row for row in rows]


def main() -> None:
    """Measure, print and record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=600)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--dry", action="store_true", help="record nothing")
    args = parser.parse_args()
    keep_freed_memory()
    n, side, rounds = (8, 40, 1) if args.quick else (args.images, 500, args.rounds)
    rows = measure(n, side, rounds, quick=args.quick)
    for row in rows:
        print({name: value for name, value in row.items() if value is not None})
    if not (args.dry or args.quick):
        append("predict.csv", [{**stamp(), **row} for row in rows])


if __name__ == "__main__":
    main()
