"""Which defaults does the evidence support? One setting changed at a time, the test split unopened.

    python benchmarks/defaults.py --catalogue shop.csv --backbones ID [ID ...] \
        [--weights ID=PATH ...] [--images 4000] [--seeds 0 1 2] [--out FOLDER]

Only training images of the catalogue are read: of them, or of ``--images`` of them (whole
products), a quarter is held out, stratified over tags and by products, anew for each seed.
Probes and fine-tunes are fitted to the rest with the product's own commands and scored on that
quarter. The rows of a backbone are

* ``heads=logistic``, and ``heads=all``: what cross-fit takes of logistic, ridge and knn;
* ``heads=all, tail kept``: the same, but logistic regression where the head that cross-fit took has
  a lower cross-fit tail macro-F1 (no fit of its own);
* ``heads=logistic thresholds=RULE``, ``heads=all thresholds=RULE``: the same fits with one
  threshold rule, without the cap of the default, tuned on the scores that they kept;
* ``finetune``: the last four blocks from the logistic probe, five epochs at the default rates,
  without augmentation; then with one setting changed: augmentation, ``refit``, epochs, learning
  rates, what chooses the epoch; and ``finetune thresholds=RULE``, tuned again as for probes, on
  the validation set.

Each row is appended to the table as it is finished: macro-F1, tail macro-F1, macro-AP, micro-F1 and
seconds. A row that the table has is not computed again. At the end the means over catalogues,
backbones and seeds of the differences from the row that a default would replace are printed, with
their standard errors. ``--tiny`` draws a toy catalogue, and uses ``demo:cnn`` for one epoch.
"""

from __future__ import annotations

import argparse
import csv
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from peer_catalogue import draw
from record import RESULTS, append, stamp

import retailtag as rt
from retailtag.catalog.readers import write_catalogue
from retailtag.errors import RetailtagError
from retailtag.files import read_json, slug

Row = dict[str, Any]
Options = Mapping[str, Any]

HELD_OUT = 0.25  # of the training images
REPLICATES = 100  # of the bootstrap, whose intervals are not used here
LOGISTIC, ALL, KEPT, BASE = "heads=logistic", "heads=all", "heads=all, tail kept", "finetune"
RULES = ("global", "group", "shrunk", "bagged", "per-tag")  # of thresholds
PROBES: dict[str, Options] = {
    LOGISTIC: {"heads": "logistic"},
    ALL: {"heads": "logistic,ridge,knn"},
}
# Base and rule of the rows whose thresholds are tuned again
TUNED = {
    f"{base} thresholds={rule}": (base, rule) for base in (LOGISTIC, ALL, BASE) for rule in RULES
}
COMMON: Options = {"augment": "none"}
FINETUNES: dict[str, Options] = {
    BASE: {},
    "augment=light": {"augment": "light"},
    "augment=cached:4": {"augment": "cached:4"},
    "refit": {"refit": True},
    **{f"epochs={n}": {"epochs": n} for n in (2, 10, 20)},
    **{f"lr={lr:g}": {"lr": lr} for lr in (3e-5, 1e-4, 1e-3)},
    **{f"head_lr={lr:g}": {"head_lr": lr} for lr in (3e-5, 1e-4, 3e-4)},
    "choose_epoch=macro-ap": {"choose_epoch": "macro-ap"},
}
SETTINGS = (*PROBES, KEPT, *FINETUNES, *TUNED)
KEY = ("catalogue", "images", "backbone", "seed", "setting")


