"""What other tools make of the same images, weights and split, and what they cost.

    python benchmarks/peers.py --catalogue CATALOGUE --weights WEIGHTS --envs FOLDER --out FOLDER
        [--images 4000 --test 1000] [--only name,...] [--minutes 60] [--dry]

WEIGHTS is the safetensors file (or its folder) of a MobileNetV2 in timm's names, padded as
TensorFlow does and normalised by mean and deviation 0.5. All peers read the same folder, which is
written first: the drawn photographs and a ``catalogue.csv`` (whole products, the split of
CATALOGUE, tags with `--least` training images or more). Nothing is downloaded but the packages of
fastai and lightly-train, into virtual environments under `--envs`.

A peer is one script or two in ``benchmarks/peer_scripts``: what a user of the tool would write. It
runs as programs of its own, one peer after another, with at most `--minutes` each; what it printed
last is noted if it fails or is stopped. Its probabilities and thresholds for the test images are
scored by `retailtag.scoring`, like retailtag's own. Seconds, processor seconds and peak memory are
those of its programs with their children; the embeddings that three peers fit on are computed
once and count for each. Lines are those of its scripts that hold code.

Appends to ``results/peers.csv`` and prints the rows as a table. `--table` prints the recorded
rows of the last catalogue and runs nothing.
"""

from __future__ import annotations

import argparse
import csv
import importlib.metadata
import math
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peer_catalogue import write_part
from peer_process import Cost, UnavailableError, environment, last_line, lines_of, run
from record import RESULTS, append, stamp

from retailtag.catalog.catalog import Catalog
from retailtag.catalog.readers import read_catalog
from retailtag.errors import RetailtagError
from retailtag.files import make_folder, slug
from retailtag.predictions import Predictions
from retailtag.runs.foreign import Declared, foreign_predictions
from retailtag.scoring.foreign import is_foreign
from retailtag.scoring.score import score_predictions
from retailtag.scoring.scorecard import ScoreCard

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = Path(__file__).with_name("peer_scripts")
TABLE = "peers.csv"
SCORES = "scores.npz"
# Macro-F1 in the population with its interval; macro_f1 is that of these images.
ESTIMATE = ("macro_f1_population", "macro_f1_low", "macro_f1_high")
SIZE = ("catalogue", "images", "test_images", "tags", "tail_tags")
# No peer reaches for a hub or reports its use.
VARIABLES = {
    "HF_HUB_OFFLINE": "1",
    "LIGHTLY_TRAIN_EVENTS_DISABLED": "1",
    "PYTHONPATH": str(ROOT),
    "RETAILTAG_FEATURES": "features",  # in the folder of the run
}


@dataclass(frozen=True)
class Peer:
    """A tool: its scripts, what must be installed, or why it is not run."""

    name: str
    package: str  # whose version is recorded
    scripts: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()  # of the last script, after the catalogue and the weights
    requirements: tuple[str, ...] = ()  # installed in an environment of its own
    refused: str = ""


LIGHTLY = {
    "package": "lightly-train",
    "scripts": ("lightly_classifier.py",),
    "requirements": ("lightly-train==0.18.0",),
}
PEERS = (
    Peer("retailtag probe", "retailtag", ("retailtag_probe.py",)),
    Peer("retailtag fine-tune", "retailtag", ("retailtag_finetune.py",)),
    Peer("scikit-learn, 0.5", "scikit-learn", ("embed.py", "sklearn_half.py")),
    Peer("scikit-learn, tuned thresholds", "scikit-learn", ("embed.py", "sklearn_tuned.py")),
    Peer("joint L-BFGS, sweep of C, 0.5", "torch", ("embed.py", "joint_lbfgs.py")),
    Peer("plain PyTorch, Adam, 0.5", "torch", ("plain_torch.py",)),
    Peer("fastai", "fastai", ("fastai_learner.py",), requirements=("fastai==2.8.12",)),
    Peer("lightly-train, frozen", arguments=("frozen",), **LIGHTLY),
    Peer("lightly-train, whole", arguments=("whole",), **LIGHTLY),
    Peer(
        "AutoGluon-MultiModal",
        "autogluon.multimodal",
        refused="version 1.6.3 has no problem type for several tags per image; see fastai",
    ),
)


@dataclass(frozen=True)
class Bench:
    """What all peers share."""

    catalogue: Path  # of the part that was drawn
    weights: Path
    envs: Path
    out: Path
    limit_s: float
    scripts: Path = SCRIPTS

    def step(self, script: str, folder: Path, python: Path, arguments: Sequence[str]) -> Cost:
        """Run one script in `folder`; its output is ``log.txt`` there."""
        make_folder(folder)
        command = [python, self.scripts / script, self.catalogue, self.weights, *arguments]
        return run(list(map(str, command)), folder, folder / "log.txt", self.limit_s, VARIABLES)


