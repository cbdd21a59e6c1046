"""What does a fine-tune give, and which of its choices give it? One choice changed at a time.

    python benchmarks/finetune_ablation.py CATALOGUE --run RUN --backbones a,b [--rows r,s] [--dry]

RUN holds the probes of these backbones on this catalogue (`retailtag bakeoff CATALOGUE
--strategies probe --out RUN --features FOLDER`). For each backbone one row of

* the probe;
* the last four blocks by the base settings (``bce``: binary cross-entropy, shuffled, shared by
  all rows below), and with one choice changed: losses, samplers, averages,
  mixtures, augmentations, interpolation off, equal rates for all blocks;
* ``chosen``: the base with the loss and the sampler whose rows had the largest criterion **on the
  validation set**; the test split chooses nothing here;
* all blocks, and all blocks from random weights (``scratch``).

The base settings choose the epoch by average precision, of which a small validation set tells
more than of F1; ``default choice`` is by macro-F1 while the tail keeps its own, as `retailtag
finetune` does by default. Where the start validates best the probe is kept and rows come out alike:
``validation_last_epoch`` then tells what training did.

Macro-F1 and tail macro-F1 with their intervals are the scorer's, on the test split. Seconds are
the whole stage; ``images_s`` is of the training epochs alone. A row that reads cached activations
of an earlier row does not compute them again: seconds are comparable within a backbone only from
the second row on. A row that is in RUN with the same settings is reused, so that an interrupted run
continues; so is ``chosen`` where a row above has its settings. Appends to ``results/finetune.csv``;
``--quick`` makes a toy catalogue and records nothing.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from record import append, stamp

from retailtag.backbones import load_backbone
from retailtag.bakeoffs.request import pair_folder
from retailtag.catalog.catalog import Catalog
from retailtag.catalog.readers import read_catalog
from retailtag.cli.main import run as command
from retailtag.context import RunContext
from retailtag.extraction.embedder import identity
from retailtag.extraction.stores import find_store
from retailtag.files import slug
from retailtag.predictions import Predictions
from retailtag.probes.artefact import Probe
from retailtag.runs.finetune import FinetuneRun, run_finetune
from retailtag.runs.finetune_training import finetune_inputs
from retailtag.runs.stage import StageRecord, read_record, why_stale
from retailtag.scoring.score import score_predictions
from retailtag.settings import ComputeSettings, FinetuneSettings

Changes = Mapping[str, Any]

LOSSES: dict[str, Changes] = {
    name: {"loss": name.replace(" ", ":")}
    for name in ("asl", "asl gamma_neg=2", "focal alpha=none", "db")
}
SAMPLERS: dict[str, Changes] = {
    "repeat": {"sampler": "repeat"},
    "repeat t=0.01": {"sampler": "repeat:t=0.01"},
}
OTHERS: dict[str, Changes] = {
    "average": {"ema": 0.99},
    "mixup": {"mix": "mixup", "augment": "light"},
    "cutmix": {"mix": "cutmix", "augment": "light"},
    "no augmentation": {"augment": "none"},
    "light": {"augment": "light"},
    "strong": {"augment": "strong"},
    "no interpolation": {"interpolate": "1"},
    "equal rates": {"layer_decay": 1.0},
    "batch statistics": {"batch_norm": "batch"},
    "refit": {"refit": True},
    "default choice": {"choose_epoch": "macro-f1"},
}
ROWS = ("probe", "bce", *LOSSES, *SAMPLERS, *OTHERS, "chosen", "all blocks", "scratch")


@dataclass(frozen=True)
class Bench:
    """What all rows of one backbone share."""

    catalog: Catalog
    backbone: str
    weights: Path | None
    device: str
    run: Path
    features: Path
    base: FinetuneSettings
    scratch_epochs: int
    workers: int

    def probe_folder(self) -> Path:
        """Where the bake-off left this backbone's probe."""
        return pair_folder(self.run, self.backbone, "probe")

    def tune(self, name: str, changes: Changes) -> FinetuneRun:
        """The fine-tune with these settings, reused if it is finished."""
        config = replace(self.base, **changes)
        model = load_backbone(self.backbone, weights=self.weights, device=self.device)
        probe = Probe.load(self.probe_folder())
        store = find_store(self.features, identity(model), fitted=probe.facts["features"])
        folder = pair_folder(self.run, self.backbone, "ablation") / slug(name)
        inputs = finetune_inputs(self.catalog, store, probe, config)
        run = None if why_stale(folder, inputs) else FinetuneRun.load(folder)
        compute = ComputeSettings(device=self.device, workers=self.workers)
        context = RunContext(self.catalog, compute=compute)
        return run or run_finetune(context, store, model, probe, folder, config)


