"""Images a second from files to stored embeddings, against the loop people write.

    python benchmarks/extract.py [--images 2000] [--rounds 3] [--quick] [--json] [--dry]

In one run, each measurement in a process of its own and in turn: the loop (PIL and the model's own
timm or open_clip transform in a DataLoader of 64 images a batch, float32 in eager mode, one
``torch.save`` at the end), with no worker process, which is the DataLoader's default, and with one
a core; and ``extract`` with ``--precision exact`` and ``fast``, engine and batch size chosen by
itself. Speedups are against the faster loop. Imports, building the model and choosing the engine
come before the clock starts (`setup_seconds`); reading, decoding, writing and, on our side, the
checksums and fsyncs are inside. `model_images_s` is the same engine on images in memory. Memory is
the peak of the process that runs the model, at the full number of images and (method `memory`) at a
quarter of it. Methods `decoding apart` and `decoding here` are one thread that decodes and resizes,
in a process of its own and not.

No engine computes float32 faster than the processor multiplies matrices: method `matrix product` is
the rate of one of 4,096 x 4,096, and `gflops` of the others what the model's work, counted on the
whole model, comes to at `model_images_s`. `ceiling_exact` is the speedup of a model that ran at the
rate of that product, with all else for nothing; where it is under the speedup aimed at, the aim is
out of reach of this processor.

Images are photographs in nothing but statistics: JPEG of about 500 x 500 pixels and 60 kB, drawn
from a seed. Weights are random (nothing is downloaded): times do not depend on them, but cosines
do, and those of trained weights must be measured with such. Appends to ``results/extract.csv``.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from record import append, stamp

from retailtag.allocator import keep_freed_memory
from retailtag.backbones.cost import cost_of

BACKBONES = {
    "resnet50": "timm:resnet50.a1_in1k",
    "vit_small_14": "timm:vit_small_patch14_dinov2.lvd142m?img_size=224",
    "clip_vit_b_32": "open_clip:ViT-B-32/openai",
}
LOOP_BATCH = 64
SAMPLE = 256  # images whose embeddings are compared with eager float32
MODEL_SECONDS = 4.0  # least time that a model is fed from memory; no limit with --quick
Job = dict[str, Any]


def draw(folder: Path, n: int, side: int) -> Path:
    """Catalogue of `n` JPEG files of about `side` x `side` pixels."""
    rng = np.random.default_rng(0)
    lines = [("path", "tags", "split")]
    for i in range(n):
        width, height = rng.integers(int(0.8 * side), int(1.2 * side), 2)
        blobs = rng.integers(0, 256, (9, 9, 3), dtype=np.uint8)
        smooth = Image.fromarray(blobs).resize((int(width), int(height)), Image.Resampling.BICUBIC)
        grain = rng.normal(0, 14, (height, width, 1)).astype(np.float32)
        pixels = (np.asarray(smooth) + grain).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:06d}.jpg", quality=75)
        lines.append((f"{i:06d}.jpg", f"tag{i % 3}", "test" if i % 10 == 0 else "train"))
    for name, some in (("all", lines), ("quarter", lines[: 1 + n // 4])):
        with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(some)
    return folder


def loop(job: Job) -> Job:
    """What people write; its embeddings are kept for the comparison."""
    import torch
    from torch.utils.data import DataLoader, Dataset

    from retailtag.backbones import load_backbone, onednn

    onednn.enabled = False  # the loop has PyTorch's own layers
    backbone = load_backbone(job["backbone"], random_weights=True)
    model = backbone.module.to(memory_format=torch.contiguous_format).eval()
    transform = own_transform(job["backbone"], backbone)
    files = sorted(Path(job["images"]).glob("*.jpg"))

    class Files(Dataset):
        def __len__(self) -> int:
            return len(files)

        def __getitem__(self, index: int) -> torch.Tensor:
            return transform(Image.open(files[index]).convert("RGB"))

    with torch.no_grad():
        model(torch.zeros(LOOP_BATCH, 3, *backbone.preprocess.size))
        start = time.perf_counter()
        loader = DataLoader(Files(), batch_size=LOOP_BATCH, num_workers=job["workers"])
        embeddings = torch.cat([model(batch) for batch in loader])
        torch.save(embeddings, Path(job["out"]) / "loop.pt")
        seconds = time.perf_counter() - start
        batch = torch.rand(LOOP_BATCH, 3, *backbone.preprocess.size)
        rate = model_rate(lambda: model(batch), LOOP_BATCH, job)
    np.save(Path(job["out"]) / "loop.npy", embeddings.numpy())
    return {"images_s": len(files) / seconds, "model_images_s": rate, "engine": "eager float32"}


def own_transform(name: str, backbone: Any) -> Callable[[Image.Image], Any]:
    """The transform that the model's library gives."""
    if name.startswith("timm:"):
        import timm

        config = timm.data.resolve_model_data_config(backbone.module.trunk)
        config["input_size"] = (3, *backbone.preprocess.size)  # of the id, not of the weights
        return timm.data.create_transform(**config, is_training=False)
    import open_clip

    size, p = backbone.preprocess.size, backbone.preprocess
    return open_clip.image_transform(size, is_train=False, mean=p.mean, std=p.std)


