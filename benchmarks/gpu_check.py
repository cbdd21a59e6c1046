"""Everything that needs a GPU, in eight minutes on one: parity with the CPU, and speed.

    make gpu-check
    python benchmarks/gpu_check.py [--minutes 8] [--out results/gpu_check.json]
    python benchmarks/gpu_check.py --device cpu --tiny

Each check has its own time and is recorded as passed, failed (a limit is not kept, an error, or too
slow) or skipped (something is missing, or the minutes are over); the others run in any case. A
figure without a limit is ``measured``. Targets for times are those of an H200 and apply to no other
device. The weights are random, the photographs and workloads drawn from a seed: nothing is
downloaded. The JSON file is written after every check; rows are appended to the table beside it,
with the same name. Exit code 1 if a check failed, 2 where there is no CUDA device.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
import torch
from gpu_parity import eager, engine, finetune, knn, ridge, solver, text_prior
from gpu_runner import EVERYTHING, FAILED, Check, Result, run_checks
from gpu_speed import beside_cuml, extraction, finetune_epoch, narrow_sweep, wide_sweep
from gpu_world import FULL, TINY, World
from record import RESULTS, append, stamp
from rich.console import Console
from rich.padding import Padding
from rich.table import Table

from retailtag.allocator import keep_freed_memory
from retailtag.files import write_json

MINUTES = 8.0
WIDTH = 80  # characters of the printed table

# The most important first: what the minutes leave no time for is skipped.
CHECKS = (
    Check("parity: solver", solver, 30),
    Check("parity: head knn", knn, 20),
    Check("parity: head text", text_prior, 30),
    Check("parity: head ridge", ridge, 10),
    Check("parity: engine eager", eager, 60),
    Check("parity: engine eager, fast", engine("eager"), 60),
    Check("parity: fine-tune", finetune, 60),
    Check("probe sweep (b)", narrow_sweep, 180),
    Check("probe sweep (c)", wide_sweep, 150),
    Check("extraction: cnn", extraction("cnn"), 45),
    Check("extraction: dinov2", extraction("dinov2"), 45),
    Check("extraction: clip", extraction("clip"), 45),
    Check("fine-tune epoch, fp16", finetune_epoch("fp16"), 60),
    Check("fine-tune epoch, bf16", finetune_epoch("bf16"), 60),
    Check("cuML beside (b)", beside_cuml, 90),
    Check("parity: engine compile", engine("compile"), 120),
)


def machine(device: str) -> dict[str, object]:
    """What the checks ran on."""
    on_cuda = device == "cuda"
    return {
        **stamp(),
        "device": torch.cuda.get_device_name() if on_cuda else "cpu",
        "driver": _driver() if on_cuda else "",
        "cuda": torch.version.cuda or "",
        "torch": torch.__version__,
        "cuml": _version("cuml-cu12") or _version("cuml-cu13"),
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _driver() -> str:
    """Version of NVIDIA's driver; empty where ``nvidia-smi`` does not tell."""
    if shutil.which("nvidia-smi") is None:
        return ""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return (done.stdout.splitlines() or [""])[0].strip()


def rows(facts: dict[str, object], results: Sequence[Result]) -> Iterator[dict[str, object]]:
    """Rows of the table, one per figure."""
    for result in results:
        for figure in result.figures:
            yield {
                **facts,
                "check": result.check,
                "figure": figure.name,
                "value": None if figure.value is None else float(f"{figure.value:.6g}"),
                "unit": figure.unit,
                "target": figure.target,
                "status": figure.status,
                "reason": figure.reason,
            }


def document(facts: dict[str, object], size: str, results: Sequence[Result]) -> dict[str, Any]:
    """The JSON file."""
    return {
        **facts,
        "size": size,
        "seconds": round(sum(result.seconds for result in results), 3),
        "failed": [result.check for result in results if result.status == FAILED],
        "checks": [result.to_json() for result in results],
    }


def table(results: Sequence[Result]) -> Table:
    """Check, result, target and status of headlines and of what failed or was skipped."""
    shown = Table(box=None, width=WIDTH, pad_edge=False)
    shown.add_column("check", ratio=1)
    shown.add_column("result", justify="right", no_wrap=True)
    shown.add_column("target", justify="right", no_wrap=True)
    shown.add_column("status", no_wrap=True)
    for result in results:
        shown.add_row(
            f"{result.check} ({result.seconds:.0f} s)", "", "", result.status, style="bold"
        )
        for figure in result.figures:
            if not (figure.headline or figure.reason or figure.status == FAILED):
                continue
            value = "" if figure.value is None else f"{figure.value:.4g} {figure.unit}".rstrip()
            name = f"{figure.name}: {figure.reason}" if figure.reason else figure.name
            name = name.removeprefix(f"{EVERYTHING}: ")
            shown.add_row(Padding(name, (0, 0, 0, 2)), value, figure.target, figure.status)
    return shown


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Options; leaves with one sentence where there is nothing to run on."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="toy sizes, under a minute on a CPU")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="of all checks together")
    parser.add_argument(
        "--out", type=Path, help="JSON file; default: results/gpu_check.json, with --tiny none"
    )
    args = parser.parse_args(arguments)
    if args.device == "cpu" and not args.tiny:
        parser.error("--device cpu is for --tiny alone; give both.")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.exit(
            2,
            "gpu_check needs a CUDA device and PyTorch sees none; --device cpu --tiny tries every "
            "check on the CPU in a tiny size.\n",
        )
    if args.out is None and not args.tiny:
        args.out = RESULTS / "gpu_check.json"
    return args


def main(spent: float = 0.0) -> int:
    """Run, print and record; 1 if a check failed. `spent` seconds count as gone."""
    args = parse()
    keep_freed_memory()
    facts = machine(args.device)
    results: list[Result] = []
    with tempfile.TemporaryDirectory() as folder:
        world = World(args.device, TINY if args.tiny else FULL, Path(folder))
        for result in run_checks(CHECKS, world, args.device, args.minutes - spent / 60):
            print(f"{result.check}: {result.status}, {result.seconds:.1f} s", file=sys.stderr)
            results.append(result)
            if args.out is not None:
                write_json(args.out, document(facts, "tiny" if args.tiny else "full", results))
    Console(width=WIDTH).print(table(results))
    if args.out is not None:
        append(args.out.resolve().with_suffix(".csv"), list(rows(facts, results)))
    return int(any(result.status == FAILED for result in results))


if __name__ == "__main__":
    sys.exit(main(spent=time.time() - psutil.Process().create_time()))  # by the imports
