"""How far the estimates of `bakeoff --plan` are from what the stages then take and write.

    python benchmarks/plan.py CATALOGUE.csv [--images 500,2000] [--backbones demo:cnn,demo:clip]
        [--weights [ID=]PATH ...] [--set finetune.augment=none ...] [--folder FOLDER] [--dry]
    python benchmarks/plan.py --finished RUN [--dry]

For each size a subset of the catalogue's rows (evenly spaced, so that its splits keep their
shares) is planned and then run in an empty folder, stage by stage. `estimated_s` and `measured_s`
are wall time, `estimated_bytes` and `measured_bytes` what the stage leaves on the disk, `ratio_s`
and `ratio_bytes` estimate by measurement. The embeddings of all backbones are one stage, because
they share one pass. `plan_s` is the wall time of the plan itself. Appends to ``results/plan.csv``.

With `--processor-time` and one thread (``OMP_NUM_THREADS=1``) seconds are those of the processor,
child processes included, for a machine that runs other jobs.

With `--finished`, given in the folder where that bake-off ran and with its number of threads, the
plan of its settings in an empty folder is held against what its records say: embeddings, probes
and fine-tunes, as far as they are done.
"""

from __future__ import annotations

import argparse
import csv
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from record import append, stamp

from retailtag.allocator import keep_freed_memory
from retailtag.bakeoffs.extraction import ExtractStage
from retailtag.bakeoffs.plan import plan_bakeoff
from retailtag.bakeoffs.request import Request
from retailtag.bakeoffs.speed import Clock
from retailtag.bakeoffs.stages import FinetuneStage, ProbeStage, bakeoff_stages
from retailtag.catalog.catalog import Catalog
from retailtag.catalog.readers import read_catalog
from retailtag.context import RunContext
from retailtag.files import slug
from retailtag.runs.finetune_training import CACHE_SUFFIX
from retailtag.runs.stage import Estimate, read_record
from retailtag.settings import BakeoffSettings, build
from retailtag.settings_file import SETTINGS_FILE, read_settings
from retailtag.verbs import resolve

EXTRACT = "extract"
Stages = Iterable[tuple[str, Estimate]]  # name, seconds and bytes