@dataclass(frozen=True)
class Bench:
    """What the rows of one catalogue, seed and backbone share."""

    catalogue: Path  # the inner split
    name: str  # of the catalogue that it was taken from
    images: Path  # folder that its paths are relative to
    n_images: int
    backbone: str
    seed: int
    out: Path
    table: Path
    weights: tuple[str, ...]
    epochs: int | None  # of every fine-tune, for a toy; None: as the row says

    def options(self) -> dict[str, Any]:
        """What every command is given."""
        return {
            "backbone": self.backbone,
            "images": [str(self.images)],
            "features": self.out / "features",
            "weights": self.weights,
        }

    def folder(self, setting: str) -> Path:
        """Where a run of this backbone and seed goes."""
        return self.out / "runs" / slug(f"{self.backbone} {self.seed}") / slug(setting)

    def extract(self) -> None:
        """Compute the embeddings that are missing."""
        options = self.options()
        rt.extract(self.catalogue, options.pop("backbone"), **options)

    def probe(self, setting: str) -> tuple[Any, Row]:
        """A probe, and what its row says of it."""
        outcome = rt.probe(
            self.catalogue,
            **self.options(),
            **PROBES[setting],
            out=self.folder(setting),
            seed=self.seed,
        )
        probe = outcome.run.probe
        tails = {name: row.get("tail_macro_f") for name, row in probe.facts["heads"].items()}
        gain = (tails[probe.head] or 0.0) - (tails["logistic"] or 0.0)
        return outcome, {"head": probe.head, "tail_cross_fit_gain": round(gain, 4)}

    def finetune(self, setting: str) -> tuple[Any, Row]:
        """A fine-tune from the logistic probe, and what its row says of it."""
        changes = {**COMMON, **FINETUNES[setting]}
        if self.epochs is not None:
            changes["epochs"] = self.epochs
        outcome = rt.finetune(
            self.catalogue,
            **self.options(),
            **changes,
            probe=self.folder(LOGISTIC),
            out=self.folder(setting),
            seed=self.seed,
        )
        return outcome, {"best_epoch": outcome.runs[0].best_epoch}

    def tuned(self, setting: str) -> tuple[Any, Row]:
        """A fitted model with thresholds by another rule."""
        base, rule = TUNED[setting]
        model, out = self.folder(base), self.folder(setting)
        if base == BASE and read_json(model / "checkpoint.json")["facts"]["is_probe"]:
            model = self.folder(LOGISTIC)
        shutil.rmtree(out, ignore_errors=True)
        images = [str(self.images)]
        made = rt.tune(model, thresholds=rule, catalog=self.catalogue, images=images, out=out)
        return made, {}

    def row(self, setting: str) -> Row:
        """Fit what a setting asks for, and score it on the held-out images."""
        start = time.perf_counter()
        if setting in TUNED:
            outcome, facts = self.tuned(setting)
            seconds = time.perf_counter() - start
        else:
            outcome, facts = (self.probe if setting in PROBES else self.finetune)(setting)
            seconds = (outcome.run if setting in PROBES else outcome.runs[0]).record.seconds
        scored = rt.score(
            outcome,
            catalog=self.catalogue,
            images=[str(self.images)],
            replicates=REPLICATES,
            seed=self.seed,
        )
        card = scored.scorecards[0]
        whole, tail = card.summaries["all"], card.summaries["tail"]
        return {
            **stamp(),
            **self.key(setting),
            "head": "",
            "tail_cross_fit_gain": "",
            "best_epoch": "",
            **facts,
            "macro_f1": _text(whole.macro_f1),
            "tail_macro_f1": _text(tail.macro_f1),
            "macro_ap": _text(whole.macro_ap),
            "tail_macro_ap": _text(tail.macro_ap),
            "micro_f1": _text(card.micro_f1),
            "seconds": round(seconds, 1),
        }

    def key(self, setting: str) -> Row:
        """What tells a row from all others."""
        values = (self.name, self.n_images, self.backbone, self.seed, setting)
        return dict(zip(KEY, values, strict=True))


def _text(value: float | None) -> object:
    return "" if value is None else round(value, 4)


def with_tail_kept(done: Mapping[str, Row]) -> Row:
    """The row of the head that cross-fit took, or of logistic regression if that costs the tail.

    Examples
    --------
    >>> rows = {ALL: {"tail_cross_fit_gain": "-0.01", "macro_f1": 3, "seconds": 9},
    ...         LOGISTIC: {"macro_f1": 2, "seconds": 1}}
    >>> with_tail_kept(rows)["macro_f1"], with_tail_kept(rows)["seconds"]
    (2, 9)
    """
    taken = done[ALL]
    source = done[LOGISTIC] if float(taken["tail_cross_fit_gain"]) < 0 else taken
    return {**source, "seconds": taken["seconds"], "setting": KEPT}


def rows_of(table: Path) -> list[Row]:
    """Rows of a table; none if there is none."""
    if not table.exists():
        return []
    with table.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def measure(bench: Bench, settings: Sequence[str]) -> None:
    """Compute the rows that the table lacks, each appended when it is there."""
    bases = {TUNED[name][0] for name in settings if name in TUNED}
    wanted = [name for name in SETTINGS if name in {*settings, *bases, LOGISTIC}]
    if KEPT in wanted and ALL not in wanted:
        wanted.insert(wanted.index(KEPT), ALL)
    done = {
        row["setting"]: row
        for row in rows_of(bench.table)
        if all(row[name] == str(value) for name, value in bench.key(row["setting"]).items())
    }
    for setting in wanted:
        if setting in done and not (setting == LOGISTIC and _lacks_start(bench, wanted, done)):
            continue
        row = with_tail_kept(done) if setting == KEPT else bench.row(setting)
        if setting not in done:
            append(bench.table, [row])
        done[setting] = row
        shown = list(row)[list(row).index(KEY[0]) :]  # not the date, revision and machine
        print(*(f"{name}={row[name]}" for name in shown if row[name] != ""), flush=True)


def _lacks_start(bench: Bench, wanted: Sequence[str], done: Mapping[str, Row]) -> bool:
    """Whether a fine-tune that is to come has no probe to start from, in a fresh folder."""
    to_come = any(name in FINETUNES and name not in done for name in wanted)
    return to_come and not (bench.folder(LOGISTIC) / "probe.json").exists()


# The inner split