def model_rate(embed: Callable[[], Any], n: int, job: Job) -> float:
    """Images a second of a model fed from memory."""
    embed()
    start, done = time.perf_counter(), 0
    least = 0.0 if job["quick"] else job.get("seconds", MODEL_SECONDS)
    while not done or time.perf_counter() - start < least:
        embed()
        done += n
    return done / (time.perf_counter() - start)


def ours(job: Job) -> Job:
    """`extract` as its command runs it, and its engine on images in memory."""
    import torch

    from retailtag.backbones import load_backbone
    from retailtag.catalog.readers import read_catalog
    from retailtag.context import RunContext
    from retailtag.extraction.engines import choose_engine
    from retailtag.extraction.extract import extract
    from retailtag.settings import ComputeSettings, ExtractSettings

    keep_freed_memory()
    whole, catalog = (
        read_catalog(Path(job["images"]) / f"{manifest}.csv")
        for manifest in ("all", job["manifest"])
    )
    backbone = load_backbone(job["backbone"], random_weights=True)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=job["out"]) as features:
        compute = ComputeSettings(features=Path(features))
        settings = ExtractSettings(precision=job["precision"])
        embedder = choose_engine(RunContext(whole, compute=compute), backbone, settings).embedder
        batch = torch.zeros(32, 3, *backbone.preprocess.size, dtype=torch.uint8)
        embedder.embed(batch)
        setup = time.perf_counter() - start
        summary = extract(RunContext(catalog, compute=compute), embedder)
        rate = model_rate(lambda: embedder.embed(batch), len(batch), job)
        X = summary.store.load(catalog.image_ids).X
    np.save(Path(job["out"]) / f"{job['precision']} {job['manifest']}.npy", X)
    shares = summary.cost.shares()
    return {
        "images_s": len(catalog) / summary.seconds,
        "model_images_s": rate,
        "engine": embedder.spec().engine,
        "limit": summary.cost.limit,
        "model_share": shares["model"],
        "wait_share": shares["images"],
        "write_share": shares["writing"],
        "setup_seconds": setup,
        **nearness(catalog, backbone, embedder),
    }


def nearness(catalog: Any, backbone: Any, embedder: Any) -> Job:
    """Smallest cosine, and mean centred cosine, of a sample with eager float32 on equal pixels."""
    import torch

    from retailtag.images.loader import load_batches

    rows = range(min(SAMPLE, len(catalog)))
    batches = load_batches(catalog.images, rows, backbone.preprocess, batch_size=32, workers=2)
    pixels = [torch.from_numpy(batch.pixels) for batch in batches]
    eager, other = (
        np.concatenate([model.embed(p).float().cpu().numpy() for p in pixels])
        for model in (backbone, embedder)
    )
    mean = eager.mean(axis=0, dtype=np.float64)
    centred = cosine(eager - mean, other - mean)
    return {
        "cosine_min": float(cosine(eager, other).min()),
        "centred_cosine_min": float(centred.min()),
        "centred_cosine_mean": float(centred.mean()),
    }