def subset(catalogue: Path, n: int, folder: Path) -> Catalog:
    """About `n` evenly spaced rows of a CSV catalogue, whose images stay where they are."""
    with catalogue.open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    head, rows = rows[0], rows[1:]
    taken = [rows[i * len(rows) // n] for i in range(n)] if n < len(rows) else rows
    path = folder / f"{catalogue.stem}-{len(taken)}.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([head, *taken])
    return read_catalog(path, images=(catalogue.parent,))


def size_of(folder: Path) -> int:
    """Bytes of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def processor_time() -> float:
    """Processor seconds of this process and of its children that have ended."""
    return sum(os.times()[:4])


def measured(
    catalog: Catalog, settings: BakeoffSettings, root: Path, clock: Clock
) -> Iterator[tuple[str, Estimate]]:
    """Run the stages; name, seconds and bytes of each."""
    context = RunContext(catalog, settings.reading, settings.compute)
    for stage in bakeoff_stages(Request(context, settings)):
        before, start = size_of(root), clock()
        stage.update(lambda why: None)
        seconds = clock() - start
        yield stage.name, Estimate(seconds, float(size_of(root) - before))


def together(stages: Stages) -> dict[str, Estimate]:
    """The stages by name, those of the extraction as one."""
    found: dict[str, Estimate] = {}
    for name, cost in stages:
        key = EXTRACT if name.startswith(EXTRACT) else name
        known = found.get(key, Estimate(0.0, 0.0))
        found[key] = Estimate(known.seconds + cost.seconds, known.disk_bytes + cost.disk_bytes)
    return found


def finished(settings: BakeoffSettings) -> Iterator[tuple[str, Estimate]]:
    """Name, seconds and bytes of the stages of a run as it recorded them."""
    catalog = read_catalog(settings.catalog.path, settings.catalog)
    context = RunContext(catalog, settings.reading, settings.compute)
    for stage in bakeoff_stages(Request(context, settings)):
        if isinstance(stage, ExtractStage):
            store = stage.extraction.expected(stage.backbone)
            if store is not None:
                yield stage.name, Estimate(store.seconds, float(size_of(store.path)))
        elif isinstance(stage, ProbeStage | FinetuneStage):
            record = read_record(stage.folder)
            if record is not None:
                sizes = [(stage.folder / name).stat().st_size for name in record.outputs]
                yield stage.name, Estimate(record.seconds, float(sum(sizes) + kept(stage)))


def kept(stage: ProbeStage | FinetuneStage) -> int:
    """Bytes of the cached activations of a fine-tune."""
    features = stage.settings.compute.features
    root = features.with_name(f"{features.name}{CACHE_SUFFIX}")
    if isinstance(stage, ProbeStage) or not root.is_dir():
        return 0
    name = re.compile(re.escape(slug(stage.source.spec.backbone)) + "-[0-9a-f]{12}")
    return sum(size_of(folder) for folder in root.iterdir() if name.fullmatch(folder.name))


def compare(
    catalog: Catalog, settings: BakeoffSettings, truth: Callable[[], Stages], clock: Clock
) -> list[dict[str, object]]:
    """A row for each stage whose cost `truth` gives, of a bake-off planned for an empty folder."""
    start = time.perf_counter()
    planned = plan_bakeoff(catalog, settings, clock=clock)
    plan_seconds = time.perf_counter() - start
    estimates = together((p.name, Estimate(p.seconds, p.disk_bytes)) for p in planned)
    return [
        {
            "images": len(catalog),
            "tags": len(catalog.table.tags),
            "threads": torch.get_num_threads(),
            "stage": re.sub(r"\?[^ +]*", "", name),
            "estimated_s": round(estimates[name].seconds, 2),
            "measured_s": round(cost.seconds, 2),
            "ratio_s": round(estimates[name].seconds / cost.seconds, 3),
            "estimated_bytes": round(estimates[name].disk_bytes),
            "measured_bytes": round(cost.disk_bytes),
            "ratio_bytes": round(estimates[name].disk_bytes / max(cost.disk_bytes, 1), 3),
            "plan_s": round(plan_seconds, 2),
        }
        for name, cost in together(truth()).items()
    ]


def rows_of_sizes(args: argparse.Namespace) -> Iterator[dict[str, object]]:
    """Plan and run every size."""
    for n in map(int, args.images.split(",")):
        with tempfile.TemporaryDirectory(dir=args.folder) as name:
            root = Path(name) / "work"
            given = {
                "backbones": args.backbones,
                "weights": tuple(args.weights) or None,
                "features": root / "features",
                "out": root / "run",
            }
            settings, _ = resolve("bakeoff", None, given, sets=args.set)
            catalog = subset(args.catalogue, n, Path(name))
            truth = partial(measured, catalog, settings, root, args.clock)
            yield from compare(catalog, settings, truth, args.clock)


def rows_of_finished(run: Path, clock: Clock) -> list[dict[str, object]]:
    """Plan the settings of a finished run again, for an empty folder."""
    settings = replace(build(read_settings(run / SETTINGS_FILE)), out=run)
    catalog = read_catalog(settings.catalog.path, settings.catalog)
    with tempfile.TemporaryDirectory() as name:
        empty = replace(
            settings,
            out=Path(name) / "run",
            compute=replace(settings.compute, features=Path(name) / "features"),
        )
        return compare(catalog, empty, partial(finished, settings), clock)


def options(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("catalogue", type=Path, nargs="?")
    parser.add_argument("--finished", type=Path, metavar="RUN", help="a run that was recorded")
    parser.add_argument("--images", default="500,2000", help="sizes, comma-separated")
    parser.add_argument("--backbones", default="demo:cnn,demo:clip")
    parser.add_argument("--weights", action="append", default=[])
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--folder", type=Path, help="where to run; default: a temporary one")
    parser.add_argument(
        "--processor-time",
        dest="clock",
        action="store_const",
        const=processor_time,
        default=time.perf_counter,
        help="count processor time; needs OMP_NUM_THREADS=1",
    )
    parser.add_argument("--dry", action="store_true", help="record nothing")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> list[dict[str, object]]:
    """Plan and run every size, print the rows and record them."""
    args = options(argv)
    found = rows_of_finished(args.finished, args.clock) if args.finished else rows_of_sizes(args)
    rows = [{**stamp(), **row} for row in found]
    for row in rows:
        print(
            f"{row['images']:>7,} {row['stage']}: {row['estimated_s']} s estimated, "
            f"{row['measured_s']} measured ({row['ratio_s']}); "
            f"{row['estimated_bytes']:,} and {row['measured_bytes']:,} bytes ({row['ratio_bytes']})"
        )
    if not args.dry:
        append("plan.csv", rows)
    return rows


if __name__ == "__main__":
    keep_freed_memory()  # as the program does
    main()