def measure(bench: Bench, peer: Peer, catalog: Catalog, shared: dict[str, Cost]) -> dict[str, Any]:
    """Row of one peer: how it ended, its scores and its costs.

    `shared` holds the costs of scripts that other peers ran before and left their results of.
    """
    row = {"peer": peer.name, "version": "", "status": "skipped", **figures(None), "note": ""}
    row |= {"seconds": "", "cpu_seconds": "", "peak_mib": "", "lines": ""}
    if peer.refused:
        return row | {"note": peer.refused}
    row["lines"] = lines_of([bench.scripts / script for script in peer.scripts])
    try:
        python = Path(sys.executable)
        if peer.requirements:
            python = environment(bench.envs / peer.package, peer.requirements)
    except UnavailableError as error:
        return row | {"note": f"cannot be installed: {error}"}
    row["version"] = version_of(peer.package, python)
    folder = bench.out / slug(peer.name)
    costs = []
    for script in peer.scripts:
        is_last = script == peer.scripts[-1]
        where = folder if is_last else bench.out / Path(script).stem
        cost = shared.get(script) or bench.step(
            script, where, python, peer.arguments if is_last else ()
        )
        costs.append(cost)
        if cost.code != 0:
            break
        if not is_last:
            shared[script] = cost
    row |= {
        "seconds": round(sum(cost.seconds for cost in costs), 1),
        "cpu_seconds": round(sum(cost.cpu_seconds for cost in costs), 1),
        "peak_mib": round(max(cost.peak_mib for cost in costs)),
    }
    return row | ended(costs[-1], where, bench.limit_s, catalog)


def ended(cost: Cost, folder: Path, limit_s: float, catalog: Catalog) -> dict[str, Any]:
    """Status, scores and note of a peer whose last program cost this."""
    said = last_line((folder / "log.txt").read_text(encoding="utf-8", errors="replace"))
    if cost.code is None:
        return {"status": "stopped", "note": f"after {limit_s / 60:g} minutes at: {said}"}
    if cost.code:
        return {"status": "failed", "note": said}
    if not (folder / SCORES).exists():
        return {"status": "failed", "note": f"it wrote no {SCORES}; last: {said}"}
    try:
        return {"status": "done", **figures(scored(folder / SCORES, catalog))}
    except RetailtagError as error:
        return {"status": "failed", "note": last_line(str(error))}


def scored(path: Path, catalog: Catalog) -> ScoreCard:
    """Scorecard of a peer's file on the test split."""
    if is_foreign(path):
        declared = Declared(scores="probabilities")
        predictions = foreign_predictions(path, catalog, declared, "test")
    else:
        predictions = Predictions.load(path)
    return score_predictions(predictions, catalog)


def figures(card: ScoreCard | None) -> dict[str, Any]:
    """Columns of scores; empty without a scorecard."""
    found: dict[str, Any] = {}
    for scope, prefix in (("all", ""), ("tail", "tail_")):
        for name in ESTIMATE + ("macro_f1", "macro_ap"):
            value = getattr(card.summaries[scope], name) if card else math.nan
            found[prefix + name] = "" if math.isnan(value) else round(value, 4)
    return {**found, "micro_f1": round(card.micro_f1, 4) if card else ""}


def version_of(package: str, python: Path) -> str:
    """Version of a package in the environment of `python`; empty if it has none."""
    if python == Path(sys.executable):
        return importlib.metadata.version(package)
    code = f"import importlib.metadata as m; print(m.version({package!r}))"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
    return done.stdout.strip()