def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Cosine of the rows of two arrays."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    return (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


def decoding(job: Job) -> Job:
    """One thread that decodes and resizes, with or without a process of its own."""
    from retailtag.backbones.preprocess import Preprocess
    from retailtag.images.decode_pool import decode_in_process, decode_in_subprocess

    decode = decode_in_subprocess if job["apart"] else decode_in_process
    step = Preprocess((224, 224), crop_pct=0.875, interpolation="bicubic").of_pixels
    data = [path.read_bytes() for path in sorted(Path(job["images"]).glob("*.jpg"))[:SAMPLE]]

    def all_of_them() -> None:
        for file in data:
            decode(file, step)

    return {"images_s": model_rate(all_of_them, len(data), job)}


def product(job: Job) -> Job:
    """Rate of a large matrix product in float32, on all cores.

    The faster of two libraries: PyTorch's product is MKL's, its 1 x 1 convolution oneDNN's, which
    is twice as fast on an AMD processor with AVX-512 (Zen 5).
    """
    import torch

    side = 256 if job["quick"] else 2048
    a, b = torch.rand(side, side), torch.rand(side, side)
    conv = torch.nn.Conv2d(side, side, 1, bias=False).to(memory_format=torch.channels_last)
    x = torch.rand(1, side, side // 16, 16).to(memory_format=torch.channels_last)
    with torch.inference_mode():
        rates = [model_rate(f, 1, job) for f in (lambda: a @ b, lambda: conv(x)) for _ in range(3)]
    return {"gflops": max(rates) * 2 * side**3 / 1e9}


def child(job: Job) -> Job:
    """One measurement; its own peak memory with it."""
    measure = {"loop": loop, "decoding": decoding, "product": product}.get(job["kind"], ours)
    result = measure(job)
    return result | {"peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def in_child(job: Job) -> Job:
    """`child` in a fresh process."""
    command = [sys.executable, __file__, "--child", json.dumps(job)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    result: Job = json.loads(done.stdout.splitlines()[-1])
    return result


def jobs(backbone: str, images: Path, out: Path, quick: bool) -> dict[str, Job]:
    """What is measured of one backbone, by method."""
    common = {
        "backbone": backbone,
        "images": str(images),
        "out": str(out),
        "manifest": "all",
        "quick": quick,
    }
    loops = {
        f"loop, {workers} workers": {**common, "kind": "loop", "workers": workers}
        for workers in sorted({0, os.cpu_count() or 1})
    }
    extracts = {
        precision: {**common, "kind": "extract", "precision": precision}
        for precision in ("exact", "fast")
    }
    memory = {"memory": {**extracts["exact"], "manifest": "quarter"}}
    return loops | extracts | memory


def measure_backbone(name: str, images: Path, n: int, rounds: int, quick: bool) -> list[Job]:
    """Rows of one backbone: the median rate of each method, and its ratio to the faster loop."""
    with tempfile.TemporaryDirectory(dir=images.parent) as out:
        todo = jobs(BACKBONES[name], images, Path(out), quick)
        found: dict[str, list[Job]] = {method: [] for method in todo}
        for round_ in range(rounds):
            for method, job in todo.items():
                if method != "memory" or round_ == 0:
                    found[method].append(in_child(job))
        loop, exact, fast = (
            np.load(Path(out) / f"{name}.npy") for name in ("loop", "exact all", "fast all")
        )
    rate = {m: statistics.median(r["images_s"] for r in rs) for m, rs in found.items()}
    best = max(rate[method] for method in rate if method.startswith("loop"))
    ends = {"exact": float(cosine(loop, exact).min()), "fast": float(cosine(loop, fast).min())}
    gflop = cost_of(BACKBONES[name]).flops / 1e9
    rows = [
        row(name, method, n // 4 if method == "memory" else n, runs)
        | {"speedup": rate[method] / best, "cosine_min_with_loop": ends.get(method)}
        for method, runs in found.items()
    ]
    return [r | {"gflops": r["model_images_s"] * gflop} for r in rows]


COLUMNS = (
    *("backbone", "method", "images", "images_s", "images_s_least", "images_s_most", "speedup"),
    *("model_images_s", "engine", "limit", "model_share", "wait_share", "write_share"),
    *("setup_seconds", "cosine_min", "centred_cosine_min", "centred_cosine_mean"),
    *("cosine_min_with_loop", "peak_mib", "gflops"),
)


def row(backbone: str, method: str, n: int, runs: list[Job]) -> Job:
    """One row of the table: the run of median rate, with the range of rates."""
    runs = sorted(runs, key=lambda run: run.get("images_s", 0.0))
    ends = {"images_s_least": runs[0], "images_s_most": runs[-1]}
    rates = {column: run.get("images_s") for column, run in ends.items()}
    about = {"backbone": backbone, "method": method, "images": n}
    return dict.fromkeys(COLUMNS) | about | runs[len(runs) // 2] | rates


def measure(names: list[str], n: int, side: int, rounds: int, quick: bool) -> list[Job]:
    """All rows."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "images").mkdir()
        images = draw(Path(folder) / "images", n, side)
        rows = [row("", "matrix product", 0, [in_child({"kind": "product", "quick": quick})])]
        for place in ("here", "apart"):
            apart = place == "apart"
            job = {"kind": "decoding", "apart": apart, "images": str(images), "quick": quick}
            rows.append(row("", f"decoding {place}", min(n, SAMPLE), [in_child(job)]))
        for name in names:
            rows += measure_backbone(name, images, n, rounds, quick)
    return rows


def summary(rows: list[Job]) -> Job:
    """The figures that matter, by backbone."""
    by_key = {(row["backbone"], row["method"]): row for row in rows}
    names = list(dict.fromkeys(row["backbone"] for row in rows if row["backbone"]))

    def of(method: str, column: str) -> Job:
        return {name: by_key[name, method][column] for name in names}

    peak = by_key["", "matrix product"]["gflops"]

    def ceiling(exact: Job) -> float:
        model_images_s = peak / exact["gflops"] * exact["model_images_s"]
        loop_images_s = exact["images_s"] / exact["speedup"]
        return float(model_images_s / loop_images_s)

    return {
        "ceiling_exact": {name: ceiling(by_key[name, "exact"]) for name in names},
        "speedup_exact": of("exact", "speedup"),
        "speedup_fast": of("fast", "speedup"),
        "cosine_min_exact": of("exact", "cosine_min"),
        "centred_cosine_mean_fast": of("fast", "centred_cosine_mean"),
        "write_share_exact": of("exact", "write_share"),
        "write_share_fast": of("fast", "write_share"),
        "peak_mib": of("exact", "peak_mib"),
        "peak_mib_quarter": of("memory", "peak_mib"),
        "rows": rows,
    }


def main() -> None:
    """Measure, print and record."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--side", type=int, default=500, help="of an image, about, pixels")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--backbones", default=",".join(BACKBONES))
    parser.add_argument("--quick", action="store_true", help="toy sizes; record nothing")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--dry", action="store_true", help="print only; record nothing")
    parser.add_argument("--child", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(child(args.child)))
        return
    n, rounds = (32, 1) if args.quick else (args.images, args.rounds)
    names = args.backbones.split(",")
    rows = [stamp() | r for r in measure(names, n, args.side, rounds, args.quick)]
    for r in rows:
        r.update({k: float(f"{v:.6g}") for k, v in r.items() if isinstance(v, float)})
    if args.json:
        print(json.dumps(summary(rows)))
    else:
        shown = ("backbone", "method", "images_s", "speedup", "model_images_s", "gflops")
        shown += ("engine", "limit")
        print(*(name.ljust(16) for name in shown))
        for r in rows:
            print(*(str(r[name] if r[name] is not None else "").ljust(16) for name in shown))
    if not (args.dry or args.quick):
        append("extract.csv", rows)


if __name__ == "__main__":
    main()
