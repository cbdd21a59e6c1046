"""Seconds and memory of every command on 300 images with many tags, most of them rare.

    python benchmarks/many_tags.py [--tags 250,2000,20000] [--quick] [--json] [--dry]

The images are noise and the tags drawn with frequencies that fall as a power of their rank: of
20,000 tags two thirds are on one image. Each command runs in a process of its own, whose peak
memory is recorded, and must end with 0. ``bakeoff`` fits the default grid and writes the report,
``score`` and ``predict`` (20 images) read its run. Appends to ``results/many_tags.csv``.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image
from record import append

N_IMAGES = 300
N_TEST = 100
SIDE = 48
SEED = 0


def draw(folder: Path, n_tags: int, n_images: int) -> Path:
    """Write images and a manifest in which every tag is on an image at least."""
    rng = np.random.default_rng(SEED)
    share = 1 / np.arange(1, n_tags + 1) ** 0.7
    share *= (20 + n_tags / 200) / share.sum()  # tags of an image on average
    labels = rng.random((n_images, n_tags)) < np.minimum(share, 0.6)
    absent = np.flatnonzero(~labels.any(axis=0))
    labels[rng.integers(n_images, size=len(absent)), absent] = True
    lines = ["image_id,path,tags"]
    for i, row in enumerate(labels):
        pixels = rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.jpg")
        lines.append(f"i{i},{i}.jpg,{'|'.join(f't{t}' for t in np.flatnonzero(row))}")
    path = folder / "catalogue.csv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def commands(catalogue: Path, n_test: int) -> dict[str, list[str]]:
    """Command lines in order, by name."""
    split, runs = str(catalogue.with_name("split.csv")), catalogue.with_name("runs")
    where = ["--backbones", "demo:cnn", "--features", str(catalogue.with_name("features"))]
    bakeoff = str(runs / "bakeoff")
    return {
        "check": ["catalog", "check", str(catalogue)],
        "split": ["catalog", "split", str(catalogue), "--test", str(n_test), "--out", split],
        "extract": ["extract", split, *where],
        "bakeoff": ["bakeoff", split, *where, "--strategies", "probe", "--out", bakeoff],
        "score": ["score", bakeoff],
        "predict": ["predict", bakeoff, *map(str, sorted(catalogue.parent.glob("*.jpg"))[:20])],
        "probe --sweep-C": ["probe", split, *where, "--sweep-C", "--out", str(runs / "probe")],
    }


def run(arguments: list[str], log: Path) -> tuple[float, float]:
    """Seconds and peak MiB of one command."""
    start = time.perf_counter()
    with log.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "retailtag", *arguments], stdout=file, stderr=file
        )
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{arguments[0]} ended with {process.returncode}:\n{log.read_text()}")
    return time.perf_counter() - start, usage.ru_maxrss / 1024


def measure(n_tags: int, n_images: int, n_test: int) -> Iterator[dict]:
    """Yield one row per command."""
    with tempfile.TemporaryDirectory() as name:
        catalogue = draw(Path(name), n_tags, n_images)
        for command, arguments in commands(catalogue, n_test).items():
            seconds, peak = run(arguments, Path(name) / "log.txt")
            row = {"images": n_images, "tags": n_tags, "command": command}
            yield {**row, "seconds": round(seconds, 1), "peak_mib": round(peak)}


def main() -> None:
    """Measure, print and record."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tags", default="250,2000,20000", help="numbers of tags")
    parser.add_argument("--quick", action="store_true", help="toy sizes; record nothing")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    parser.add_argument("--dry", action="store_true", help="print only; record nothing")
    args = parser.parse_args()
    sizes = [(40, 30, 10)] if args.quick else []
    sizes = sizes or [(int(n), N_IMAGES, N_TEST) for n in args.tags.split(",")]
    # The peak of a child is at least the size of its parent: no libraries are loaded here.
    command = [sys.executable, "-c", "import json, record; print(json.dumps(record.stamp()))"]
    stamped = subprocess.run(
        command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True
    )
    facts = json.loads(stamped.stdout)
    rows = []
    for size in sizes:
        for found in measure(*size):
            rows.append({**facts, **found})
            print(*found.values(), file=sys.stderr, flush=True)
            if not (args.dry or args.quick):  # at once: the largest size takes a while
                append("many_tags.csv", rows[-1:])
    if args.json:
        print(json.dumps(rows))


if __name__ == "__main__":
    main()