def inner_split(catalogue: Path, n_images: int | None, seed: int, out: Path) -> tuple[Path, int]:
    """Write a split of the training images alone, and return its path and number of images."""
    whole, part = out / "whole.csv", out / f"train-{seed}.csv"
    catalog = rt.read_catalog(catalogue)
    drawn = {str(catalog.image_ids[row]) for row in draw(catalog, "train", n_images)}
    write_catalogue(catalog, whole)
    rows = [row for row in rows_of(whole) if row["image_id"] in drawn]
    whole.unlink()  # it names the test images
    path = out / f"inner-{seed}.csv"
    _write(part, rows)
    rt.split(part, test=HELD_OUT, seed=seed, images=[str(_root(catalogue))], out=path, force=True)
    return path, len(rows)


def _root(catalogue: Path) -> Path:
    """Folder that the paths of a catalogue's images are relative to."""
    return catalogue if catalogue.is_dir() else catalogue.parent


def _write(path: Path, rows: Sequence[Row]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [name for name in rows[0] if name != "split"],
                                extrasaction="ignore", lineterminator="\n")  # fmt: skip
        writer.writeheader()
        writer.writerows(rows)


# What the rows say together


def summary(rows: Sequence[Row]) -> Iterator[str]:
    """One line per setting: mean difference from what it would replace, with standard error."""
    by_key = {tuple(row[name] for name in KEY): row for row in rows}
    shown = ("macro_f1", "tail_macro_f1", "macro_ap", "micro_f1", "seconds")
    yield f"{'setting':24} {'instead of':16} n  " + "  ".join(f"{name:>15}" for name in shown)
    for setting in SETTINGS[1:]:  # the first one is what others are compared with
        base = LOGISTIC if setting in (*PROBES, KEPT, BASE) else BASE
        base = TUNED[setting][0] if setting in TUNED else base
        pairs = [
            (row, by_key[*key[:-1], base])
            for key, row in by_key.items()
            if key[-1] == setting != base and (*key[:-1], base) in by_key
        ]
        if pairs:
            cells = (_difference(pairs, name) for name in shown)
            yield f"{setting:24} {base:16} {len(pairs)}  " + "  ".join(f"{c:>15}" for c in cells)


def _difference(pairs: Sequence[tuple[Row, Row]], name: str) -> str:
    """Mean difference in points, with its standard error of three pairs; of seconds the ratio."""
    both = [(float(a[name]), float(b[name])) for a, b in pairs if a[name] != "" != b[name]]
    if not both:
        return ""
    values = np.array(both)
    if name == "seconds":
        return f"{np.exp(np.log(np.maximum(values, 0.1)).mean(0) @ [1, -1]):.2f} times"
    points = 100 * (values[:, 0] - values[:, 1])
    error = points.std(ddof=1) / len(points) ** 0.5 if len(points) > 2 else np.nan
    return f"{points.mean():+.1f}" + ("" if np.isnan(error) else f" ({error:.1f})")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """What is asked on the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--catalogue", type=Path, nargs="+", default=[])
    parser.add_argument("--backbones", nargs="+", default=[])
    parser.add_argument("--weights", nargs="*", default=[], metavar="ID=PATH")
    parser.add_argument("--images", type=int, help="of the training images of each catalogue")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--settings", nargs="+", default=SETTINGS, choices=SETTINGS)
    parser.add_argument("--out", type=Path, default=Path("defaults"), help="features and runs")
    parser.add_argument("--table", type=Path, default=RESULTS / "defaults.csv")
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args(arguments)
    if not (args.tiny or (args.catalogue and args.backbones)):
        parser.error("give --catalogue and --backbones, or --tiny")
    return args


def benches(args: argparse.Namespace) -> Iterator[Bench]:
    """One for each catalogue, seed and backbone."""
    for catalogue in args.catalogue:
        out = args.out / slug(f"{catalogue.parent.name} {catalogue.name} {args.images or 'all'}")
        out.mkdir(parents=True, exist_ok=True)
        for seed in args.seeds:
            inner, n_images = inner_split(catalogue, args.images, seed, out)
            for backbone in args.backbones:
                weights = tuple(w for w in args.weights if w.startswith(f"{backbone}="))
                name = f"{catalogue.parent.name}/{catalogue.name}"
                bench = Bench(inner, name, _root(catalogue), n_images, backbone, seed, out,
                              args.table, weights, 1 if args.tiny else None)  # fmt: skip
                bench.extract()
                yield bench


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what is missing and print what it says."""
    args = parse(arguments)
    with tempfile.TemporaryDirectory() as temporary:
        if args.tiny:
            from retailtag.cli.main import run as command

            folder = Path(temporary)
            command(["demo", "--out", str(folder / "demo"), "--n-images", "240", "--quiet"])
            args.catalogue, args.backbones = [folder / "demo" / "catalogue.csv"], ["demo:cnn"]
            args.out, args.table = folder / "out", folder / "defaults.csv"
        args.out.mkdir(parents=True, exist_ok=True)
        # An inner split is not one whose use should be counted.
        os.environ["RETAILTAG_STATE"] = str(args.out.absolute() / "state")
        try:
            for bench in benches(args):
                measure(bench, args.settings)
        except RetailtagError as error:
            raise SystemExit(str(error)) from error
        print("\n".join(summary(rows_of(args.table))))


if __name__ == "__main__":
    main()
