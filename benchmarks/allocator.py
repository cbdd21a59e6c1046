"""What does keeping freed memory in the process give? Embedding, with and without, in pairs.

Appends rows to ``results/allocator.csv``: python benchmarks/allocator.py [--pairs 3]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

from record import append, stamp

ROOT = Path(__file__).parents[1]
CHILD = """
import json, sys, time, torch
from retailtag.allocator import keep_freed_memory
from retailtag.backbones import load_backbone
if sys.argv[2] == "keep":
    assert keep_freed_memory(), "this C library has no such setting"
backbone = load_backbone(sys.argv[1], random_weights=True)
pixels = torch.zeros(64, 3, *backbone.preprocess.size, dtype=torch.uint8)
backbone.embed(pixels)
start, n = time.perf_counter(), 0
while time.perf_counter() - start < 6:
    backbone.embed(pixels)
    n += len(pixels)
print(json.dumps(n / (time.perf_counter() - start)))
"""


def images_per_second(backbone: str, mode: str) -> float:
    """Embedding rate in a process of its own."""
    command = [sys.executable, "-c", CHILD, backbone, mode]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    return float(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    """Measure pairs in turn and print the median ratio of each backbone."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--backbones", default="demo:cnn,demo:dino,timm:resnet50")
    args = parser.parse_args()
    rows = []
    for backbone in args.backbones.split(","):
        pairs = [
            (images_per_second(backbone, "usual"), images_per_second(backbone, "keep"))
            for _ in range(args.pairs)
        ]
        usual, keep = (statistics.median(p[i] for p in pairs) for i in (0, 1))
        ratio = statistics.median(b / a for a, b in pairs)
        print(f"{backbone}: {usual:.1f} images/s usual, {keep:.1f} kept, ratio {ratio:.2f}")
        rates = {"usual_images_s": f"{usual:.1f}", "kept_images_s": f"{keep:.1f}"}
        row = {"backbone": backbone, **rates, "ratio": f"{ratio:.2f}", "pairs": args.pairs}
        rows.append(stamp() | row)
    append("allocator.csv", rows)


if __name__ == "__main__":
    main()
