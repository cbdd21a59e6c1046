"""How the speed of our probes and of scikit-learn's depends on the width and on the images.

    python benchmarks/probe_scaling.py [--images 8000] [--tags 60] [--strengths 13]

The workload of `probe_sweep.py`, at 384 to 4,096 features of `--images` images and at half to four
times as many images of 768 features. Each size is fitted by ours in a process of its own, and by
scikit-learn's ``LogisticRegression`` at its default tolerance on pairs (tag, C) drawn within
strata. Appends a row for each size to ``results/probe_scaling.csv`` and prints the exponents, the
slopes of log seconds against log features and log images (least squares).
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from probe_data import frequency_group, save_workload
from probe_rivals import fit_timed, scikit_learn
from probe_sample import Measured, grid_seconds, sample_pairs
from probe_sweep import run_ours, say
from record import append, stamp
from threadpoolctl import threadpool_limits

WIDTHS = (384, 768, 1280, 2048, 4096)
WIDTH = 768  # where the number of images varies
SHARES = (0.5, 1.0, 2.0, 4.0)  # of `--images`


def measure(images: int, dim: int, args: argparse.Namespace) -> dict[str, Any]:
    """One size as a row of the table."""
    rng = np.random.default_rng(args.seed)
    C = np.geomspace(1e-6, 1e5, args.strengths)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        X, Y = save_workload(folder, images, dim, args.tags, rng)
        ours = run_ours(folder, C, args, 1)
        with np.load(folder / "fits.npz") as fits:
            gap = float(np.nanmax(fits["gap"]))
    found = []
    with threadpool_limits(args.threads):
        for pair in sample_pairs(frequency_group(Y), len(C), args.pairs, rng):
            model = scikit_learn(C=float(C[pair.k]))
            found.append(Measured(pair, fit_timed(model, X, Y[:, pair.tag]).seconds, float("nan")))
    rival, error = grid_seconds(found)
    row = {
        "images": images,
        "dim": dim,
        "tags": args.tags,
        "strengths": args.strengths,
        "threads": args.threads,
        "seed": args.seed,
        "seconds": ours["seconds"],
        "fits_per_second": ours["n_fits"] / ours["seconds"],
        "iterations": ours["iterations"],
        "largest_gap": gap,
        "peak_rss_mib": ours["peak_rss_mib"],
        "sklearn_pairs": len(found),
        "sklearn_seconds": rival,
        "sklearn_standard_error": error,
        "speedup": rival / ours["seconds"],
    }
    say(f"{images} x {dim}: {row['fits_per_second']:.4g} fits/s, {row['speedup']:.3g} times")
    return row


def exponents(rows: list[dict[str, Any]], size: str) -> str:
    """Slopes of log seconds against the log of a size, ours and scikit-learn's."""
    x = np.log([row[size] for row in rows])
    slopes = [
        np.polyfit(x, np.log([row[name] for row in rows]), 1)[0]
        for name in ("seconds", "sklearn_seconds")
    ]
    return f"seconds ~ {size}^{slopes[0]:.2f}, scikit-learn {size}^{slopes[1]:.2f}"


def main() -> None:
    """Measure, print and record."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=8000)
    parser.add_argument("--tags", type=int, default=60)
    parser.add_argument("--strengths", type=int, default=13, help="values of C from 1e-6 to 1e5")
    parser.add_argument("--pairs", type=int, default=18, help="(tag, C) for scikit-learn, about")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    facts = stamp()
    by_width = [measure(args.images, dim, args) for dim in WIDTHS]
    more = [int(args.images * share) for share in SHARES if share != 1.0]
    by_images = [measure(images, WIDTH, args) for images in more]
    rows = by_width + by_images
    by_images.append(by_width[WIDTHS.index(WIDTH)])
    print(exponents(by_width, "dim"))
    print(exponents(by_images, "images"))
    rounded = [
        {k: float(f"{v:.5g}") if isinstance(v, float) else v for k, v in row.items()}
        for row in rows
    ]
    append("probe_scaling.csv", [{**facts, **row} for row in rounded])


if __name__ == "__main__":
    main()