def recorded(path: Path) -> list[dict[str, str]]:
    """The rows of the last catalogue that was measured; of each peer the latest."""
    if not path.exists():
        raise SystemExit(f"{path} does not exist; run the peers first.")
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    same = [row for row in rows if all(row[name] == rows[-1][name] for name in SIZE)]
    return list({row["peer"]: row for row in same}.values())


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as a table; scores times 100. Intervals are of macro-F1 in the population."""
    head = (
        "| peer | macro-F1 (95 %) | tail macro-F1 (95 %) | on these images | its tail | macro-AP "
        "| micro-F1 | s | CPU s | peak MiB | lines |"
    )
    lines = [head, "|" + "---|" * (head.count("|") - 1)]
    for row in rows:
        scores = [_interval(row, prefix) for prefix in ("", "tail_")]
        scores += [
            _times_100(row[n]) for n in ("macro_f1", "tail_macro_f1", "macro_ap", "micro_f1")
        ]
        if row["status"] != "done":
            note = str(row["note"]).replace("|", "/")  # which would end the cell
            scores[0] = f"{row['status']}: {note}"
        costs = [_whole(row[name]) for name in ("seconds", "cpu_seconds", "peak_mib", "lines")]
        lines.append("| " + " | ".join([str(row["peer"]), *scores, *costs]) + " |")
    return "\n".join(lines)


def _interval(row: Mapping[str, Any], prefix: str) -> str:
    estimate, low, high = (_times_100(row[prefix + name]) for name in ESTIMATE)
    return f"{estimate} ({low} to {high})" if estimate else ""


def _times_100(value: object) -> str:
    return "" if value == "" else f"{100 * float(str(value)):.1f}"


def _whole(value: object) -> str:
    return "" if value == "" else f"{float(str(value)):,.0f}"


def weights_file(path: Path) -> Path:
    """The safetensors file that `path` is, or the only one in the folder that it is."""
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    if len(files) != 1 or not files[0].is_file():
        raise SystemExit(f"{path} is neither a safetensors file nor a folder with one.")
    return files[0].resolve()


def chosen(only: str | None) -> list[Peer]:
    """The peers whose names contain one of the words of ``--only``; all without it."""
    if only is None:
        return list(PEERS)
    words = [word.strip().lower() for word in only.split(",")]
    for word in words:
        if not word or not any(word in peer.name.lower() for peer in PEERS):
            names = "; ".join(peer.name for peer in PEERS)
            raise SystemExit(f"--only {word} is part of no peer's name; they are: {names}.")
    return [peer for peer in PEERS if any(word in peer.name.lower() for word in words)]


def outside(folder: Path) -> Path:
    """The folder, resolved; environments and runs must not lie in the repository."""
    folder = folder.resolve()
    if folder.is_relative_to(ROOT):
        raise SystemExit(f"{folder} lies in the repository; name a folder outside of it.")
    return folder


def compare(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Write the common catalogue, run the peers one by one, record each row as it is there."""
    peers = chosen(args.only)
    weights = weights_file(args.weights)
    out, envs = outside(args.out), outside(args.envs)
    if out.exists() and any(out.iterdir()):  # what is left of another run would be reused
        raise SystemExit(f"{out} is not empty; name a new folder for --out.")
    whole = read_catalog(args.catalogue)
    part = write_part(whole, out / "catalogue", args.images, args.test, args.least)
    catalog = read_catalog(part)
    bench = Bench(part, weights, envs, out, 60 * args.minutes)
    counts = [len(catalog.rows("train")), len(catalog.rows("test")), len(catalog.table.tags)]
    n_tail = int((catalog.table.group == "tail").sum())
    name = args.name or whole.path.parent.name
    size = dict(zip(SIZE, [name, *counts, n_tail], strict=True))
    shared: dict[str, Cost] = {}
    rows = []
    for peer in peers:
        row = {**stamp(), **size, **measure(bench, peer, catalog, shared)}
        rows.append(row)
        print(f"{peer.name}: {row['status']} {row['note']}", file=sys.stderr, flush=True)
        if not args.dry:
            append(args.table_file, [row])
    return rows


def main() -> None:
    """Measure, record and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--catalogue", type=Path, help="with a test split")
    parser.add_argument("--weights", type=Path, help="MobileNetV2, safetensors")
    parser.add_argument("--envs", type=Path, help="folder of the virtual environments")
    parser.add_argument("--out", type=Path, help="folder of the common catalogue and the runs")
    parser.add_argument("--images", type=int, help="training images to draw; default: all")
    parser.add_argument("--test", type=int, help="test images to draw; default: all")
    parser.add_argument("--least", type=int, default=5, help="training images that a tag needs")
    parser.add_argument("--only", help="peers whose names contain one of these words")
    parser.add_argument("--minutes", type=float, default=60, help="limit of each program")
    parser.add_argument("--name", help="of the catalogue; default: that of its folder")
    parser.add_argument("--table", action="store_true", help="print the recorded rows")
    parser.add_argument("--dry", action="store_true", help="record nothing")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that a peer is stopped with us
    args.table_file = RESULTS / TABLE
    rows: Sequence[Mapping[str, Any]]
    if args.table:
        rows = recorded(args.table_file)
    elif None in (args.catalogue, args.weights, args.envs, args.out):
        parser.error("give --catalogue, --weights, --envs and --out, or --table")
    else:
        try:
            rows = compare(args)
        except RetailtagError as error:
            raise SystemExit(str(error)) from error
    print(markdown(rows))


if __name__ == "__main__":
    main()