@dataclass(frozen=True)
class Result:
    """One trained model: its settings, predictions, costs, and how validation saw it."""

    config: FinetuneSettings | None
    predictions: Predictions
    record: StageRecord
    images_s: float | None = None
    best_epoch: int | None = None
    factor: float | None = None
    validation: float | None = None
    last_validation: float | None = None


def probe_result(bench: Bench) -> Result:
    """The probe that the fine-tunes start from."""
    folder = bench.probe_folder()
    record = read_record(folder)
    if record is None:
        raise SystemExit(f"{folder} holds no finished probe; run the bake-off with probes first.")
    return Result(None, Predictions.load(folder / "predictions.npz"), record)


def tuned_result(bench: Bench, name: str, changes: Changes) -> Result:
    """A fine-tune with some settings changed."""
    run = bench.tune(name, changes)
    rates = [row["images_per_second"] for row in run.history if row["images_per_second"]]
    return Result(
        replace(bench.base, **changes),
        run.predictions,
        run.record,
        fmean(rates) if rates else None,
        run.best_epoch,
        run.checkpoint.facts["interpolation"]["factor"],
        run.history[run.best_epoch]["criterion"],
        run.history[-1]["criterion"],
    )


def best_of(done: Mapping[str, Result], menu: Mapping[str, Changes]) -> Changes:
    """The change of `menu` whose row validated best; none where the base did better."""
    tried = {name: done[name].validation for name in ("bce", *menu) if name in done}
    winner = max(tried, key=lambda name: tried[name] or 0.0)
    return menu.get(winner, {})


def results(bench: Bench, rows: tuple[str, ...]) -> Iterator[tuple[str, Result]]:
    """Every row asked for, in the order of `ROWS`; `chosen` by those before it."""
    whole = {
        "all blocks": {"blocks": "all"},
        "scratch": {"blocks": "scratch", "epochs": bench.scratch_epochs},
    }
    menu: dict[str, Changes] = {"bce": {}, **LOSSES, **SAMPLERS, **OTHERS, **whole}
    done: dict[str, Result] = {}
    for name in (row for row in ROWS if row in rows):
        if name == "probe":
            yield name, probe_result(bench)
            continue
        changes = menu.get(name)
        if changes is None:
            changes = {**best_of(done, LOSSES), **best_of(done, SAMPLERS)}
        config = replace(bench.base, **changes)
        same = [result for result in done.values() if result.config == config]
        done[name] = same[0] if same else tuned_result(bench, name, changes)
        yield name, done[name]


def row_of(bench: Bench, name: str, result: Result) -> dict[str, object]:
    """One line of the table."""
    card = score_predictions(result.predictions, bench.catalog, split="test")
    whole, tail, config = card.summaries["all"], card.summaries["tail"], result.config
    return {
        **stamp(),
        "catalogue": bench.catalog.path.parent.name,
        "train_images": len(bench.catalog.rows("train")),
        "backbone": bench.backbone,
        "row": name,
        "blocks": config.blocks if config else 0,
        "loss": config.loss if config else "",
        "sampler": config.sampler if config else "",
        "augment": config.augment if config else "",
        "mix": config.mix if config else "",
        "ema": config.ema if config else "",
        "layer_decay": config.layer_decay if config else "",
        "choose": config.choose_epoch if config else "",
        "epochs": config.epochs if config else "",
        "best_epoch": _text(result.best_epoch),
        "seed": config.seed if config else "",
        "interpolation": _text(result.factor),
        "validation": _text(result.validation),
        "validation_last_epoch": _text(result.last_validation),
        "macro_f1": _text(whole.macro_f1),
        "macro_f1_low": _text(whole.macro_f1_low),
        "macro_f1_high": _text(whole.macro_f1_high),
        "tail_macro_f1": _text(tail.macro_f1),
        "tail_macro_f1_low": _text(tail.macro_f1_low),
        "tail_macro_f1_high": _text(tail.macro_f1_high),
        "macro_ap": _text(whole.macro_ap),
        "tail_macro_ap": _text(tail.macro_ap),
        "seconds": round(result.record.seconds, 1),
        "images_s": _text(result.images_s),
        "peak_memory_mib": round(result.record.peak_memory_mib, 1),
        "device": bench.device,
        "threads": torch.get_num_threads(),
    }


