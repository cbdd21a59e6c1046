"""What an ONNX export of a fitted model keeps, weighs and takes, in float32 and int8.

    python benchmarks/onnx_export.py RUN... [--catalogue PATH] [--weights ID=PATH] [--dry]
    python benchmarks/onnx_export.py --tiny

RUN is a probe, a fine-tune or a bake-off, whose recommended pair is taken. The model is exported as
`retailtag export --format onnx --int8` does: up to 64 images of the test split compare the graph
with PyTorch, 128 training images give the ranges of int8, and macro-F1 is counted on the whole test
split, on which nothing is chosen. ``resized_cells`` are those that `--with-preprocessing` changes
on the compared images. Milliseconds are one image from pixels to logits by PyTorch (eager float32),
ONNX Runtime in float32 and in int8, timed in turn in one process on `--threads` threads, with the
half-width of their 95 % intervals. `--tiny` fits a probe of the demo's first 200 images and records
nothing. Appends to ``results/onnx.csv``.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from record import append, stamp

import retailtag as rt
from retailtag.catalog.catalog import Catalog
from retailtag.runs.export_onnx import OnnxRequest, export_onnx, readable
from retailtag.settings import ExportSettings
from retailtag.tagger.latency import SINGLE, Call, Schedule, time_in_turn
from retailtag.tagger.onnx.folder import INT8, MODEL, OnnxExport
from retailtag.tagger.onnx.graph import feed_of
from retailtag.tagger.onnx.session import OnnxSession
from retailtag.tagger.tagger import Tagger

TIMED_IMAGES = 16
RUNTIMES = ("pytorch", "onnx", "int8")


def measured(
    name: str, tagger: Tagger, catalog: Catalog, schedule: Schedule = SINGLE
) -> dict[str, Any]:
    """One row of the table."""
    with tempfile.TemporaryDirectory() as temporary:
        folders = [Path(temporary) / kind for kind in ("pixels", "images")]
        for folder in folders:
            folder.mkdir()
        plain = OnnxRequest(ExportSettings(format="onnx", int8=True))
        made = export_onnx(tagger, folders[0], plain, catalog)
        resizing = OnnxRequest(ExportSettings(format="onnx", with_preprocessing=True))
        resized = export_onnx(tagger, folders[1], resizing, catalog).resizing
        sizes = {
            "weights_mib": tagger.nbytes,
            "onnx_mib": (folders[0] / MODEL).stat().st_size,
            "int8_mib": (folders[0] / INT8).stat().st_size,
        }
        speeds = _speeds(tagger, catalog, folders[0], schedule)
    return {
        **stamp(),
        "model": name,
        "backbone": "+".join(b.id for b in tagger.backbones),
        "head": tagger.head.head,
        "tags": len(tagger.tags),
        "threads": torch.get_num_threads(),
        **_kept(made),
        "largest_pixel": resized["largest_pixel_difference"],
        "resized_cells": resized["cells_that_differ"],
        **{column: round(size / 2**20, 2) for column, size in sizes.items()},
        **speeds,
    }


def _kept(made: OnnxExport) -> dict[str, Any]:
    """Parity, and the loss of int8."""
    parity, int8 = made.parity, made.int8
    scores = {
        f"{name}_{kind}": round(int8["scores"][kind][name], 4)
        for name in ("macro_f1", "tail_macro_f1")
        for kind in ("float32", "int8")
        if name in int8["scores"][kind]
    }
    return {
        "compared_images": parity.images,
        "other_cells": parity.cells_that_differ,
        "largest_logit": f"{parity.largest_logit_difference:.1e}",
        "test_images": int8["images"],
        "int8_other_cells": round(int8["cells_that_differ"] / int8["cells"], 5),
        **{f"{n}_{k}": scores.get(f"{n}_{k}", "") for n in _SCORES for k in _KINDS},
    }


_SCORES, _KINDS = ("macro_f1", "tail_macro_f1"), ("float32", "int8")


def _speeds(tagger: Tagger, catalog: Catalog, folder: Path, schedule: Schedule) -> dict[str, float]:
    """Milliseconds of one image by each runtime, and half their intervals."""
    rows = catalog.rows("test")[:TIMED_IMAGES].tolist()
    pixels = [tagger.pixels(data) for _, data in readable(catalog, rows, tagger.pixels)]
    feeds = [feed_of(tagger, [one]) for one in pixels]
    sessions = [OnnxSession(folder / file) for file in (MODEL, INT8)]
    tasks = dict(
        zip(
            RUNTIMES,
            [
                _timed([lambda p=p: tagger.head.logits(tagger.embeddings([p])) for p in pixels]),
                *(_timed([lambda f=f, s=s: s.logits(f) for f in feeds]) for s in sessions),
            ],
            strict=True,
        )
    )
    found: dict[str, float] = {}
    for name, samples in time_in_turn(tasks, schedule).items():
        typical = samples.typical()
        found[f"{name}_ms"] = round(1e3 * typical.value, 3)
        found[f"{name}_ms_half_width"] = round(1e3 * typical.value * typical.width, 3)
    return found


def _timed(calls: Sequence[Any]) -> Call:
    """A call that makes one of `calls`, each in turn."""
    place = 0

    def call() -> tuple[float, ...]:
        nonlocal place
        start = time.perf_counter()
        calls[place % len(calls)]()
        place += 1
        return (0.0, 0.0, time.perf_counter() - start, 0.0)

    return call


def _tiny(folder: Path) -> tuple[Path, Path]:
    """A probe of 200 images of the demo, and its catalogue."""
    from retailtag.demo.drawing.write import write_demo_catalogue

    write_demo_catalogue(folder / "demo", n_images=200, seed=0)
    catalogue = folder / "demo" / "catalogue.csv"
    rt.probe(
        catalogue, "demo:cnn", out=folder / "run", features=folder / "features", sweep_C="1e-2",
        folds=2, heads="logistic", device="cpu",
    )  # fmt: skip
    return folder / "run", catalogue


def main() -> None:
    """Measure every run and append its row."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("runs", nargs="*", type=Path)
    parser.add_argument("--catalogue", help="default: the one that the run records")
    parser.add_argument("--weights", action="append", default=[], metavar="ID=PATH")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--dry", action="store_true", help="print, record nothing")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as temporary:
        runs, catalogue = args.runs, args.catalogue
        schedule = SINGLE
        if args.tiny:
            run, catalogue = _tiny(Path(temporary))
            runs, schedule = [run], Schedule(6, 2, warm_up=1, extra_seconds=0)
        rows = []
        for run in runs:
            tagger = rt.load(run, device="cpu", weights=args.weights or None)
            facts = tagger.head.facts
            source = catalogue or facts["catalog"]
            how = {} if catalogue else facts.get("catalog_args") or {}
            catalog = rt.read_catalog(source, **{k: v for k, v in how.items() if v})
            rows.append(measured(str(run), tagger, catalog, schedule))
            print(*(f"{k}={v}" for k, v in rows[-1].items()), sep="\n", flush=True)
    if not (args.tiny or args.dry):
        append("onnx.csv", rows)


if __name__ == "__main__":
    np.set_printoptions(precision=4)
    main()
