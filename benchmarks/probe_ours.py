"""Our sweep in a process of its own, for `probe_sweep.py`: python probe_ours.py FOLDER.

FOLDER holds ``features.npy``, ``labels.npy`` and ``job.json``; ``fits.npz`` is left there, and the
last line printed is a JSON object. The features are read through a memory map. `peak_rss_mib` is
the kernel's high-water mark of this process alone (VmHWM, which starts anew with the program):
interpreter, libraries and the pages of the features that were read count, the making of the data
and the rivals do not.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from retailtag.catalog.folds import k_folds
from retailtag.probes.solver.fit import fit_probes, make_solver
from retailtag.probes.sweep import Sweeper
from retailtag.scoring.metrics import average_precision_per_tag


def peak_rss_mib() -> float:
    """Most memory that this process has held, in MiB."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def counted(status: NDArray[np.str_]) -> dict[str, int]:
    """How many fits ended with each status."""
    names, counts = np.unique(status, return_counts=True)
    return dict(zip(names.tolist(), counts.tolist(), strict=True))


def one_fold(
    X: NDArray[np.float32], Y: NDArray[np.int8], C: NDArray[np.float64], device: str, folder: Path
) -> dict[str, Any]:
    """Fit every (tag, C) on all images."""
    start = time.perf_counter()
    fits = fit_probes(X, Y, C.tolist(), device=device)
    seconds, peak = time.perf_counter() - start, peak_rss_mib()
    np.savez(folder / "fits.npz", weight=fits.weight, bias=fits.bias, gap=fits.gap)
    return {
        "seconds": seconds,
        "peak_rss_mib": peak,
        "n_fits": fits.status.size,
        "iterations": float(fits.iterations.mean()),
        "status": counted(fits.status),
    }


def all_folds(
    X: NDArray[np.float32], Y: NDArray[np.int8], C: NDArray[np.float64], device: str, folds: int
) -> dict[str, Any]:
    """Fit every (tag, C) outside each fold and score it inside, as `retailtag probe` does."""
    ids = np.array([f"{i:09d}" for i in range(len(X))])
    fold = k_folds(Y, ids, ids, folds, seed=0)
    start = time.perf_counter()
    sweeper = Sweeper(X, Y, fold, make_solver("torch", device), average_precision_per_tag)
    sweep = sweeper.sweep(C)
    seconds, peak = time.perf_counter() - start, peak_rss_mib()
    fits = [fold.distinct.fits for fold in sweep.fits]
    return {
        "seconds": seconds,
        "seconds_fitting": sum(each.seconds for each in fits),
        "peak_rss_mib": peak,
        "n_fits": sweep.status.size,
        "gap": float(max(np.nanmax(each.gap) for each in fits)),
        "status": counted(sweep.status),
    }


def main() -> None:
    """Do the job and print what it took."""
    folder = Path(sys.argv[1])
    job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    torch.set_num_threads(job["threads"])
    X = np.load(folder / "features.npy", mmap_mode="r")
    Y, C = np.load(folder / "labels.npy"), np.array(job["C"])
    # Kernels, threads and the CUDA context are started before the clock.
    fit_probes(X[:200], np.arange(200)[:, None] % 2, [1.0], device=job["device"])
    if job["folds"] > 1:
        found = all_folds(X, Y, C, job["device"], job["folds"])
    else:
        found = one_fold(X, Y, C, job["device"], folder)
    if job["device"] == "cuda":
        found["peak_device_mib"] = torch.cuda.max_memory_allocated() / 2**20
    print(json.dumps(found))


if __name__ == "__main__":
    main()