def _text(value: float | None) -> object:
    return "" if value is None else round(value, 4)


def toy(folder: Path) -> tuple[Path, list[str]]:
    """A catalogue of 200 images with one probed backbone, and the arguments that name them."""
    catalogue, run, features = folder / "demo", folder / "run", folder / "features"
    where = ["--features", str(features), "--quiet"]
    steps = [
        ["demo", "--out", str(catalogue), "--n-images", "200", "--quiet"],
        ["bakeoff", str(catalogue / "catalogue.csv"), "--backbones", "demo:cnn"]
        + ["--strategies", "probe", "--out", str(run), "--replicates", "100", *where],
    ]
    for step in steps:
        if command(step):
            raise SystemExit(f"retailtag {' '.join(step)} failed.")
    arguments = ["--run", str(run), "--features", str(features), "--backbones", "demo:cnn"]
    return catalogue / "catalogue.csv", [*arguments, "--epochs", "1", "--scratch-epochs", "1"]


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """What is asked on the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("catalogue", type=Path, nargs="?")
    parser.add_argument("--run", type=Path)
    parser.add_argument("--features", type=Path, default=Path("features"))
    parser.add_argument("--backbones", default="")
    parser.add_argument("--weights", action="append", default=[], metavar="ID=PATH")
    parser.add_argument("--rows", default=",".join(ROWS), help="some of: " + ", ".join(ROWS))
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--scratch-epochs", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--augment", default="cached:4", help="of the base settings")
    parser.add_argument("--choose", default="macro-ap", help="the epoch, in the base settings")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--attributes", default="")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--dry", action="store_true")
    return parser.parse_args(arguments)


def benches(args: argparse.Namespace) -> Iterator[Bench]:
    """One for each backbone."""
    attributes = [a for a in args.attributes.split(",") if a]
    catalog = read_catalog(args.catalogue, attributes=attributes)
    weights = {w.rpartition("=")[0]: Path(w.rpartition("=")[2]) for w in args.weights}
    base = FinetuneSettings(
        epochs=args.epochs,
        batch_size=args.batch_size,
        augment=args.augment,
        seed=args.seed,
        choose_epoch=args.choose,
    )
    for backbone in args.backbones.split(","):
        yield Bench(
            catalog,
            backbone,
            weights.get(backbone),
            args.device,
            args.run,
            args.features,
            base,
            args.scratch_epochs,
            args.workers,
        )


def main() -> None:
    """Train what is missing and append the rows, one by one."""
    args = parse()
    with tempfile.TemporaryDirectory() as folder:
        if args.quick:
            catalogue, arguments = toy(Path(folder))
            args = parse([str(catalogue), *arguments, "--rows", args.rows, "--dry"])
        if args.catalogue is None or args.run is None or not args.backbones:
            raise SystemExit("Give CATALOGUE, --run and --backbones, or --quick.")
        for bench in benches(args):
            for name, result in results(bench, tuple(args.rows.split(","))):
                row = row_of(bench, name, result)
                print(*(f"{k}={v}" for k, v in row.items() if v != ""), flush=True)
                if not args.dry:
                    append("finetune.csv", [row])


if __name__ == "__main__":
    main()
