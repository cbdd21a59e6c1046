"""Extraction on a Ray cluster whose actors, nodes and driver are killed, against one process.

    python benchmarks/ray_faults.py [--images 2000] [--kills 3] [--nodes 2] [--faults NAMES] [--dry]

Two nodes are started as processes of this machine. `retailtag extract --ray` runs on them while
processes are killed with SIGKILL, each time that another share of the blocks lies on the disk:

- ``actor``: every process that embeds at that moment, as the kernel does where memory runs out;
- ``driver``: the command itself, which is given again;
- ``node``: one node with all its processes; another one joins.

``tar``: nothing is killed, but a tar in the middle of the catalogue is damaged. The store that is
left is compared with that of one process, byte for byte: blocks that are `lost`, or were stored
`twice`, and images that are `listed` as unreadable. The exit code is 1 if anything differs. Appends
to ``results/ray_faults.csv``.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import os
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from record import append, stamp

from retailtag.demo.drawing import write_demo_catalogue

IMAGES_PER_BLOCK = 32
IMAGES_PER_TAR = 500
BACKBONE = "demo:cnn"
FAULTS = ("actor", "driver", "node", "tar")
# Smaller blocks than the program's, so that a catalogue that is drawn in a minute has many.
PROGRAM = f"""
import sys
from retailtag.extraction import extract
extract.IMAGES_PER_BLOCK = {IMAGES_PER_BLOCK}
from retailtag.cli.main import run
sys.exit(run(sys.argv[1:]))
"""


def segments(features: Path) -> dict[str, bytes]:
    """Bytes of every segment by name."""
    return {path.name: path.read_bytes() for path in features.glob("*/shard-*.h5")}


def draw(folder: Path, n_images: int) -> list[str]:
    """Words that name a catalogue in tar files, the middle one damaged in one member."""
    written = write_demo_catalogue(folder / "drawn", n_images=n_images, workers=1).catalogue
    with written.open(newline="", encoding="utf-8") as file:
        paths = [row["path"] for row in csv.DictReader(file)]
    tars = []
    for number, start in enumerate(range(0, n_images, IMAGES_PER_TAR)):
        tars.append(folder / f"{number}.tar")
        with tarfile.open(tars[-1], "w") as archive:
            for path in paths[start : start + IMAGES_PER_TAR]:
                archive.add(written.parent / path, path)
    return [str(written), *(f"--images={place}" for place in tars)]


def damage(words: list[str], folder: Path) -> list[str]:
    """The same catalogue with zeros over half of a member of the tar in the middle."""
    tars = [i for i, word in enumerate(words) if word.startswith("--images=")]
    middle = tars[len(tars) // 2]
    place = Path(words[middle].partition("=")[2])
    with tarfile.open(place) as archive:
        members = archive.getmembers()
    member = members[len(members) // 2]
    data = bytearray(place.read_bytes())
    start = member.offset_data
    data[start : start + member.size // 2] = bytes(member.size // 2)
    damaged = folder / "damaged.tar"
    damaged.write_bytes(data)
    return [*words[:middle], f"--images={damaged}", *words[middle + 1 :]]


@dataclass
class Nodes:
    """A Ray cluster of node processes on this machine, and what is killed of it."""

    n: int
    cluster: object = None
    workers: list[object] = field(default_factory=list)

    def __enter__(self) -> Nodes:
        from ray.cluster_utils import Cluster

        # The head holds no CPU: it only keeps the records, and no block runs on it.
        self.cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
        self.workers = [self.cluster.add_node(num_cpus=1) for _ in range(self.n)]
        return self

    def __exit__(self, *error: object) -> None:
        self.cluster.shutdown()

    @property
    def address(self) -> str:
        """HOST:PORT of the head."""
        return self.cluster.address

    def kill_actors(self) -> int:
        """Kill every process that embeds; how many there were."""
        killed = 0
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if "MapWorker" in " ".join(process.cmdline()):
                    process.kill()
                    killed += 1
        return killed

    def replace_node(self) -> int:
        """Kill a node with its processes, and let another one join."""
        node = self.workers.pop(0)
        self.cluster.remove_node(node, allow_graceful=False)
        self.workers.append(self.cluster.add_node(num_cpus=1))
        return 1


def start(words: list[str], features: Path, *ray: str) -> subprocess.Popen[str]:
    """The program as a process of its own."""
    command = [sys.executable, "-c", PROGRAM, "extract", *words, f"--backbones={BACKBONE}"]
    command += [f"--features={features}", "--workers=1", "--device=cpu"]
    # One process would measure which engine is fastest; nodes do not.
    command += ["--engine=eager", "--json", *ray]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> dict[str, object]:
    """What a run that must end well prints."""
    out, err = process.communicate()
    try:
        return json.loads(out)["stores"][0]
    except (ValueError, KeyError):
        sys.exit(f"exit code {process.returncode}: {out[:1000]}{err[-2000:]}")


def disturbed(
    fault: str, nodes: Nodes, words: list[str], features: Path, n_blocks: int, n_kills: int
) -> tuple[int, dict[str, object]]:
    """Extract while processes are killed; how many were, and what the last run prints."""
    n_killed = 0
    ray = f"--ray={nodes.address}"
    process = start(words, features, ray)
    for i in range(n_kills if fault != "tar" else 0):
        due = n_blocks * (i + 1) // (n_kills + 1)
        while process.poll() is None and len(segments(features)) < due:
            time.sleep(0.05)
        if process.poll() is not None:
            break
        if fault == "driver":
            os.kill(process.pid, signal.SIGKILL)
            process.communicate()
            n_killed += 1
            process = start(words, features, ray)
        else:
            n_killed += nodes.kill_actors() if fault == "actor" else nodes.replace_node()
    return n_killed, finish(process)


def compare(whole: dict[str, bytes], found: dict[str, bytes]) -> dict[str, int]:
    """Blocks of one process that are missing or differ, and blocks that it did not write."""
    lost = sum(found.get(name) != data for name, data in whole.items())
    return {"lost": lost, "twice": len(found.keys() - whole.keys())}


def main() -> None:
    """Try, print and record."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=2000, help="images of the catalogue")
    parser.add_argument("--kills", type=int, default=3, help="times that each fault happens")
    parser.add_argument("--nodes", type=int, default=2, help="nodes of one CPU")
    parser.add_argument("--faults", default=",".join(FAULTS), help="which of them")
    parser.add_argument("--dry", action="store_true", help="print only; record nothing")
    args = parser.parse_args()
    rows = []
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    with tempfile.TemporaryDirectory() as name, Nodes(args.nodes) as nodes:
        folder = Path(name)
        sound = draw(folder, args.images)
        undisturbed: dict[bool, dict[str, object]] = {}  # by whether a tar is damaged
        for fault in args.faults.split(","):
            is_tar = fault == "tar"
            words = damage(sound, folder) if is_tar else sound
            place = folder / f"alone-{is_tar}"
            if is_tar not in undisturbed:
                undisturbed[is_tar] = finish(start(words, place))
            alone, whole = undisturbed[is_tar], segments(place)
            killed, told = disturbed(fault, nodes, words, folder / fault, len(whole), args.kills)
            differs = compare(whole, segments(folder / fault))
            differs["lost"] += told["absent"] != alone["absent"]
            row = {"fault": fault, "nodes": args.nodes, "images": args.images}
            row |= {"blocks": len(whole), "killed": killed, "listed": told["n_absent"]} | differs
            print(*(f"{key} {value}" for key, value in row.items()), sep="; ", flush=True)
            rows.append(row)
    if not args.dry:
        facts = stamp()
        append("ray_faults.csv", [facts | row for row in rows])
    sys.exit(any(row["lost"] or row["twice"] for row in rows))


if __name__ == "__main__":
    main()
